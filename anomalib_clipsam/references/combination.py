# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Text and reference joined: to one map S_a and one image score. [ours]

Letters: B pictures, H W map.
"""

from __future__ import annotations

import torch
from torch import nn

from anomalib_clipsam.errors.errors import UserValueError
from anomalib_clipsam.references.bounds import recentre
from anomalib_clipsam.references.distances.features import peak_score


class Combination(nn.Module):
    """Mean of the text's and the reference's probabilities, weighted by a share.

    The text counts as far as it exceeds what it says of good pictures: its log-odds are shifted so that its level on
    these is 0.5. A text that calls every good part damaged says nothing, then, of one that it calls no more damaged.
    Compared with the excess as a share of what is left above the level, and with log-odds that are added, this was the
    best on ten training sets (``docs/ablation.md``). [ours]

    Geometric means and means of logits, each with its best share, were within 0.013 of its F1-max on photographs
    with drawn-in defects, for each kind of reference.

    Args:
        text_share (float): Share of the text in the map, in [0, 1]; 0 gives the reference alone, exactly. With raw
            distances in place of probabilities, 0.5 gives the order of APRIL-GAN's published sum. Defaults to ``0.3``.
        text_score_share (float): Share of the text in the image score, in [0, 1]. Defaults to ``0.4``.
        peak_share (float): Share of the pixels, the highest ones, whose mean is the reference's own score; 0 for the
            maximum, as MuSc and APRIL-GAN have it. Defaults to ``0.01``.

    Attributes:
        text_level (float): What the text's map is on good pictures, in (0, 1). Before it is learnt 0.5, which changes
            nothing.
        text_score_level (float): What the text's score is on them.

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
        self.text_level = self.text_score_level = 0.5

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
        text_map, text_score = recentre(text_map, self.text_level), recentre(text_score, self.text_score_level)
        return (
            torch.lerp(reference_map, text_map, self.text_share),
            torch.lerp(peak_score(reference_map, self.peak_share), text_score, self.text_score_share),
        )
