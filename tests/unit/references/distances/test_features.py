# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""What references share: joined taps, nearest patches in chunks, maps at the picture's size, picture scores."""

from __future__ import annotations

import pytest
import torch

from anomalib_clipsam.clip.taps import join_taps
from anomalib_clipsam.references import SelfReference
from anomalib_clipsam.references.distances import features as shared
from anomalib_clipsam.references.distances.features import nearest_similarity, peak_score


def test_joined_stages_weigh_the_same_whatever_their_scale() -> None:
    fine, coarse = torch.randn(2, 5, 6, 8), torch.randn(2, 7, 3, 4)
    joined = join_taps((fine, 1000 * coarse))
    assert [tuple(tap.shape) for tap in joined] == [(2, 12, 6, 8)]
    torch.testing.assert_close(joined[0], join_taps((fine, coarse))[0])
    torch.testing.assert_close(joined[0][:, :5].norm(dim=1), torch.ones(2, 6, 8))


def test_a_stage_is_averaged_over_the_neighbours_inside_the_picture() -> None:
    stage = torch.zeros(1, 2, 3, 4)
    stage[0, 0] = 1
    stage[0, 1, 0, 0] = 4
    (joined,) = join_taps((stage,))
    assert joined[0, 1, 0, 0] / joined[0, 0, 0, 0] == pytest.approx(1)  # 4 of 4 patches
    assert joined[0, 1, 1, 1] / joined[0, 0, 1, 1] == pytest.approx(4 / 9)
    assert joined[0, 1, 2, 2] == 0


def test_the_nearest_of_a_memory_is_found_across_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "MEMORY_CHUNK", 3)
    patches, memory = torch.randn(2, 4, 6), torch.randn(7, 6)
    torch.testing.assert_close(nearest_similarity(patches, memory), (patches @ memory.T).amax(dim=-1))


def test_a_vit_s_map_has_its_corner_patches_in_its_corners_and_a_cnn_s_keeps_their_centres() -> None:
    distances = torch.tensor([[[[0.0, 1.0, 2.0]], [[2.0, 3.0, 4.0]]]])  # (1, 2, 1, 3)
    vit = SelfReference().to_map(distances, (1, 5))
    torch.testing.assert_close(vit, torch.tensor([[[1.0, 1.5, 2.0, 2.5, 3.0]]]))
    cnn = SelfReference(join=True).to_map(distances, (1, 6))
    torch.testing.assert_close(cnn, torch.tensor([[[1.0, 1.25, 1.75, 2.25, 2.75, 3.0]]]))


def test_the_gaussian_s_width_scales_with_the_map() -> None:
    distances = torch.zeros(1, 1, 64, 32)
    distances[0, 0, 32, 16] = 1
    for side, sigma in ((64, 1.0), (128, 2.0)):
        smoothed = SelfReference(sigma=4).to_map(distances, (side, side // 2))[0]
        rows = torch.arange(side, dtype=torch.float32)
        share = smoothed.sum(dim=1) / smoothed.sum()
        centre = (share * rows).sum()
        deviation = (share * (rows - centre) ** 2).sum().sqrt()
        assert deviation == pytest.approx(sigma, rel=0.1)


def test_a_map_smaller_than_the_gaussian_is_smoothed_all_the_same() -> None:
    assert SelfReference(sigma=200).to_map(torch.rand(1, 1, 3, 4), (3, 4)).shape == (1, 3, 4)


def test_a_picture_s_score_is_the_mean_of_its_highest_pixels() -> None:
    maps = torch.arange(400.0).view(2, 10, 20)
    torch.testing.assert_close(peak_score(maps), torch.tensor([198.5, 398.5]))
    torch.testing.assert_close(peak_score(maps[:, :2, :3]), torch.tensor([22.0, 222.0]))  # at least one pixel


def test_taps_of_several_grids_must_be_joined() -> None:
    taps = (torch.rand(1, 3, 4, 4), torch.rand(1, 3, 2, 2))
    with pytest.raises(ValueError, match=r"grids of several sizes, \[\(2, 2\), \(4, 4\)\]. Set join=True"):
        SelfReference()(taps, (8, 8))
    with pytest.raises(ValueError, match="at least one tap"):
        SelfReference().features(())
    assert SelfReference(join=True)(taps, (8, 8)).shape == (1, 8, 8)


@pytest.mark.parametrize("sigma", [-1.0, float("nan"), float("inf")])
def test_a_sigma_that_is_no_length_is_refused(sigma: float) -> None:
    with pytest.raises(ValueError, match="length in pixels"):
        SelfReference(sigma=sigma)
