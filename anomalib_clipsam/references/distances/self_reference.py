# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The picture as its own reference: what is rare in it is suspect. [ours]

Letters: B pictures, T taps, C channels, h w patch grid, P = h * w patches.
"""

from __future__ import annotations

import torch

from anomalib_clipsam.clip.taps import Taps
from anomalib_clipsam.errors.errors import UserValueError
from anomalib_clipsam.references.distances.features import PictureReference, patches_of


class SelfReference(PictureReference):
    """Distance of a patch to the patches of its own picture that are most like it. [ours]

    It is 1 - the mean cosine similarity to them. A texture repeats itself, so that few of its good patches are far from
    the rest; of an object the parts that occur once are far as well.

    Args:
        share (float): Share of the picture's patches that count, in (0, 1]. The patch itself is one of them. Defaults
            to ``0.3``.
        join (bool): See :class:`~anomalib_clipsam.references.distances.features.Reference`. Defaults to ``False``.
        sigma (float): See there. Defaults to ``0``.

    Raises:
        ValueError: If ``share`` is outside its range.
    """

    def __init__(self, share: float = 0.3, join: bool = False, sigma: float = 0.0) -> None:
        super().__init__(join, sigma)
        if not 0 < share <= 1:
            msg = f"share is {share}, but it is a share of the picture's patches. Choose a number above 0, 1 at most."
            raise UserValueError(msg)
        self.share = share

    def distances(self, features: Taps) -> torch.Tensor:
        """Compare every patch with all of its picture. See :meth:`PictureReference.distances`."""
        grids = []
        for tap in features:
            patches = patches_of(tap)  # (B, P, C)
            count = max(1, int(self.share * patches.shape[1]))
            alike = (patches @ patches.transpose(1, 2)).topk(count, dim=-1, sorted=False).values
            grids.append((1 - alike.mean(dim=-1)).unflatten(1, tap.shape[-2:]))
        return torch.stack(grids, dim=1).clamp(min=0)  # rounding
