# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Crane's map: AnomalyCLIP's with attention by queries, keys and values, and an image score with the patches in it.

Letters: B images, h w patch grid, D width, C embedding.

Reference:
    Salehi et al., "Crane", https://github.com/AlirezaSalehy/Crane, without its second image encoder
"""

from __future__ import annotations

import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_clipsam.clip.localizers.learned import LearnedPromptLocalizer


class CraneLocalizer(LearnedPromptLocalizer):
    """Crane's map and image score. Arguments are those of :class:`LearnedPromptLocalizer`."""

    alike_by = "qkv"

    def _score_embedding(self, tokens: torch.Tensor, patches: torch.Tensor, probability: torch.Tensor) -> torch.Tensor:
        pooled = self.pool(patches, probability)
        return F.normalize(0.5 * pooled + 0.5 * self._class_embedding(tokens), dim=-1)

    @staticmethod
    def pool(patches: torch.Tensor, probability: torch.Tensor) -> torch.Tensor:
        """Join patch tokens to one, those that look abnormal with more weight.

        Args:
            patches (torch.Tensor): Normalised patch tokens ``(B, h * w, C)``.
            probability (torch.Tensor): Probability of the abnormal text per patch ``(B, h * w)``.

        Returns:
            torch.Tensor: Normalised, ``(B, C)``.
        """
        return F.normalize((probability.unsqueeze(-1) * patches).sum(dim=1), dim=-1)
