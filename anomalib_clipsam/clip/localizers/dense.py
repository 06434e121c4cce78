# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The map that needs nothing but CLIP: value-value attention in its last blocks.

Letters: B images, H W map, h w patch grid, L = 1 + h * w tokens (class token first), D width, C embedding.

References:
    - CLIP Surgery: Li et al., https://arxiv.org/abs/2304.05653
    - AnoVL: Deng et al., https://arxiv.org/abs/2308.15939
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from anomalib_clipsam.clip.localizers.base import text_anomaly_map
from anomalib_clipsam.clip.localizers.vit import ViTLocalizer
from anomalib_clipsam.errors.errors import UserValueError

if TYPE_CHECKING:
    from collections.abc import Callable

    from open_clip import CLIP

    from anomalib_clipsam.clip.prompts import PromptEnsemble
    from anomalib_clipsam.clip.taps import Taps


class DenseLocalizer(ViTLocalizer):
    """Patch tokens of several blocks against the normal and abnormal text, with value-value attention.

    The second path of :class:`ViTLocalizer` runs through the last blocks. After every block of it its tokens are
    projected to CLIP's embedding space and compared with the text; S_a is the mean over these taps. [ours: the last
    quarter of the blocks]

    Args:
        clip (CLIP): open_clip model with a ViT.
        ensemble (PromptEnsemble): States and templates of the text prompts.
        image_size (int): Side of the square that CLIP sees, in pixels.
        vv_blocks (int | None): Number of last blocks on the value-value path. Defaults to a quarter of the blocks, at
            least two.

    Raises:
        ValueError: If ``vv_blocks`` is not between 1 and the number of blocks.
    """

    def __init__(self, clip: CLIP, ensemble: PromptEnsemble, image_size: int, vv_blocks: int | None = None) -> None:
        super().__init__(clip, ensemble, image_size)
        depth = len(clip.visual.transformer.resblocks)
        self.vv_blocks = max(2, depth // 4) if vv_blocks is None else vv_blocks
        if not 1 <= self.vv_blocks <= depth:
            msg = f"vv_blocks must be between 1 and {depth}, the number of CLIP's blocks, not {vv_blocks}."
            raise UserValueError(msg)

    @classmethod
    def build(
        cls,
        ensemble: PromptEnsemble,
        image_size: int,
        clip: Callable[[], CLIP],
        adapters: Callable[[], dict[str, torch.Tensor]],
    ) -> DenseLocalizer:
        """Build it on CLIP alone. See :meth:`Localizer.build`."""
        del adapters
        return cls(clip(), ensemble, image_size)

    def _localize(self, image: torch.Tensor, tapped: bool) -> tuple[torch.Tensor, torch.Tensor, Taps]:
        visual, scale = self.clip.visual, self.clip.logit_scale.exp()
        kept, tokens, grids = self._two_paths(image, self.vv_blocks, self.vv_blocks, tapped)
        maps = []
        height, width = image.shape[-2:]
        for second in kept:
            patches = visual.ln_post(second[:, 1:]) @ visual.proj  # (B, h * w, C)
            maps.append(text_anomaly_map(patches, self.text, scale, self.grid, (height, width)))
        return torch.stack(maps).mean(dim=0), self._global_score(tokens, scale), grids
