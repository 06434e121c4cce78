# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""ONNX files: how torch's exporter is called, and what is added to what it writes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from onnx import ModelProto


OPSET = 18
"""ONNX operators: the set that torch's exporter writes by itself."""

OPTIMIZE = False
"""Whether torch's exporter simplifies the graph: that takes as long as all else, and runtimes do it too."""

ONE_FILE_BYTES = 2**31 - 2**20
"""Largest model in one ONNX file: protobuf's limit of 2 GiB, less room for what is added. A larger one keeps its
weights in a second file beside it."""


def onnx_arguments() -> dict[str, Any]:
    """Get arguments of ``torch.onnx.export`` for graphs that start with a resize."""
    from anomalib_clipsam.export.onnx_resize import resize

    table = {torch.ops.aten._upsample_bicubic2d_aa.default: resize}  # noqa: SLF001  # that is its name
    return {"opset_version": OPSET, "optimize": OPTIMIZE, "custom_translation_table": table}


def finish_onnx(path: Path, metadata: dict[str, str], one_file: bool = True) -> None:
    """Write metadata into an ONNX file, and the weights too if one file can hold them."""
    import onnx

    data = path.with_name(f"{path.name}.data")
    model = onnx.load(path, load_external_data=False)
    onnx.helper.set_model_props(model, metadata)
    _name_types(model)
    merge = one_file and data.exists() and path.stat().st_size + data.stat().st_size < ONE_FILE_BYTES
    if merge:
        onnx.load_external_data_for_model(model, str(path.parent))
    onnx.save(model, path)
    if merge:
        data.unlink()


def _name_types(model: ModelProto) -> None:
    """Turn casts to the type of another tensor into casts to that type.

    ONNX Runtime cannot fold the former into constants, and warns about each when the file is loaded.
    """
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    for node in model.graph.node:
        if node.op_type == "CastLike" and types.get(node.input[1]):
            node.op_type = "Cast"
            node.attribute.append(onnx.helper.make_attribute("to", types[node.input.pop()]))
