# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The last line of a pass."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from anomalib.data import Folder, ImageBatch, PredictDataset
from anomalib.engine import Engine
from PIL import Image

from anomalib_clipsam import ClipSam
from anomalib_clipsam.drawn_parts.drawing import draw_part
from anomalib_clipsam.plugin.report import PassSummary, find_pictures, summarize


@pytest.mark.parametrize(
    ("counts", "folder", "line"),
    [
        ([12, 12, 3], Path("out/images"), "12 pictures: 3 defective, 9 good. Drawn in out/images"),
        ([1, 1, 0], None, "1 picture: 0 defective, 1 good"),
        ([2, 0, 0], None, "2 pictures"),
    ],
)
def test_line_counts_and_names_the_folder(counts: list[int], folder: Path | None, line: str) -> None:
    assert summarize(counts, folder) == line


def test_folder_is_the_visualizer_s_else_that_of_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = SimpleNamespace(default_root_dir=tmp_path / "runs")
    assert find_pictures(trainer, SimpleNamespace(output_dir=None)) == Path("runs/images")
    assert find_pictures(trainer, SimpleNamespace(output_dir="/elsewhere")) == Path("/elsewhere")
    assert find_pictures(trainer, SimpleNamespace()) is None  # a table draws nothing
    assert find_pictures(trainer, None) is None


def test_every_test_and_predict_pass_says_its_line_once_and_last(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("parts/good").mkdir(parents=True)
    Path("parts/bad").mkdir()
    for index in range(2):
        for folder, defect in (("good", None), ("bad", "hole")):
            picture = draw_part("capsule", np.random.default_rng(index), defect)[0]
            Image.fromarray(picture).save(f"parts/{folder}/{index}.png")
    model = ClipSam("demo", refine=False, image_threshold=0.0)
    Engine(default_root_dir="a", accelerator="cpu", logger=False).predict(model, dataset=PredictDataset("parts"))
    assert (
        capsys.readouterr().out.splitlines()[-1] == "4 pictures: 4 defective, 0 good. Drawn in a/ClipSam/latest/images"
    )
    assert len(list(Path("a/ClipSam/latest/images").rglob("*.png"))) == 4
    data = Folder("parts", "good", root="parts", abnormal_dir="bad", normal_test_dir="good", num_workers=0)
    model = ClipSam("demo", refine=False, image_threshold=1.0, visualizer=False)
    Engine(default_root_dir="b", accelerator="cpu", logger=False).test(model, datamodule=data)
    out = capsys.readouterr().out
    assert out.count("defective") == 1  # the validation pass says nothing
    assert out.splitlines()[-1] == f"{len(data.test_data)} pictures: 0 defective, {len(data.test_data)} good"
    quiet = Engine(default_root_dir="c", accelerator="cpu", logger=False, enable_progress_bar=False)
    with caplog.at_level(logging.INFO):
        quiet.predict(model, dataset=PredictDataset("parts"))
    assert "4 pictures: 0 defective, 4 good" in caplog.messages
    assert "defective" not in capsys.readouterr().out


def test_counts_of_all_processes_are_added_and_one_of_them_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    strategy = SimpleNamespace(reduce=lambda counts, reduce_op: counts * 2 if reduce_op == "sum" else None)
    model = SimpleNamespace(device="cpu", visualizer=None)
    for main in (True, False):
        trainer = SimpleNamespace(strategy=strategy, is_global_zero=main, progress_bar_callback=object())
        summary = PassSummary()
        for _ in range(2):  # the second pass counts anew
            summary.on_test_start(trainer, model)
            batch = ImageBatch(torch.rand(3, 3, 4, 4), pred_label=torch.tensor([True, False, True]))
            summary.on_test_batch_end(trainer, model, batch, batch, 0)
            summary.on_test_end(trainer, model)
            summary.teardown(trainer, model, "validate")
            summary.teardown(trainer, model, "test")
    assert capsys.readouterr().out == "6 pictures: 4 defective, 2 good\n" * 2
