# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""SAM's outline for another model of anomalib, through its command line and through `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
import yaml

from anomalib_clipsam import SamPostProcessor
from anomalib_clipsam.cli import main
from anomalib_clipsam.compare.table import read_rows

if TYPE_CHECKING:
    from collections.abc import Callable

PADIM = (
    "--model=Padim",
    "--model.backbone=resnet18",
    "--model.layers=[layer1]",
    "--model.pre_trained=false",
    "--model.n_features=20",
    "--trainer.accelerator=cpu",
)
REFINED = (
    "--model.post_processor=anomalib_clipsam.SamPostProcessor",
    "--model.post_processor.weights=lite",
    "--model.post_processor.ppg.min_score=0.3",
)


def metrics_of(cli: object) -> dict[str, float]:
    return {key: float(value) for key, value in cli.engine.trainer.callback_metrics.items()}


def test_another_model_is_refined_and_checkpoints_work_with_and_without(
    anomalib: Callable, folder_arguments: list[str], parts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="anomalib_clipsam")
    story = "--model.visualizer=anomalib_clipsam.PromptVisualizer"
    trained = anomalib("train", *PADIM, *REFINED, story, *folder_arguments)
    assert isinstance(trained.model.post_processor, SamPostProcessor)
    assert trained.model.post_processor.refiner.ppg.min_score == 0.3
    assert "SAM skipped" in caplog.text
    pictures = sorted((tmp_path / "results").rglob("images/**/*.png"))
    assert len(pictures) == 8
    checkpoint = next((tmp_path / "results").rglob("*.ckpt"))
    saved = torch.load(checkpoint, weights_only=True)
    assert not any("refiner" in key for key in saved["state_dict"])

    again = anomalib("test", *PADIM, *REFINED, *folder_arguments, f"--ckpt_path={checkpoint}")
    assert again.model.post_processor.refined_threshold == trained.model.post_processor.refined_threshold
    assert metrics_of(again) == pytest.approx(metrics_of(trained), abs=1e-3)
    without = anomalib("test", *PADIM, *folder_arguments, f"--ckpt_path={checkpoint}")
    for name in ("image_AUROC", "image_F1Score"):
        assert metrics_of(without)[name] == metrics_of(again)[name]
    assert metrics_of(without)["pixel_AUROC"] != metrics_of(again)["pixel_AUROC"]

    predicted = anomalib("predict", *PADIM, *REFINED, f"--data={parts / 'defect'}", f"--ckpt_path={checkpoint}")
    assert predicted.model.post_processor.refined_threshold == trained.model.post_processor.refined_threshold


def test_a_comparison_has_models_with_and_without(tmp_path: Path, parts: Path) -> None:
    """And its page shows SAM's stages of the refined one."""
    padim = {"backbone": "resnet18", "layers": ["layer1"], "pre_trained": False, "n_features": 20}
    sam = {"class_path": "anomalib_clipsam.SamPostProcessor", "init_args": {"weights": "lite"}}
    data = {
        "name": "parts",
        "root": str(parts),
        "normal_dir": "good",
        "abnormal_dir": "defect",
        "normal_test_dir": "good",
        "mask_dir": "mask",
        "val_split_mode": "same_as_test",
        "num_workers": 0,
    }
    config = {
        "output": str(tmp_path / "out"),
        "pictures": 1,
        "engine": {"accelerator": "cpu"},
        "models": [
            {"label": "Padim", "class_path": "Padim", "init_args": padim},
            {"label": "Padim + SAM", "class_path": "Padim", "init_args": {**padim, "post_processor": sam}},
        ],
        "data": [{"label": "Capsules", "class_path": "Folder", "init_args": data}],
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    main(["compare", "--config", str(tmp_path / "config.yaml")])
    plain, refined = read_rows(tmp_path / "out" / "results.csv")
    assert not plain.error
    assert not refined.error
    assert refined.image_AUROC == plain.image_AUROC
    assert refined.pixel_AP != plain.pixel_AP
    assert refined.seconds_per_image > plain.seconds_per_image
    assert "Map of Padim" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_a_model_without_maps_says_so(anomalib: Callable, folder_arguments: list[str]) -> None:
    with pytest.raises(ValueError, match="Dfkde gives scores of whole images and no maps"):
        anomalib(
            "train",
            "--model=Dfkde",
            "--model.backbone=resnet18",
            "--model.pre_trained=false",
            "--model.n_pca_components=2",
            "--trainer.accelerator=cpu",
            *REFINED,
            *folder_arguments,
        )
