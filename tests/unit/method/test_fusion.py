# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Fusion of map and mask, and the image score."""

import math

import pytest
import torch

from anomalib_clipsam.method.fusion import FUSIONS, Fusion, image_score, trust_in_mask

MAP = torch.tensor([[[0.2, 0.6, 1.0], [0.0, 0.5, 0.8]]])
LOGITS = torch.tensor([[[-math.log(3), 0.0, math.log(3)], [-100.0, 100.0, math.log(4)]]])
PEAK = torch.tensor([0.8])
IOU = torch.tensor([0.5])


SURE = torch.tensor([[[-100.0, 100.0, 100.0], [-100.0, 100.0, -100.0]]])  # a mask of 0.6, 1.0 and 0.5


def test_trust_is_predicted_iou_times_what_the_map_says_of_the_mask() -> None:
    """Of a peak of 0.8 the mask has 0.75, all (never more) and 0.625: 0.7917 in the mean."""
    torch.testing.assert_close(trust_in_mask(MAP, SURE.sigmoid(), PEAK, IOU), torch.tensor([0.5 * 2.375 / 3]))


def test_trust_is_a_share() -> None:
    maps, share = MAP.repeat(4, 1, 1), SURE.sigmoid().repeat(4, 1, 1)
    share[2] = 0
    trust = trust_in_mask(maps, share, torch.tensor([0.8, 0.8, 0.8, 0.0]), torch.tensor([-0.5, 1.5, 1.0, 1.0]))
    torch.testing.assert_close(trust, torch.tensor([0.0, 2.375 / 3, 0.0, 1.0]))


def test_cautious() -> None:
    """A quarter mask, trust t: outside 0.75 S_a, inside S_a + 0.25 t (0.8 - S_a)."""
    t = 0.5 * 2.375 / 3
    inside = [value + 0.25 * t * (0.8 - value) for value in (0.6, 1.0, 0.5)]
    expected = torch.tensor([[[0.15, inside[0], inside[1]], [0.0, inside[2], 0.6]]])
    torch.testing.assert_close(Fusion("cautious", 0.25)(MAP, SURE, PEAK, IOU), expected)


def test_cautious_leaves_the_map_alone_inside_a_mask_that_nobody_trusts() -> None:
    everywhere = torch.full_like(MAP, 100.0)
    fused = Fusion("cautious", 0.5)(MAP, everywhere, PEAK, torch.zeros(1))
    torch.testing.assert_close(fused, MAP)


def test_a_mask_of_the_whole_part_is_trusted_less_than_one_of_the_defect() -> None:
    maps = torch.zeros(1, 8, 10)
    maps[:, 2:4, 3:5] = 0.9
    defect, part = (maps > 0.5).float(), torch.ones_like(maps)
    peak, iou = torch.tensor([0.9]), torch.tensor([1.0])
    assert trust_in_mask(maps, defect, peak, iou).item() == pytest.approx(1)
    assert trust_in_mask(maps, part, peak, iou).item() == pytest.approx(4 / 80)


def test_weighted() -> None:
    """A quarter mask: 0.75 S_a + 0.25 * 0.8 * sigmoid, with sigmoids of 0.25, 0.5, 0.75, 0, 1, 0.8."""
    expected = torch.tensor([[[0.15 + 0.05, 0.45 + 0.1, 0.75 + 0.15], [0.0, 0.375 + 0.2, 0.6 + 0.16]]])
    torch.testing.assert_close(Fusion("weighted", 0.25)(MAP, LOGITS, PEAK, IOU), expected)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_weighted_at_its_ends(weight: float) -> None:
    expected = MAP if weight == 0 else 0.8 * LOGITS.sigmoid()
    torch.testing.assert_close(Fusion("weighted", weight)(MAP, LOGITS, PEAK, IOU), expected)


def test_gate() -> None:
    assert torch.equal(Fusion("gate")(MAP, LOGITS, PEAK, IOU), torch.tensor([[[0.0, 0.0, 1.0], [0.0, 0.5, 0.8]]]))


def test_gate_without_a_mask_is_the_map() -> None:
    assert torch.equal(Fusion("gate")(MAP, -LOGITS.abs(), PEAK, IOU), MAP)


def test_mask() -> None:
    assert torch.equal(Fusion("mask")(MAP, LOGITS, PEAK, IOU), torch.tensor([[[0.0, 0.0, 0.8], [0.0, 0.8, 0.8]]]))


def test_default_is_one_of_them() -> None:
    fusion = Fusion()
    assert torch.equal(fusion(MAP, LOGITS, PEAK, IOU), Fusion(fusion.mode, fusion.weight)(MAP, LOGITS, PEAK, IOU))
    assert fusion.mode in FUSIONS


@pytest.mark.parametrize("mode", FUSIONS)
def test_without_a_positive_the_map_is_clips(mode: str) -> None:
    """The first image has no positive point, the second has; each is treated for itself."""
    maps, logits = MAP.repeat(2, 1, 1), LOGITS.repeat(2, 1, 1)
    fused = Fusion(mode)(maps, logits, torch.tensor([0.0, 0.8]), torch.tensor([0.5, 0.5]))
    assert torch.equal(fused[0], MAP[0])
    assert torch.equal(fused[1], Fusion(mode)(MAP, LOGITS, PEAK, IOU)[0])
    assert not torch.equal(fused[1], MAP[0])


@pytest.mark.parametrize("mode", FUSIONS)
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_never_outside_0_to_1(mode: str, weight: float) -> None:
    maps = torch.rand(6, 5, 7)
    maps[0], maps[1] = 0, 1
    logits = torch.randn(6, 5, 7) * 40
    logits[2], logits[3] = torch.inf, -torch.inf
    fused = Fusion(mode, weight)(
        maps, logits, torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 0.3]), torch.tensor([1.4, -0.2, 0.9, 0.9, 0.0, 1.0])
    )
    assert fused.shape == maps.shape
    assert torch.isfinite(fused).all()
    assert fused.amin() >= 0
    assert fused.amax() <= 1


@pytest.mark.parametrize("mode", ["", "sum", "Weighted"])
def test_unknown_mode(mode: str) -> None:
    with pytest.raises(ValueError, match=f"Unknown fusion '{mode}'. Choose one of cautious, weighted, gate, mask"):
        Fusion(mode)


@pytest.mark.parametrize("weight", [-0.1, 1.1, 50, float("nan")])
def test_weight_is_a_share(weight: float) -> None:
    with pytest.raises(ValueError, match=f"fusion's weight is {weight}"):
        Fusion("weighted", weight)


def test_image_score_is_the_mean_of_global_score_and_maximum() -> None:
    maps = torch.stack([MAP[0], MAP[0] / 2, torch.zeros(2, 3)])
    assert image_score(torch.tensor([0.5, 0.25, 0.0]), maps).tolist() == [0.75, 0.375, 0.0]
