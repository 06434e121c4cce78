# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Metrics from raw maps, against scikit-learn and anomalib."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from anomalib.metrics.aupr import _AUPR
from anomalib.metrics.aupro import _AUPRO
from anomalib.metrics.auroc import _AUROC
from anomalib.metrics.f1_score import _F1Max
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from anomalib_clipsam.compare.metrics import IMAGE_METRICS, LEVELS, PIXEL_METRICS, PixelMetrics, image_metrics


def draw(batch: int = 6, height: int = 40, width: int = 56) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of about 0 to 1 on which some regions stand out, and the regions, two in most images."""
    masks = torch.zeros(batch, height, width, dtype=torch.long)
    for index in range(1, batch):
        masks[index, 3 : 6 + index, 5:20] = 1
        masks[index, 25:30, 30 : 33 + 2 * index] = 1
    return 0.15 * torch.rand(batch, height, width) + 0.03 * masks + 0.4, masks


def measure(maps: torch.Tensor, masks: torch.Tensor, size: int = 2) -> dict[str, float]:
    metrics = PixelMetrics()
    for start in range(0, len(maps), size):
        metrics.update(maps[start : start + size], masks[start : start + size])
    return metrics.compute()


def f1_max(scores: np.ndarray, labels: np.ndarray) -> float:
    precision, recall, _ = precision_recall_curve(labels, scores)
    return np.nanmax(2 * precision * recall / (precision + recall))


@pytest.mark.parametrize("scale", [1, 1e-6, -1e4, 1e30])
@pytest.mark.parametrize("offset", [0, -0.5])
def test_pixel_metrics_are_those_of_scikit_learn(scale: float, offset: float) -> None:
    maps, masks = draw()
    maps = (maps + offset) * scale
    scores, labels = maps.double().numpy().ravel(), masks.numpy().ravel()
    assert [measure(maps, masks)[name] for name in PIXEL_METRICS[:3]] == pytest.approx(
        [roc_auc_score(labels, scores), f1_max(scores, labels), average_precision_score(labels, scores)], abs=1e-6
    )


def test_pixel_metrics_are_those_of_anomalib() -> None:
    maps, masks = draw()
    expected = []
    for metric in (_AUROC(), _F1Max(), _AUPR(), _AUPRO()):
        metric.update(maps, masks)
        expected.append(metric.compute().item())
    assert [measure(maps, masks)[name] for name in PIXEL_METRICS] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("limit", [0.01, 0.3, 1.0])
def test_aupro_is_that_of_anomalib_where_scores_tie(limit: float) -> None:
    maps, masks = draw()
    maps = (maps * 20).round() - 15
    metrics, expected = PixelMetrics(limit), _AUPRO(fpr_limit=limit)
    metrics.update(maps, masks)
    expected.update(maps, masks)
    assert metrics.compute()["pixel_AUPRO"] == pytest.approx(expected.compute().item(), abs=1e-6)


def test_aupro_counts_regions_alike_whatever_their_size() -> None:
    masks = torch.zeros(1, 10, 12, dtype=torch.long)
    masks[0, 0, 0] = 1
    masks[0, 5:9, 2:10] = 1
    maps = torch.zeros(1, 10, 12)
    maps[0, 0, 0] = 1.0  # the small one alone is found
    # Half of the regions from the start, and the rest grows with the false positives: (0.5 + 0.5 + 0.15) / 2 each.
    assert measure(maps, masks)["pixel_AUPRO"] == pytest.approx((0.5 + 0.65) / 2)


def test_result_depends_neither_on_the_order_nor_on_the_batches() -> None:
    maps, masks = draw()
    maps = maps * torch.tensor([1e-3, 1.0, 30.0, -1e3, 2.0, 1e-5]).view(-1, 1, 1)
    expected = measure(maps, masks, size=6)
    for size in (1, 2, 5):
        assert measure(maps, masks, size) == pytest.approx(expected, abs=1e-12)
        assert measure(maps.flip(0), masks.flip(0), size) == pytest.approx(expected, abs=1e-12)


def test_no_level_is_wider_than_said_and_memory_does_not_grow() -> None:
    maps, masks = draw()
    metrics = PixelMetrics()
    for factor in (1, 7, -3):
        metrics.update(maps * factor, masks)
        assert 2**metrics.exponent <= 2 / LEVELS * (metrics.high - metrics.low)
    assert metrics.counts.shape == (3, LEVELS)
    assert metrics.counts.sum(axis=1) == pytest.approx([3 * (masks == 0).sum().item(), 3 * masks.sum().item(), 30])


@pytest.mark.parametrize("value", [0, 1])
def test_pixel_metrics_need_both_labels(value: int) -> None:
    maps, masks = draw()
    assert all(math.isnan(number) for number in measure(maps, torch.full_like(masks, value)).values())
    assert all(math.isnan(number) for number in PixelMetrics().compute().values())


def test_constant_map_is_chance() -> None:
    _, masks = draw()
    for value in (0.0, 0.3, -2e9):
        result = measure(torch.full(masks.shape, value), masks)
        assert (result["pixel_AUROC"], result["pixel_AP"]) == pytest.approx((0.5, masks.double().mean().item()))


def test_maps_without_an_order_are_refused() -> None:
    maps, masks = draw()
    maps[2, 3, 4] = math.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        PixelMetrics().update(maps, masks)
    with pytest.raises(ValueError, match=r"\(6, 40, 56\) and the masks \(6, 40, 55\)"):
        PixelMetrics().update(maps, masks[..., 1:])
    with pytest.raises(ValueError, match="fpr_limit is 0"):
        PixelMetrics(0)


def test_image_metrics_are_those_of_scikit_learn_without_a_sigmoid() -> None:
    labels = np.array([0, 0, 1, 1, 0, 1])
    scores = np.array([-40.0, 30.0, 50.0, 60.0, 20.0, 25.0])  # a sigmoid makes five of them 1
    result = image_metrics(scores, labels)
    assert list(result) == list(IMAGE_METRICS)
    expected = [roc_auc_score(labels, scores), f1_max(scores, labels), average_precision_score(labels, scores)]
    assert list(result.values()) == pytest.approx(expected)
    assert all(math.isnan(value) for value in image_metrics(scores, np.ones(6)).values())


def test_a_mask_that_covers_a_picture_is_a_region_of_defective_pixels() -> None:
    """With anomalib's labelling of regions, all of its pixels counted as good ones."""
    maps, masks = torch.rand(2, 4, 5), torch.zeros(2, 4, 5, dtype=torch.bool)
    maps[0] += 1
    masks[0] = True
    found = measure(maps, masks)
    assert (found["pixel_AUROC"], found["pixel_AUPRO"]) == pytest.approx((1, 1))
