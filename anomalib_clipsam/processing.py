# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""anomalib's pre- and post-processor, fitted to a model that sees large images and answers with smaller maps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from anomalib.data import InferenceBatch
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from torchvision.transforms.v2 import InterpolationMode, Resize
from torchvision.transforms.v2.functional import resize

from anomalib_clipsam.pictures import check_images

if TYPE_CHECKING:
    from anomalib.data import Batch
    from lightning import LightningModule, Trainer


class ClipSamPreProcessor(PreProcessor):
    """Resize images to SAM's resolution and ground-truth masks to the size of the maps.

    SAM sees the image at its own resolution; maps, masks and metrics are smaller, because each pixel metric at 1024 px
    costs half a minute and gigabytes per 100 images. Images are squeezed to a square, as by every model of anomalib:
    anomalib passes the resize on to the data set, so that pictures of several sizes can share a batch.

    Args:
        image_size (int): Side of the square image that the model takes, in pixels.
        map_size (int): Side of maps and masks, in pixels.
    """

    def __init__(self, image_size: int, map_size: int) -> None:
        transform = Resize((image_size, image_size), interpolation=InterpolationMode.BICUBIC, antialias=True)
        super().__init__(transform)
        self.map_size = map_size

    def _resize_masks(self, batch: Batch) -> None:
        if batch.gt_mask is not None:
            mask = batch.gt_mask.unsqueeze(1)  # (B, 1, S, S)
            size = [self.map_size, self.map_size]
            batch.gt_mask = resize(mask, size, interpolation=InterpolationMode.NEAREST_EXACT).squeeze(1)

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Resize images and masks of a validation batch."""
        super().on_validation_batch_start(trainer, pl_module, batch, batch_idx)
        self._resize_masks(batch)

    def on_test_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Resize images and masks of a test batch."""
        super().on_test_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)
        self._resize_masks(batch)

    def on_predict_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Resize images and masks of a batch to predict."""
        super().on_predict_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)
        self._resize_masks(batch)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Resize images as in the Engine's passes.

        Args:
            batch (torch.Tensor): Images ``(B, 3, height, width)`` in [0, 1], of any size.

        Returns:
            torch.Tensor: Images ``(B, 3, S, S)``, what the model takes.

        Raises:
            TypeError: If the images are no tensor of floats.
            ValueError: If they have another shape, or a value is NaN or infinite.
        """
        check_images(batch)
        return self.transform(batch)

    def checkpoint_config(self) -> dict[str, Any]:
        """Get plain-data configuration to persist in a checkpoint."""
        return {**super().checkpoint_config(), "map_size": self.map_size}

    def load_checkpoint_config(self, config: dict[str, Any]) -> None:
        """Restore what :meth:`checkpoint_config` gave."""
        super().load_checkpoint_config(config)
        self.map_size = config.get("map_size", self.map_size)


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
