# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""AnomalyCLIP's map: learned prompts that name no class, value-value attention in the last 19 of 24 blocks.

Letters: B images, h w patch grid, D width, C embedding.

Reference:
    Zhou et al., https://arxiv.org/abs/2310.18961
"""

from __future__ import annotations

import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_clipsam.clip.localizers.learned import LearnedPromptLocalizer


class AnomalyClipLocalizer(LearnedPromptLocalizer):
    """AnomalyCLIP's map and image score. Arguments are those of :class:`LearnedPromptLocalizer`."""

    def _score_embedding(self, tokens: torch.Tensor, patches: torch.Tensor, probability: torch.Tensor) -> torch.Tensor:
        del patches, probability
        return F.normalize(tokens[:, 0] @ self.clip.visual.proj, dim=-1)  # without ln_post, as in the published code
