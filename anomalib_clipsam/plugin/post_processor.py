# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""anomalib's post-processor, fitted to a model whose scores and maps are probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from anomalib.data import InferenceBatch
from anomalib.metrics import F1AdaptiveThreshold
from anomalib.post_processing import PostProcessor
from PIL import Image
from torchmetrics.utilities.data import dim_zero_cat

from anomalib_clipsam.errors.errors import UserValueError
from anomalib_clipsam.method.regions import measure_parts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anomalib.data import Batch
    from lightning import LightningModule, Trainer


DIGITS = 4
"""Decimals of a score. Processes and batches differ in the seventh; what is decided is what is printed."""
HOTTEST = 0.9
"""Share of its highest value that the map has in the outline of a picture that is called defective, though nowhere does
the map pass the pixel threshold. [ours]"""


class ThresholdBetween(F1AdaptiveThreshold):
    """anomalib's adaptive threshold, put halfway from the lowest score that it calls defective to the next lower one.

    The threshold of the highest F1 is one of the scores, chosen as what is not below it is defective. The
    post-processor calls defective what is above it, and so not the very picture that the threshold comes from.
    """

    def compute(self) -> torch.Tensor:
        """Return the threshold.

        Returns:
            torch.Tensor: Without a dimension.
        """
        value = super().compute()
        if not (self._has_anomalous_samples() and self._has_normal_samples()):
            return value
        scores = dim_zero_cat(self.preds).to(value)
        lower = scores.masked_fill(scores >= value, -torch.inf).amax()
        return torch.where(lower.isfinite(), (lower + value) / 2, torch.nextafter(value, value - 1))


class ClipSamPostProcessor(PostProcessor):
    """anomalib's post-processor for scores and maps that are probabilities already.

    Without a validation pass its thresholds are 0.5 and its range is 0 to 1, so that an unlabelled folder gets labels
    and masks; a validation pass replaces them, except those set by hand. Scores and maps are normalised as by anomalib:
    0.5 is the threshold.

    The mask is where the final map passes the pixel threshold, in a picture that is called defective; where it passes
    nowhere, the hottest place. So a lower threshold makes every outline grow. Scores are rounded to four decimals, as
    they are printed, before they are compared, but never across 0.5. [ours]

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
        self._image_threshold_metric = ThresholdBetween(fields=["pred_score", "gt_label"], strict=False)
        self._pixel_threshold_metric = ThresholdBetween(fields=["anomaly_map", "gt_mask"], strict=False)
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
        if not self.calibrated:
            for name in ("image", "pixel"):  # a few good pictures do not say how far scores go
                self._fix(name, getattr(self, f"_{name}_threshold").item())
            if self._given is not None:
                self.use_thresholds(*self._given)
        self._fix_by_hand()

    def post_process_batch(self, batch: Batch) -> None:
        """Normalise and threshold a batch.

        Args:
            batch (Batch): Batch with predictions; ``min_area`` is counted in pixels of its files, or of its images
                where they have no files.
        """
        given, label = batch.pred_mask, batch.pred_label
        batch.pred_label = batch.pred_mask = None
        if self.enable_normalization:
            self.normalize_batch(batch)
        areas = None
        if self.min_area:
            paths = batch.image_path or [None] * len(batch.image)
            pixels = [_pixels(path, batch.image.shape[-2:]) for path in paths]
            areas = torch.tensor(pixels, device=batch.image.device).view(-1, 1, 1)
        batch.pred_score, batch.pred_label, batch.pred_mask = self._decide(
            batch.pred_score, label, batch.anomaly_map, given, areas
        )

    def forward(self, predictions: InferenceBatch, image_size: Sequence[int] | None = None) -> InferenceBatch:
        """Normalise and threshold predictions.

        Args:
            predictions (InferenceBatch): What :class:`anomalib_clipsam.torch_model.ClipSamModel` gives; a
                ``pred_label`` that is given stays.
            image_size (Sequence[int] | None): Height and width of the pictures before any resize, for ``min_area``.
                Defaults to ``None``, the map's.

        Returns:
            InferenceBatch: Scores and maps ``(B,)`` and ``(B, H, W)`` in [0, 1], labels and masks.
        """
        processed = super().forward(predictions)
        score, label, mask = self._decide(
            processed.pred_score,
            predictions.pred_label,
            processed.anomaly_map,
            predictions.pred_mask,
            None if image_size is None else image_size[0] * image_size[1],
        )
        return processed._replace(pred_score=score, pred_label=label, pred_mask=mask)

    def _decide(
        self,
        score: torch.Tensor | None,
        label: torch.Tensor | None,
        anomaly_map: torch.Tensor | None,
        given: torch.Tensor | None,
        pixels: torch.Tensor | int | None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Decide about normalised predictions.

        Args:
            score (torch.Tensor | None): Scores ``(B,)``.
            label (torch.Tensor | None): Verdicts ``(B,)`` that are known already.
            anomaly_map (torch.Tensor | None): Maps ``(B, H, W)``.
            given (torch.Tensor | None): The model's own masks ``(B, H, W)`` bool, which stay where nothing is decided.
            pixels (torch.Tensor | int | None): Pixels of each file, ``(B, 1, 1)``, or of all of them.

        Returns:
            tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]: Scores, verdicts ``(B,)`` bool, and
            masks ``(B, H, W)`` bool.
        """
        if score is not None:
            steps = _steps(score)
            if self.enable_normalization:  # 0.5 is the threshold
                half = 0.5 * 10**DIGITS
                steps = torch.where(score > 0.5, steps.clamp(min=half + 1), steps.clamp(max=half))
            score = steps / 10**DIGITS
            if label is None and self.enable_thresholding:
                label = self._apply_threshold(steps, _steps(self.normalized_image_threshold))
        mask = given
        if anomaly_map is not None and self.enable_thresholding:
            mask = self._outline(anomaly_map, label)
        if mask is not None and self.min_area and mask.dtype == torch.bool:
            height, width = mask.shape[-2:]
            _, area = measure_parts(mask, mask.float())
            mask = mask & (area * (height * width if pixels is None else pixels) >= self.min_area * height * width)
        return score, label, mask

    def _outline(self, anomaly_map: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
        """Return the masks ``(B, H, W)`` of normalised maps; the map itself without a threshold, as anomalib does."""
        mask = self._apply_threshold(anomaly_map, self.normalized_pixel_threshold)
        if label is None or mask.dtype != torch.bool:
            return mask
        peak = anomaly_map.amax(dim=(-2, -1), keepdim=True)
        defective = label.bool().view(-1, 1, 1)
        bare = defective & ~mask.flatten(1).any(dim=1).view(-1, 1, 1)
        mask = mask | (bare & (anomaly_map >= HOTTEST * peak) & (peak > 0))
        return mask if self.keep_good_masks else mask & defective


def _steps(score: torch.Tensor) -> torch.Tensor:
    """Count the steps of :data:`DIGITS` decimals in scores: whole numbers, which compare without an error."""
    return (score * 10**DIGITS).round()


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
