# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Who judges a picture beside the text: the picture itself, a few good parts, or the batch that it came in.

A judge holds a reference, the calibration that turns its distances into probabilities, and the rule that joins these
with the text's. It also says which thresholds good parts, or the bulk of the batch, would pass.

Letters: B pictures, k good parts, N pictures of a batch, T taps, H W map.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import nn

from anomalib_clipsam.clip.references.batch import LEAST_PICTURES, BatchReference
from anomalib_clipsam.clip.references.calibration import BATCH_SHARE, GOOD_SHARE, Calibration, passing_threshold
from anomalib_clipsam.clip.references.combination import Combination
from anomalib_clipsam.clip.references.few_shot import FewShotReference, quarter_turns
from anomalib_clipsam.clip.references.self_reference import SelfReference

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from anomalib_clipsam.clip.localizers import Localizer
    from anomalib_clipsam.clip.references.features import PictureReference, Taps

    Localize = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, Taps]]

logger = logging.getLogger(__name__)

KINDS = ("none", "self", "batch")
POOL_BYTES = 4 * 2**30
"""Bytes that the features of a batch may take; pictures judge each other in subsets where they do not fit."""


class ReferenceOptions(TypedDict, total=False):
    """What a user may set of the references.

    Args:
        rotate (bool): Whether good parts also count as turned by 90, 180 and 270 degrees. Defaults to ``False``.
        memory_limit (int): Most patches of good parts that are kept per tap. Defaults to ``32768``.
        text_share (float): Share of the text in the map; 0 gives the reference alone.
        text_score_share (float): Share of the text in the image score.
        passing_share (float): Share of the good parts, or of the batch, that the thresholds let pass.
        taps (list[int]): Blocks of a ViT, counted from 1, whose output is compared. Defaults to four, evenly spaced.
    """

    rotate: bool
    memory_limit: int
    text_share: float
    text_score_share: float
    passing_share: float
    taps: list[int]


@dataclass(frozen=True)
class Thresholds:
    """What the reference says without a label.

    Args:
        image (float): Image score above which a picture is defective.
        pixel (float): Value of S_a above which a pixel is.
    """

    image: float
    pixel: float


class Judge(nn.Module):
    """Base: text and one kind of reference, joined.

    Args:
        reference (nn.Module): Gives distances.
        combination (Combination): Joins text and reference.
        passing_share (float): Share of the good parts, or of the batch, that the thresholds let pass, in (0, 1].

    Attributes:
        thresholds (Thresholds | None): What good parts, or the bulk of the batch, pass; ``None`` before they are known.
        unlike (int): Pictures that were unlike the reference nearly everywhere, since the count was last set to zero.
        judged (int): Pictures that were judged since then.
    """

    def __init__(self, reference: nn.Module, combination: Combination, passing_share: float) -> None:
        super().__init__()
        if not 0 < passing_share <= 1:
            msg = f"passing_share is {passing_share}, but it is a share of the pictures. Choose above 0, 1 at most."
            raise ValueError(msg)
        self.reference = reference
        self.combination = combination
        self.calibration = Calibration()
        self.passing_share = passing_share
        self.thresholds: Thresholds | None = None
        self.unlike = self.judged = 0

    def forward(
        self, text_map: torch.Tensor, text_score: torch.Tensor, taps: Taps
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Judge pictures.

        Args:
            text_map (torch.Tensor): CLIP's map by text, ``(B, H, W)`` in [0, 1].
            text_score (torch.Tensor): Image score by text, ``(B,)`` in [0, 1].
            taps (tuple[torch.Tensor, ...]): T grids of features ``(B, C_t, h_t, w_t)``.

        Returns:
            tuple[torch.Tensor, torch.Tensor]: S_a ``(B, H, W)`` and the image score ``(B,)``, in [0, 1].
        """
        distance = self.reference(taps, tuple(text_map.shape[-2:]))
        return self._join(text_map, text_score, distance)

    def _join(
        self, text_map: torch.Tensor, text_score: torch.Tensor, distance: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Calibrate distances ``(B, H, W)`` and join them with the text."""
        probability = self.calibration(distance)
        if not torch.compiler.is_compiling():
            self.judged += len(probability)
            self.unlike += int((probability.flatten(1).median(dim=1).values > 0.5).sum())
        return self.combination(text_map, text_score, probability)

    def _set_thresholds(self, maps: torch.Tensor, scores: torch.Tensor) -> None:
        """Let a share of good pictures pass, by maps ``(N, H, W)`` and scores ``(N,)``."""
        self.thresholds = Thresholds(
            image=float(passing_threshold(scores, self.passing_share)),
            pixel=float(passing_threshold(maps.flatten(1).amax(dim=1), self.passing_share)),
        )

    def settings(self) -> Hashable:
        """Say what its answers depend on beside picture and text."""
        return (
            type(self).__name__,
            self.combination.text_share,
            self.combination.text_score_share,
            self.calibration.usual.item(),
            self.calibration.limit.item(),
        )
