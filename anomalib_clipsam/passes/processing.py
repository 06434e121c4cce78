# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""anomalib's pre- and post-processor, fitted to a model whose scores and maps are probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from anomalib.data import InferenceBatch
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from torchvision.transforms.v2 import InterpolationMode, Resize

from anomalib_clipsam.torch_model import check_images

if TYPE_CHECKING:
    from anomalib.data import Batch
    from lightning import LightningModule, Trainer


class ClipSamPreProcessor(PreProcessor):
    """Resize images to SAM's resolution.

    Images are squeezed to a square, as by every model of anomalib: anomalib passes the resize on to the data set, so
    that pictures of several sizes can share a batch.

    Args:
        image_size (int): Side of the square image that the model takes, in pixels.
    """

    def __init__(self, image_size: int) -> None:
        super().__init__(Resize((image_size, image_size), interpolation=InterpolationMode.BICUBIC, antialias=True))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Resize images as in the Engine's passes.

        Args:
            batch (torch.Tensor): Images ``(B, 3, height, width)`` in [0, 1], of any size.

        Returns:
            torch.Tensor: Images ``(B, 3, S, S)``, what the model takes.

        Raises:
            TypeError: If the images are not a float tensor.
            ValueError: If the shape is wrong, or a value is NaN or infinite.
        """
        check_images(batch)
        return self.transform(batch)


class ClipSamPostProcessor(PostProcessor):
    """anomalib's post-processor for scores and maps that are probabilities already.

    Without a validation pass its thresholds are 0.5 and its range is 0 to 1, so that an unlabelled folder gets labels
    and masks; a validation pass replaces them. SAM's own mask stays the predicted mask.

    Args:
        **kwargs: Arguments of :class:`anomalib.post_processing.PostProcessor`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("image", "pixel"):
            getattr(self, f"_{name}_threshold").fill_(0.5)
            getattr(self, f"{name}_min").fill_(0.0)
            getattr(self, f"{name}_max").fill_(1.0)
        self.calibrated = False
        self._labels: set[bool] = set()
        self._given: tuple[float, float] | None = None

    @property
    def _checkpoint_config_keys(self) -> tuple[str, ...]:
        return *super()._checkpoint_config_keys, "calibrated"

    def use_thresholds(self, image: float, pixel: float) -> None:
        """Use thresholds that good parts, or the bulk of a batch, say, unless labels have said others.

        Args:
            image (float): Image score above which a picture is defective.
            pixel (float): Value of the map above which a pixel is.
        """
        if not self.calibrated:
            self._image_threshold.fill_(image)
            self._pixel_threshold.fill_(pixel)
            self._given = (image, pixel)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Batch, *args: Any, **kwargs: Any
    ) -> None:
        """Calibrate on a batch, and note which labels it has."""
        super().on_validation_batch_end(trainer, pl_module, outputs, *args, **kwargs)
        if outputs.gt_label is not None:
            self._labels.update(map(bool, outputs.gt_label.flatten().tolist()))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the calibration. One label alone says nothing of a threshold: what references said stays."""
        super().on_validation_epoch_end(trainer, pl_module)
        self.calibrated, self._labels = len(self._labels) == 2, set()
        if not self.calibrated and self._given is not None:
            self.use_thresholds(*self._given)

    def forward(self, predictions: InferenceBatch) -> InferenceBatch:
        """Normalise and threshold, and keep the mask that the model gave.

        Args:
            predictions (InferenceBatch): What :class:`anomalib_clipsam.torch_model.ClipSamModel` gives.

        Returns:
            InferenceBatch: Scores and maps ``(B,)`` and ``(B, H, W)`` in [0, 1], labels and masks.
        """
        processed = super().forward(predictions)
        if predictions.pred_mask is None:
            return processed
        return processed._replace(pred_mask=predictions.pred_mask)
