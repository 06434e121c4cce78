# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Large pictures: which parts SAM is shown. [ours]

Letters: H W map.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch

from anomalib_clipsam.method.frame import Window

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_CROPS = 8
"""Most crops of a picture that SAM is asked about, the most suspicious first."""

ROOM = 2.0
"""Side of a crop, in longer sides of the region that it is cut out for."""

NEARLY_ALL = 1.5
"""SAM is shown the whole picture where a crop has a side of this part of it or more."""


@dataclass(frozen=True)
class Crop:
    """A part of the picture that SAM is asked about.

    Args:
        window (Window): The part, on the map.
        labels (tuple[int, ...]): Numbers of the regions in it.
    """

    window: Window
    labels: tuple[int, ...]


def plan_crops(
    region: torch.Tensor, anomaly_map: torch.Tensor, side: int, most: int = MAX_CROPS
) -> tuple[list[Crop], torch.Tensor]:
    """Choose what SAM is asked about: crops around the parts of the extreme region, the most suspicious first.

    Args:
        region (torch.Tensor): M_apa, ``(H, W)`` bool.
        anomaly_map (torch.Tensor): S_a, ``(H, W)``.
        side (int): Least side of a crop, in pixels of the map.
        most (int): Most crops. Defaults to :data:`MAX_CROPS`.

    Returns:
        tuple[list[Crop], torch.Tensor]: The crops, each with all parts of the region that lie in it; and the parts that
        no crop has, ``(H, W)`` bool.
    """
    count, numbered, boxes, _ = cv2.connectedComponentsWithStats(region.cpu().numpy().astype(np.uint8), connectivity=8)
    labels = torch.from_numpy(numbered).to(region.device)  # (H, W), 0 outside
    peaks = anomaly_map.new_zeros(count).scatter_reduce(0, labels.flatten().long(), anomaly_map.flatten(), "amax")
    left = (peaks[1:].argsort(descending=True) + 1).tolist()
    crops: list[Crop] = []
    while left and len(crops) < most:
        window = crop_around(boxes[left[0]], tuple(region.shape), side)
        inside = [label for label in left if label == left[0] or _holds(window, boxes[label])]
        crops.append(Crop(window, tuple(inside)))
        left = [label for label in left if label not in inside]
    return crops, torch.isin(labels, torch.tensor(left, dtype=labels.dtype, device=labels.device)) & region


def crop_around(box: Sequence[int], size: Sequence[int], side: int) -> Window:
    """Cut a square out of a map around a region; the whole map where the region is large.

    Args:
        box (Sequence[int]): Left, top, width and height of the region.
        size (Sequence[int]): H and W.
        side (int): Least side of the square.

    Returns:
        Window: The square, moved and cut to lie in the map.
    """
    left, top, width, height = (int(value) for value in box[:4])
    side = max(side, math.ceil(ROOM * max(width, height)))
    if side * NEARLY_ALL >= max(size):
        return 0, 0, size[0], size[1]
    spans = []
    for first, length, whole in ((top, height, size[0]), (left, width, size[1])):
        span = min(side, whole)
        spans.append((min(max(0, first + (length - span) // 2), whole - span), span))
    (top, height), (left, width) = spans
    return top, left, height, width


def _holds(window: Window, box: Sequence[int]) -> bool:
    top, left, height, width = window
    return left <= box[0] and top <= box[1] and box[0] + box[2] <= left + width and box[1] + box[3] <= top + height
