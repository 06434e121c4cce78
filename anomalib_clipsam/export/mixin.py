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
from copy import deepcopy
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from anomalib.deploy import CompressionType, ExportType
from anomalib.models.components.base.export_mixin.utils import create_export_root
from torch import nn
from torch.export import Dim

from anomalib_clipsam import __version__
from anomalib_clipsam.errors.errors import UserValueError
from anomalib_clipsam.export.onnx_file import finish_onnx, onnx_arguments
from anomalib_clipsam.export.openvino_file import check_compression, check_installed, compress, convert, write_openvino
from anomalib_clipsam.export.parts import EXAMPLE, INPUTS, LocalizerPart, Part, RefinerPart

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anomalib.data import AnomalibDataModule
    from torchmetrics import Metric

    from anomalib_clipsam.torch_model import ClipSamModel

logger = logging.getLogger(__name__)


class ClipSamExport:
    """Exports of ClipSam: a base to put before :class:`anomalib.models.components.AnomalibModule`.

    Class name and text embeddings are those at the time of the export: from the argument, the checkpoint or the last
    pass.
    """

    model: ClipSamModel
    pre_processor: nn.Module | None
    post_processor: nn.Module | None
    device: torch.device
    names_by_folder: bool

    def export_metadata(self) -> dict[str, str]:
        """Describe an exported model.

        Returns:
            dict[str, str]: ``"anomalib_clipsam"`` (version) and ``"class_name"``; as JSON, ``"weights"`` (names and
            SHA-256), ``"thresholds"`` (they are in the graph too) and ``"preprocessing"``.
        """
        pre_processor, post_processor = self.pre_processor, self.post_processor
        names = ("image_threshold", "pixel_threshold", "image_min", "image_max", "pixel_min", "pixel_max")
        thresholds = {name: getattr(post_processor, name).item() for name in names if post_processor}
        preprocessing = {
            "input": "RGB, float32 in [0, 1], batch x 3 x height x width",
            "in_the_graph": str(pre_processor.transform) if pre_processor else None,
            "map_size": self.model.map_size,
        }
        return {
            "anomalib_clipsam": __version__,
            "class_name": self.model.class_name,
            "weights": json.dumps(self.frozen_weights()),
            "thresholds": json.dumps(thresholds),
            "preprocessing": json.dumps(preprocessing),
        }

    def to_torch(self, export_root: Path | str, model_file_name: str = "model") -> Path:
        """Export for anomalib's ``TorchInferencer``.

        Args:
            export_root (Path | str): Folder in which ``weights/torch`` is made.
            model_file_name (str): Name of the file, without its suffix. Defaults to ``"model"``.

        Returns:
            Path: The file: a dictionary with ``"model"`` and ``"metadata"``, see :meth:`export_metadata`. It holds
            nothing of a user's pictures, nor where the files are that the model was made from.
        """
        self._check_name()
        self.learn_good_parts()
        path = create_export_root(export_root, ExportType.TORCH) / f"{model_file_name}.pt"
        torch.save({"model": self.without_files(), "metadata": self.export_metadata()}, path)
        return path

    def without_files(self) -> nn.Module:
        """Copy the model for an export, sharing the weights: no argument or callback names a file of the user's.

        Returns:
            nn.Module: The copy.
        """
        # A deep copy, since Lightning gives callbacks a method of the model.
        exported = deepcopy(self, {id(tensor): tensor for tensor in chain(self.parameters(), self.buffers())})
        for name in ("_hparams", "_hparams_initial"):
            delattr(exported, name)
        exported.forget_files()
        return exported

    def to_onnx(
        self,
        export_root: Path | str,
        model_file_name: str = "model",
        input_size: tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> Path:
        """Export to ONNX.

        Input ``input``: ``(B, 3, height, width)``, RGB in [0, 1], of any size. Outputs: ``pred_score`` and
        ``pred_label`` ``(B,)``; ``anomaly_map`` and ``pred_mask`` ``(B, H, W)``.

        Args:
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
        check_installed("onnx", "onnxscript")
        self._check_graph(input_size)
        logger.info("The exported model asks about '%s'. Give `class_name` to have another.", self.model.class_name)
        kwargs = {**onnx_arguments(), **kwargs}
        path = super().to_onnx(export_root, model_file_name, input_size, **kwargs)
        finish_onnx(path, self.export_metadata(), one_file="external_data" not in kwargs)
        return path

    def to_openvino(
        self,
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
        """Export to OpenVINO. Inputs and outputs are those of :meth:`to_onnx`.

        Where a CPU has bf16, OpenVINO computes in it unless told otherwise: compile the model with
        ``INFERENCE_PRECISION_HINT`` set to ``"f32"``. anomalib's ``OpenVINOInferencer`` takes that as ``config``.

        Args:
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
                :meth:`to_onnx` says.
        """
        del metric, task, max_drop
        compression = None if compression_type is None else CompressionType(compression_type)
        check_compression(compression, datamodule)
        import openvino

        with TemporaryDirectory() as folder:
            onnx_path = self.to_onnx(folder, model_file_name, input_size, **(onnx_kwargs or {}))
            model = openvino.convert_model(onnx_path, **(ov_kwargs or {}))
            if compression not in (None, CompressionType.FP16):
                model = compress(model, compression, datamodule)
            path = create_export_root(export_root, ExportType.OPENVINO) / f"{model_file_name}.xml"
            write_openvino(model, path, self.export_metadata(), compression)
        return path

    def to_parts(
        self,
        export_root: Path | str,
        export_type: ExportType | str = ExportType.ONNX,
        model_file_name: str = "model",
        compression_type: CompressionType | None = None,
    ) -> tuple[Path, Path]:
        """Export CLIP's part and SAM's part to two files, so that SAM need not run on every image.

        The **localizer** takes ``input`` as :meth:`to_onnx` says, and gives ``pred_score`` and ``pred_label``, which
        SAM has no part in; ``anomaly_map``, CLIP's alone, normalised; ``clip_map``, the same before that, for the
        refiner; ``suspicious`` ``(B,)`` bool, whether the image has a region to ask SAM about; and ``pred_mask``, the
        outline by CLIP's map. Where it is not suspicious, this is the whole model's answer.

        The **refiner** takes ``input``, the same images, and ``clip_map``, and gives ``anomaly_map`` and ``pred_mask``.
        It does not know the verdict: where ``pred_label`` is False, the whole model's mask is empty.

        Args:
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
        self._check_parts(export_type, compression)
        folder, metadata = create_export_root(export_root, export_type), self.export_metadata()
        paths = []
        for part, example, shapes in self._parts():
            path = folder / f"{model_file_name}_{part.NAME}.onnx"
            with TemporaryDirectory() as scratch:
                onnx_path = path if export_type is ExportType.ONNX else Path(scratch) / path.name
                torch.onnx.export(
                    part,
                    example,
                    str(onnx_path),
                    dynamo=True,
                    **onnx_arguments(),
                    input_names=INPUTS[: len(example)],
                    output_names=part.OUTPUTS,
                    dynamic_shapes=shapes,
                )
                finish_onnx(onnx_path, metadata)
                if export_type is ExportType.OPENVINO:
                    path = path.with_suffix(".xml")
                    write_openvino(convert(onnx_path, compression), path, metadata, compression)
            paths.append(path)
        return paths[0], paths[1]

    def _check_parts(self, export_type: ExportType, compression: CompressionType | None) -> None:
        """Raise if the model has no parts, or they cannot be exported in that way."""
        if self.model.sam is None:
            msg = "With refine=False there is no SAM to split off. Export the model with `to_onnx` or `to_openvino`."
            raise UserValueError(msg)
        allowed = {ExportType.ONNX: (None,), ExportType.OPENVINO: (None, CompressionType.FP16, CompressionType.INT8)}
        if compression not in allowed.get(export_type, ()):
            msg = "Parts are exported to ONNX in FP32, or to OpenVINO in FP32, FP16 or INT8. Choose one of these."
            raise UserValueError(msg)
        if export_type is ExportType.OPENVINO:
            check_compression(compression, None)
        check_installed("onnx", "onnxscript")
        self._check_graph(None)

    def _parts(self) -> Iterator[tuple[Part, tuple[torch.Tensor, ...], tuple[dict[int, Dim], ...]]]:
        """Yield each part of the method, example inputs, and the names of their sizes."""
        image = torch.zeros(EXAMPLE, device=self.device)
        localizer, refiner = LocalizerPart(self).eval(), RefinerPart(self).eval()
        with torch.no_grad():
            clip_map = localizer(image)[3]
        # one name for the batch size of both inputs of the refiner
        batch, height, width = (Dim(name) for name in ("batch_size", "height", "width"))
        sizes = {0: batch, 2: height, 3: width}
        yield localizer, (image,), (sizes,)
        yield refiner, (image, clip_map), (sizes, {0: batch})

    def _check_graph(self, input_size: tuple[int, int] | None) -> None:
        """Raise if a graph cannot hold the model, or if nothing brings images of any size to the one it is made for."""
        if self.model.judge is not None and not self.model.judge.exportable:
            msg = (
                "references='batch' needs all pictures at once, and a graph sees one. Export with k_shot, or with "
                "'self'."
            )
            raise UserValueError(msg)
        if self.model.takes_any_size:
            msg = (
                "No number of tiles fits every picture, and a graph needs one. Export without `tiles`, and cut "
                "pictures as examples/tiles.py does."
            )
            raise UserValueError(msg)
        self._check_name()
        self.learn_good_parts()
        if input_size is not None:
            return
        images = (torch.zeros(1, 3, *size, device=self.device) for size in ((32, 32), (40, 48)))
        sizes = {(self.pre_processor(image) if self.pre_processor else image).shape for image in images}
        if len(sizes) > 1:
            msg = (
                "The pre-processor does not resize images to one size, but a graph needs one. Use the default "
                "pre-processor, or fix the size of the images by `input_size`, which `to_onnx` and `to_openvino` take."
            )
            raise UserValueError(msg)

    def _check_name(self) -> None:
        """Raise if pictures are named by their files, which an exported model does not know."""
        if self.names_by_folder:
            msg = (
                "An exported model asks about one name, and class_name gives each folder its own. Give the part's own "
                "class_name."
            )
            raise UserValueError(msg)
