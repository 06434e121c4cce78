# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The papers' metrics from raw maps and scores: neither normalised, clamped nor put through a sigmoid.

anomalib's metrics see scores that the post-processor has clamped to [0, 1]. Its AUROC and AUPR apply a sigmoid to each
batch with a score outside that range, and each metric keeps and sorts all pixels. Here pixels are counted by levels of
the score. All pixel metrics follow from the counts, and no pixel is kept.

Letters: B images, H W map, N levels.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import cv2
import numpy as np
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score

from anomalib_clipsam.errors.errors import UserValueError

if TYPE_CHECKING:
    import torch
    from numpy.typing import ArrayLike

PIXEL_METRICS = ("pixel_AUROC", "pixel_F1Max", "pixel_AP", "pixel_AUPRO")
IMAGE_METRICS = ("image_AUROC", "image_F1Max", "image_AP")
LEVELS = 2**20
"""N, the number of levels that scores are sorted into."""


class PixelMetrics:
    """AUROC, F1-max, AP and AUPRO of all pixels, in 25 MB however many there are.

    A level is ``floor(score / step)``. The step is the smallest power of two at which the scores that came so far fit
    into N levels: at most 2 / N of their range, or float32's own precision where that is coarser. Scores of one level
    count as equal. Where the range grows, neighbouring levels are joined, which is exact: neither the order of the
    images nor their batches change a result.

    Args:
        fpr_limit (float): AUPRO counts up to this share of false positives, in (0, 1]. Defaults to ``0.3``, as in the
            papers and in anomalib.

    Raises:
        ValueError: If the limit is outside its range.

    Example:
        >>> import torch
        >>> metrics = PixelMetrics()
        >>> metrics.update(torch.tensor([[[0.1, 0.2], [0.3, 7.0]]]), torch.tensor([[[0, 0], [0, 1]]]))
        >>> metrics.compute()["pixel_AUROC"]
        1.0
    """

    def __init__(self, fpr_limit: float = 0.3) -> None:
        if not 0 < fpr_limit <= 1:
            msg = f"fpr_limit is {fpr_limit}; it must be above 0 and at most 1, such as 0.3."
            raise UserValueError(msg)
        self.fpr_limit = fpr_limit
        self.low, self.high = math.inf, -math.inf
        self.exponent, self.base = 0, 0  # step = 2**exponent; `base` is the lowest level that is counted
        self.regions = 0
        # By level, ascending: good pixels, defective pixels, and the latter each over the size of its region.
        self.counts = np.zeros((3, LEVELS))

    def update(self, maps: torch.Tensor, masks: torch.Tensor) -> None:
        """Count the pixels of a batch.

        Args:
            maps (torch.Tensor): Scores of the pixels, ``(B, H, W)``, of any range.
            masks (torch.Tensor): True masks, ``(B, H, W)`` of 0 and 1; regions are connected by 8 neighbours.

        Raises:
            ValueError: If the shapes differ, or a score is NaN or infinite.
        """
        if maps.ndim != 3 or maps.shape != masks.shape:
            msg = (
                f"The maps have the shape {tuple(maps.shape)} and the masks {tuple(masks.shape)}. Give both as "
                "(B, H, W): resize one to the other's size first."
            )
            raise UserValueError(msg)
        if not maps.isfinite().all():
            msg = "A map holds NaN or infinite scores, so its pixels have no order. Fix the model that gave it."
            raise UserValueError(msg)
        scores = maps.double().cpu().numpy().ravel()
        regions = _number_regions(masks).ravel()
        sizes = np.bincount(regions)
        self.regions += len(sizes) - 1
        self._make_room(scores.min(), scores.max())
        levels = np.floor(np.ldexp(scores, -self.exponent)).astype(np.int64) - self.base
        defective = regions > 0
        self.counts[0] += np.bincount(levels[~defective], minlength=LEVELS)
        self.counts[1] += np.bincount(levels[defective], minlength=LEVELS)
        self.counts[2] += np.bincount(levels[defective], 1 / sizes[regions[defective]], minlength=LEVELS)

    def _make_room(self, low: float, high: float) -> None:
        """Widen the range of the levels, and join them if they would become too many."""
        low, high = min(self.low, low), max(self.high, high)
        if (low, high) == (self.low, self.high):
            return
        exponent = math.frexp(max(abs(low), abs(high)))[1] - 24  # float32 has 24 bits
        while math.floor(math.ldexp(high, -exponent)) - math.floor(math.ldexp(low, -exponent)) >= LEVELS:
            exponent += 1
        base = math.floor(math.ldexp(low, -exponent))
        occupied = np.flatnonzero(self.counts[:2].any(axis=0))
        levels = ((occupied + self.base) >> (exponent - self.exponent)) - base if len(occupied) else occupied
        counts = [np.bincount(levels, count[occupied], minlength=LEVELS) for count in self.counts]
        self.counts = np.stack(counts).astype(float)  # numpy gives integers where there is nothing to count
        self.low, self.high, self.exponent, self.base = low, high, exponent, base

    def compute(self) -> dict[str, float]:
        """Read the metrics off the counts.

        Returns:
            dict[str, float]: Those of :data:`PIXEL_METRICS`, in [0, 1]; NaN unless there are good and defective pixels.
        """
        # As the threshold falls past each level that occurs: false positives, true positives, covered regions.
        falling = self.counts[:, self.counts[:2].any(axis=0)][:, ::-1].cumsum(axis=1)
        good, defective = falling[:2, -1] if falling.size else (0, 0)
        if not good or not defective:
            return dict.fromkeys(PIXEL_METRICS, math.nan)
        fp, tp, covered = np.pad(falling, ((0, 0), (1, 0)))  # nothing passes the highest threshold
        fpr, recall, overlap = fp / good, tp / defective, covered / self.regions
        inside = fpr <= self.fpr_limit
        at_limit = np.interp(self.fpr_limit, fpr, overlap)
        return {
            "pixel_AUROC": float(auc(fpr, recall)),
            "pixel_F1Max": float(np.max(2 * tp / (tp + fp + defective))),
            "pixel_AP": float(np.sum(np.diff(recall) * tp[1:] / (tp + fp)[1:])),
            "pixel_AUPRO": float(
                auc(np.append(fpr[inside], self.fpr_limit), np.append(overlap[inside], at_limit)) / self.fpr_limit
            ),
        }


def image_metrics(scores: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Measure image scores with scikit-learn.

    Args:
        scores (ArrayLike): Score of each image, ``(B,)``, of any range.
        labels (ArrayLike): ``(B,)``, 1 for a defective image, else 0.

    Returns:
        dict[str, float]: Those of :data:`IMAGE_METRICS`, in [0, 1]; NaN unless there are good and defective images.
    """
    if len(np.unique(labels)) < 2:
        return dict.fromkeys(IMAGE_METRICS, math.nan)
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
    values = (roc_auc_score(labels, scores), f1.max(), average_precision_score(labels, scores))
    return {name: float(value) for name, value in zip(IMAGE_METRICS, values, strict=True)}


def _number_regions(masks: torch.Tensor) -> np.ndarray:
    """Number the connected regions of masks ``(B, H, W)``: 0 outside, then 1, 2, ... over all of them.

    anomalib 2.7's own takes a mask that covers the whole picture for one without a region.
    """
    regions, last = np.zeros(tuple(masks.shape), np.int64), 0
    for found, mask in zip(regions, masks.cpu().numpy() != 0, strict=True):
        count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        found[mask] = labels[mask] + last
        last += count - 1
    return regions
