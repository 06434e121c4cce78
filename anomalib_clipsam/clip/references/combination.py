# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Text and reference joined: to one map S_a and one image score. [ours]

Letters: B pictures, H W map.
"""

from __future__ import annotations

import torch
from torch import nn

from anomalib_clipsam.clip.references.features import peak_score


class Combination(nn.Module):
    """Mean of the text's and the reference's probabilities, weighted by a share.

    Args:
        text_share (float): Share of the text in the map, in [0, 1]; 0 gives the reference alone, exactly. With raw
            distances in place of probabilities, 0.5 gives APRIL-GAN's published sum, up to its factor.
        text_score_share (float): Share of the text in the image score.

    Raises:
        ValueError: If a share is outside its range.
    """

    def __init__(self, text_share: float = 0.1, text_score_share: float = 0.1) -> None:
        super().__init__()
        for name, share in (("text_share", text_share), ("text_score_share", text_score_share)):
            if not 0 <= share <= 1:
                msg = f"{name} is {share}, but it is a share of 1. Choose a number between 0 and 1."
                raise ValueError(msg)
        self.text_share = text_share
        self.text_score_share = text_score_share

    def forward(
        self, text_map: torch.Tensor, text_score: torch.Tensor, reference_map: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Join map and score.

        Args:
            text_map (torch.Tensor): CLIP's map by text, ``(B, H, W)`` in [0, 1].
            text_score (torch.Tensor): Image score by text, ``(B,)`` in [0, 1].
            reference_map (torch.Tensor): Probabilities by the reference, ``(B, H, W)`` in [0, 1].

        Returns:
            tuple[torch.Tensor, torch.Tensor]: S_a ``(B, H, W)`` and the image score ``(B,)``, in [0, 1]. The
            reference's own score is the mean of the top 1 % of its map.
        """
        return (
            torch.lerp(reference_map, text_map, self.text_share),
            torch.lerp(peak_score(reference_map), text_score, self.text_score_share),
        )
