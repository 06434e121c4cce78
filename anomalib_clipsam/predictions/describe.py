# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""What a prediction says of an image, in pixels of its file: the one place that tables, masks and JSON come from.

Letters: H W file, h w map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from anomalib.data import ImageItem

DIGITS = 4
"""Decimals of scores: processes and batches differ in the seventh."""

BY_SCORE = "score above the threshold"
"""Why a picture is defective that is like the others."""

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels; the last two are the first column and row outside."""


@dataclass(frozen=True)
class Region:
    """A connected part of a mask.

    Args:
        box (Box): Where it is.
        area (int): Pixels.
        score (float | None): Mean of the final map in it, of which the pixel threshold is asked; ``None`` without map.
    """

    box: Box
    area: int
    score: float | None


@dataclass(frozen=True)
class Description:
    """A prediction in pixels of the image's file, or of the image as the model got it where there is no file.

    Args:
        file (str): The image's file; empty if it has none.
        score (float | None): Image score, rounded; ``None``, here and below, for what the model does not predict.
        label (str | None): ``"defective"`` or ``"good"``.
        reason (str | None): Why a picture is defective, such as ``"unlike every good part"``, or :data:`BY_SCORE`;
            empty for a good one.
        size (tuple[int, int]): Width and height.
        mask (np.ndarray | None): ``(H, W)`` of 0 and 255.
        regions (tuple[Region, ...]): Connected parts of the mask, from top to bottom.
    """

    file: str
    score: float | None
    label: str | None
    reason: str | None
    size: tuple[int, int]
    mask: np.ndarray | None
    regions: tuple[Region, ...]

    @property
    def mask_area(self) -> int | None:
        """Pixels of the mask."""
        return None if self.mask is None else sum(region.area for region in self.regions)


def describe(item: ImageItem) -> Description:
    """Describe the prediction for an image.

    Args:
        item (ImageItem): The image's file and post-processed prediction.

    Returns:
        Description: It.
    """
    width, height = _size(item)
    mask, regions = None, ()
    if item.pred_mask is not None:
        small = item.pred_mask.squeeze().cpu().numpy()  # (h, w)
        rows, columns = _nearest(height, small.shape[0]), _nearest(width, small.shape[1])
        mask = small[rows][:, columns].astype(np.uint8) * 255
        values = None if item.anomaly_map is None else item.anomaly_map.squeeze().float().cpu().numpy()
        regions = tuple(
            Region(box, int(inside.sum()), None if values is None else _mean(values, mask.shape, box, inside))
            for box, inside in parts_of(mask)
        )
    return Description(
        file="" if item.image_path is None else str(item.image_path),
        score=None if item.pred_score is None else round(float(item.pred_score), DIGITS),
        label=None if item.pred_label is None else "defective" if bool(item.pred_label) else "good",
        reason=reason_of(item),
        size=(width, height),
        mask=mask,
        regions=regions,
    )


def reason_of(item: ImageItem) -> str | None:
    """Explain why an image is defective.

    Args:
        item (ImageItem): Its post-processed prediction.

    Returns:
        str | None: Empty for a good one; ``None`` without a verdict.
    """
    if item.pred_label is None:
        return None
    return (item.explanation or BY_SCORE) if bool(item.pred_label) else ""


def count_pictures(number: int) -> str:
    """Return a number of pictures in words, such as ``"1 picture"`` or ``"1,200 pictures"``."""
    return f"{number:,} picture{'s' * (number != 1)}"


def parts_of(mask: np.ndarray) -> list[tuple[Box, np.ndarray]]:
    """Find the connected parts of a mask; pixels that touch by a corner are connected, as in anomalib.

    Args:
        mask (np.ndarray): ``(H, W)`` uint8, 0 outside.

    Returns:
        list[tuple[Box, np.ndarray]]: Of each part, from top to bottom, its box, and where in the box it is, bool.
    """
    if not mask.any():
        return []
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    parts = []
    for label in range(1, count):
        x, y, width, height = (int(value) for value in stats[label, :4])
        parts.append(((x, y, x + width, y + height), labels[y : y + height, x : x + width] == label))
    return sorted(parts, key=lambda part: (part[0][1], part[0][0], part[0][3], part[0][2], part[1].sum()))


def _nearest(length: int, source: int) -> np.ndarray:
    """Return the pixel of ``source`` pixels that each of ``length`` pixels lies in."""
    return ((np.arange(length) + 0.5) * source / length).astype(int)


def _mean(values: np.ndarray, size: tuple[int, ...], box: Box, inside: np.ndarray) -> float:
    """Return the mean of a map ``(h, w)`` in a part of a mask of this height and width."""
    rows, columns = (_nearest(length, source) for length, source in zip(size, values.shape, strict=True))
    x0, y0, x1, y1 = box
    return round(float(values[np.ix_(rows[y0:y1], columns[x0:x1])][inside].mean()), DIGITS)


def _size(item: ImageItem) -> tuple[int, int]:
    """Return width and height of the image's file, else of the image as the model got it."""
    if item.image_path is not None:
        try:
            with Image.open(item.image_path) as image:
                return image.size
        except OSError:  # gone since it was scored
            pass
    height, width = item.image.shape[-2:]
    return width, height
