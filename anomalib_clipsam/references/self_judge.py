# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The picture judges itself, by its own patches, beside the text.

Letters: B pictures or tiles, H W map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from anomalib_clipsam.references.calibration import Calibration
from anomalib_clipsam.references.combination import Combination
from anomalib_clipsam.references.distances.self_reference import SelfReference
from anomalib_clipsam.references.judge import Answer, Judge

if TYPE_CHECKING:
    from anomalib_clipsam.clip.taps import Taps

SPREADS = 6.0
"""Where nobody knows which distances are usual to a CLIP, a picture's limit lies so many interquartile ranges above its
own median. [ours, not measured]"""


class SelfJudge(Judge):
    """The picture judges itself.

    Args:
        reference (SelfReference): Gives distances.
        combination (Combination): Joins text and reference.
        calibration (Calibration): Turns distances into probabilities.
        usual (tuple[float, float] | None): Usual distance and limit, as
            :class:`~anomalib_clipsam.references.calibration.Calibration` has them, of good pictures that this CLIP
            was shown. Defaults to ``None``: each picture's own median, and six interquartile ranges above it.
    """

    NAME = "self"

    def __init__(
        self,
        reference: SelfReference,
        combination: Combination,
        calibration: Calibration,
        usual: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(reference, combination, calibration)
        self.fitted = usual is not None or calibration.raw
        if usual is not None:
            self.calibration.typical.fill_(usual[0])
            self.calibration.half_point.fill_(usual[1])

    def judge_features(self, text_map: torch.Tensor, text_score: torch.Tensor, features: Taps) -> Answer:
        """Judge pictures by features that were joined already. See :meth:`Judge.forward`."""
        distance = self.reference.to_map(self.reference.distances(features), tuple(text_map.shape[-2:]))
        return self._join(text_map, text_score, distance)

    def _join(self, text_map: torch.Tensor, text_score: torch.Tensor, distance: torch.Tensor) -> Answer:
        if self.fitted:
            return super()._join(text_map, text_score, distance)
        low, usual, high = torch.quantile(distance.flatten(1), distance.new_tensor([0.25, 0.5, 0.75]), dim=1)
        excess = (distance - usual.view(-1, 1, 1)).clamp(min=0)
        limit = (SPREADS * (high - low)).clamp(min=torch.finfo(distance.dtype).eps).view(-1, 1, 1)
        return Answer(*self.combination(text_map, text_score, excess / (excess + limit)))
