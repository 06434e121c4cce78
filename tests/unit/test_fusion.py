# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Fusion of map and mask, and the image score."""

import math

import pytest
import torch

from anomalib_clipsam.fusion import FUSIONS, Fusion, image_score

MAP = torch.tensor([[[0.2, 0.6, 1.0], [0.0, 0.5, 0.8]]])
LOGITS = torch.tensor([[[-math.log(3), 0.0, math.log(3)], [-100.0, 100.0, math.log(4)]]])
PEAK = torch.tensor([0.8])


def test_weighted() -> None:
    """A quarter mask: 0.75 S_a + 0.25 * 0.8 * sigmoid, with sigmoids of 0.25, 0.5, 0.75, 0, 1, 0.8."""
    expected = torch.tensor([[[0.15 + 0.05, 0.45 + 0.1, 0.75 + 0.15], [0.0, 0.375 + 0.2, 0.6 + 0.16]]])
    torch.testing.assert_close(Fusion("weighted", 0.25)(MAP, LOGITS, PEAK), expected)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_weighted_at_its_ends(weight: float) -> None:
    expected = MAP if weight == 0 else 0.8 * LOGITS.sigmoid()
    torch.testing.assert_close(Fusion("weighted", weight)(MAP, LOGITS, PEAK), expected)


def test_gate() -> None:
    assert torch.equal(Fusion("gate")(MAP, LOGITS, PEAK), torch.tensor([[[0.0, 0.0, 1.0], [0.0, 0.5, 0.8]]]))


def test_gate_without_a_mask_is_the_map() -> None:
    assert torch.equal(Fusion("gate")(MAP, -LOGITS.abs(), PEAK), MAP)


def test_mask() -> None:
    assert torch.equal(Fusion("mask")(MAP, LOGITS, PEAK), torch.tensor([[[0.0, 0.0, 0.8], [0.0, 0.8, 0.8]]]))


def test_default_is_one_of_them() -> None:
    fusion = Fusion()
    assert torch.equal(fusion(MAP, LOGITS, PEAK), Fusion(fusion.mode, fusion.weight)(MAP, LOGITS, PEAK))
    assert fusion.mode in FUSIONS


@pytest.mark.parametrize("mode", FUSIONS)
def test_without_a_positive_the_map_is_clips(mode: str) -> None:
    """The first image has no positive point, the second has; each is treated for itself."""
    maps, logits = MAP.repeat(2, 1, 1), LOGITS.repeat(2, 1, 1)
    fused = Fusion(mode)(maps, logits, torch.tensor([0.0, 0.8]))
    assert torch.equal(fused[0], MAP[0])
    assert torch.equal(fused[1], Fusion(mode)(MAP, LOGITS, PEAK)[0])
    assert not torch.equal(fused[1], MAP[0])


@pytest.mark.parametrize("mode", FUSIONS)
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_never_outside_0_to_1(mode: str, weight: float) -> None:
    maps = torch.rand(6, 5, 7)
    maps[0], maps[1] = 0, 1
    logits = torch.randn(6, 5, 7) * 40
    logits[2], logits[3] = torch.inf, -torch.inf
    fused = Fusion(mode, weight)(maps, logits, torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 0.3]))
    assert fused.shape == maps.shape
    assert torch.isfinite(fused).all()
    assert fused.amin() >= 0
    assert fused.amax() <= 1


@pytest.mark.parametrize("mode", ["", "sum", "Weighted"])
def test_unknown_mode(mode: str) -> None:
    with pytest.raises(ValueError, match=f"Unknown fusion '{mode}'. Choose one of weighted, gate, mask"):
        Fusion(mode)


@pytest.mark.parametrize("weight", [-0.1, 1.1, 50, float("nan")])
def test_weight_is_a_share(weight: float) -> None:
    with pytest.raises(ValueError, match=f"fusion's weight is {weight}"):
        Fusion("weighted", weight)


def test_image_score_is_the_mean_of_global_score_and_maximum() -> None:
    maps = torch.stack([MAP[0], MAP[0] / 2, torch.zeros(2, 3)])
    assert image_score(torch.tensor([0.5, 0.25, 0.0]), maps).tolist() == [0.75, 0.375, 0.0]
