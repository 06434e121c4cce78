# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Probabilities and thresholds without labels, and how text and reference are joined."""

from __future__ import annotations

import pytest
import torch

from anomalib_clipsam.references import Calibration, Combination, passing_threshold


def fitted(usual: float, limit: float) -> Calibration:
    calibration = Calibration()
    calibration.fit(torch.tensor([[[usual, usual, limit]]]), "self")
    return calibration


def test_the_usual_distance_is_no_anomaly_and_the_highest_of_a_good_part_is_an_even_chance() -> None:
    distances = torch.tensor([0.0, 0.2, 0.4, 0.8, 2.0])
    expected = torch.tensor([0.0, 0.0, 0.5, 0.75, 0.9])
    torch.testing.assert_close(fitted(usual=0.2, limit=0.4)(distances), expected)


def test_the_order_of_distances_beyond_the_usual_one_is_kept_however_large_they_are() -> None:
    probabilities = fitted(usual=0.001, limit=0.002)(torch.linspace(0.01, 2, 100))
    assert (probabilities.diff() > 0).all()
    assert probabilities.max() < 1


def test_the_limit_is_the_highest_peak_of_good_parts_or_beyond_the_mean_peak_of_a_batch_or_a_low_one_of_self() -> None:
    maps = torch.rand(5, 3, 7)
    medians = sorted(sorted(picture.flatten().tolist())[10] for picture in maps)
    peaks = sorted(float(picture.max()) for picture in maps)
    limits = {"few_shot": peaks[4], "batch": medians[2] + 1.2 * (sum(peaks) / 5 - medians[2]), "self": peaks[1]}
    for kind, limit in limits.items():
        calibration = Calibration()
        calibration.fit(maps, kind)
        assert calibration.typical == (0 if kind == "few_shot" else medians[2])
        assert float(calibration.half_point) == pytest.approx(limit)


def test_good_parts_and_most_of_a_batch_s_good_pictures_stay_below_an_even_chance() -> None:
    maps = torch.rand(9, 10, 10)
    maps[:4, :3] += 50
    for shown, kind in ((maps[4:], "few_shot"), (maps[4:], "batch"), (maps, "batch")):
        calibration = Calibration()
        calibration.fit(shown, kind)
        assert calibration(maps[4:]).max() <= 0.5
        assert calibration(maps[:4, :3]).min() > 0.5


def test_equal_good_parts_do_not_end_in_a_division_by_0() -> None:
    calibration = Calibration()
    calibration.fit(torch.zeros(3, 4, 5), "few_shot")
    assert calibration(torch.tensor([0.0, 1e-3])).isfinite().all()


def test_a_calibration_travels_in_the_state_dict_and_without_one_there_is_no_probability() -> None:
    other = Calibration()
    with pytest.raises(RuntimeError, match="not known which distance is usual"):
        other(torch.zeros(1))
    other.load_state_dict(fitted(0.2, 0.4).state_dict())
    assert other(torch.tensor(0.4)) == pytest.approx(0.5)


@pytest.mark.parametrize(("share", "passing"), [(1.0, 10), (0.95, 10), (0.9, 9), (0.7, 7), (0.01, 1)])
def test_at_least_the_stated_share_passes_a_threshold(share: float, passing: int) -> None:
    values = torch.randperm(10).float().view(2, 5)
    threshold = passing_threshold(values, share)
    assert int((values <= threshold).sum()) == passing


def test_shares_outside_their_range_and_nothing_to_learn_from_are_refused() -> None:
    for values, share in ((torch.rand(3), 0.0), (torch.rand(3), 1.1), (torch.rand(0), 0.5)):
        with pytest.raises(ValueError, match="cannot pass"):
            passing_threshold(values, share)
    for maps, kind in ((torch.rand(0, 2, 3), "batch"), (torch.rand(2, 2, 3), "text")):
        with pytest.raises(ValueError, match="Give one map at least, of one of the kinds"):
            Calibration().fit(maps, kind)
    for shares in ({"text_share": -0.1}, {"text_score_share": 1.1}):
        with pytest.raises(ValueError, match="Choose a number between 0 and 1"):
            Combination(**shares)


def test_a_text_share_of_0_gives_the_reference_alone_to_the_bit_and_1_the_text() -> None:
    text_map, text_score, reference_map = torch.rand(2, 10, 20), torch.rand(2), torch.rand(2, 10, 20)
    result, score = Combination(text_share=0, text_score_share=0)(text_map, text_score, reference_map)
    assert torch.equal(result, reference_map)
    torch.testing.assert_close(score, reference_map.flatten(1).sort(dim=1).values[:, -2:].mean(dim=1))
    result, score = Combination(text_share=1, text_score_share=1)(text_map, text_score, reference_map)
    assert torch.equal(result, text_map)
    assert torch.equal(score, text_score)


def test_shares_of_map_and_score_are_their_own() -> None:
    ones, zeros = torch.ones(1, 4, 6), torch.zeros(1, 4, 6)
    result, score = Combination(text_share=0.3, text_score_share=0.4)(zeros, torch.tensor([0.5]), ones)
    torch.testing.assert_close(result, 0.7 * ones)
    torch.testing.assert_close(score, torch.tensor([0.8]))
