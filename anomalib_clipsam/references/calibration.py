# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""From a distance to a probability, and thresholds, without a single label. [ours]

How large a distance is depends on the features, on the kind of reference and on how much good parts differ. Maps of
parts that are good say it: those of the good parts, each judged by the others, or those of the batch, most of whose
pixels are good.

Letters: N pictures, H W map.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from anomalib_clipsam.errors.errors import UserValueError

KINDS = ("self", "few_shot", "batch")
"""Kinds of reference, each with its own rule for the limit, see :class:`Calibration`."""
SELF_SHARE = 0.25
BATCH_STRETCH = 1.2


def passing_threshold(values: torch.Tensor, share: float) -> torch.Tensor:
    """Return the threshold that lets a share of some values pass: so many are not above it.

    With the image scores of good parts, or of a batch, it is an image threshold; with their highest pixels, or with all
    of their pixels, it is a pixel threshold. A further good part is above the highest of k good ones with a chance of
    1 / (k + 1), if it was made like them.

    Args:
        values (torch.Tensor): Scores of any shape.
        share (float): Share that passes, in (0, 1].

    Returns:
        torch.Tensor: One of the values, without a dimension. What passes is not above it.

    Raises:
        ValueError: If the share is outside its range, or there is no value.
    """
    if not 0 < share <= 1 or not values.numel():
        msg = f"A share of {share} of {values.numel()} values cannot pass. Give values, and a share above 0, 1 at most."
        raise UserValueError(msg)
    values = values.flatten()
    return values.kthvalue(max(1, math.ceil(share * len(values) - 1e-6))).values  # 0.7 * 10 is a bit more than 7


def extremes(maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a calibration asks of maps.

    Args:
        maps (torch.Tensor): Distances ``(N, H, W)``.

    Returns:
        tuple[torch.Tensor, torch.Tensor]: Median and highest distance of each picture, ``(N,)``.
    """
    pixels = maps.flatten(1).float()
    return pixels.median(dim=1).values, pixels.amax(dim=1)


class Calibration(nn.Module):
    """Turns a distance d into a probability: its odds grow linearly with the distance beyond what is usual. [ours]

    With m the typical distance and t the half point, the odds are ``(d - m) / (t - m)``: a probability of 0 at m, 0.5
    at t and 0.75 at three times as far, never 1, so that scores that differ stay different. t is made of the pictures'
    peaks, each its picture's highest distance:

    - ``"few_shot"``: the highest peak of the good parts, each judged by the others. No good part is above 0.5. m is 0.
    - ``"batch"``: 1.2 times as far from m as the mean peak, whether none or most of the batch is damaged.
    - ``"self"``: the peak that a quarter of good pictures do not exceed. What occurs once in a good picture is far from
      the rest of it, so the peaks of most say nothing.

    For the last two, m is the median over pictures of a picture's median distance. A single good part, judged by
    itself, would give one that is too high.

    The rules were chosen on photographs with drawn-in defects: with them the pixel F1 at 0.5 comes near to F1-max.

    Args:
        raw (bool): Give half the distance in place of a probability, for published protocols, which calibrate nothing:
            a distance is 2 at most, and the order of scores stays. Defaults to ``False``.

    Attributes:
        typical (torch.Tensor): m; NaN before :meth:`fit`.
        half_point (torch.Tensor): t, the distance of probability 0.5; NaN before :meth:`fit`.
    """

    typical: torch.Tensor
    half_point: torch.Tensor

    def __init__(self, raw: bool = False) -> None:
        super().__init__()
        self.raw = raw
        self.register_buffer("typical", torch.tensor(torch.nan))
        self.register_buffer("half_point", torch.tensor(torch.nan))

    @torch.no_grad()
    def fit(self, maps: torch.Tensor, kind: str) -> None:
        """Learn from maps what is usual.

        Args:
            maps (torch.Tensor): Distances ``(N, H, W)``, smoothed and sized like those to come.
            kind (str): One of :data:`KINDS`, the reference that they are distances from.

        Raises:
            ValueError: If there is no picture or no such kind.
        """
        self.fit_extremes(*extremes(maps), kind)

    @torch.no_grad()
    def fit_extremes(self, medians: torch.Tensor, peaks: torch.Tensor, kind: str) -> None:
        """Learn from what :func:`extremes` says of the maps. See :meth:`fit`.

        Args:
            medians (torch.Tensor): Median distance of each picture ``(N,)``.
            peaks (torch.Tensor): Highest distance of each picture ``(N,)``.
            kind (str): See :meth:`fit`.
        """
        if kind not in KINDS or not len(peaks):
            msg = f"{len(peaks)} maps of kind '{kind}'. Give one map at least, of one of the kinds {', '.join(KINDS)}."
            raise UserValueError(msg)
        usual = medians.median()
        if kind == "batch":
            limit = usual + BATCH_STRETCH * (peaks.mean() - usual)
        else:
            usual = torch.zeros_like(usual) if kind == "few_shot" else usual
            limit = passing_threshold(peaks, SELF_SHARE if kind == "self" else 1.0)
        # equal pictures are at no distance from each other
        self.typical, self.half_point = usual, limit.clamp(min=usual + torch.finfo(usual.dtype).eps)

    def forward(self, distance: torch.Tensor) -> torch.Tensor:
        """Turn distances into probabilities.

        Args:
            distance (torch.Tensor): Of any shape, at least 0.

        Returns:
            torch.Tensor: Of that shape, in [0, 1).

        Raises:
            RuntimeError: If nothing was learnt yet.
        """
        if self.raw:
            return distance / 2
        if not torch.compiler.is_compiling() and bool(self.half_point.isnan()):
            msg = "It is not known which distance is usual. Call fit with maps of good parts, or of a batch."
            raise RuntimeError(msg)
        excess = (distance - self.typical).clamp(min=0)
        return excess / (excess + self.half_point - self.typical)
