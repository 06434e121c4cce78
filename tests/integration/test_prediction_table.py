# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The command ``anomalib-clipsam predictions``, and its table."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from anomalib.data import PredictDataset
from anomalib.engine import Engine
from PIL import Image

from anomalib_clipsam import ClipSam
from anomalib_clipsam.cli import main


def test_command_writes_a_line_per_picture(
    tmp_path: Path, parts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    main(
        ["predictions", str(parts / "defect"), "--to", "new/scores.csv", "--weights", "demo", "--class-name", "capsule"]
    )
    assert capsys.readouterr().out.endswith("\n4 pictures: 4 defective, 0 good. In new/scores.csv.\n")
    with Path("new/scores.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [Path(line["file"]).name for line in lines] == [f"{index}.png" for index in range(4)]
    model = ClipSam(weights="demo", class_name="capsule", visualizer=False)
    engine = Engine(default_root_dir=tmp_path / "engine", logger=False)
    batches = engine.predict(model, dataset=PredictDataset(parts / "defect"))
    for line, batch in zip(lines, batches, strict=True):
        width, height = Image.open(line["file"]).size
        assert float(line["score"]) == pytest.approx(batch.pred_score.item(), abs=1e-4)
        assert line["label"] == ("defective" if batch.pred_label.item() else "good")
        share = batch.pred_mask.float().mean().item()
        assert int(line["mask_area"]) == pytest.approx(share * width * height, abs=1)
        boxes = [[int(value) for value in box.split()] for box in line["boxes"].split("; ") if box]
        assert bool(boxes) == bool(batch.pred_mask.any())
        covered = np.zeros((height, width), bool)
        for x0, y0, x1, y1 in boxes:
            covered[y0:y1, x0:x1] = True
        assert covered.sum() >= int(line["mask_area"])
    scores = sorted(float(line["score"]) for line in lines)
    threshold = (scores[1] + scores[2]) / 2
    command = ["predictions", str(parts / "defect"), "--to", "new/moved.csv", "--weights", "demo"]
    main([*command, "--class-name", "capsule", "--threshold", str(threshold)])
    with Path("new/moved.csv").open(encoding="utf-8") as file:
        moved = list(csv.DictReader(file))
    assert [line["score"] for line in moved] == [line["score"] for line in lines]
    assert [line["label"] for line in moved].count("good") == 2
    for line in moved:
        assert line["label"] == ("defective" if float(line["score"]) > threshold else "good")
        assert line["label"] == "defective" or (line["mask_area"], line["boxes"]) == ("0", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new"]  # nothing else is left behind


@pytest.mark.parametrize(
    ("option", "message"), [("--threshold=1.5", "The threshold is 1.5"), ("--min-area=-1", "min_area is -1")]
)
def test_what_makes_no_sense_is_one_line(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, message: str
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["predictions", str(parts), "--to", str(tmp_path / "a.csv"), "--weights", "demo", option])
    assert raised.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_folder_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["predictions", str(tmp_path / "none"), "--to", str(tmp_path / "a.csv"), "--weights", "demo"])
    assert raised.value.code == 2
    assert "none" in capsys.readouterr().err.splitlines()[-1]
