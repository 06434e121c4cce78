# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""A prediction as a line of the table, and when lines are written."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import torch
from anomalib.data import ImageItem
from PIL import Image

from anomalib_clipsam.results.prediction_table import PredictionTable, describe


def test_mask_and_boxes_are_in_pixels_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    Image.new("RGB", (400, 100)).save(path)
    mask = torch.zeros(1, 50, 100, dtype=torch.bool)
    mask[0, 10:20, 0:5] = True
    mask[0, 49, 98:100] = True
    item = ImageItem(
        image=torch.zeros(3, 50, 100),
        image_path=str(path),
        pred_mask=mask[0],
        pred_score=torch.tensor(0.25),
        pred_label=torch.tensor(False),
    )
    assert describe(item) == (str(path), "0.2500", "good", str(52 * 8), "0 20 20 40; 392 98 400 100")


def test_what_is_not_predicted_is_left_empty() -> None:
    item = ImageItem(image=torch.zeros(3, 5, 5), image_path="a.png", pred_label=torch.tensor(True))
    assert describe(item) == ("a.png", "", "defective", "", "")


def test_each_of_several_processes_adds_its_lines(tmp_path: Path) -> None:
    """The first begins the file, and the others wait until it has."""
    path = tmp_path / "scores.csv"
    first, second = (Mock(is_global_zero=zero) for zero in (True, False))
    second.strategy.barrier.side_effect = lambda: PredictionTable(path).on_predict_start(first, Mock())
    for trainer, name in ((second, "b"), (first, "a")):
        table = PredictionTable(path)
        if trainer is second:
            table.on_predict_start(trainer, Mock())
        item = ImageItem(image=torch.zeros(3, 4, 6), image_path=f"{name}.png", pred_score=torch.tensor(0.5))
        table.on_predict_batch_end(trainer, Mock(), Mock(), [item], 0)
    assert path.read_text().splitlines()[1:] == ["b.png,0.5000,,,", "a.png,0.5000,,,"]
    first.strategy.barrier.assert_called_once_with()


def test_lines_are_written_batch_by_batch_and_an_old_table_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "scores.csv"
    table = PredictionTable(path)
    items = [
        ImageItem(image=torch.zeros(3, 4, 6), image_path=f"{name}.png", pred_score=torch.tensor(0.5)) for name in "abc"
    ]
    for start, end in (
        (table.on_test_start, table.on_test_batch_end),
        (table.on_predict_start, table.on_predict_batch_end),
    ):
        start(Mock(), Mock())
        assert path.read_text().splitlines() == ["file,score,label,mask_area,boxes"]
        end(Mock(), Mock(), Mock(), items[:2], 0)
        assert path.read_text().splitlines()[1:] == ["a.png,0.5000,,,", "b.png,0.5000,,,"]
        end(Mock(), Mock(), Mock(), items[2:], 1)
        assert path.read_text().splitlines()[3:] == ["c.png,0.5000,,,"]
