# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The lean encoder against segment_anything's own, with random weights."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import Attention, Block, get_rel_pos
from torch.nn import functional as F  # noqa: N812

from anomalib_clipsam.sam import build_sam, encoder
from anomalib_clipsam.sam.encoder import LeanAttention, LeanBlock, make_lean, relative_positions

if TYPE_CHECKING:
    from tests.unit.conftest import FakeCuda


def stock_encoder(window_size: int, *, use_rel_pos: bool = True) -> ImageEncoderViT:
    """A small encoder with a grid of 12 x 12 tokens, one block in windows and one without, and no parameter at zero."""
    torch.manual_seed(0)
    model = ImageEncoderViT(
        img_size=48,
        patch_size=4,
        embed_dim=32,
        depth=2,
        num_heads=4,
        out_chans=8,
        use_rel_pos=use_rel_pos,
        window_size=window_size,
        global_attn_indexes=(1,),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model.eval().requires_grad_(requires_grad=False)


@pytest.mark.parametrize("window_size", [4, 5, 7, 12, 13])  # with and without padding, to the right and below
@pytest.mark.parametrize("use_rel_pos", [True, False])
@pytest.mark.parametrize("bias_bytes", [1, 40_000, 2**26])  # one row of queries at a time, some, all
def test_features_are_those_of_segment_anything(
    monkeypatch: pytest.MonkeyPatch, window_size: int, use_rel_pos: bool, bias_bytes: int
) -> None:
    monkeypatch.setitem(encoder.BIAS_BYTES, "cpu", bias_bytes)
    stock = stock_encoder(window_size, use_rel_pos=use_rel_pos)
    lean = make_lean(copy.deepcopy(stock))
    images = torch.randn(3, 3, 48, 48)
    expected, found = stock(images), lean(images)
    assert expected.abs().max() > 0.5
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.equal(found[0], found[1])


@pytest.mark.slow
def test_published_size() -> None:
    """ViT-B at 1024 px: windows with padding, and global blocks in chunks."""
    torch.set_num_threads(2)
    lean = build_sam("vit_b").image_encoder.requires_grad_(requires_grad=False)
    for parameter in lean.parameters():  # the relative positions begin at zero
        parameter.add_(torch.randn_like(parameter), alpha=0.02)
    stock = copy.deepcopy(lean)
    for block in stock.blocks:
        block.__class__, block.attn.__class__ = Block, Attention
    image = torch.randn(1, 3, 1024, 1024)
    expected = stock(image)
    assert expected.abs().max() > 0.5
    assert torch.allclose(lean(image), expected, atol=1e-4)


def test_relative_positions_matter() -> None:
    """A test that held with the bias left out would say nothing."""
    lean = make_lean(stock_encoder(5))
    images = torch.randn(1, 3, 48, 48)
    with_bias = lean(images)
    for block in lean.blocks:
        block.attn.rel_pos_h.zero_()
    assert not torch.allclose(lean(images), with_bias, atol=1e-2)


def test_weights_keep_their_names() -> None:
    stock = stock_encoder(5)
    lean = make_lean(copy.deepcopy(stock))
    assert lean.state_dict().keys() == stock.state_dict().keys()
    assert {type(block) for block in lean.blocks} == {LeanBlock}


def test_every_architecture_is_lean() -> None:
    for architecture in ("demo", "vit_b"):
        with torch.device("meta"):
            model = build_sam(architecture)
        assert {type(block.attn) for block in model.image_encoder.blocks} == {LeanAttention}


def test_gradients_are_those_of_segment_anything() -> None:
    """The demo weights are trained through it."""
    stock = stock_encoder(5).requires_grad_(requires_grad=True)
    lean = make_lean(copy.deepcopy(stock))
    images = torch.randn(1, 3, 48, 48)
    for model in (stock, lean):
        model(images).square().sum().backward()
    for (name, expected), found in zip(stock.named_parameters(), lean.parameters(), strict=True):
        assert torch.allclose(found.grad, expected.grad, rtol=1e-3, atol=1e-4 * expected.grad.abs().max()), name


@pytest.mark.parametrize("size", [1, 2, 14, 64])
def test_relative_positions_are_those_of_segment_anything(size: int) -> None:
    table = torch.randn(2 * size - 1, 3)
    assert torch.equal(relative_positions(size, table), get_rel_pos(size, size, table))


def test_no_block_waits_for_a_gpu(fake_cuda: FakeCuda) -> None:
    """An index on the CPU would be copied, twice a block."""
    with torch.device("cuda"):
        model, images = build_sam("demo").image_encoder, torch.rand(2, 3, 192, 192)
    fake_cuda.waits.clear()
    assert model(images).shape == (2, 128, 24, 24)
    assert fake_cuda.waits == []


@pytest.mark.parametrize(("device", "batch", "calls"), [("cuda", 1, 32), ("cuda", 8, 60), ("cpu", 1, 396)])
def test_number_of_attention_calls_of_vit_h(
    monkeypatch: pytest.MonkeyPatch, device: str, batch: int, calls: int
) -> None:
    """The bias of one image is one step on a GPU, where each step is a launch, and fits the cache on a CPU."""
    shapes = []
    attend = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *given, **named: shapes.append(given) or attend(*given, **named)
    )
    if device == "cpu":
        monkeypatch.setitem(encoder.BIAS_BYTES, "meta", encoder.BIAS_BYTES["cpu"])
    with torch.device("meta"), torch.no_grad():
        build_sam("vit_h").image_encoder(torch.empty(batch, 3, 1024, 1024))
    assert len(shapes) == calls
