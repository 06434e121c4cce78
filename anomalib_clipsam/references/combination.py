# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Text and reference joined: to one map S_a and one image score. [ours]

Letters: B pictures, H W map.
"""

from __future__ import annotations

import torch
from torch import nn

from anomalib_clipsam.errors.errors import UserValueError
from anomalib_clipsam.references.distances.features import peak_score


class Combination(nn.Module):
    """Mean of the text's and the reference's probabilities, weighted by a share.

    Geometric means and means of logits, each with its best share, were within 0.013 of its F1-max on photographs
    with drawn-in defects, for each kind of reference.

    Args:
        text_share (float): Share of the text in the map, in [0, 1]; 0 gives the reference alone, exactly. With raw
            distances in place of probabilities, 0.5 gives the order of APRIL-GAN's published sum. Defaults to ``0.3``.
        text_score_share (float): Share of the text in the image score, in [0, 1]. Defaults to ``0.4``.
        peak_share (float): Share of the pixels, the highest ones, whose mean is the reference's own score; 0 for the
            maximum, as MuSc and APRIL-GAN have it. Defaults to ``0.01``.

    Raises:
        ValueError: If a share is outside its range.
    """

    def __init__(self, text_share: float = 0.3, text_score_share: float = 0.4, peak_share: float = 0.01) -> None:
        super().__init__()
        shares = {"text_share": text_share, "text_score_share": text_score_share, "peak_share": peak_share}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                msg = f"{name} is {share}, but it is a share of 1. Choose a number between 0 and 1."
                raise UserValueError(msg)
        self.text_share = text_share
        self.text_score_share = text_score_share
        self.peak_share = peak_share

    def forward(
        self, text_map: torch.Tensor, text_score: torch.Tensor, reference_map: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Join map and score.

        Args:
            text_map (torch.Tensor): CLIP's map by text, ``(B, H, W)`` in [0, 1].
            text_score (torch.Tensor): Image score by text, ``(B,)`` in [0, 1].
            reference_map (torch.Tensor): Probabilities by the reference, ``(B, H, W)`` in [0, 1].

        Returns:
            tuple[torch.Tensor, torch.Tensor]: S_a ``(B, H, W)`` and the image score ``(B,)``, in [0, 1].
        """
        return (
            torch.lerp(reference_map, text_map, self.text_share),
            torch.lerp(peak_score(reference_map, self.peak_share), text_score, self.text_score_share),
        )
