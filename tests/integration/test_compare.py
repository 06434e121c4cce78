# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The command ``anomalib-clipsam compare``."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from anomalib.data.utils import read_image, read_mask
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score
from torch.nn import functional as F  # noqa: N812

from anomalib_clipsam.cli import main
from anomalib_clipsam.compare.table import METRICS, Row, read_rows

TOY = """
from anomalib import LearningType
from anomalib.data import InferenceBatch
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from torch import nn
from torchvision.transforms.v2 import Resize

class Darkness(nn.Module):
    def forward(self, image):
        anomaly_map = 70 * (0.5 - image.mean(dim=1))
        return InferenceBatch(pred_score=anomaly_map.flatten(1).amax(dim=1) ** 3, anomaly_map=anomaly_map)

class Toy(AnomalibModule):
    def __init__(self, interrupt: str = "", **kwargs):
        super().__init__(**kwargs)
        self.model, self.interrupt = Darkness(), interrupt
    def setup(self, stage):
        if self.interrupt == "kill":
            raise KeyboardInterrupt
        if self.interrupt == "category":
            raise RuntimeError("asked about " + self.trainer.datamodule.category)
        if self.interrupt:
            raise RuntimeError(self.interrupt)
    def validation_step(self, batch, *args, **kwargs):
        return batch.update(**self.model(batch.image)._asdict())
    learning_type = LearningType.ZERO_SHOT
    trainer_arguments = {}
    def configure_optimizers(self): return None
    @staticmethod
    def configure_post_processor(): return PostProcessor()
    @classmethod
    def configure_pre_processor(cls, image_size=None): return PreProcessor(Resize((48, 48), antialias=True))
"""
"""A zero-shot model without our ``val_dataloader``, whose scores leave [0, 1] far behind."""


@pytest.fixture
def compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: Path) -> Any:
    """Write a configuration, run the command, and give the rows and the exit code."""
    (tmp_path / "toy_models.py").write_text(TOY, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    names = {"normal_dir": "good", "abnormal_dir": "defect", "normal_test_dir": "good", "mask_dir": "mask"}
    folder = {"name": "parts", "root": str(parts), "val_split_mode": "same_as_test", "num_workers": 0, **names}

    def run(models: list[dict[str, Any]], output: str = "out", **members: Any) -> tuple[list[Row], int]:
        data = [{"label": "Parts", "class_path": "Folder", "init_args": folder}]
        content = {"models": models, "data": data, "map_size": 32, "engine": {"accelerator": "cpu"}, **members}
        Path("compare.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        code = 0
        try:
            main(["compare", "--config", "compare.yaml", "--output", output])
        except SystemExit as stop:
            code = stop.code
        return read_rows(Path(output) / "results.csv"), code

    yield run
    sys.modules.pop("toy_models", None)


def toy(label: str = "Toy", **arguments: Any) -> dict[str, Any]:
    return {"label": label, "class_path": "toy_models.Toy", "init_args": arguments}


PADIM = {"label": "Padim", "class_path": "Padim", "init_args": {"pre_trained": False, "backbone": "resnet18"}}
CLIP = {"label": "CLIP", "class_path": "ClipSam", "init_args": {"weights": "demo", "refine": False, "map_size": 40}}


def figures(row: Row) -> Row:
    """What does not depend on how fast and full the machine is."""
    return replace(row, seconds_per_image=0, peak_memory_mb=0)


def test_metrics_are_of_raw_maps_and_of_true_masks_at_one_size(compare: Any, parts: Path) -> None:
    (row,), code = compare([toy()])
    files = [*sorted((parts / "good").iterdir()), *sorted((parts / "defect").iterdir())]
    images = torch.stack([read_image(path, as_tensor=True) for path in files])
    maps = 70 * (0.5 - F.interpolate(images, (48, 48), mode="bilinear", antialias=True).mean(dim=1))
    scores = maps.flatten(1).amax(dim=1) ** 3
    shown = F.interpolate(maps.unsqueeze(1), (32, 32), mode="bilinear", antialias=True).numpy().ravel()
    masks = torch.zeros(8, *images.shape[-2:])
    masks[4:] = torch.stack([read_mask(parts / "mask" / path.name, as_tensor=True) for path in files[4:]])
    truth = F.interpolate(masks.unsqueeze(1), (32, 32), mode="nearest-exact").numpy().ravel() > 0
    labels = np.repeat([0, 1], 4)
    assert code == 0
    assert [row.pixel_AUROC, row.pixel_AP, row.image_AUROC, row.image_AP] == pytest.approx(
        [
            roc_auc_score(truth, shown),
            average_precision_score(truth, shown),
            roc_auc_score(labels, scores),
            average_precision_score(labels, scores),
        ],
        abs=1e-5,
    )
    assert (row.train_images, row.test_images, row.error) == (0, 8, "")
    assert row.seconds_per_image > 0


def test_models_that_train_and_models_that_do_not_stand_in_one_table(
    compare: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, code = compare([CLIP, PADIM])
    assert code == 0
    out, err = capsys.readouterr()
    assert out.endswith("\nThe page: out/report.html\n")
    assert not re.search(r"INFO|calibrates|SAM skipped|defective", err)  # the bar stands alone
    assert [(row.model, row.train_images, row.test_images) for row in rows] == [("CLIP", 0, 8), ("Padim", 4, 8)]
    assert all(0 <= getattr(row, name) <= 1 for row in rows for name in METRICS)
    assert all(row.seconds_per_image > 0 and row.peak_memory_mb > 0 for row in rows)
    assert "| all | Padim |" in Path("out/results.md").read_text(encoding="utf-8")
    report = Path("out/report.html").read_text(encoding="utf-8")
    content = json.loads(re.search(r"const data = (.*);\n", report).group(1))
    assert [(image["kind"], image["name"]) for image in content["images"]] == [
        ("defect", "0.png"),
        ("defect", "3.png"),
        ("good", "0.png"),
        ("good", "3.png"),
    ]
    said = content["images"][0]["models"]
    assert said["CLIP"]["stages"] == []  # the map is all that it does
    assert said["Padim"]["result"] != said["CLIP"]["result"]
    assert all(0 <= one["overlap"] <= 1 for one in said.values())
    assert content["images"][2]["models"]["Padim"]["overlap"] is None  # a good part has no mask to overlap with
    assert content["tables"][0]["pictures"] == 8


def test_killed_and_resumed_gives_the_table_of_one_run(compare: Any) -> None:
    expected, _ = compare([PADIM, toy(), CLIP], "whole")
    half, code = compare([PADIM, toy("Killed", interrupt="kill"), CLIP])  # Lightning exits where it is interrupted
    assert (code, [row.model for row in half]) == (1, ["Padim"])
    rows, code = compare([PADIM, toy(), CLIP])
    assert code == 0
    assert [figures(row) for row in rows] == [figures(row) for row in expected]
    assert rows[0] == half[0]  # not run again: its time is the same too


def test_failed_pair_says_why_and_is_tried_again(compare: Any, capsys: pytest.CaptureFixture[str]) -> None:
    rows, code = compare([toy("Bad", interrupt="no room\nhere"), toy()])
    assert code == 1
    assert [row.error for row in rows] == ["RuntimeError: no room here", ""]
    assert rows[1].pixel_AUROC is not None
    assert "- Bad, Parts: RuntimeError: no room here" in capsys.readouterr().out
    again, code = compare([toy("Bad", interrupt="still"), toy()])
    assert (code, again[0].error, again[1]) == (1, "RuntimeError: still", rows[1])


def test_part_without_a_category_is_an_object(compare: Any) -> None:
    """An empty name makes WinClip raise."""
    (row,), _ = compare([toy(interrupt="category")])
    assert (row.category, row.error) == ("", "RuntimeError: asked about object")


def test_images_are_chosen_evenly_and_half_of_them_defective(compare: Any, parts: Path) -> None:
    names = {"normal_dir": "good", "abnormal_dir": "defect", "normal_test_dir": "good", "mask_dir": "mask"}
    data = {
        "label": "Few",
        "class_path": "Folder",
        "max_images": 4,
        "init_args": {"name": "p", "root": str(parts), "val_split_mode": "same_as_test", "num_workers": 0, **names},
    }
    (row,), _ = compare([toy()], data=[data])
    assert row.test_images == 4


def test_checkpoint_is_tested_as_it_is(compare: Any, parts: Path, tmp_path: Path) -> None:
    from anomalib.data import Folder
    from anomalib.engine import Engine
    from anomalib.models import Padim

    data = Folder(
        "parts", normal_dir="good", root=parts, abnormal_dir="defect", mask_dir="mask", num_workers=0,
        val_split_mode="same_as_test", normal_test_dir="good",
    )  # fmt: skip
    engine = Engine(default_root_dir=tmp_path / "engine", accelerator="cpu", logger=False)
    engine.fit(Padim(pre_trained=False, backbone="resnet18"), datamodule=data)
    (row,), code = compare([{**PADIM, "ckpt_path": str(engine.best_model_path)}])
    assert (code, row.train_images, row.test_images, row.error) == (0, None, 8, "")
    assert row.pixel_AUROC > 0


def test_damaged_mask_fails_one_row_only(compare: Any, parts: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(parts, other)
    Image.fromarray(np.zeros((7, 9), np.uint8)).save(other / "mask" / "0.png")
    (other / "defect" / "1.png").write_bytes(b"no picture")
    names = {"normal_dir": "good", "abnormal_dir": "defect", "normal_test_dir": "good", "mask_dir": "mask"}
    data = {
        "label": "Damaged",
        "class_path": "Folder",
        "init_args": {"name": "p", "root": str(other), "val_split_mode": "same_as_test", "num_workers": 0, **names},
    }
    (clip, row), code = compare([CLIP, toy()], data=[data])
    assert (code, clip.test_images, clip.error) == (1, 6, "")  # ClipSam leaves two pictures out and names them
    assert row.error
