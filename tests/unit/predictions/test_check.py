# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Verdicts and outlines against labels, on four pictures of 4 x 4 pixels."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_clipsam.predictions.check import MapCounts, best_balanced_accuracy, measure, to_markdown, true_mask


def write_mask(path: Path, rows: int) -> None:
    """Write a mask of 4 x 4 pixels, its first rows white."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((4, 4), np.uint8)
    pixels[:rows] = 255
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two defective pictures, with 2 rows that are damaged each."""
    for name in ("a", "b"):
        write_mask(tmp_path / "ground_truth" / "cut" / f"{name}_mask.png", 2)
    return tmp_path


def entry(folder: Path, picture: str, score: float, label: str, mask: str | None) -> dict:
    file = str(folder / "test" / picture)
    return {"file": file, "score": score, "label": label, "mask": mask, "width": 4, "height": 4}


def test_figures(folder: Path) -> None:
    """One of two is missed, one of two good ones is a false alarm; outlined are 4 true pixels of 16, and 8 others."""
    write_mask(folder / "out" / "a.png", 1)
    write_mask(folder / "out" / "g.png", 2)
    entries = [
        entry(folder, "cut/a.png", 0.9, "defective", "a.png"),
        entry(folder, "cut/b.png", 0.4, "good", None),
        entry(folder, "good/c.png", 0.3, "good", None),
        entry(folder, "good/d.png", 0.6, "defective", "g.png"),
    ]
    found = measure(folder, folder / "out", entries, 0.75)
    assert (found.pictures, found.missed, found.false_alarms, found.balanced) == (4, 0.5, 0.5, 0.5)
    assert found.best_balanced == 0.75  # above 0.3, or above 0.6
    assert found.outline == pytest.approx(2 * 4 / (12 + 16))
    assert (found.outline_max, found.not_outlined) == (0.75, 0)
    assert "| nuts | 4 | 0.50 | 0.50 | 0.50 | 0.75 | 0.29 | 0.75 | 0.00 |" in to_markdown([("nuts", found)])


def test_the_best_f1_of_a_map(folder: Path) -> None:
    counts = MapCounts(folder)
    maps = torch.zeros(2, 4, 4)
    maps[0, :2], maps[0, 3, 0], maps[1, 0, 0] = 0.8, 0.6, 0.6
    paths = [str(folder / "test" / name) for name in ("cut/a.png", "good/c.png")]
    counts.on_predict_batch_end(None, None, SimpleNamespace(image_path=paths, anomaly_map=maps), None, 0)
    assert counts.best_f1() == 1
    maps[0, 0] = 0.1
    counts.on_predict_batch_end(None, None, SimpleNamespace(image_path=paths, anomaly_map=maps), None, 0)
    assert counts.best_f1() == pytest.approx(2 * 16 / (20 + 16))  # with four pixels that are good


def test_a_mask_that_is_missing_is_named(folder: Path) -> None:
    assert true_mask(folder, folder / "test/good/c.png", (3, 2)).shape == (2, 3)
    assert true_mask(folder, folder / "test/cut/a.png", (2, 2)).tolist() == [[True, True], [False, False]]
    with pytest.raises(FileNotFoundError, match=r"has no mask of z\.png\. Give it as z_mask\.png"):
        true_mask(folder, folder / "test/cut/z.png", (2, 2))


def test_the_best_balanced_accuracy_is_that_of_the_best_threshold() -> None:
    scores, truth = np.array([0.1, 0.2, 0.3, 0.4]), np.array([False, True, False, True])
    assert best_balanced_accuracy(scores, truth) == 0.75
    assert np.isnan(best_balanced_accuracy(scores, np.zeros(4, bool)))
