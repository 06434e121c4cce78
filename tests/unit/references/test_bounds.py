# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Where good pictures end, and what becomes 0.5."""

from __future__ import annotations

import math

import pytest
import torch

from anomalib_clipsam.references.bounds import (
    image_level,
    image_level_of_batch,
    pixel_level,
    pixel_level_of_batch,
    recentre,
    suppress_halo,
)


def test_a_level_becomes_0_5_and_the_order_stays() -> None:
    values = torch.tensor([0.0, 0.1, 0.2, 0.5, 1.0])
    found = recentre(values, 0.2)
    torch.testing.assert_close(found, torch.tensor([0.0, 4 / 13, 0.5, 0.8, 1.0]))  # odds times 4
    assert recentre(values, 0.5) is values


def test_a_strong_defect_loses_its_halo_and_a_weak_map_nothing() -> None:
    maps = torch.tensor([[[0.1, 0.6, 0.9]], [[0.1, 0.3, 0.5]]])
    found = suppress_halo(maps, 0.5)
    odds = torch.tensor([1 / 9, 1.5, 9.0]) / 9**0.5
    torch.testing.assert_close(found[0, 0], odds / (1 + odds))
    assert found[0, 0, 1] < 0.5 < found[0, 0, 2]
    assert torch.equal(found[1], maps[1])
    assert suppress_halo(maps, 0) is maps


def test_a_share_of_the_pixels_is_below_the_level() -> None:
    values = torch.arange(1, 201) / 1000
    assert pixel_level([values[:100].view(1, 10, 10), values[100:].view(1, 10, 10)]) == pytest.approx(0.199)
    assert pixel_level([torch.zeros(1, 4, 4)]) == pytest.approx(0.01)
    assert pixel_level([torch.ones(1, 4, 4)]) == pytest.approx(0.99)
    assert pixel_level_of_batch([0.1, 0.9, 0.2, 0.3]) == 0.2


@pytest.mark.parametrize(
    ("wish", "parts", "quantile"),
    [(0.05, 1, 2.1318), (0.001, 1, 7.1732), (0.1, 4, 1.4149), (0.15, 8, 1.0877), (0.5, 6, 0)],
)
def test_the_bound_is_student_s_also_for_small_wishes(wish: float, parts: int, quantile: float) -> None:
    """Equal parts: the training photographs' spread alone, as of four parts more."""
    variance = 4 * 0.25**2 / (3 + parts) * (1 + 1 / parts)
    expected = 1 / (1 + math.exp(-quantile * variance**0.5))
    assert image_level(torch.full((parts,), 0.5), wish) == pytest.approx(expected, abs=1e-4)


def test_four_equal_parts_leave_the_spread_of_other_products() -> None:
    """Log-odds of 0: 7 degrees of freedom, 4 of which are the prior's 0.25."""
    deviation = (4 * 0.25**2 / 7 * 1.25) ** 0.5
    expected = torch.tensor(1.415 * deviation).sigmoid().item()
    assert image_level(torch.full((4,), 0.5), 0.1) == pytest.approx(expected, abs=1e-3)


def test_a_further_good_part_is_above_the_level_as_often_as_wished() -> None:
    generator = torch.Generator().manual_seed(0)
    odds = 0.25 * torch.randn(4000, 9, generator=generator) - 1
    for wished in (0.05, 0.2):
        above = [image_level(good[:8].sigmoid(), wished) < good[8].sigmoid() for good in odds]
        assert sum(above) / len(above) == pytest.approx(wished, abs=0.02)


@pytest.mark.parametrize(("defective", "most"), [(0, 0.27), (10, 0.14), (20, 0.05)])
def test_a_batch_has_few_false_alarms_whatever_share_is_damaged(defective: int, most: float) -> None:
    generator = torch.Generator().manual_seed(1)
    alarms, missed = [], []
    for _ in range(200):
        odds = 0.3 * torch.randn(40, generator=generator)
        odds[:defective] += 3
        called = odds.sigmoid() > image_level_of_batch(odds.sigmoid(), 0.1)
        alarms.append(called[defective:].float().mean())
        missed.append(1 - called[:defective].float().mean() if defective else torch.zeros(()))
    assert torch.stack(alarms).mean() < most
    assert torch.stack(missed).mean() < 0.02
