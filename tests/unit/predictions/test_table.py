# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""A prediction as a line of the table, and when lines are written."""

from __future__ import annotations

import os
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from anomalib.data import ImageItem, PredictDataset
from PIL import Image

from anomalib_clipsam.predictions.table import PredictionTable, to_line


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
    assert to_line(item) == (str(path), "0.2500", "good", str(52 * 8), "0 20 20 40; 392 98 400 100")


@pytest.mark.parametrize("name", [None, "gone.png"])
def test_without_a_file_mask_and_boxes_are_in_pixels_of_the_image(tmp_path: Path, name: str | None) -> None:
    mask = torch.zeros(5, 10, dtype=torch.bool)
    mask[1:3, 4:9] = True
    path = None if name is None else str(tmp_path / name)
    item = ImageItem(image=torch.zeros(3, 10, 40), image_path=path, pred_mask=mask)
    assert to_line(item) == (path or "", "", "", str(2 * 5 * 2 * 4), "16 2 36 6")


def test_image_without_a_file_and_a_mask() -> None:
    item = ImageItem(image=torch.zeros(3, 5, 5), pred_score=torch.tensor(0.5))
    assert to_line(item) == ("", "0.5000", "", "", "")


def test_name_that_is_not_utf_8_does_not_stop_the_table(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    table = PredictionTable(path)
    names = [os.fsdecode(b"caf\xe9.png"), "caf\u00e9.png"]
    items = [ImageItem(image=torch.zeros(3, 4, 6), image_path=name, pred_score=torch.tensor(0.5)) for name in names]
    table.on_predict_start(Mock(), Mock())
    table.on_predict_batch_end(Mock(), Mock(), Mock(), items, 0)
    assert path.read_text(encoding="utf-8").splitlines()[1:] == ["caf\\udce9.png,0.5000,,,", "caf\u00e9.png,0.5000,,,"]


def test_what_is_not_predicted_is_left_empty() -> None:
    item = ImageItem(image=torch.zeros(3, 5, 5), image_path="a.png", pred_label=torch.tensor(True))
    assert to_line(item) == ("a.png", "", "defective", "", "")


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


@pytest.mark.parametrize("name", ["=1+1.png", "@SUM(1).png", "+1.png", "-1.png"])
def test_names_of_files_are_no_formulas_of_a_spreadsheet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Files are listed with their whole path, also those of the folder that one is in."""
    Image.new("RGB", (5, 5)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for folder in (".", Path()):
        assert to_line(PredictDataset(folder)[0])[0] == str(tmp_path / name)


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
