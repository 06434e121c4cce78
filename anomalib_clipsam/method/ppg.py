# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""PPG, Co-Feature Point Prompt Generation: from CLIP's map and SAM's features to point prompts.

1. The extremely anomalous region M_apa: S_a over a threshold. [paper; the two thresholds are ours]
2. Positive points: the highest scores inside it, spaced. [paper, in two readings: ``spacing``]
3. The ring around it: its dilation less itself. [paper]
4. Negative points: chosen inside the ring by the similarity of SAM's features to those at the positive points. [paper;
   the reference and the direction are ours, after PerSAM]

Lengths are in pixels of SAM's 1024 px canvas. They scale with the map, whose longer side spans the canvas.

Letters: B images, H W map, h w feature grid, C channels, k positive points, n negative points, K = k + n.

References:
    - Hou et al., "Enhancing Zero-Shot Anomaly Detection: CLIP-SAM Collaboration with Cascaded Prompts",
      https://arxiv.org/abs/2510.11028
    - Zhang et al., "Personalize Segment Anything Model with One Shot" (PerSAM), https://arxiv.org/abs/2305.03048
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from anomalib_clipsam.errors.errors import UserValueError
from anomalib_clipsam.method.frame import frame_to_map, pixels_to_points

CANVAS = 1024
SPACINGS = ("distance", "rank")
NEGATIVES = ("least_similar", "most_similar")
EQUAL = 1e-5
"""Scores that differ by less count as equal, and the first in reading order is picked. An upsampled coarse grid has
plateaus, half a cell wide at the borders, and every runtime rounds them differently. [ours]"""
NOWHERE = -1e4
"""Score where no point may lie, below all others. Finite: some runtimes' maximum drops negative infinity."""


@dataclass(frozen=True)
class PointPrompts:
    """Point prompts of a batch, and what they were made from.

    Args:
        coords (torch.Tensor): ``(B, K, 2)``, x then y, in pixels of SAM's input frame; zero where the label is -1.
        labels (torch.Tensor): ``(B, K)``: 1 positive, 0 negative, -1 not a point.
        ring (torch.Tensor): N_a, the ring around the extreme region, ``(B, H, W)`` bool.
        similarity (torch.Tensor): Cosine similarity of SAM's features to the positives', ``(B, H, W)`` in [-1, 1].
        peak (torch.Tensor): The highest S_a at the positives, ``(B,)``; 0 where there is none.
    """

    coords: torch.Tensor
    labels: torch.Tensor
    ring: torch.Tensor
    similarity: torch.Tensor
    peak: torch.Tensor


def pick_spaced(scores: torch.Tensor, allowed: torch.Tensor, count: int, distance: float) -> torch.Tensor:
    """Pick the highest scores, no two closer than a distance; of equal ones the first in reading order.

    Args:
        scores (torch.Tensor): ``(B, H, W)``, above :data:`NOWHERE`.
        allowed (torch.Tensor): ``(B, H, W)`` bool, where a point may lie.
        count (int): Number of points.
        distance (float): Least distance of two points, in pixels of the map.

    Returns:
        torch.Tensor: Flat indices ``(B, count)`` into H * W, best first; -1 where no further pixel is left, or a score
        that may be picked is NaN.
    """
    height, width = scores.shape[-2:]
    place = torch.arange(height * width, device=scores.device)  # (H * W,)
    ys, xs = place // width, place % width
    left = scores.masked_fill(~allowed, NOWHERE).flatten(1)  # (B, H * W)
    picked = []
    for _ in range(count):
        best = left.amax(dim=1, keepdim=True)  # (B, 1)
        index = torch.where(left >= best - EQUAL, place, height * width - 1).amin(dim=1, keepdim=True)  # (B, 1)
        squared = (ys - ys[index]) ** 2 + (xs - xs[index]) ** 2  # (B, H * W)
        left = left.masked_fill((squared < max(distance, 1e-6) ** 2) | (squared == 0), NOWHERE)
        picked.append(torch.where(best > NOWHERE, index, -1))
    return torch.cat(picked, dim=1) if picked else scores.new_zeros((scores.shape[0], 0), dtype=torch.long)


def pick_ranked(scores: torch.Tensor, allowed: torch.Tensor, count: int, interval: int) -> torch.Tensor:
    """Pick every ``interval``-th pixel of the list that the scores rank.

    Args:
        scores (torch.Tensor): ``(B, H, W)``, above :data:`NOWHERE`.
        allowed (torch.Tensor): ``(B, H, W)`` bool, where a point may lie.
        count (int): Number of points.
        interval (int): Step in the ranked list, at least 1.

    Returns:
        torch.Tensor: Flat indices ``(B, count)`` into H * W, best first; -1 where the list is too short.
    """
    ranked = scores.masked_fill(~allowed, NOWHERE).flatten(1)
    length = min(count * interval, ranked.shape[1])
    best, index = ranked.topk(length, dim=1)
    picked = torch.where(best > NOWHERE, index, -1)[:, ::interval][:, :count]
    return F.pad(picked, (0, count - picked.shape[1]), value=-1)


class PpgArguments(TypedDict, total=False):
    """What a user may set of PPG; see :class:`PointPromptGenerator`, which has the defaults."""

    min_score: float
    region_ratio: float
    num_positives: int
    num_negatives: int
    spacing: str
    interval: float
    kernel_size: int
    negatives: str


class PointPromptGenerator(nn.Module):
    """Turn CLIP's anomaly map and SAM's features into positive and negative points.

    Args:
        frame_size (int): Side of SAM's square input frame, in pixels. Defaults to ``1024``.
        min_score (float): Least S_a in the extreme region, in [0, 1]. An image that stays below it has no region.
        region_ratio (float): Share of the image's own maximum that S_a must reach in the region, in [0, 1].
        num_positives (int): Most positive points, at least 1.
        num_negatives (int): Most negative points; 0 turns them off.
        spacing (str): ``"distance"`` (no two points closer than ``interval``) or ``"rank"`` (every n-th pixel of the
            ranked list, where n map pixels cover the area of ``interval`` canvas pixels).
        interval (float): Spacing in pixels of the 1024 px canvas. The paper writes 400; our default was chosen on the
            validation pictures of the carried SAM (``docs/training.md``).
        kernel_size (int): Side of the dilation kernel in pixels of the canvas, odd. The paper's best is 25; our
            default was chosen on drawn parts (``docs/ablation.md``).
        negatives (str): ``"least_similar"`` or ``"most_similar"``: which ring points become negative points.

    Raises:
        ValueError: If an argument is outside its range.
    """

    def __init__(
        self,
        frame_size: int = 1024,
        min_score: float = 0.4,
        region_ratio: float = 0.5,
        num_positives: int = 5,
        num_negatives: int = 6,
        spacing: str = "distance",
        interval: float = 100.0,
        kernel_size: int = 101,
        negatives: str = "least_similar",
    ) -> None:
        super().__init__()
        for name, value in (("min_score", min_score), ("region_ratio", region_ratio)):
            if not 0 <= value <= 1:
                msg = f"{name} is {value}; it must be between 0 and 1."
                raise UserValueError(msg)
        if num_positives < 1 or num_negatives < 0:
            msg = (
                f"num_positives is {num_positives} and num_negatives {num_negatives}. "
                "Choose at least 1 positive and 0 or more negative points."
            )
            raise UserValueError(msg)
        if not 0 < interval < float("inf"):  # so that NaN is refused too
            msg = f"interval is {interval}; it must be a number of pixels above 0."
            raise UserValueError(msg)
        if kernel_size < 3 or kernel_size % 2 == 0:
            msg = f"kernel_size is {kernel_size}, but a dilation needs an odd number of at least 3, such as 25."
            raise UserValueError(msg)
        for name, choice, choices in (("spacing", spacing, SPACINGS), ("negatives", negatives, NEGATIVES)):
            if choice not in choices:
                msg = f"Unknown {name} '{choice}'. Choose one of {', '.join(choices)}."
                raise UserValueError(msg)
        self.frame_size = frame_size
        self.min_score = min_score
        self.region_ratio = region_ratio
        self.num_positives = num_positives
        self.num_negatives = num_negatives
        self.spacing = spacing
        self.interval = interval
        self.kernel_size = kernel_size
        self.negatives = negatives

    def extreme_region(self, anomaly_map: torch.Tensor) -> torch.Tensor:
        """Find M_apa: where the map passes the floor and a share of the image's own maximum.

        Args:
            anomaly_map (torch.Tensor): S_a, ``(B, H, W)`` in [0, 1].

        Returns:
            torch.Tensor: ``(B, H, W)`` bool; all False for an image with nothing extreme.
        """
        peak = anomaly_map.amax(dim=(-2, -1), keepdim=True)
        return (anomaly_map >= self.min_score) & (anomaly_map >= self.region_ratio * peak) & (anomaly_map > 0)

    def ring(self, region: torch.Tensor) -> torch.Tensor:
        """Find N_a: the dilated region less the region.

        Args:
            region (torch.Tensor): ``(B, H, W)`` bool.

        Returns:
            torch.Tensor: ``(B, H, W)`` bool.
        """
        radius = max(1, round((self.kernel_size - 1) / 2 * max(region.shape[-2:]) / CANVAS))
        side = 2 * radius + 1
        dilated = region.float().unsqueeze(1)
        for kernel, padding in (((side, 1), (radius, 0)), ((1, side), (0, radius))):  # a square, one side at a time
            dilated = F.max_pool2d(dilated, kernel, stride=1, padding=padding)
        return (dilated.squeeze(1) > 0) & ~region

    def similarity(self, features: torch.Tensor, coords: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Compare SAM's features everywhere with those at the positive points.

        Args:
            features (torch.Tensor): SAM's features ``(B, C, h, w)``.
            coords (torch.Tensor): Points ``(B, k, 2)``, x then y, in pixels of SAM's input frame.
            labels (torch.Tensor): ``(B, k)``, 1 for a positive point.

        Returns:
            torch.Tensor: Cosine similarity ``(B, h, w)`` to the mean of the normalised features at the positives.
        """
        height, width = features.shape[-2:]
        normalised = F.normalize(features, dim=1)
        columns = ((coords[..., 0] + 0.5) * width / self.frame_size).long().clamp(0, width - 1)
        rows = ((coords[..., 1] + 0.5) * height / self.frame_size).long().clamp(0, height - 1)
        index = (rows * width + columns).unsqueeze(1).expand(-1, features.shape[1], -1)  # (B, C, k)
        at_points = normalised.flatten(2).gather(2, index)  # (B, C, k)
        reference = F.normalize((at_points * (labels == 1).unsqueeze(1)).sum(dim=2), dim=1)
        return torch.einsum("bchw,bc->bhw", normalised, reference)

    def _pick(self, scores: torch.Tensor, allowed: torch.Tensor, count: int) -> torch.Tensor:
        """Pick points with the chosen spacing, as flat indices ``(B, count)``."""
        scale = max(scores.shape[-2:]) / CANVAS
        if self.spacing == "distance":
            return pick_spaced(scores, allowed, count, self.interval * scale)
        return pick_ranked(scores, allowed, count, max(1, round(self.interval * scale**2)))

    def blank(self, anomaly_map: torch.Tensor) -> PointPrompts:
        """Return the prompts of images that SAM does not see: no point, no ring.

        Args:
            anomaly_map (torch.Tensor): S_a, ``(B, H, W)``.

        Returns:
            PointPrompts: For all of these images.
        """
        batch, points = anomaly_map.shape[0], self.num_positives + self.num_negatives
        return PointPrompts(
            coords=anomaly_map.new_zeros(batch, points, 2),
            labels=anomaly_map.new_full((batch, points), -1, dtype=torch.long),
            ring=torch.zeros_like(anomaly_map, dtype=torch.bool),
            similarity=torch.zeros_like(anomaly_map),
            peak=anomaly_map.new_zeros(batch),
        )

    def forward(self, anomaly_map: torch.Tensor, features: torch.Tensor) -> PointPrompts:
        """Generate the points.

        Args:
            anomaly_map (torch.Tensor): S_a, ``(B, H, W)`` in [0, 1]. Its longer side spans SAM's input frame, which is
                padded on the right or below where the map is not square.
            features (torch.Tensor): SAM's features of the whole frame, ``(B, C, h, w)``.

        Returns:
            PointPrompts: k positive, then n negative points; label -1 where the image has fewer.
        """
        size = (anomaly_map.shape[-2], anomaly_map.shape[-1])
        region = self.extreme_region(anomaly_map)
        ring = self.ring(region)

        positives = self._pick(anomaly_map, region, self.num_positives)  # (B, k)
        positive_labels = torch.where(positives >= 0, 1, -1)
        positive_coords = pixels_to_points(positives, size, self.frame_size)
        scores = anomaly_map.flatten(1).gather(1, positives.clamp(min=0))
        peak = torch.where(positives >= 0, scores, 0.0).amax(dim=1)

        similarity = frame_to_map(self.similarity(features, positive_coords, positive_labels), size)  # (B, H, W)

        wanted = -similarity if self.negatives == "least_similar" else similarity
        negatives = self._pick(wanted, ring, self.num_negatives)  # (B, n)
        return PointPrompts(
            coords=torch.cat([positive_coords, pixels_to_points(negatives, size, self.frame_size)], dim=1),
            labels=torch.cat([positive_labels, torch.where(negatives >= 0, 0, -1)], dim=1),
            ring=ring,
            similarity=similarity,
            peak=peak,
        )
