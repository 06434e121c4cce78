# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""anomalib's commands with ClipSam and the demo weights, as a user calls them."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from anomalib.cli import AnomalibCLI
from anomalib.data import Folder
from anomalib.data.utils import read_image
from anomalib.engine import Engine
from lightning.pytorch import Callback
from safetensors.torch import save_file
from torch.nn.modules.module import register_module_forward_pre_hook

from anomalib_clipsam import ClipSam
from anomalib_clipsam.clip import build_clip
from anomalib_clipsam.clip.localizers import Localizer

CONFIGS = Path(__file__).parents[2] / "configs"
SHARED = Path(__file__).parents[3] / "shared" / "data"
DEMO = ("--model=ClipSam", "--model.weights=demo")
METRICS = {"image_AUROC", "image_F1Score", "pixel_AUROC", "pixel_F1Score"}


def metrics_of(cli: object) -> dict[str, float]:
    return {key: float(value) for key, value in cli.engine.trainer.callback_metrics.items()}


def pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in {".png", ".jpg"})


def test_test_prints_metrics_and_writes_pictures(
    anomalib: Callable, folder_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    cli = anomalib("test", *DEMO, *folder_arguments)
    metrics = metrics_of(cli)
    assert set(metrics) == METRICS
    assert all(0 <= value <= 1 for value in metrics.values())
    assert "pixel_AUROC" in capsys.readouterr().out
    written = pictures(tmp_path / "results" / "ClipSam" / "parts")
    assert len(written) == 8
    width = cv2.imread(str(written[0])).shape[1]
    assert width // 320 == 4  # picture, true mask, map, outline, side by side at their own size


@pytest.mark.parametrize("reuse", [True, False])
def test_networks_run_once_per_image(anomalib: Callable, folder_arguments: list[str], reuse: bool) -> None:
    """Though the Engine validates on the very images that it then tests."""
    seen = []

    def count(module: torch.nn.Module, arguments: tuple[torch.Tensor]) -> None:
        if isinstance(module, Localizer):
            seen.append(len(arguments[0]))

    with register_module_forward_pre_hook(count):
        cli = anomalib("test", *DEMO, *folder_arguments, f"--model.reuse_predictions={reuse}")
    assert sum(seen) == (8 if reuse else 16)
    expected = anomalib("test", *DEMO, *folder_arguments, "--model.reuse_predictions=false")
    for name, value in metrics_of(expected).items():
        assert metrics_of(cli)[name] == pytest.approx(value, abs=5e-5), name
    store = cli.model._predictor.store
    assert store is None or store.kept == {}


def test_validate_calibrates(anomalib: Callable, folder_arguments: list[str]) -> None:
    cli = anomalib("validate", *DEMO, *folder_arguments)
    post_processor = cli.model.post_processor
    assert 0 < post_processor.image_max - post_processor.image_min < 1
    assert post_processor.image_threshold != 0.5


def test_train_calibrates_and_says_that_it_trains_nothing(
    anomalib: Callable, folder_arguments: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="anomalib_clipsam"):
        cli = anomalib("train", *DEMO, *folder_arguments)
    assert "ClipSam trains nothing" in caplog.text
    assert not any(parameter.requires_grad for parameter in cli.model.model.parameters())
    assert set(metrics_of(cli)) == METRICS


def test_nothing_is_calibrated_without_validation_pictures_or_where_thresholds_are_set_by_hand(
    anomalib: Callable, folder_arguments: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The first ended in an error of the data module's."""
    arguments = [*DEMO, "--model.refine=false", *folder_arguments]
    for chosen, thresholds, reason in (
        (["--data.val_split_mode=none"], (0.5, 0.5), "has no validation pictures"),
        (["--model.image_threshold=0.25", "--model.pixel_threshold=0.75"], (0.25, 0.75), "are set by hand"),
    ):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="anomalib_clipsam"):
            cli = anomalib("test", *arguments, *chosen)
        post_processor = cli.model.post_processor
        assert (post_processor.image_threshold.item(), post_processor.pixel_threshold.item()) == thresholds
        assert reason in caplog.text
        assert set(metrics_of(cli)) == METRICS


def test_checkpoint_is_small_and_predicts_the_same(
    anomalib: Callable, folder_arguments: list[str], parts: Path, tmp_path: Path
) -> None:
    tested = anomalib("test", *DEMO, *folder_arguments)
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    assert checkpoint.stat().st_size < 1_000_000
    again = anomalib("test", *DEMO, *folder_arguments, f"--ckpt_path={checkpoint}")
    assert metrics_of(again) == pytest.approx(metrics_of(tested), abs=5e-5)
    cli = anomalib("predict", *DEMO, f"--data={parts / 'defect'}", f"--ckpt_path={checkpoint}")
    for name in ("image_threshold", "pixel_threshold", "image_min", "image_max"):
        assert getattr(cli.model.post_processor, name) == getattr(tested.model.post_processor, name)
    image = parts / "defect" / "0.png"
    (batch,) = cli.engine.predict(cli.model, data_path=image, return_predictions=True)
    (expected,) = tested.engine.predict(tested.model, data_path=image, return_predictions=True)
    assert torch.equal(batch.anomaly_map, expected.anomaly_map)
    assert torch.equal(batch.pred_score, expected.pred_score)
    assert torch.equal(batch.pred_mask, expected.pred_mask)


def test_predict_on_one_image(anomalib: Callable, parts: Path, tmp_path: Path) -> None:
    anomalib("predict", *DEMO, f"--data={parts / 'defect' / '0.png'}")
    assert len(pictures(tmp_path / "results")) == 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_number_of_images(parts: Path, tmp_path: Path) -> None:
    pictures = [path.read_bytes() for path in sorted(parts.glob("[gd]*/*.png"))]
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(200):
        (folder / f"{index}.png").write_bytes(pictures[index % len(pictures)])
    resident = []

    class Watch(Callback):
        def on_predict_batch_end(self, *_: object) -> None:
            status = Path("/proc/self/status").read_text()
            resident.append(int(status.split("VmRSS:")[1].split()[0]) * 1024)

    engine = Engine(default_root_dir=tmp_path, logger=False, callbacks=[Watch()], enable_progress_bar=False)
    engine.predict(ClipSam(weights="demo"), data_path=folder, return_predictions=False)
    assert len(resident) == 200
    one_image = 256 * 256 * 4 * 4
    assert max(resident[-20:]) - max(resident[40:60]) < 20 * one_image  # 140 images lie between


def test_predict_on_a_folder_without_labels(anomalib: Callable, parts: Path, tmp_path: Path) -> None:
    cli = anomalib("predict", *DEMO, f"--data={parts / 'defect'}")
    assert len(pictures(tmp_path / "results")) == 4
    predictions = cli.engine.predict(cli.model, data_path=parts / "defect", return_predictions=True)
    for batch in predictions:
        assert batch.pred_label.dtype == torch.bool
        assert batch.pred_mask.dtype == torch.bool
        assert batch.pred_label.item() == (batch.pred_score.item() > 0.5)
        assert batch.pred_mask.shape == batch.anomaly_map.shape == (1, 256, 256)


def test_predict_on_a_data_module(anomalib: Callable, parts: Path, tmp_path: Path) -> None:
    config = tmp_path / "data.yaml"
    arguments = f"name: parts, root: {parts}, normal_dir: good, abnormal_dir: defect, num_workers: 0"
    config.write_text(f"data:\n  class_path: anomalib.data.Folder\n  init_args: {{{arguments}}}\n")
    anomalib("predict", *DEMO, f"--config={config}")
    assert pictures(tmp_path / "results")


def test_python_engine(parts: Path, tmp_path: Path) -> None:
    data = Folder(
        name="parts",
        root=parts,
        normal_dir="good",
        abnormal_dir="defect",
        normal_test_dir="good",
        mask_dir="mask",
        val_split_mode="same_as_test",
        num_workers=0,
    )
    engine = Engine(default_root_dir=tmp_path)
    (metrics,) = engine.test(model=ClipSam(weights="demo", class_name="capsule"), datamodule=data)
    assert set(metrics) == METRICS


def test_the_mask_is_where_the_final_map_passes(parts: Path, tmp_path: Path) -> None:
    model = ClipSam(weights="demo", class_name="capsule", keep_good_masks=True, pixel_threshold=0.3).eval()
    engine = Engine(default_root_dir=tmp_path)
    for batch in engine.predict(model=model, data_path=parts / "defect", return_predictions=True):
        stages = model.model.stages(batch.image)
        assert torch.equal(batch.pred_mask, stages.fused_map > 0.3)
        assert batch.pred_mask.any()


@pytest.mark.parametrize("batch_size", [1, 5])
def test_each_picture_is_scored_as_alone(tmp_path: Path, batch_size: int) -> None:
    """Several sizes, grey, and with alpha in one folder: anomalib's collate resizes a batch to its first image."""
    folder = tmp_path / "good"
    folder.mkdir()
    rng = np.random.default_rng(0)
    shapes = {"a": (120, 90, 3), "b": (64, 200, 3), "c": (150, 150), "d": (97, 131, 4), "e": (300, 220, 3)}
    for name, shape in shapes.items():
        smooth = cv2.GaussianBlur(rng.integers(0, 255, shape, dtype=np.uint8), (0, 0), 3)
        assert cv2.imwrite(str(folder / f"{name}.png"), smooth)
    model = ClipSam(weights="demo", class_name="part", ppg={"min_score": 0.0}, post_processor=False).eval()
    data = Folder(
        name="mixed",
        root=tmp_path,
        normal_dir="good",
        normal_test_dir="good",
        val_split_mode="same_as_test",
        eval_batch_size=batch_size,
        num_workers=0,
    )
    predictions = Engine(default_root_dir=tmp_path).predict(model=model, datamodule=data, return_predictions=True)
    assert sum(len(batch.image_path) for batch in predictions) == len(shapes)
    for batch in predictions:
        for index, path in enumerate(batch.image_path):
            alone = model.model(model.pre_processor(read_image(path, as_tensor=True).unsqueeze(0)))
            torch.testing.assert_close(batch.anomaly_map[index], alone.anomaly_map[0], atol=1e-5, rtol=0)
            torch.testing.assert_close(batch.pred_score[index], alone.pred_score[0], atol=1e-5, rtol=0)
            assert torch.equal(batch.pred_mask[index], alone.pred_mask[0])


def test_benchmark_gives_one_table(anomalib: Callable, tmp_path: Path) -> None:
    anomalib("benchmark", f"--config={CONFIGS / 'benchmark_demo.yaml'}")
    (path,) = tmp_path.glob("runs/benchmark/*/results.csv")
    table = pd.read_csv(path)
    assert len(table) == 2
    assert set(table.columns) >= METRICS
    assert table[sorted(METRICS)].notna().all().all()


def test_config_with_the_papers_metrics(anomalib: Callable, folder_arguments: list[str]) -> None:
    cli = anomalib(
        "test", f"--config={CONFIGS / 'demo.yaml'}", f"--config={CONFIGS / 'metrics_paper.yaml'}", *folder_arguments
    )
    assert set(metrics_of(cli)) == {
        "pixel_AUROC",
        "pixel_F1Max",
        "pixel_AUPR",
        "pixel_AUPRO",
        "image_AUROC",
        "image_F1Max",
        "image_AUPR",
    }


@pytest.mark.parametrize("name", ["demo", "mvtec_ad", "visa", "folder", "few_shot", "musc_mvtec_ad"])
def test_configs_are_understood(name: str, tmp_path: Path) -> None:
    """Every ready file parses and its objects are made, with the carried weights in place of the published ones."""
    fitting = []
    if name == "musc_mvtec_ad":  # MuSc needs a ViT
        save_file(build_clip("demo", quick_gelu=False).state_dict(), tmp_path / "clip.safetensors")
        small = {"clip_architecture": "demo", "clip_weights": tmp_path / "clip.safetensors", "clip_size": 64}
        fitting = [f"--model.{key}={value}" for key, value in small.items()]
        fitting.append("--model.reference_options.taps=[1,2]")
    cli = AnomalibCLI(["test", f"--config={CONFIGS / name}.yaml", "--model.weights=lite", *fitting], run=False)
    assert isinstance(cli.model, ClipSam)
    assert cli.datamodule is not None


@pytest.mark.slow
def test_two_processes_give_the_metrics_of_one(anomalib: Callable, folder_arguments: list[str], tmp_path: Path) -> None:
    one = metrics_of(anomalib("test", *DEMO, *folder_arguments))
    script = tmp_path / "run.py"
    script.write_text(
        "import json, sys\n"
        "from anomalib.cli import AnomalibCLI\n"
        "trainer = AnomalibCLI(sys.argv[1:]).engine.trainer\n"
        "if trainer.is_global_zero:\n"
        "    metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}\n"
        "    open('metrics.json', 'w').write(json.dumps(metrics))\n"
    )
    subprocess.run(
        [
            sys.executable,
            str(script),
            "test",
            *DEMO,
            *folder_arguments,
            "--trainer.devices=2",
            "--trainer.strategy=ddp",
            "--trainer.accelerator=cpu",
        ],
        check=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=400,
    )
    two = json.loads((tmp_path / "metrics.json").read_text())
    assert two == pytest.approx(one, abs=1e-6)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real pictures beside the project")
def test_real_pictures(anomalib: Callable, tmp_path: Path) -> None:
    cli = anomalib(
        "test",
        *DEMO,
        "--data=MVTecAD",
        f"--data.root={SHARED / 'MVTecAD'}",
        "--data.category=bottle",
        "--data.num_workers=0",
    )
    assert cli.model.model.class_name == "bottle"
    assert len(pictures(tmp_path / "results")) == 17
