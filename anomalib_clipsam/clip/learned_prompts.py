# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Prompts that were learned, in place of sentences: one about normal parts and one about abnormal ones, of any class.

Letters: N deep prompts, n learned vectors, d vectors of a deep prompt, L tokens that CLIP reads, D width of the text
transformer, C embedding.

References:
    - AnomalyCLIP: Zhou et al., https://arxiv.org/abs/2310.18961
    - Crane, whose files have the same layout: https://github.com/AlirezaSalehy/Crane
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from anomalib_clipsam.clip.build import run_block
from anomalib_clipsam.errors.errors import UserValueError

if TYPE_CHECKING:
    from open_clip import CLIP

STATES = ("pos", "neg")
"""Normal and abnormal, as the published files call them."""
UNUSED = "compound_prompt_projections."
"""What AnomalyCLIP's files hold besides, and nothing uses."""


class LearnedPrompts(nn.Module):
    """Learned vectors where a sentence has its words, and deep prompts that replace tokens before some blocks.

    Args:
        sentences (torch.Tensor): Embeddings of both sentences, learned vectors included, ``(2, L, D)``, normal and
            abnormal.
        ends (torch.Tensor): Place of the end of each sentence, ``(2,)`` long.
        deep (torch.Tensor): Deep prompts ``(N, d, D)``; number i replaces tokens 1 to d before block i + 2.
    """

    ends: torch.Tensor

    def __init__(self, sentences: torch.Tensor, ends: torch.Tensor, deep: torch.Tensor) -> None:
        super().__init__()
        self.sentences = nn.Parameter(sentences, requires_grad=False)
        self.deep = nn.Parameter(deep, requires_grad=False)
        self.register_buffer("ends", ends, persistent=False)

    @classmethod
    def from_published(cls, content: dict[str, Any], clip: CLIP) -> LearnedPrompts:
        """Read them from the content of a published file.

        Args:
            content (dict[str, Any]): The file's content, or what it has under ``"prompt_learner"``.
            clip (CLIP): CLIP that they go with.

        Returns:
            LearnedPrompts: The prompts.

        Raises:
            ValueError: If entries or shapes are not those.
        """
        entries = content.get("prompt_learner", content)
        entries = {key: value for key, value in entries.items() if not str(key).startswith(UNUSED)}
        length, width = clip.positional_embedding.shape
        found = {key: tuple(getattr(value, "shape", ())) for key, value in entries.items()}
        blocks = len(clip.transformer.resblocks)
        context = found.get("ctx_pos", (1, 1, 0, width))[-2]
        depth = sum(key.startswith("compound_prompts_text.") for key in found)
        deep = (*found.get("compound_prompts_text.0", (0,))[:1], width)
        expected = {f"compound_prompts_text.{i}": deep for i in range(depth)}
        for state in STATES:
            expected |= {
                f"ctx_{state}": (1, 1, context, width),
                f"token_prefix_{state}": (1, 1, 1, width),
                f"token_suffix_{state}": (1, 1, length - 1 - context, width),
                f"tokenized_prompts_{state}": (1, 1, length),
            }
        if not context or found != expected or depth >= blocks:
            wrong = sorted(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key))
            named = f"'{wrong[0]}' is {found.get(wrong[0], 'missing')}" if wrong else f"there are {depth} deep prompts"
            msg = (
                f"The learned prompts do not fit this CLIP, whose text transformer has {blocks} blocks "
                f"of {width}: {named}. Take prompts that were learned with the same CLIP architecture."
            )
            raise UserValueError(msg)
        parts = ("token_prefix", "ctx", "token_suffix")
        sentences = [torch.cat([entries[f"{part}_{state}"][0, 0].float() for part in parts]) for state in STATES]
        ends = torch.stack([entries[f"tokenized_prompts_{state}"][0, 0].argmax() for state in STATES])
        deep_prompts = [entries[f"compound_prompts_text.{i}"].float() for i in range(depth)]
        return cls(torch.stack(sentences), ends, torch.stack(deep_prompts) if depth else torch.zeros(0, 0, width))

    @torch.no_grad()
    def encode(self, clip: CLIP) -> torch.Tensor:
        """Encode both prompts.

        Args:
            clip (CLIP): CLIP that they go with.

        Returns:
            torch.Tensor: Normalised directions ``(2, C)``, normal and abnormal.
        """
        used = int(self.ends.max()) + 1  # no token sees a later one
        tokens = self.sentences[:, :used] + clip.positional_embedding[:used]  # (2, L, D)
        for i, block in enumerate(clip.transformer.resblocks):
            if 1 <= i <= len(self.deep):
                # The published code takes them through float16 whatever it computes in.
                deep = self.deep[i - 1].half().float().expand(len(tokens), -1, -1)
                tokens = torch.cat([tokens[:, :1], deep, tokens[:, 1 + deep.shape[1] :]], dim=1)
            tokens = run_block(block, tokens, clip.attn_mask[:used, :used])
        ends = clip.ln_final(tokens)[torch.arange(len(tokens), device=tokens.device), self.ends]
        return F.normalize(ends @ clip.text_projection, dim=-1)
