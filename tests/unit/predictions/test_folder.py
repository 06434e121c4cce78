# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Predictions as a folder: its journal, its tables, and when it is refused."""

from __future__ import annotations

import csv
import json
import logging
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from anomalib.data import ImageBatch
from PIL import Image

from anomalib_clipsam.predictions.folder import PredictionFolder

SETTINGS = {"--weights": "lite"}


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    root = tmp_path / "in"
    (root / "sub").mkdir(parents=True)
    for name in ("a.png", "b.jpg", "sub/a.png"):
        Image.new("RGB", (8, 6)).save(root / name)
    return [str(root / name) for name in ("a.png", "b.jpg", "sub/a.png")]


def folder_of(tmp_path: Path, files: list[str]) -> PredictionFolder:
    return PredictionFolder(tmp_path / "out", tmp_path / "in", files)


def write(
    folder: PredictionFolder, files: list[str], score: float = 0.75, defective: bool = True, rank: int = 0
) -> None:
    """Let a process write what it found: the left half of the lower row, where something is defective."""
    mask = torch.zeros(len(files), 2, 4, dtype=torch.bool)
    mask[:, 1, :2] = defective
    batch = ImageBatch(
        image=torch.zeros(len(files), 3, 6, 8),
        image_path=files,
        pred_score=torch.full((len(files),), score),
        pred_label=torch.full((len(files),), defective),
        pred_mask=mask,
        anomaly_map=mask * 0.625,
    )
    model = SimpleNamespace(name_of=lambda path: Path(path).stem)
    folder.write_on_batch_end(SimpleNamespace(global_rank=rank), model, batch, None, batch, 0, 0)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_tables_have_every_picture_once_in_the_order_of_files(tmp_path: Path, files: list[str]) -> None:
    """Two processes have written, in no order, and the second has scored a picture that the first had, too."""
    folder = folder_of(tmp_path, files)
    assert folder.begin(SETTINGS) == set()
    write(folder, [files[2]], rank=1)
    write(folder, [files[1], files[0]], score=0.25, defective=False)
    write(folder, [files[0]], score=0.25, defective=False, rank=1)
    assert folder.finish() == (
        f"3 pictures: 1 defective, 2 good. In {tmp_path / 'out'}: predictions.csv, regions.csv, predictions.jsonl, "
        "coco.json, masks."
    )
    out = tmp_path / "out"
    nothing = {"threshold": "", "label": "good", "mask_area": "0", "score": "0.25"}
    assert rows(out / "predictions.csv") == [
        {"file": files[0], "class_name": "a", **nothing},
        {"file": files[1], "class_name": "b", **nothing},
        {
            "file": files[2],
            "score": "0.75",
            "threshold": "",
            "label": "defective",
            "class_name": "a",
            "mask_area": "12",
        },
    ]
    (region,) = rows(out / "regions.csv")
    assert list(region.values()) == [files[2], "0", "3", "4", "6", "12", "0.625"]
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert lines[2] == {
        "file": files[2],
        "score": 0.75,
        "threshold": None,
        "label": "defective",
        "class_name": "a",
        "width": 8,
        "height": 6,
        "mask_area": 12,
        "mask": "masks/sub/a.png",
        "regions": [{"box": [0, 3, 4, 6], "area": 12, "score": 0.625}],
    }
    assert [line["mask"] for line in lines[:2]] == [None, None]
    assert [path.relative_to(out).as_posix() for path in out.rglob("*.png")] == ["masks/sub/a.png"]
    expected = np.zeros((6, 8), np.uint8)
    expected[3:, :4] = 255
    assert np.array_equal(np.asarray(Image.open(out / "masks/sub/a.png")), expected)
    assert not list(out.rglob("*.tmp"))


def test_coco_is_read_by_pycocotools(tmp_path: Path, files: list[str]) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    folder = folder_of(tmp_path, files)
    folder.begin(SETTINGS)
    write(folder, files)
    folder.finish()
    data = coco.COCO(str(tmp_path / "out" / "coco.json"))
    assert [image["file_name"] for image in data.loadImgs(data.getImgIds())] == ["a.png", "b.jpg", "sub/a.png"]
    annotations = data.loadAnns(data.getAnnIds())
    assert [(each["image_id"], each["bbox"], each["area"], each["score"]) for each in annotations] == [
        (number, [0, 3, 4, 3], 12, 0.625) for number in (1, 2, 3)
    ]
    mask = np.asarray(Image.open(tmp_path / "out" / "masks" / "b.jpg.png"))
    assert np.array_equal(data.annToMask(annotations[1]) * 255, mask)


def test_without_pycocotools_all_else_is_written_and_a_sentence_says_how_to_get_it(
    tmp_path: Path, files: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    folder = folder_of(tmp_path, files)
    folder.begin(SETTINGS)
    write(folder, files)
    with caplog.at_level(logging.WARNING):
        assert "coco.json" not in folder.finish()
    assert "pip install 'anomalib_clipsam[coco]'" in caplog.messages[-1]
    assert len(rows(tmp_path / "out" / "predictions.csv")) == 3
    assert not (tmp_path / "out" / "coco.json").exists()


def test_a_line_that_a_kill_has_torn_is_no_line_and_harms_none_after_it(tmp_path: Path, files: list[str]) -> None:
    folder = folder_of(tmp_path, files)
    folder.begin(SETTINGS)
    write(folder, files[:2])
    journal = tmp_path / "out" / "journal" / "0.jsonl"
    whole = journal.read_bytes()
    for end in range(len(whole)):
        journal.write_bytes(whole[:end])
        kept = folder.read()
        assert list(kept) == files[: len(kept)]
        assert len(kept) == (end > 0 and whole[:end].split(b"\n")[1] == whole.split(b"\n")[1])
    journal.write_bytes(whole[:-9])
    assert folder_of(tmp_path, files).begin(SETTINGS) == {files[0]}
    write(folder, files[1:])
    assert list(folder.read()) == files


def test_a_picture_that_has_changed_is_scored_again_and_one_that_has_gone_is_left_out(
    tmp_path: Path, files: list[str]
) -> None:
    folder = folder_of(tmp_path, files)
    folder.begin(SETTINGS)
    write(folder, files)
    os.utime(files[0], ns=(1, 1))
    later = folder_of(tmp_path, files[:2])
    assert later.begin(SETTINGS) == {files[1]}
    write(later, files[:1], score=0.125, defective=False)
    assert later.finish().startswith("2 pictures: 1 defective, 1 good.")
    assert [row["score"] for row in rows(tmp_path / "out" / "predictions.csv")] == ["0.125", "0.75"]
    assert not (tmp_path / "out" / "masks" / "a.png").exists()


def test_pictures_without_a_line_are_counted_as_not_scored(tmp_path: Path, files: list[str]) -> None:
    folder = folder_of(tmp_path, files)
    folder.begin(SETTINGS)
    write(folder, files[:1])
    assert folder.finish().startswith("3 pictures: 1 defective, 0 good, 2 not scored.")


def test_other_settings_are_refused_and_named(tmp_path: Path, files: list[str]) -> None:
    folder_of(tmp_path, files).begin(SETTINGS)
    with pytest.raises(ValueError, match=r"another way: --weights was lite and is vit_b\. Give another folder"):
        folder_of(tmp_path, files).begin({"--weights": "vit_b"})
    assert folder_of(tmp_path, files).begin(SETTINGS) == set()


@pytest.mark.parametrize("name", ["predictions.csv", "coco.json", "masks/a.png"])
def test_files_of_something_else_are_not_overwritten(tmp_path: Path, files: list[str], name: str) -> None:
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(FileExistsError, match=r"of something else, which would be lost\. Give another"):
        folder_of(tmp_path, files).begin(SETTINGS)
    assert path.read_text() == "mine"


def test_two_pictures_whose_masks_would_be_one_file_are_refused(tmp_path: Path, files: list[str]) -> None:
    other = tmp_path / "in" / "b.jpg.png"
    Image.new("RGB", (8, 6)).save(other)
    with pytest.raises(ValueError, match=r"b\.jpg and .*b\.jpg\.png would both be called b\.jpg\.png\. Rename"):
        folder_of(tmp_path, [*files, str(other)])


def test_name_that_is_not_utf_8_stops_nothing(tmp_path: Path, files: list[str]) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    try:
        Image.new("RGB", (8, 6)).save(tmp_path / "in" / name)
    except OSError:
        pytest.skip("this file system takes no such names")
    files = [*files, str(tmp_path / "in" / name)]
    folder = folder_of(tmp_path, files)
    folder.begin(SETTINGS)
    write(folder, files)
    assert folder_of(tmp_path, files).begin(SETTINGS) == set(files)
    folder.finish()
    assert rows(tmp_path / "out" / "predictions.csv")[-1]["file"].endswith("caf\\udce9.png")
    last = (tmp_path / "out" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    assert json.loads(last)["file"] == files[-1]


def test_a_single_picture_is_named_by_itself(tmp_path: Path, files: list[str]) -> None:
    folder = PredictionFolder(tmp_path / "out", Path(files[2]), files[2:])
    folder.begin(SETTINGS)
    write(folder, files[2:])
    assert folder.finish().startswith("1 picture: 1 defective, 0 good.")
    assert (tmp_path / "out" / "masks" / "a.png").exists()
