# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Export: CLIP, PPG and CPS in one file, or CLIP's part and SAM's part in two.

anomalib writes the files. This module adds what the method needs besides: a graph that starts with the pre-processor's
resize and so takes pictures of any size, metadata, and 8 bits for the image encoders alone.

Letters: B images, H W map.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol

import torch
from anomalib.data import InferenceBatch
from anomalib.deploy import CompressionType, ExportType
from anomalib.models.components.base.export_mixin import ExportMixin
from anomalib.models.components.base.export_mixin.utils import create_export_root
from lightning_utilities.core.imports import module_available
from torch import nn

from anomalib_clipsam import __version__
from anomalib_clipsam.references import BatchJudge

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anomalib.data import AnomalibDataModule
    from onnx import ModelProto
    from openvino import Model, Node
    from torchmetrics import Metric

    from anomalib_clipsam.torch_model import ClipSamModel

logger = logging.getLogger(__name__)
nncf_logger = logging.getLogger("nncf")

OPSET = 18
"""ONNX operators: the set that torch's exporter writes by itself."""
OPTIMIZE = False
"""Whether torch's exporter simplifies the graph: that takes as long as all else, and runtimes do it too."""
ONE_FILE_BYTES = 2**31 - 2**20
"""Largest model in one ONNX file: protobuf's limit of 2 GiB, less room for what is added. A larger one keeps its
weights in a second file beside it."""
ENCODER_BLOCKS = (".visual.transformer.", ".image_encoder.blocks.", ".image_encoder.trunk.stages.")
"""What marks the names of weights in the blocks of CLIP's and SAM's image encoders."""
INPUTS = ("input", "clip_map")
"""Names of the refiner's inputs; other graphs have the first alone."""
EXAMPLE = (2, 3, 32, 32)
"""Shape of the images that are traced. With one image, torch would fix the batch size."""


class Pipeline(Protocol):
    """What is exported: :class:`anomalib_clipsam.lightning_model.ClipSam`, which has these functions as methods.

    Class name and text embeddings are those at the time of the export: from the argument, the checkpoint or the last
    pass.
    """

    model: ClipSamModel
    pre_processor: nn.Module | None
    post_processor: nn.Module | None
    device: torch.device
    names_by_folder: bool
    in_tiles: bool

    def learn_good_parts(self) -> None:
        """Look at the good parts that pictures are compared with, where that was not done yet."""

    def without_files(self) -> nn.Module:
        """Copy the model without what names files of the user's."""

    def post_process(self, predictions: InferenceBatch, image_size: Sequence[int]) -> InferenceBatch:
        """Decide about predictions for images that had this height and width."""

    def frozen_weights(self) -> dict[str, dict[str, str]]:
        """Name the frozen weights that the model runs on."""


def export_metadata(pipeline: Pipeline) -> dict[str, str]:
    """Describe an exported model.

    Args:
        pipeline (Pipeline): The model.

    Returns:
        dict[str, str]: ``"anomalib_clipsam"`` (version) and ``"class_name"``; as JSON, ``"weights"`` (names and
        SHA-256), ``"thresholds"`` (they are in the graph too) and ``"preprocessing"``.
    """
    pre_processor, post_processor = pipeline.pre_processor, pipeline.post_processor
    names = ("image_threshold", "pixel_threshold", "image_min", "image_max", "pixel_min", "pixel_max")
    thresholds = {name: getattr(post_processor, name).item() for name in names if post_processor}
    preprocessing = {
        "input": "RGB, float32 in [0, 1], batch x 3 x height x width",
        "in_the_graph": str(pre_processor.transform) if pre_processor else None,
        "map_size": pipeline.model.map_size,
    }
    return {
        "anomalib_clipsam": __version__,
        "class_name": pipeline.model.class_name,
        "weights": json.dumps(pipeline.frozen_weights()),
        "thresholds": json.dumps(thresholds),
        "preprocessing": json.dumps(preprocessing),
    }


def to_torch(pipeline: Pipeline, export_root: Path | str, model_file_name: str = "model") -> Path:
    """Export for anomalib's ``TorchInferencer``.

    Args:
        pipeline (Pipeline): The model.
        export_root (Path | str): Folder in which ``weights/torch`` is made.
        model_file_name (str): Name of the file, without its suffix. Defaults to ``"model"``.

    Returns:
        Path: The file: a dictionary with ``"model"`` and ``"metadata"``, see :func:`export_metadata`. It holds nothing
        of a user's pictures, nor where the files are that the model was made from.
    """
    _check_name(pipeline)
    pipeline.learn_good_parts()
    path = create_export_root(export_root, ExportType.TORCH) / f"{model_file_name}.pt"
    torch.save({"model": pipeline.without_files(), "metadata": export_metadata(pipeline)}, path)
    return path


def to_onnx(
    pipeline: Pipeline,
    export_root: Path | str,
    model_file_name: str = "model",
    input_size: tuple[int, int] | None = None,
    **kwargs: Any,
) -> Path:
    """Export to ONNX.

    Input ``input``: ``(B, 3, height, width)``, RGB in [0, 1], of any size. Outputs: ``pred_score`` and
    ``pred_label`` ``(B,)``; ``anomaly_map`` and ``pred_mask`` ``(B, H, W)``.

    Args:
        pipeline (Pipeline): The model.
        export_root (Path | str): Folder in which ``weights/onnx`` is made.
        model_file_name (str): Name of the file, without its suffix. Defaults to ``"model"``.
        input_size (tuple[int, int] | None): The only size of images to accept, height and width. Defaults to
            ``None``, any size.
        **kwargs: Arguments of ``torch.onnx.export``.

    Returns:
        Path: The file. A model of 2 GiB or more has its weights beside it, in a file of the same name and
        ``.data``.

    Raises:
        ModuleNotFoundError: If a package is missing; the message has the line that installs it.
        ValueError: If no input size is given, and the pre-processor does not resize images to one size.
    """
    _check_installed("onnx", "onnxscript")
    _check_graph(pipeline, input_size)
    logger.info("The exported model asks about '%s'. Give `class_name` to have another.", pipeline.model.class_name)
    kwargs = {**_export_arguments(), **kwargs}
    path = ExportMixin.to_onnx(pipeline, export_root, model_file_name, input_size, **kwargs)
    _finish_onnx(path, export_metadata(pipeline), one_file="external_data" not in kwargs)
    return path


def to_openvino(
    pipeline: Pipeline,
    export_root: Path | str,
    model_file_name: str = "model",
    input_size: tuple[int, int] | None = None,
    compression_type: CompressionType | None = None,
    datamodule: AnomalibDataModule | None = None,
    metric: Metric | None = None,
    task: str | None = None,
    max_drop: float = 0.01,
    ov_kwargs: dict[str, Any] | None = None,
    onnx_kwargs: dict[str, Any] | None = None,
) -> Path:
    """Export to OpenVINO. Inputs and outputs are those of :func:`to_onnx`.

    Where a CPU has bf16, OpenVINO computes in it unless told otherwise: compile the model with
    ``INFERENCE_PRECISION_HINT`` set to ``"f32"``. anomalib's ``OpenVINOInferencer`` takes that as ``config``.

    Args:
        pipeline (Pipeline): The model.
        export_root (Path | str): Folder in which ``weights/openvino`` is made.
        model_file_name (str): Name of the files, without their suffix. Defaults to ``"model"``.
        input_size (tuple[int, int] | None): The only size of images to accept, height and width. Defaults to
            ``None``, any size.
        compression_type (CompressionType | None): ``FP16`` or ``INT8`` for the weights; ``INT8_PTQ`` for the
            image encoders' computation too. Defaults to ``None``, FP32.
        datamodule (AnomalibDataModule | None): Pictures for ``INT8_PTQ``. Defaults to ``None``.
        metric (Metric | None): Not used; anomalib's, for ``INT8_ACQ``. Defaults to ``None``.
        task (str | None): Not used, likewise. Defaults to ``None``.
        max_drop (float): Not used, likewise. Defaults to ``0.01``.
        ov_kwargs (dict[str, Any] | None): Arguments of ``openvino.convert_model``. Defaults to ``None``.
        onnx_kwargs (dict[str, Any] | None): Arguments of ``torch.onnx.export``. Defaults to ``None``.

    Returns:
        Path: The ``.xml`` file; the weights are beside it in a ``.bin`` file.

    Raises:
        ModuleNotFoundError: If a package is missing; the message has the line that installs it.
        ValueError: If the compression is ``INT8_ACQ``, or needs a data module and none is given; or as
            :func:`to_onnx` says.
    """
    del metric, task, max_drop
    compression = None if compression_type is None else CompressionType(compression_type)
    _check_compression(compression, datamodule)
    import openvino

    with TemporaryDirectory() as folder:
        onnx_path = to_onnx(pipeline, folder, model_file_name, input_size, **(onnx_kwargs or {}))
        model = openvino.convert_model(onnx_path, **(ov_kwargs or {}))
        if compression not in (None, CompressionType.FP16):
            model = _compress(model, compression, datamodule)
        path = create_export_root(export_root, ExportType.OPENVINO) / f"{model_file_name}.xml"
        _write_openvino(model, path, export_metadata(pipeline), compression)
    return path


def to_parts(
    pipeline: Pipeline,
    export_root: Path | str,
    export_type: ExportType | str = ExportType.ONNX,
    model_file_name: str = "model",
    compression_type: CompressionType | None = None,
) -> tuple[Path, Path]:
    """Export CLIP's part and SAM's part to two files, so that SAM need not run on every image.

    The **localizer** takes ``input`` as :func:`to_onnx` says, and gives ``pred_score`` and ``pred_label``, which
    SAM has no part in; ``anomaly_map``, CLIP's alone, normalised; ``clip_map``, the same before that, for the
    refiner; and ``suspicious`` ``(B,)`` bool, whether the image has a region to ask SAM about. Where it has none,
    this is the whole model's answer, with an empty mask.

    The **refiner** takes ``input``, the same images, and ``clip_map``, and gives ``anomaly_map`` and ``pred_mask``. It
    does not know the verdict: where ``pred_label`` is False, the whole model's mask is empty.

    Args:
        pipeline (Pipeline): The model.
        export_root (Path | str): Folder in which ``weights/onnx`` or ``weights/openvino`` is made.
        export_type (ExportType | str): ``"onnx"`` or ``"openvino"``. Defaults to ``"onnx"``.
        model_file_name (str): What the names of the files start with. Defaults to ``"model"``.
        compression_type (CompressionType | None): For OpenVINO: ``FP16`` or ``INT8``. Defaults to ``None``, FP32.

    Returns:
        tuple[Path, Path]: The files ``<name>_localizer`` and ``<name>_refiner``.

    Raises:
        ModuleNotFoundError: If a package is missing; the message has the line that installs it.
        ValueError: If the model has no SAM, or the parts cannot be exported in that way.
    """
    export_type = ExportType(export_type)
    compression = None if compression_type is None else CompressionType(compression_type)
    if pipeline.model.sam is None:
        msg = "With refine=False there is no SAM to split off. Export the model with `to_onnx` or `to_openvino`."
        raise ValueError(msg)
    allowed = {ExportType.ONNX: (None,), ExportType.OPENVINO: (None, CompressionType.FP16, CompressionType.INT8)}
    if compression not in allowed.get(export_type, ()):
        msg = "Parts are exported to ONNX in FP32, or to OpenVINO in FP32, FP16 or INT8. Choose one of these."
        raise ValueError(msg)
    if export_type is ExportType.OPENVINO:
        _check_compression(compression, None)
    _check_installed("onnx", "onnxscript")
    _check_graph(pipeline, None)
    image = torch.zeros(EXAMPLE, device=pipeline.device)
    # one name for the batch size of both inputs of the refiner
    batch, height, width = (torch.export.Dim(name) for name in ("batch_size", "height", "width"))
    shapes = ({0: batch, 2: height, 3: width}, {0: batch})
    localizer, refiner = LocalizerPart(pipeline).eval(), RefinerPart(pipeline).eval()
    with torch.no_grad():
        clip_map = localizer(image)[3]
    folder, metadata = create_export_root(export_root, export_type), export_metadata(pipeline)
    paths = []
    for part, example in ((localizer, (image,)), (refiner, (image, clip_map))):
        with TemporaryDirectory() as scratch:
            path = folder / f"{model_file_name}_{part.NAME}.onnx"
            onnx_path = path if export_type is ExportType.ONNX else Path(scratch) / path.name
            torch.onnx.export(
                part,
                example,
                str(onnx_path),
                dynamo=True,
                **_export_arguments(),
                input_names=INPUTS[: len(example)],
                output_names=part.OUTPUTS,
                dynamic_shapes=shapes[: len(example)],
            )
            _finish_onnx(onnx_path, metadata)
            if export_type is ExportType.OPENVINO:
                import openvino

                path = path.with_suffix(".xml")
                model = openvino.convert_model(onnx_path)
                if compression is CompressionType.INT8:
                    model = _compress(model, compression, None)
                _write_openvino(model, path, metadata, compression)
            paths.append(path)
    return paths[0], paths[1]


def _compress(model: Model, compression: CompressionType, datamodule: AnomalibDataModule | None) -> Model:
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
        raise ValueError(msg)
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


def _check_graph(pipeline: Pipeline, input_size: tuple[int, int] | None) -> None:
    """Raise if a graph cannot hold the model, or if nothing brings images of any size to the one it is made for."""
    if isinstance(pipeline.model.judge, BatchJudge):
        msg = "references='batch' needs all pictures at once, and a graph sees one. Export with k_shot, or with 'self'."
        raise ValueError(msg)  # noqa: TRY004  # the model was made with another argument
    if pipeline.in_tiles:
        msg = (
            "No number of tiles fits every picture, and a graph needs one. Export without `tiles`, and cut pictures "
            "as examples/tiles.py does."
        )
        raise ValueError(msg)
    _check_name(pipeline)
    pipeline.learn_good_parts()
    if input_size is not None:
        return
    images = (torch.zeros(1, 3, *size, device=pipeline.device) for size in ((32, 32), (40, 48)))
    sizes = {(pipeline.pre_processor(image) if pipeline.pre_processor else image).shape for image in images}
    if len(sizes) > 1:
        msg = (
            "The pre-processor does not resize images to one size, but a graph needs one. Use the default "
            "pre-processor, or fix the size of the images by `input_size`, which `to_onnx` and `to_openvino` take."
        )
        raise ValueError(msg)


def _check_name(pipeline: Pipeline) -> None:
    """Raise if pictures are named by their files, which an exported model does not know."""
    if pipeline.names_by_folder:
        msg = "An exported model asks about one name, and class_name says one a folder. Give the part's own class_name."
        raise ValueError(msg)


class _Part(nn.Module):
    """A part of the pipeline.

    Args:
        pipeline (Pipeline): The whole.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__()
        self.pipeline = pipeline

    def _pre_process(self, image: torch.Tensor) -> torch.Tensor:
        pre_processor = self.pipeline.pre_processor
        return (pre_processor(image) if pre_processor else image).clamp(0, 1)


class LocalizerPart(_Part):
    """What comes before SAM. See :func:`to_parts`."""

    NAME = "localizer"
    OUTPUTS = ("pred_score", "pred_label", "anomaly_map", "clip_map", "suspicious")

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Localize.

        Args:
            image (torch.Tensor): ``(B, 3, height, width)``, RGB in [0, 1].

        Returns:
            tuple[torch.Tensor, ...]: What :attr:`OUTPUTS` names.
        """
        model = self.pipeline.model
        clip_map, score = model.localize(self._pre_process(image))
        predictions = InferenceBatch(pred_score=score, anomaly_map=clip_map)
        processed = self.pipeline.post_process(predictions, image.shape[-2:])
        suspicious = model.ppg.extreme_region(clip_map).flatten(1).any(dim=1)
        # The map is two outputs, and the exporter wants a tensor for each: hence the copy.
        return processed.pred_score, processed.pred_label, processed.anomaly_map, clip_map.clone(), suspicious


class RefinerPart(_Part):
    """SAM's part: PPG, CPS and fusion. See :func:`to_parts`."""

    NAME = "refiner"
    OUTPUTS = ("anomaly_map", "pred_mask")

    def forward(self, image: torch.Tensor, clip_map: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Refine.

        Args:
            image (torch.Tensor): ``(B, 3, height, width)``, RGB in [0, 1].
            clip_map (torch.Tensor): S_a, ``(B, H, W)`` in [0, 1].

        Returns:
            tuple[torch.Tensor, ...]: What :attr:`OUTPUTS` names.
        """
        stages = self.pipeline.model.refine(self._pre_process(image), clip_map, clip_map.amax(dim=(-2, -1)))
        predictions = InferenceBatch(
            pred_score=stages.score,
            pred_label=torch.ones_like(stages.score, dtype=torch.bool),  # the localizer has said what is good
            anomaly_map=stages.fused_map,
            pred_mask=stages.mask,
        )
        processed = self.pipeline.post_process(predictions, image.shape[-2:])
        return processed.anomaly_map, processed.pred_mask


def _check_installed(*modules: str) -> None:
    missing = [module for module in modules if not module_available(module)]
    if missing:
        msg = f"The export needs {' and '.join(missing)}. Run: pip install {' '.join(missing)}"
        raise ModuleNotFoundError(msg)


def _check_compression(compression: CompressionType | None, datamodule: AnomalibDataModule | None) -> None:
    """Raise if OpenVINO's files cannot be written in this way, before minutes are spent on the graph."""
    if compression is CompressionType.INT8_ACQ:
        msg = "INT8_ACQ computes the whole graph in 8 bits, which costs SAM's mask. Choose INT8_PTQ, which spares it."
        raise ValueError(msg)
    if compression is CompressionType.INT8_PTQ and datamodule is None:
        msg = "INT8_PTQ is calibrated on pictures. Give a data module, on the command line with `--data`."
        raise ValueError(msg)
    _check_installed("openvino")
    if compression not in (None, CompressionType.FP16):
        _check_installed("nncf")


def _export_arguments() -> dict[str, Any]:
    """Get arguments of ``torch.onnx.export`` for graphs that start with a resize."""
    from anomalib_clipsam.export.onnx_resize import resize

    table = {torch.ops.aten._upsample_bicubic2d_aa.default: resize}  # noqa: SLF001  # that is its name
    return {"opset_version": OPSET, "optimize": OPTIMIZE, "custom_translation_table": table}


def _finish_onnx(path: Path, metadata: dict[str, str], one_file: bool = True) -> None:
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


def _is_encoder_layer(node: Node) -> bool:
    """Say whether a node of OpenVINO's is a linear layer in a block of CLIP's or SAM's image encoder."""
    if node.get_type_name() != "MatMul":
        return False
    source = node.input_value(1).get_node()
    while source.get_type_name() in ("Convert", "Transpose"):
        source = source.input_value(0).get_node()
    return source.get_type_name() == "Constant" and any(part in source.get_friendly_name() for part in ENCODER_BLOCKS)


def _write_openvino(model: Model, path: Path, metadata: dict[str, str], compression: CompressionType | None) -> None:
    import openvino as ov

    for key, value in metadata.items():
        model.set_rt_info(value, ["model_info", key])
    ov.save_model(model, path, compress_to_fp16=compression is CompressionType.FP16)
    logger.info(
        "Load %s with INFERENCE_PRECISION_HINT 'f32'. Left to itself, OpenVINO computes in bf16 or fp16 where the "
        "device has them, and points and masks may differ from those of `predict`.",
        path,
    )
