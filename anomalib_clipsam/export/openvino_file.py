# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""OpenVINO files: compression, and 8 bits for the image encoders alone."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from anomalib.deploy import CompressionType
from lightning_utilities.core.imports import module_available

from anomalib_clipsam.errors.errors import UserModuleNotFoundError, UserValueError

if TYPE_CHECKING:
    from anomalib.data import AnomalibDataModule
    from openvino import Model, Node


logger = logging.getLogger(__name__)


nncf_logger = logging.getLogger("nncf")


ENCODER_BLOCKS = (".visual.transformer.", ".image_encoder.blocks.", ".image_encoder.trunk.stages.")
"""What marks the names of weights in the blocks of CLIP's and SAM's image encoders."""


def compress(model: Model, compression: CompressionType, datamodule: AnomalibDataModule | None) -> Model:
    """Compress the weights, or quantize the image encoders, which takes pictures."""
    if compression is CompressionType.INT8_PTQ:
        datamodule.prepare_data()
        return _quantize_encoders(model, datamodule)
    import nncf

    return nncf.compress_weights(model)


def _quantize_encoders(model: Model, datamodule: AnomalibDataModule) -> Model:
    """Quantize the linear layers of the two image encoders: nearly all of the work where these are ViTs.

    anomalib quantizes the whole graph, which costs SAM's mask: PPG's points and the decoder's passes depend on
    differences that 8 bits cannot resolve (figures in ``docs/deploy.md``).
    """
    import nncf

    if not any(map(_is_encoder_layer, model.get_ops())):
        msg = "INT8_PTQ quantizes the linear layers of ViTs, and these image encoders have none. Choose INT8 or FP16."
        raise UserValueError(msg)
    datamodule.setup("fit")
    datamodule.eval_batch_size = 1  # NNCF counts batches, and its statistics of larger ones are less exact
    calibration = nncf.Dataset(datamodule.val_dataloader(), lambda batch: batch["image"])
    others = [node.get_friendly_name() for node in model.get_ops() if not _is_encoder_layer(node)]
    scope = nncf.IgnoredScope(names=others, validate=False)  # NNCF's graph does not have all of them
    level = nncf_logger.level
    nncf_logger.setLevel(logging.WARNING)  # it would list their names, thousands of lines
    try:
        return nncf.quantize(model, calibration, model_type=nncf.ModelType.TRANSFORMER, ignored_scope=scope)
    finally:
        nncf_logger.setLevel(level)


def check_installed(*modules: str) -> None:
    """Raise unless these packages are installed; the message has the line that installs them."""
    missing = [module for module in modules if not module_available(module)]
    if missing:
        msg = f"The export needs {' and '.join(missing)}. Run: pip install {' '.join(missing)}"
        raise UserModuleNotFoundError(msg)


def check_compression(compression: CompressionType | None, datamodule: AnomalibDataModule | None) -> None:
    """Raise if OpenVINO's files cannot be written in this way, before minutes are spent on the graph."""
    if compression is CompressionType.INT8_ACQ:
        msg = "INT8_ACQ computes the whole graph in 8 bits, which costs SAM's mask. Choose INT8_PTQ, which spares it."
        raise UserValueError(msg)
    if compression is CompressionType.INT8_PTQ and datamodule is None:
        msg = "INT8_PTQ is calibrated on pictures. Give a data module, on the command line with `--data`."
        raise UserValueError(msg)
    check_installed("openvino")
    if compression not in (None, CompressionType.FP16):
        check_installed("nncf")


def _is_encoder_layer(node: Node) -> bool:
    """Report whether a node of OpenVINO's is a linear layer in a block of CLIP's or SAM's image encoder."""
    if node.get_type_name() != "MatMul":
        return False
    source = node.input_value(1).get_node()
    while source.get_type_name() in ("Convert", "Transpose"):
        source = source.input_value(0).get_node()
    return source.get_type_name() == "Constant" and any(part in source.get_friendly_name() for part in ENCODER_BLOCKS)


def convert(path: Path, compression: CompressionType | None) -> Model:
    """Read an ONNX file into OpenVINO, its weights in 8 bits if that is asked for."""
    import openvino

    model = openvino.convert_model(path)
    return compress(model, compression, None) if compression is CompressionType.INT8 else model


def write_openvino(model: Model, path: Path, metadata: dict[str, str], compression: CompressionType | None) -> None:
    """Write OpenVINO's two files, with metadata, and say how to load them."""
    import openvino as ov

    for key, value in metadata.items():
        model.set_rt_info(value, ["model_info", key])
    ov.save_model(model, path, compress_to_fp16=compression is CompressionType.FP16)
    logger.info(
        "Load %s with INFERENCE_PRECISION_HINT 'f32'. Left to itself, OpenVINO computes in bf16 or fp16 where the "
        "device has them, and points and masks may differ from those of `predict`.",
        path,
    )
