# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Connected parts of masks, beside OpenCV's, and within the rounds that a graph has."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from anomalib_clipsam.method import regions as connected_parts
from anomalib_clipsam.method.regions import label_parts, measure_parts


def snake(height: int, width: int) -> np.ndarray:
    """Draw one line that goes to and fro: the longest way that a mask can have."""
    mask = np.zeros((height, width), dtype=bool)
    mask[::2] = True
    mask[1::4, -1] = mask[3::4, 0] = True
    return mask


def comb(height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    mask[:, ::2] = mask[0] = True
    return mask


def noise(height: int, width: int, share: float = 0.41) -> np.ndarray:
    """Draw noise near the share at which parts are most ragged."""
    return np.random.default_rng(0).random((height, width)) < share


MASKS = {
    "snake": snake(121, 100),
    "snake upright": snake(100, 121).T,
    "snake backwards": snake(121, 100)[::-1, ::-1],
    "comb": comb(90, 130),
    "comb upside down": comb(90, 130)[::-1],
    "noise": noise(150, 110),
    "grains": noise(150, 110, 0.3),
    "corners": np.indices((40, 30)).sum(axis=0) % 2 == 0,  # a chessboard: one part
    "full": np.ones((40, 30), dtype=bool),
    "empty": np.zeros((40, 30), dtype=bool),
}


def as_opencv(mask: np.ndarray, labels: torch.Tensor) -> bool:
    """Say whether labels tell the same parts apart as OpenCV's."""
    number, expected = cv2.connectedComponents(mask.astype(np.uint8))
    pairs = set(zip(expected.ravel().tolist(), labels.ravel().tolist(), strict=True))
    return len(pairs) == number - mask.all() and ((labels.numpy() > 0) == mask).all()


@pytest.mark.parametrize("name", MASKS)
def test_parts_are_opencv_s(name: str) -> None:
    mask = np.ascontiguousarray(MASKS[name])
    assert as_opencv(mask, label_parts(torch.from_numpy(mask)[None])[0])


def test_rounds_of_a_graph_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)
    for mask in (snake(255, 256), comb(256, 256), noise(256, 256)):
        assert as_opencv(mask, label_parts(torch.from_numpy(mask)[None])[0])
    monkeypatch.setattr(connected_parts, "ROUNDS", 1)
    assert not as_opencv(noise(256, 256), label_parts(torch.from_numpy(noise(256, 256))[None])[0])


def test_images_of_a_batch_are_apart() -> None:
    masks = torch.from_numpy(np.stack([snake(41, 30), noise(41, 30), np.zeros((41, 30), dtype=bool)]))
    assert torch.equal(label_parts(masks), torch.cat([label_parts(mask[None]) for mask in masks]))


def test_mean_and_area_of_each_part() -> None:
    mask = torch.tensor([[[1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]], [[0, 0, 0, 0]] * 3], dtype=torch.bool)
    values = torch.tensor([[[0.25, 0.75, 9, 9], [9, 9, 9, 0.5], [9, 9, 0.125, 9]], [[9.0] * 4] * 3])
    mean, area = measure_parts(mask, values)
    assert mean[mask].tolist() == [0.5, 0.5, 0.3125, 0.3125]
    assert area[mask].tolist() == [2, 2, 2, 2]
    assert mean.isfinite().all()
