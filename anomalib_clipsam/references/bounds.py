# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Where good pictures end, learnt from a few of them, or from a batch of which most are good. [ours]

Scores are compared by their log-odds, in which those of good pictures of a product are spread about evenly around their
mean. How far they spread cannot be learnt from four of them. So the spread of training photographs counts as a few
pictures more.

Letters: k good parts, N pictures of a batch, H W map.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING

import torch
from scipy.special import stdtrit

from anomalib_clipsam.errors.errors import UserValueError

if TYPE_CHECKING:
    from collections.abc import Sequence

FALSE_ALARMS = 0.2
"""Share of good pictures that may be called defective, unless the user wishes another. Of 0.05 to 0.2 it had the best
balanced accuracy on training sets, 0.79 in place of 0.76 to 0.78, as misses fall faster than false alarms rise
(``docs/ablation.md``)."""
PIXEL_SHARE = 0.995
"""Share of the pixels of good parts that are below the pixel threshold. Of 0.98 to 0.998 it was within 0.01 of the best
for the outlines of training sets (``docs/ablation.md``)."""
SPREAD, SPREAD_WEIGHT = 0.25, 4.0
"""Standard deviation of the log-odds of good pictures of a product (0.14 to 0.38 on training sets), and how many
pictures it counts as."""
BULK = 0.3
"""Share of a batch's pictures, those of the lowest scores, that are taken for good."""
DAMAGED = 0.25
"""Share of a batch that is taken for damaged. So the lowest 30 % are taken for the lowest 40 % of the good ones."""
LOWER_SPREAD = 0.9
"""Root mean square distance of the lowest 40 % of normal values from where they end, in standard deviations."""
SMALLEST = 1e-6
"""Probabilities are kept so far from 0 and 1."""


def log_odds(probability: torch.Tensor) -> torch.Tensor:
    """Return the log-odds of probabilities; finite also for 0 and 1."""
    return torch.logit(probability, eps=SMALLEST)


def recentre(probability: torch.Tensor, level: float) -> torch.Tensor:
    """Shift log-odds so that a level becomes 0.5.

    Args:
        probability (torch.Tensor): Of any shape, in [0, 1].
        level (float): What becomes 0.5, in (0, 1).

    Returns:
        torch.Tensor: Of that shape, in [0, 1]; the same order, and 0 and 1 stay.
    """
    if level == 0.5:
        return probability
    for_it, against = probability * (1 - level), (1 - probability) * level
    return for_it / (for_it + against)


def suppress_halo(anomaly_map: torch.Tensor, share: float) -> torch.Tensor:
    """Divide the odds of a map by a power of its highest odds, where these are above 1. [ours]

    A strong defect shines beyond its border: features are smoothed. Its halo would be outlined with it.

    Args:
        anomaly_map (torch.Tensor): ``(B, H, W)`` in [0, 1]; 0.5 is the threshold.
        share (float): Exponent, in [0, 1); 0 changes nothing.

    Returns:
        torch.Tensor: ``(B, H, W)``. The order of the pixels of a picture stays, and so does what has no pixel above
        0.5. The highest pixel stays above 0.5.
    """
    if not share:
        return anomaly_map
    odds = log_odds(anomaly_map)
    above = odds.amax(dim=(-2, -1), keepdim=True).clamp(min=0)
    return torch.where(above > 0, (odds - share * above).sigmoid(), anomaly_map)


def pixel_level(maps: Sequence[torch.Tensor], share: float = PIXEL_SHARE) -> float:
    """Return what a share of the pixels of good parts do not exceed.

    Args:
        maps (Sequence[torch.Tensor]): Maps ``(B, H, W)``, of one size or several.
        share (float): Share of the pixels. Defaults to :data:`PIXEL_SHARE`.

    Returns:
        float: Clamped to [0.01, 0.99], lest a map that is 0 or 1 all over decides.
    """
    pixels = torch.cat([values.flatten() for values in maps])
    level = pixels.kthvalue(max(1, math.ceil(share * len(pixels)))).values
    return float(level.clamp(0.01, 0.99))


def pixel_level_of_batch(levels: Sequence[float]) -> float:
    """Return the pixel level of a batch of the levels of its pictures: their median, since half may be damaged."""
    return sorted(levels)[(len(levels) - 1) // 2]


def image_level(scores: torch.Tensor, false_alarms: float = FALSE_ALARMS) -> float:
    """Return what a further good part exceeds with a given chance.

    The prediction bound of a normal sample, Student's: it counts with the error of mean and spread too. The spread of
    training photographs is joined as that of :data:`SPREAD_WEIGHT` further parts.

    Args:
        scores (torch.Tensor): Scores of k good parts, each judged by the others, ``(k,)`` in [0, 1].
        false_alarms (float): The chance, in (0, 1).

    Returns:
        float: In (0, 1).
    """
    odds = log_odds(scores.double())
    freedom = SPREAD_WEIGHT + len(odds) - 1
    variance = (SPREAD_WEIGHT * SPREAD**2 + (odds - odds.mean()).square().sum()) / freedom
    bound = odds.mean() + float(stdtrit(freedom, 1 - false_alarms)) * (variance * (1 + 1 / len(odds))).sqrt()
    return float(bound.sigmoid())


def image_level_of_batch(scores: torch.Tensor, false_alarms: float = FALSE_ALARMS) -> float:
    """Return what a good picture of a batch exceeds with a given chance, if a quarter of the pictures are damaged.

    Mean and spread are read off the lowest :data:`BULK` of the scores, as if those of good pictures were normal. Where
    none are damaged, false alarms are more than wished (0.32 for 0.2), and where half are, fewer (0.06).

    Args:
        scores (torch.Tensor): ``(N,)`` in [0, 1].
        false_alarms (float): The chance, in (0, 1).

    Returns:
        float: In (0, 1).
    """
    odds = log_odds(scores.double())
    end = odds.quantile(BULK)
    lower = odds[odds <= end]
    spread = (SPREAD_WEIGHT * (LOWER_SPREAD * SPREAD) ** 2 + (lower - end).square().sum()) / (
        SPREAD_WEIGHT + len(lower)
    )
    steps = NormalDist().inv_cdf(1 - false_alarms) - NormalDist().inv_cdf(BULK / (1 - DAMAGED))
    return float((end + steps * spread.sqrt() / LOWER_SPREAD).sigmoid())


def check_false_alarms(value: float) -> None:
    """Raise unless a wished share of false alarms can be aimed at.

    Args:
        value (float): The share.

    Raises:
        ValueError: If it is not between 0.001 and 0.5.
    """
    if not 0.001 <= value <= 0.5:
        msg = f"false_alarms is {value}, but it is a share of the good pictures. Choose a number from 0.001 to 0.5."
        raise UserValueError(msg)
