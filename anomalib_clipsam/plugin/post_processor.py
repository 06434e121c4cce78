# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""anomalib's pre- and post-processor, fitted to a model whose scores and maps are probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from anomalib.data import InferenceBatch
from anomalib.post_processing import PostProcessor
from PIL import Image

from anomalib_clipsam.errors.errors import UserValueError
from anomalib_clipsam.method.regions import measure_parts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anomalib.data import Batch
    from lightning import LightningModule, Trainer


class ClipSamPostProcessor(PostProcessor):
    """anomalib's post-processor for scores and maps that are probabilities already, and for SAM's mask.

    Without a validation pass its thresholds are 0.5 and its range is 0 to 1, so that an unlabelled folder gets labels
    and masks; a validation pass replaces them, except those set by hand. Scores and maps are normalised as by anomalib:
    0.5 is the threshold.

    Of the mask that the model gives, a connected part stays where the mean of the final map in it passes the pixel
    threshold, so calibration, ``pixel_sensitivity`` and a threshold by hand move masks too. A picture that is called
    good has an empty mask. [ours]

    Args:
        image_threshold (float | None): Image score above which a picture is defective, in [0, 1], before normalisation.
            No pass changes it. Defaults to ``None``: calibrated, else 0.5.
        pixel_threshold (float | None): The same for the final map's pixels. Defaults to ``None``.
        min_area (int): Smallest connected part of a mask that stays, in pixels of the file. Defaults to ``0``, any.
        keep_good_masks (bool): Whether a picture that is called good keeps its mask. Defaults to ``False``.
        **kwargs: Arguments of :class:`anomalib.post_processing.PostProcessor`. They win over those of a checkpoint.

    Raises:
        ValueError: If a threshold is outside [0, 1], or ``min_area`` below 0.
    """

    def __init__(
        self,
        image_threshold: float | None = None,
        pixel_threshold: float | None = None,
        min_area: int = 0,
        keep_good_masks: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.by_hand = {"image": image_threshold, "pixel": pixel_threshold}
        for name, value in self.by_hand.items():
            if value is not None and not 0 <= value <= 1:
                msg = f"{name}_threshold is {value}, but scores and maps lie between 0 and 1. Choose a number there."
                raise UserValueError(msg)
        if min_area < 0:
            msg = f"min_area is {min_area}, but it is a number of pixels. Choose 0, for any area, or more."
            raise UserValueError(msg)
        self.min_area = min_area
        self.keep_good_masks = keep_good_masks
        self.calibrated = False
        self._chosen = frozenset(kwargs)
        self._labels: set[bool] = set()
        self._given: tuple[float, float] | None = None
        for name in ("image", "pixel"):
            self._fix(name, 0.5)
        self._fix_by_hand()
        self.register_load_state_dict_post_hook(_fix_after_loading)

    @property
    def _checkpoint_config_keys(self) -> tuple[str, ...]:
        return *super()._checkpoint_config_keys, "calibrated"

    def load_checkpoint_config(self, config: dict[str, Any]) -> None:
        """Take over what a checkpoint says, except what was chosen for this post-processor.

        Args:
            config (dict[str, Any]): What :meth:`checkpoint_config` gave.
        """
        super().load_checkpoint_config({key: value for key, value in config.items() if key not in self._chosen})

    def _fix(self, name: str, threshold: float) -> None:
        """Fix a threshold of probabilities: ``name`` is ``"image"`` or ``"pixel"``."""
        getattr(self, f"_{name}_threshold").fill_(threshold)
        getattr(self, f"{name}_min").fill_(0.0)
        getattr(self, f"{name}_max").fill_(1.0)

    def _fix_by_hand(self) -> None:
        for name, value in self.by_hand.items():
            if value is not None:
                self._fix(name, value)

    @property
    def needs_calibration(self) -> bool:
        """Whether a validation pass would change a threshold: not where both are set by hand."""
        return None in self.by_hand.values()

    @property
    def threshold_is_open(self) -> bool:
        """Whether neither labels nor the user have said from which score on a picture is defective."""
        by_user = self.by_hand["image"] is not None or "image_sensitivity" in self._chosen
        return self.enable_thresholding and not self.calibrated and not by_user

    def use_thresholds(self, image: float, pixel: float) -> None:
        """Use thresholds that good parts, or the bulk of a batch, say, unless labels or the user have said others.

        Args:
            image (float): Image score above which a picture is defective.
            pixel (float): Value of the map above which a pixel is.
        """
        if not self.calibrated:
            self._image_threshold.fill_(image)
            self._pixel_threshold.fill_(pixel)
            self._given = (image, pixel)
            self._fix_by_hand()

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
        self._fix_by_hand()

    def post_process_batch(self, batch: Batch) -> None:
        """Normalise and threshold a batch, and decide which parts of its masks stay.

        Args:
            batch (Batch): Batch with predictions; ``min_area`` is counted in pixels of its files, or of its images
                where they have no files.
        """
        anomaly_map, mask = batch.anomaly_map, batch.pred_mask
        super().post_process_batch(batch)
        areas = None
        if self.min_area:
            paths = batch.image_path or [None] * len(batch.image)
            pixels = [_pixels(path, batch.image.shape[-2:]) for path in paths]
            areas = torch.tensor(pixels, device=batch.image.device).view(-1, 1, 1)
        batch.pred_mask = self._filter_regions(mask, batch.pred_mask, anomaly_map, batch.pred_label, areas)

    def forward(self, predictions: InferenceBatch, image_size: Sequence[int] | None = None) -> InferenceBatch:
        """Normalise and threshold predictions, and decide which parts of their masks stay.

        Args:
            predictions (InferenceBatch): What :class:`anomalib_clipsam.torch_model.ClipSamModel` gives; a
                ``pred_label`` that is given stays.
            image_size (Sequence[int] | None): Height and width of the pictures before any resize, for ``min_area``.
                Defaults to ``None``, the map's.

        Returns:
            InferenceBatch: Scores and maps ``(B,)`` and ``(B, H, W)`` in [0, 1], labels and masks.
        """
        processed = super().forward(predictions)
        label = processed.pred_label if predictions.pred_label is None else predictions.pred_label
        mask = self._filter_regions(
            predictions.pred_mask,
            processed.pred_mask,
            predictions.anomaly_map,
            label,
            None if image_size is None else image_size[0] * image_size[1],
        )
        return processed._replace(pred_label=label, pred_mask=mask)

    def _filter_regions(
        self,
        given: torch.Tensor | None,
        over_threshold: torch.Tensor | None,
        anomaly_map: torch.Tensor | None,
        label: torch.Tensor | None,
        pixels: torch.Tensor | int | None,
    ) -> torch.Tensor | None:
        """Decide which parts of masks stay.

        Args:
            given (torch.Tensor | None): The model's own masks, ``(B, H, W)`` bool.
            over_threshold (torch.Tensor | None): Where the normalised map passes the threshold, ``(B, H, W)`` bool.
            anomaly_map (torch.Tensor | None): The map before it was normalised, ``(B, H, W)``.
            label (torch.Tensor | None): Verdicts, ``(B,)`` bool; ``None`` without thresholds.
            pixels (torch.Tensor | int | None): Pixels of each file, ``(B, 1, 1)``, or of all of them.

        Returns:
            torch.Tensor | None: Masks, ``(B, H, W)`` bool.
        """
        mask = over_threshold if given is None else given
        if mask is None:
            return None
        if label is not None and not self.keep_good_masks:
            mask = mask & label.view(-1, 1, 1)
        by_mean = given is not None and anomaly_map is not None and self.enable_thresholding
        if not (by_mean or self.min_area) or not (torch.compiler.is_compiling() or mask.any()):
            return mask
        mean, area = measure_parts(mask, mask.float() if anomaly_map is None else anomaly_map)
        if by_mean:
            if self.enable_normalization:
                mean = self._normalize(mean, self.pixel_min, self.pixel_max, self.pixel_threshold)
            mask = mask & self._apply_threshold(mean, self.normalized_pixel_threshold)
        if self.min_area:
            height, width = mask.shape[-2:]
            mask = mask & (area * (height * width if pixels is None else pixels) >= self.min_area * height * width)
        return mask


def _fix_after_loading(post_processor: ClipSamPostProcessor, _incompatible_keys: Any) -> None:
    """Set thresholds by hand again after a checkpoint's were read. A function, so that exports can pickle it."""
    post_processor._fix_by_hand()  # noqa: SLF001  # of this module


def _pixels(path: str | None, size: Sequence[int]) -> int:
    """Count the pixels of a file; of an image of this height and width where there is none."""
    try:
        with Image.open(path) as image:
            return image.width * image.height
    except (OSError, AttributeError):  # no file, or no path
        return size[0] * size[1]
