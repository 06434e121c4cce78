# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""APRIL-GAN's map: plain patch tokens through trained linear adapters.

Letters: B images, H W map, h w patch grid, D width, C embedding.

Reference:
    Chen et al., https://arxiv.org/abs/2305.17382
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from anomalib_clipsam.clip.build import run_block
from anomalib_clipsam.clip.localizers.base import text_anomaly_map
from anomalib_clipsam.clip.localizers.vit import ViTLocalizer, spaced_blocks
from anomalib_clipsam.errors.errors import UserValueError

if TYPE_CHECKING:
    from collections.abc import Callable

    from open_clip import CLIP

    from anomalib_clipsam.clip.prompts import PromptEnsemble
    from anomalib_clipsam.clip.taps import Taps

SCALE = 100.0
"""Factor of the cosine, fixed in the published code, whatever CLIP learnt."""


class AprilGanLocalizer(ViTLocalizer):
    """APRIL-GAN's map: CLIP's plain patch tokens of some blocks, each through a trained linear adapter.

    The adapters take the residual stream right after a block, as published. The mean over the taps is taken.

    Args:
        clip (CLIP): open_clip model with a ViT.
        ensemble (PromptEnsemble): States and templates of the text prompts.
        image_size (int): Side of the square that CLIP sees, in pixels.
        adapters (nn.ModuleList): One ``nn.Linear(D, C)`` per tap, see :func:`build_adapters`.
        taps (tuple[int, ...] | None): Blocks, counted from 1, that are tapped. Defaults to evenly spaced ones that end
            with the last: 6, 12, 18, 24 for four adapters and ViT-L.

    Raises:
        ValueError: If the taps do not fit the adapters or the blocks.
    """

    needs_adapters = True

    def __init__(
        self,
        clip: CLIP,
        ensemble: PromptEnsemble,
        image_size: int,
        adapters: nn.ModuleList,
        taps: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__(clip, ensemble, image_size)
        depth = len(clip.visual.transformer.resblocks)
        self.adapters = adapters
        self.taps = tuple(taps or spaced_blocks(depth, len(adapters)))
        if len(self.taps) != len(adapters) or len(set(self.taps) & set(range(1, depth + 1))) != len(adapters):
            msg = (
                f"Taps {self.taps} do not fit {len(adapters)} adapters and {depth} blocks. "
                "Name one block, counted from 1, for each adapter."
            )
            raise UserValueError(msg)

    @classmethod
    def build(
        cls,
        ensemble: PromptEnsemble,
        image_size: int,
        clip: Callable[[], CLIP],
        adapters: Callable[[], dict[str, torch.Tensor]],
    ) -> AprilGanLocalizer:
        """Build it on CLIP and adapters. See :meth:`Localizer.build`."""
        model = clip()
        layers = build_adapters(adapters(), model.visual.conv1.out_channels, model.text_projection.shape[1])
        return cls(model, ensemble, image_size, layers)

    def use_learned(self, weights: dict[str, torch.Tensor]) -> None:
        """Take other adapters. See :meth:`Localizer.use_learned`."""
        width, embed_dim = self.clip.visual.conv1.out_channels, self.clip.text_projection.shape[1]
        self.adapters = (
            build_adapters(weights, width, embed_dim).to(self.text.device).requires_grad_(requires_grad=False)
        )

    def _localize(self, image: torch.Tensor, tapped: bool) -> tuple[torch.Tensor, torch.Tensor, Taps]:
        tokens, maps, grids = self._embed(image), [], []
        height, width = image.shape[-2:]
        for index, block in enumerate(self.clip.visual.transformer.resblocks, start=1):
            tokens = run_block(block, tokens)
            if index in self.taps:
                patches = self.adapters[self.taps.index(index)](tokens[:, 1:])  # (B, h * w, C)
                maps.append(text_anomaly_map(patches, self.text, SCALE, self.grid, (height, width)))
            if tapped and index in self.reference_taps:
                grids.append(self._to_grid(tokens))
        return torch.stack(maps).mean(dim=0), self._global_score(tokens, SCALE), tuple(grids)


def build_adapters(state_dict: dict[str, Any], width: int, embed_dim: int) -> nn.ModuleList:
    """Build APRIL-GAN's adapters from their published state dict (keys ``fc.<tap>.weight`` and ``fc.<tap>.bias``).

    Args:
        state_dict (dict[str, Any]): The layer's state dict, or the published file's whole content with it
            under ``"trainable_linearlayer"``.
        width (int): Width D of CLIP's ViT.
        embed_dim (int): Size C of CLIP's embedding.

    Returns:
        nn.ModuleList: One ``nn.Linear(D, C)`` per tap.

    Raises:
        ValueError: If keys or shapes are not those.
    """
    state_dict = state_dict.get("trainable_linearlayer", state_dict)
    state_dict = {key.removeprefix("fc."): value for key, value in state_dict.items()}
    count = len(state_dict) // 2
    expected = {
        f"{i}.{name}": shape
        for i in range(count)
        for name, shape in (("weight", (embed_dim, width)), ("bias", (embed_dim,)))
    }
    found = {key: tuple(getattr(value, "shape", ())) for key, value in state_dict.items()}
    if not count or found != expected:
        msg = (
            f"The adapter weights hold {found}, but this CLIP needs 'fc.<tap>.weight' of shape {(embed_dim, width)} "
            f"and 'fc.<tap>.bias' of shape {(embed_dim,)}. Take adapters trained with the same CLIP architecture."
        )
        raise UserValueError(msg)
    adapters = nn.ModuleList(nn.Linear(width, embed_dim) for _ in range(count))
    adapters.load_state_dict(state_dict)
    return adapters
