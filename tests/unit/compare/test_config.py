# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The configuration file of a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from anomalib.models import Padim

from anomalib_clipsam.compare.config import build, read_config
from anomalib_clipsam.drawn_parts.datamodule import DrawnParts

ROOT = Path(__file__).parents[3]
MODEL = {"label": "Padim", "class_path": "Padim", "init_args": {"pre_trained": False, "backbone": "resnet18"}}
DATA = {"label": "Parts", "class_path": "DrawnParts", "categories": ["capsule", "key"]}


def read(folder: Path, **members: Any) -> Any:
    path = folder / "compare.yaml"
    path.write_text(yaml.safe_dump({"models": [MODEL], "data": [DATA], **members}), encoding="utf-8")
    return read_config(path)


def test_pairs_are_built_as_by_anomalibs_command_line(tmp_path: Path) -> None:
    second = {**MODEL, "label": "Wide", "init_args": {"pre_trained": False, "backbone": "wide_resnet50_2"}}
    pairs = list(read(tmp_path, models=[MODEL, second]).pairs())
    assert [(pair.category, pair.model.label) for pair in pairs] == [
        ("capsule", "Padim"),
        ("capsule", "Wide"),
        ("key", "Padim"),
        ("key", "Wide"),
    ]
    model, data = build(pairs[2])
    assert (type(model), type(data), data.category) == (Padim, DrawnParts, "key")


def test_fingerprint_follows_all_that_a_row_depends_on(tmp_path: Path) -> None:
    other = {**MODEL, "init_args": {**MODEL["init_args"], "n_features": 50}}
    changes = (
        {},
        {"seed": 1},
        {"map_size": 99},
        {"engine": {"max_epochs": 2}},
        {"models": [other]},
        {"models": [{**MODEL, "engine": {"max_epochs": 2}}]},
        {"data": [{**DATA, "max_images": 4}]},
        {"data": [{**DATA, "init_args": {"eval_batch_size": 2}}]},
    )
    prints = [pair.fingerprint for change in changes for pair in read(tmp_path, **change).pairs()]
    assert len(set(prints)) == 2 * len(changes)
    same = read(tmp_path, output="elsewhere", data=[{**DATA, "categories": ["key"], "published": "visa"}])
    assert [pair.fingerprint for pair in same.pairs()] == prints[1:2]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"models": []}, "'models' in .* is no list of entries"),
        ({"data": None}, "'data' in .* is no list of entries"),
        ({"speed": 1}, "must have models and data, and may have output, map_size"),
        ({"models": [{"label": "a"}]}, "must have label and class_path"),
        ({"models": [MODEL, MODEL]}, "have the label 'Padim'. Give each its own"),
        ({"models": [{**MODEL, "class_path": "Padimm"}]}, "'Padim' on 'Parts' cannot be built: .*Padimm"),
        ({"models": [{**MODEL, "init_args": {"backbon": "resnet18"}}]}, "'backbon' is not accepted.*Give the name"),
        ({"data": [{**DATA, "class_path": "NoData"}]}, "cannot be built: .*NoData"),
        ({"data": [{**DATA, "published": "mvtec"}]}, "No figures are known as 'mvtec'. Choose one of mvtec_ad"),
        ({"map_size": 0}, "map_size in .* is 0. Give a whole number of at least 1"),
        ({"pictures": "all"}, "pictures in .* is 'all'"),
    ],
)
def test_wrong_configuration_says_what_is_wrong(tmp_path: Path, members: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="(?s)" + message):
        read(tmp_path, **members)


def test_file_that_is_no_yaml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "compare.yaml").write_text("models: [", encoding="utf-8")
    with pytest.raises(ValueError, match="is not YAML"):
        read_config(tmp_path / "compare.yaml")
    with pytest.raises(FileNotFoundError):
        read(tmp_path, models=[{**MODEL, "ckpt_path": str(tmp_path / "none.ckpt")}])


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/compare_*.yaml")), ids=lambda path: path.name)
def test_configurations_of_the_project_are_sound(path: Path) -> None:
    assert list(read_config(path).pairs())


FORBIDDEN = {"label": "Ours", "class_path": "ClipSam", "init_args": {"adapters": "crane_visa"}}


@pytest.mark.parametrize(
    "class_path", ["ClipSam", "anomalib_clipsam.ClipSam", "anomalib_clipsam.lightning_model.ClipSam"]
)
def test_weights_that_were_trained_on_what_is_compared_are_refused(tmp_path: Path, class_path: str) -> None:
    models = [{**FORBIDDEN, "class_path": class_path}]
    data = [{"label": "VisA", "class_path": "Visa", "categories": ["candle"]}]
    message = "'Ours' on 'VisA': crane_visa was trained on VisA, .* set `trained_on_tested: true`"
    with pytest.raises(ValueError, match=message):
        read(tmp_path, models=models, data=data)
    assert read(tmp_path, models=models, data=data, trained_on_tested=True).trained_on_tested


@pytest.mark.parametrize("adapters", ["auto", None, "crane_mvtec"])
def test_weights_that_were_trained_on_something_else_are_compared(tmp_path: Path, adapters: str | None) -> None:
    models = [{**FORBIDDEN, "init_args": {"adapters": adapters}}]
    data = [{"label": "VisA", "class_path": "Visa", "categories": ["candle"]}, DATA]
    assert len(list(read(tmp_path, models=models, data=data).pairs())) == 3
