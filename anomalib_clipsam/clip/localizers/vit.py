# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""What the localizers on a ViT share: the tokens that its first block is shown, and CLIP's global score.

Letters: B images, h w patch grid, L = 1 + h * w tokens (class token first), D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_clipsam.clip.localizers.base import ClipLocalizer
from anomalib_clipsam.compute.precision import full_precision

if TYPE_CHECKING:
    from open_clip import CLIP

    from anomalib_clipsam.clip.prompts import PromptEnsemble


class ViTLocalizer(ClipLocalizer):
    """A localizer on a ViT, for any image size that is a multiple of its patches'.

    Args:
        clip (CLIP): open_clip model with a ViT.
        ensemble (PromptEnsemble): States and templates of the text prompts.
        image_size (int): Side of the square that CLIP sees, in pixels.

    Raises:
        ValueError: If the image size is no multiple of the patch size.
    """

    def __init__(self, clip: CLIP, ensemble: PromptEnsemble, image_size: int) -> None:
        super().__init__(clip, ensemble, image_size)
        patch = clip.visual.patch_size[0]
        if image_size < patch or image_size % patch:
            msg = f"clip_size is {image_size}; it must be a multiple of the patch size, {patch}."
            raise ValueError(msg)
        self.grid = (image_size // patch, image_size // patch)

    def _position_embedding(self) -> torch.Tensor:
        """Position embedding ``(L, D)`` for the grid in use, interpolated where CLIP was trained on another one."""
        embedding = self.clip.visual.positional_embedding
        trained_grid = tuple(self.clip.visual.grid_size)
        if trained_grid == self.grid:
            return embedding
        patches = embedding[1:].T.unflatten(-1, trained_grid).unsqueeze(0)  # (1, D, h, w)
        patches = F.interpolate(patches, self.grid, mode="bicubic", align_corners=False)
        return torch.cat([embedding[:1], patches.flatten(2).squeeze(0).T])

    def _embed(self, image: torch.Tensor) -> torch.Tensor:
        """Turn an image into the tokens ``(B, L, D)`` of block 1."""
        visual = self.clip.visual
        patches = visual.conv1(self._normalise(image)).flatten(2).transpose(1, 2)  # (B, h * w, D)
        class_token = visual.class_embedding.expand(image.shape[0], 1, -1)
        return visual.ln_pre(torch.cat([class_token, patches], dim=1) + self._position_embedding())

    def _global_score(self, tokens: torch.Tensor) -> torch.Tensor:
        """Probability ``(B,)`` that CLIP's own image embedding fits the abnormal text."""
        visual = self.clip.visual
        with full_precision(tokens.device.type):
            embedding = F.normalize(visual.ln_post(tokens[:, 0].float()) @ visual.proj, dim=-1)
            return (self.clip.logit_scale.exp() * embedding @ self.text.T).softmax(dim=-1)[:, 1]
