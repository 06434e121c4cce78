# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""What the localizers on a ViT share: its first tokens, a second path through its last blocks, CLIP's global score.

Letters: B images, h w patch grid, L = 1 + h * w tokens (class token first), D width.

Reference:
    CLIP Surgery, the second path: Li et al., https://arxiv.org/abs/2304.05653
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_clipsam.clip.build import attend, attend_alike, feed_forward, project, run_block
from anomalib_clipsam.clip.localizers.base import ClipLocalizer
from anomalib_clipsam.compute.precision import full_precision
from anomalib_clipsam.errors.errors import UserValueError

if TYPE_CHECKING:
    from open_clip import CLIP

    from anomalib_clipsam.clip.prompts import PromptEnsemble
    from anomalib_clipsam.clip.taps import Taps


def spaced_blocks(depth: int, number: int) -> tuple[int, ...]:
    """Choose evenly spaced blocks that end with the last.

    Args:
        depth (int): Number of blocks.
        number (int): How many to choose; fewer where there are fewer blocks.

    Returns:
        tuple[int, ...]: Blocks, counted from 1: 6, 12, 18, 24 for four of 24.
    """
    return tuple(sorted({max(1, depth * (i + 1) // number) for i in range(number)}))


class ViTLocalizer(ClipLocalizer):
    """A localizer on a ViT, for any image size that is a multiple of its patches'.

    Args:
        clip (CLIP): open_clip model with a ViT.
        ensemble (PromptEnsemble): States and templates of the text prompts.
        image_size (int): Side of the square that CLIP sees, in pixels.

    Attributes:
        position_resize (tuple[str, bool]): How the position embedding is brought to another grid than CLIP was trained
            on: mode of ``F.interpolate``, and whether with antialiasing. As open_clip does it, unless the method that a
            localizer takes its weights from does it otherwise.
        alike_by (str): What tokens are compared by on the second path: some of ``"q"``, ``"k"`` and ``"v"``.
        reference_taps (tuple[int, ...]): Blocks, counted from 1, whose output references are compared by: four, evenly
            spaced, as by APRIL-GAN and MuSc.

    Raises:
        ValueError: If the image size is no multiple of the patch size, or CLIP has no ViT.
    """

    position_resize: ClassVar[tuple[str, bool]] = ("bicubic", True)
    alike_by: ClassVar[str] = "v"

    def __init__(self, clip: CLIP, ensemble: PromptEnsemble, image_size: int) -> None:
        super().__init__(clip, ensemble, image_size)
        if not hasattr(clip.visual, "transformer"):
            msg = "This localizer reads the tokens of a ViT, and this CLIP has a CNN. Choose localizer='pyramid'."
            raise UserValueError(msg)
        patch = clip.visual.patch_size[0]
        if image_size < patch or image_size % patch:
            msg = f"clip_size is {image_size}; it must be a multiple of the patch size, {patch}."
            raise UserValueError(msg)
        self.grid = (image_size // patch, image_size // patch)
        self.depth = len(clip.visual.transformer.resblocks)
        self.reference_taps = spaced_blocks(self.depth, 4)

    def _position_embedding(self) -> torch.Tensor:
        """Position embedding ``(L, D)`` for the grid in use, interpolated where CLIP was trained on another one."""
        embedding = self.clip.visual.positional_embedding
        trained_grid = tuple(self.clip.visual.grid_size)
        if trained_grid == self.grid:
            return embedding
        patches = embedding[1:].T.unflatten(-1, trained_grid).unsqueeze(0)  # (1, D, h, w)
        mode, antialias = self.position_resize
        patches = F.interpolate(patches, self.grid, mode=mode, align_corners=False, antialias=antialias)
        return torch.cat([embedding[:1], patches.flatten(2).squeeze(0).T])

    def _embed(self, image: torch.Tensor) -> torch.Tensor:
        """Turn an image into the tokens ``(B, L, D)`` of block 1."""
        visual = self.clip.visual
        patches = visual.conv1(self._normalise(image)).flatten(2).transpose(1, 2)  # (B, h * w, D)
        class_token = visual.class_embedding.expand(image.shape[0], 1, -1)
        return visual.ln_pre(torch.cat([class_token, patches], dim=1) + self._position_embedding())

    def _two_paths(
        self, image: torch.Tensor, count: int, keep: int, tapped: bool
    ) -> tuple[list[torch.Tensor], torch.Tensor, Taps]:
        """Run the blocks, the last ones on two paths.

        A second path branches off before these blocks and collects what each token gathers from tokens that are like
        it, without their MLPs, so that patch tokens keep their place. CLIP's own path is not changed by it.

        Args:
            image (torch.Tensor): ``(B, 3, H, W)``, RGB in [0, 1].
            count (int): Number of last blocks on two paths.
            keep (int): Number of last blocks after which the second path's tokens are kept.
            tapped (bool): Whether references ask for the output of some blocks.

        Returns:
            tuple[list[torch.Tensor], torch.Tensor, Taps]: Tokens of the second path after each of those, ``(B, L, D)``;
            tokens of CLIP's own path after the last block, of which the first, the class token, is always there; the
            output of those blocks on the patch grid, or nothing.
        """
        blocks = list(self.clip.visual.transformer.resblocks)
        tokens = self._embed(image)  # (B, L, D)
        second: torch.Tensor | None = None
        kept: list[torch.Tensor] = []
        grids: list[torch.Tensor] = []
        tapped_blocks = self.reference_taps if tapped else ()
        for number, block in enumerate(blocks, start=1):
            if number <= len(blocks) - count:
                tokens = run_block(block, tokens)
            else:
                queries, keys, values = project(block, tokens)
                alike = [{"q": queries, "k": keys, "v": values}[name] for name in self.alike_by]
                second = (tokens if second is None else second) + attend_alike(block, alike, values)
                kept = [*kept, second][-keep:]
                if number == len(blocks) and number not in tapped_blocks:  # the class token alone is used
                    queries, tokens = queries[:, :, :1], tokens[:, :1]
                tokens = tokens + attend(block, queries, keys, values)
                tokens = tokens + feed_forward(block, tokens)
            if number in tapped_blocks:
                grids.append(self._to_grid(tokens))
        return kept, tokens, tuple(grids)

    def _to_grid(self, tokens: torch.Tensor) -> torch.Tensor:
        """Put tokens ``(B, L, D)`` on the patch grid: ``(B, D, h, w)``, without the class token."""
        return tokens[:, 1:].transpose(1, 2).unflatten(2, self.grid)

    def _class_embedding(self, tokens: torch.Tensor) -> torch.Tensor:
        """CLIP's own image embedding ``(B, C)``, normalised, of its last tokens."""
        visual = self.clip.visual
        return F.normalize(visual.ln_post(tokens[:, 0].float()) @ visual.proj, dim=-1)

    def _global_score(self, tokens: torch.Tensor, scale: torch.Tensor | float) -> torch.Tensor:
        """Probability ``(B,)`` that CLIP's own image embedding fits the abnormal text."""
        with full_precision(tokens.device.type):
            embedding = self._class_embedding(tokens)
            if not torch.compiler.is_compiling():
                self.embedding = embedding
            return (scale * embedding @ self.text.T).softmax(dim=-1)[:, 1]
