# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Architectures, blocks and encoded prompts of open_clip."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from anomalib_clipsam.clip import PromptEnsemble, build_clip, encode_ensemble
from anomalib_clipsam.clip.build import run_block

if TYPE_CHECKING:
    from open_clip import CLIP

pytestmark = pytest.mark.open_clip

EMBED = 96
"""Size of the demo CLIP's embedding."""


@pytest.mark.parametrize("architecture", ["", "ViT-L-14-337", "/no/such/file.pt"])
def test_unknown_architecture(architecture: str) -> None:
    with pytest.raises(ValueError, match="Unknown CLIP architecture"):
        build_clip(architecture, quick_gelu=False)


@pytest.mark.parametrize("architecture", ["RN50", "convnext_base", "roberta-ViT-B-32"])
def test_architecture_without_a_plain_vit(architecture: str) -> None:
    with pytest.raises(ValueError, match="has no plain ViT"):
        build_clip(architecture, quick_gelu=False)


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_activation_is_the_argument(quick_gelu: bool) -> None:
    """Whatever the name says: a `-quickgelu` configuration of open_clip is the same architecture."""
    with torch.device("meta"):
        models = [build_clip(name, quick_gelu) for name in ("ViT-B-32", "ViT-B-32-quickgelu")]
    for model in models:
        for transformer in (model.visual.transformer, model.transformer):
            kinds = {type(block.mlp.gelu).__name__ for block in transformer.resblocks}
            assert kinds == {"QuickGELU" if quick_gelu else "GELU"}
        assert not model.training


@pytest.mark.parametrize("masked", [False, True])
def test_block_is_open_clips(masked: bool) -> None:
    """A block run with fused attention gives what open_clip's own call gives, in either layout."""
    from open_clip.transformer import ResidualAttentionBlock

    torch.manual_seed(0)
    block = ResidualAttentionBlock(16, 2, ls_init_value=0.25).eval()
    tokens = torch.randn(2, 5, 16)
    mask = torch.full((5, 5), float("-inf")).triu(1) if masked else None
    with torch.no_grad():
        if block.attn.batch_first:
            expected = block(tokens, attn_mask=mask)
        else:
            expected = block(tokens.transpose(0, 1), attn_mask=mask).transpose(0, 1)
        torch.testing.assert_close(run_block(block, tokens, mask), expected, atol=1e-6, rtol=0)


def test_text_is_never_cut(clip: CLIP) -> None:
    """A sentence may fill CLIP's 77 tokens, of which two are its start and end, and no more."""
    ensemble = PromptEnsemble(normal=("{}",), abnormal=("broken {}",), templates=("{}",))
    assert encode_ensemble(clip, ensemble, "nut " * 74).shape == (2, EMBED)
    with pytest.raises(ValueError, match=r"more than the 77 tokens that CLIP reads: 'broken nut .*'\. Shorten"):
        encode_ensemble(clip, ensemble, "nut " * 75)
