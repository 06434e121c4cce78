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

GOOD_SHARE = 1.0
"""Share of the good parts whose highest pixel stays at a probability of 0.5 or below."""
BATCH_SHARE = 0.5
"""The same for a batch, of which nobody knows how many pictures are good."""


def passing_threshold(values: torch.Tensor, share: float) -> torch.Tensor:
    """Give the threshold that lets a share of some values pass: so many are not above it.

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
        raise ValueError(msg)
    values = values.flatten()
    return values.kthvalue(max(1, math.ceil(share * len(values) - 1e-6))).values  # 0.7 * 10 is a bit more than 7


class Calibration(nn.Module):
    """Turns a distance d into a probability: its odds grow linearly with the distance beyond what is usual. [ours]

    With m the usual distance, that of the median pixel, and t the highest that a good part has, the odds are
    ``(d - m) / (t - m)``: a probability of 0 at m, 0.5 at t, 0.75 at three times as far, never 1, so that scores that
    differ stay different. Both are medians or order statistics over pictures: a few defects move them little.

    Attributes:
        usual (torch.Tensor): m, the median over pictures of a picture's median distance; NaN before :meth:`fit`.
        limit (torch.Tensor): t, the distance of probability 0.5; NaN before :meth:`fit`.
    """

    usual: torch.Tensor
    limit: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("usual", torch.tensor(torch.nan))
        self.register_buffer("limit", torch.tensor(torch.nan))

    @torch.no_grad()
    def fit(self, maps: torch.Tensor, share: float) -> None:
        """Learn from maps what is usual.

        Args:
            maps (torch.Tensor): Distances ``(N, H, W)``, smoothed and sized like those to come: of good parts, each
                left out of its reference, or of a batch.
            share (float): Share of the pictures that keep below 0.5 everywhere, in (0, 1]: :data:`GOOD_SHARE` or
                :data:`BATCH_SHARE`.

        Raises:
            ValueError: If there is no picture, or the share is outside its range.
        """
        pixels = maps.flatten(1).float()
        limit = passing_threshold(pixels.amax(dim=1), share)
        usual = pixels.median(dim=1).values.median()
        # equal pictures are at no distance from each other
        self.usual, self.limit = usual, limit.clamp(min=usual + torch.finfo(usual.dtype).eps)

    def forward(self, distance: torch.Tensor) -> torch.Tensor:
        """Turn distances into probabilities.

        Args:
            distance (torch.Tensor): Of any shape, at least 0.

        Returns:
            torch.Tensor: Of that shape, in [0, 1).

        Raises:
            RuntimeError: If nothing was learnt yet.
        """
        if not torch.compiler.is_compiling() and bool(self.limit.isnan()):
            msg = "It is not known which distance is usual. Call fit with maps of good parts, or of a batch."
            raise RuntimeError(msg)
        excess = (distance - self.usual).clamp(min=0)
        return excess / (excess + self.limit - self.usual)
