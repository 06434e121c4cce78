# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""References through anomalib's commands: good parts, the batch, the picture itself, and what is said of bad input.

Nothing depends on what the carried weights have learnt, nor on which localizer they are for.
"""

from __future__ import annotations

import csv
import logging
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from anomalib.data import Folder
from anomalib.data.utils import read_image
from anomalib.engine import Engine
from PIL import Image
from torch.nn.modules.module import register_module_forward_pre_hook

from anomalib_clipsam import ClipSam
from anomalib_clipsam.cli import main
from anomalib_clipsam.clip.localizers import Localizer
from anomalib_clipsam.drawn_parts.drawing import draw_part

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEMO = ("--model=ClipSam", "--model.weights=demo")
METRICS = {"image_AUROC", "image_F1Score", "pixel_AUROC", "pixel_F1Score"}
FEW_SHOT = "--model.few_shot_source"


def metrics_of(cli: object) -> dict[str, float]:
    return {key: float(value) for key, value in cli.engine.trainer.callback_metrics.items()}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Pictures that CLIP was shown, a number per call."""
    counted: list[int] = []

    def count(module: torch.nn.Module, arguments: tuple[torch.Tensor]) -> None:
        if isinstance(module, Localizer):
            counted.append(len(arguments[0]))

    with_taps = Localizer.with_taps

    def tapped(self: Localizer, image: torch.Tensor) -> tuple:
        counted.append(len(image))
        return with_taps(self, image)

    monkeypatch.setattr(Localizer, "with_taps", tapped)
    with register_module_forward_pre_hook(count):
        yield counted


@pytest.fixture
def capsules(parts: Path, tmp_path: Path) -> Path:
    """Folder with the eight drawn capsules, no labels."""
    folder = tmp_path / "capsules"
    folder.mkdir()
    for kind in ("good", "defect"):
        for path in sorted((parts / kind).iterdir()):
            shutil.copy(path, folder / f"{kind}_{path.name}")
    return folder


# ---------------------------------------------------------------- test


@pytest.mark.parametrize(
    ("arguments", "looked"),
    [
        (["--model.k_shot=2"], 2 + 1 + 8),  # good parts, and an empty frame
        (["--model.references=batch"], 8),
        (["--model.references=self"], 8),
        (["--model.references=none"], 8),
    ],
)
def test_test_with_references_runs_the_networks_once_per_picture(
    anomalib: Callable, folder_arguments: list[str], seen: list[int], arguments: list[str], looked: int
) -> None:
    """Though the Engine validates on the very images that it then tests."""
    cli = anomalib("test", *DEMO, *folder_arguments, *arguments)
    assert set(metrics_of(cli)) == METRICS
    assert sum(seen) == looked
    assert cli.model.post_processor.calibrated  # both labels have spoken


def test_validation_on_other_pictures_than_the_tested_ones(
    anomalib: Callable, folder_arguments: list[str], seen: list[int]
) -> None:
    """Half of the pictures of a batch are too few to judge each other."""
    split = [argument for argument in folder_arguments if "val_split_mode" not in argument]
    anomalib("test", *DEMO, *split, "--data.val_split_mode=from_test", "--model.references=batch")
    assert sum(seen) == 8


def test_another_category_has_other_good_parts(parts: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(parts, other)
    for path in (other / "good").iterdir():
        Image.fromarray(draw_part("capsule", np.random.default_rng(99 + int(path.stem)))[0]).save(path)
    model = ClipSam("demo", k_shot=2, refine=False, visualizer=False)
    sources = []
    for root in (parts, other, parts):
        data = Folder(root.name, "good", root, "defect", "good", "mask", val_split_mode="same_as_test", num_workers=0)
        Engine(default_root_dir=tmp_path / "results", logger=False).test(model, datamodule=data, verbose=False)
        sources.append(model.model.judge.sources)
    assert sources[0] == sources[2] != sources[1]


# ---------------------------------------------------------------- predict


def test_predict_on_a_folder_with_good_parts(anomalib: Callable, parts: Path, capsules: Path) -> None:
    cli = anomalib("predict", *DEMO, f"--data={capsules}", "--model.k_shot=4", f"{FEW_SHOT}={parts / 'good'}")
    judge, post_processor = cli.model.model.judge, cli.model.post_processor
    assert len(judge.sources) == 4
    assert post_processor.image_threshold.item() == pytest.approx(judge.thresholds.image)
    assert post_processor.pixel_threshold.item() == pytest.approx(judge.thresholds.pixel)
    batches = cli.engine.predict(cli.model, data_path=parts / "good", return_predictions=True)
    assert not any(bool(batch.pred_label.any()) for batch in batches)  # they are their own references


def test_predict_with_the_batch_gives_what_one_whole_batch_gives(
    anomalib: Callable, capsules: Path, seen: list[int]
) -> None:
    cli = anomalib("predict", *DEMO, f"--data={capsules}", "--model.references=batch", "--model.refine=false")
    assert sum(seen) == 8
    model = cli.model
    assert model.model.judge.thresholds is not None
    batches = cli.engine.predict(model, data_path=capsules, return_predictions=True)
    images = torch.cat(
        [model.pre_processor(read_image(path, as_tensor=True)[None]) for path in sorted(capsules.iterdir())]
    )
    whole = model.post_processor(model.model(images))
    torch.testing.assert_close(
        torch.cat([torch.as_tensor(batch.anomaly_map) for batch in batches]), whole.anomaly_map, atol=0.02, rtol=0
    )
    torch.testing.assert_close(torch.cat([batch.pred_score for batch in batches]), whole.pred_score, atol=0.02, rtol=0)


def test_a_share_of_the_batch_passes(anomalib: Callable, capsules: Path) -> None:
    options = ("--model.references=batch", "--model.reference_options.passing_share=0.5")
    cli = anomalib("predict", *DEMO, f"--data={capsules}", *options)
    batches = cli.engine.predict(cli.model, data_path=capsules, return_predictions=True)
    assert sum(int(batch.pred_label.sum()) for batch in batches) == 4


@pytest.mark.parametrize("options", [["--references", "self"], ["--references", "batch"], "good"])
def test_one_command_gives_verdicts(
    options: list[str] | str, parts: Path, capsules: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--good", str(parts / "good")] if options == "good" else options
    main(["predictions", str(capsules), "--to", str(tmp_path / "a.csv"), "--weights", "demo", *options])
    with (tmp_path / "a.csv").open(encoding="utf-8") as file:
        labels = {Path(line["file"]).name: line["label"] for line in csv.DictReader(file)}
    assert len(labels) == 8
    if "--good" in options:
        assert {label for name, label in labels.items() if name.startswith("good")} == {"good"}
    capsys.readouterr()


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model.k_shot=2"], r"k_shot=2 needs good parts.*--model\.few_shot_source FOLDER"),
        (["--model.k_shot=5", f"{FEW_SHOT}=GOOD"], r"k_shot is 5, but .* has 4 good parts\. Add pictures, or lower"),
        (["--model.k_shot=1", f"{FEW_SHOT}=EMPTY"], r"k_shot is 1, but .* has 0 good parts\. Add pictures"),
        (["--model.k_shot=1", f"{FEW_SHOT}=MISSING"], r"does not exist\. Give a folder of at least 1 good part\."),
        (
            ["--model.k_shot=1", f"{FEW_SHOT}=BROKEN"],
            r"A good part cannot be used: .*is no picture in .* or WEBP\. Mend",
        ),
        (["--model.k_shot=1", "--model.references=batch"], r"are two references\. Give one of them"),
        (["--model.k_shot=-1"], r"k_shot is -1, but it is a number of good parts\. Choose 0, for none, or more"),
        (["--model.references=other"], r"Unknown references 'other'\. Choose one of none, self, batch"),
        ([f"{FEW_SHOT}=GOOD"], r"but k_shot is 0\. Say how many good parts by k_shot"),
    ],
)
def test_references_that_cannot_be_used_are_one_sentence(
    anomalib: Callable, parts: Path, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "0.png").write_bytes(b"no picture")
    places = {"GOOD": parts / "good", "EMPTY": tmp_path / "empty", "BROKEN": tmp_path / "broken"}
    places["MISSING"] = tmp_path / "missing"
    for name, place in places.items():
        arguments = [argument.replace(name, str(place)) for argument in arguments]
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        anomalib("predict", *DEMO, f"--data={parts / 'defect'}", *arguments)
    assert re.search(sentence, str(raised.value))


def test_pictures_of_another_part_are_warned_of(
    anomalib: Callable, parts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for index in range(3):
        noise = np.random.default_rng(index).integers(0, 255, (64, 64, 3), np.uint8)
        (tmp_path / "noise").mkdir(exist_ok=True)
        Image.fromarray(noise).save(tmp_path / "noise" / f"{index}.png")
    good = ("--model.k_shot=4", f"{FEW_SHOT}={parts / 'good'}")
    with caplog.at_level(logging.WARNING, "anomalib_clipsam"):
        anomalib("predict", *DEMO, f"--data={parts / 'defect'}", *good)
        assert "unlike their references" not in caplog.text
        anomalib("predict", *DEMO, f"--data={tmp_path / 'noise'}", *good)
        assert "3 of 3 pictures are unlike their references nearly everywhere" in caplog.text


def test_good_parts_of_another_size_are_taken(anomalib: Callable, parts: Path, tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    for index, size in enumerate(((90, 120), (300, 200))):
        Image.open(parts / "good" / f"{index}.png").resize(size).save(tmp_path / "good" / f"{index}.png")
    cli = anomalib(
        "predict", *DEMO, f"--data={parts / 'defect'}", "--model.k_shot=2", f"{FEW_SHOT}={tmp_path / 'good'}"
    )
    assert len(cli.model.model.judge.sources) == 2


def test_three_pictures_are_no_batch(
    anomalib: Callable, parts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "three").mkdir()
    for index in range(3):
        shutil.copy(parts / "defect" / f"{index}.png", tmp_path / "three")
    found = {}
    for references in ("batch", "self"):
        with caplog.at_level(logging.WARNING, "anomalib_clipsam"):
            cli = anomalib("predict", *DEMO, f"--data={tmp_path / 'three'}", f"--model.references={references}")
        batches = cli.engine.predict(cli.model, data_path=tmp_path / "three", return_predictions=True)
        found[references] = torch.cat([batch.pred_score for batch in batches])
        assert ("3 pictures are too few to judge each other" in caplog.text) == (references == "batch")
        caplog.clear()
    torch.testing.assert_close(found["batch"], found["self"], atol=0.01, rtol=0)


# ---------------------------------------------------------------- checkpoints and exports


def test_a_checkpoint_holds_the_good_parts_in_half_precision(
    anomalib: Callable, folder_arguments: list[str], parts: Path, tmp_path: Path
) -> None:
    tested = anomalib("test", *DEMO, *folder_arguments, "--model.k_shot=2")
    (path,) = tmp_path.rglob("*.ckpt")
    saved = torch.load(path, weights_only=True)["clip_sam"]
    memory = tested.model.model.judge.reference.memory
    assert {patches.dtype for patches in saved["good_parts"]["memory"]} == {torch.float16}
    assert saved["good_parts"]["sources"] == list(tested.model.model.judge.sources)
    bytes_ = sum(2 * patches.numel() for patches in memory)
    assert bytes_ < path.stat().st_size < bytes_ + 1_000_000
    shown = anomalib("predict", *DEMO, "--model.k_shot=2", f"--data={parts / 'defect'}", f"--ckpt_path={path}")
    assert shown.model.model.judge.sources == tested.model.model.judge.sources  # no folder was named
    for name in ("image_threshold", "pixel_threshold"):
        assert getattr(shown.model.post_processor, name) == getattr(tested.model.post_processor, name)
    image = parts / "defect" / "0.png"
    (batch,) = shown.engine.predict(shown.model, data_path=image, return_predictions=True)
    (expected,) = tested.engine.predict(tested.model, data_path=image, return_predictions=True)
    torch.testing.assert_close(batch.pred_score, expected.pred_score, atol=5e-3, rtol=0)
    for options, sentence in (
        ([], "made with other references: good parts, and this model has"),
        (["--model.k_shot=3"], "made with 2 good parts, and this model has k_shot=3"),
        (
            ["--model.k_shot=2", "--model.reference_options.text_share=0.5"],
            "made with other references: good parts and",
        ),
    ):
        with pytest.raises(ValueError, match=sentence):
            anomalib("predict", *DEMO, *options, f"--data={parts / 'defect'}", f"--ckpt_path={path}")


@pytest.mark.parametrize("kind", ["good", "self"])
def test_an_onnx_file_answers_as_torch_does(kind: str, parts: Path, tmp_path: Path) -> None:
    import onnxruntime

    options = {"references": "self"} if kind == "self" else {"k_shot": 2, "few_shot_source": str(parts / "good")}
    model = ClipSam("demo", class_name="capsule", **options).eval()
    path = model.to_onnx(tmp_path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for file in (parts / "defect" / "0.png", parts / "good" / "3.png"):
        image = read_image(file, as_tensor=True)[None]
        answer = dict(zip(names, session.run(None, {"input": image.numpy()}), strict=True))
        expected = model(image)
        assert np.abs(answer["pred_score"] - expected.pred_score.numpy()).max() < 1e-3
        assert np.abs(answer["anomaly_map"].squeeze() - expected.anomaly_map.numpy().squeeze()).mean() < 1e-3
        assert answer["pred_label"].item() == expected.pred_label.item()


def test_export_of_a_batch_is_refused(anomalib: Callable) -> None:
    with pytest.raises(ValueError, match=r"references='batch' needs all pictures at once.*Export with k_shot"):
        anomalib("export", *DEMO, "--model.references=batch", "--export_type=onnx")
