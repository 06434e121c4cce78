# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Value-value attention and the map that is made with it, against naive ones."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from anomalib_clipsam.clip import PromptEnsemble, build_clip
from anomalib_clipsam.clip.build import attend, project
from anomalib_clipsam.clip.localizers import DenseLocalizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from open_clip import CLIP

pytestmark = pytest.mark.open_clip

WIDTH, NATIVE = 160, 160
"""The demo CLIP's width, and the side of the images that it was made for."""


def naive_value_value(block: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Value-value attention, image by image and head by head."""
    attention = block.attn
    width, heads = attention.embed_dim, attention.num_heads
    size = width // heads
    result = []
    for image in tokens:
        values = block.ln_1(image) @ attention.in_proj_weight[2 * width :].T + attention.in_proj_bias[2 * width :]
        attended = []
        for head in range(heads):
            v = values[:, head * size : (head + 1) * size]
            attended.append((v @ v.T / math.sqrt(size)).softmax(dim=-1) @ v)
        result.append(torch.cat(attended, dim=-1) @ attention.out_proj.weight.T + attention.out_proj.bias)
    return torch.stack(result)


def test_value_value_attention(clip: CLIP) -> None:
    tokens = torch.randn(2, 7, WIDTH)
    block = clip.visual.transformer.resblocks[3]
    values = project(block, tokens)[2]
    torch.testing.assert_close(
        attend(block, values, values, values), naive_value_value(block, tokens), atol=1e-5, rtol=0
    )


def test_value_value_attention_scales_as_the_block_does() -> None:
    """A block with layer scale."""
    from open_clip.transformer import ResidualAttentionBlock

    block = ResidualAttentionBlock(32, 4, ls_init_value=0.25)
    tokens = torch.randn(1, 5, 32)
    values = project(block, tokens)[2]
    torch.testing.assert_close(
        attend(block, values, values, values), 0.25 * naive_value_value(block, tokens), atol=1e-6, rtol=0
    )


@torch.no_grad()
def test_dense_equals_a_naive_one(
    clip: CLIP, ensemble: PromptEnsemble, text: torch.Tensor, run_and_record: Callable, naive_map: Callable
) -> None:
    localizer = DenseLocalizer(clip, ensemble, NATIVE, vv_blocks=2)
    localizer._use_text(text)
    image = torch.rand(2, 3, NATIVE, NATIVE)
    anomaly_map, _ = localizer(image)

    _, inputs, _ = run_and_record(clip, image)
    blocks, visual = clip.visual.transformer.resblocks, clip.visual
    fifth = inputs[4] + naive_value_value(blocks[4], inputs[4])
    sixth = fifth + naive_value_value(blocks[5], inputs[5])
    scale = clip.logit_scale.exp().item()
    first, second = (naive_map(visual.ln_post(tokens[:, 1:]) @ visual.proj, text, scale) for tokens in (fifth, sixth))
    expected = (first + second) / 2
    assert (first - second).abs().max() > 1e-2
    assert (anomaly_map - expected).abs().max() < 1e-4


@pytest.mark.parametrize("vv_blocks", [0, -1, 7])
def test_number_of_value_value_blocks(clip: CLIP, ensemble: PromptEnsemble, vv_blocks: int) -> None:
    with pytest.raises(ValueError, match=f"between 1 and 6, .* not {vv_blocks}"):
        DenseLocalizer(clip, ensemble, 64, vv_blocks)


def test_default_number_of_value_value_blocks(clip: CLIP, ensemble: PromptEnsemble) -> None:
    assert DenseLocalizer(clip, ensemble, 64).vv_blocks == 2  # a quarter of 6 is less than two
    with torch.device("meta"):
        large = build_clip("ViT-L-14-336", quick_gelu=True)
    assert DenseLocalizer(large, ensemble, 518).vv_blocks == 6
