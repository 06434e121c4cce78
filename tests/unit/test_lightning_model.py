# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The Lightning module, with seeded random weights in the place of the carried ones."""

from __future__ import annotations

import inspect
import json
import logging
import re
import traceback
import zipfile
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, get_type_hints

import cv2
import numpy as np
import pytest
import torch
from anomalib import LearningType
from anomalib.data import Folder, ImageBatch, UCSDped
from anomalib.engine import Engine
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn
from torchvision.transforms.v2 import Resize

from anomalib_clipsam import ClipSam
from anomalib_clipsam.clip.localizers import AnomalyClipLocalizer, AprilGanLocalizer, CraneLocalizer, DenseLocalizer
from anomalib_clipsam.compute.file_hashes import hash_file, hash_git_blob
from anomalib_clipsam.compute.hashing import hash_tensors
from anomalib_clipsam.errors.errors import NotFiniteError
from anomalib_clipsam.method.cps import CascadedPrompts, CpsArguments
from anomalib_clipsam.method.frame import resize_image
from anomalib_clipsam.method.fusion import Fusion, FusionArguments
from anomalib_clipsam.method.ppg import PointPromptGenerator, PpgArguments
from anomalib_clipsam.plugin import predicting
from anomalib_clipsam.plugin.post_processor import ClipSamPostProcessor
from anomalib_clipsam.plugin.pre_processor import ClipSamPreProcessor
from anomalib_clipsam.plugin.report import PassSummary, explain_threshold
from anomalib_clipsam.references import BatchJudge, FewShotJudge, Judge, Thresholds, build_judge
from anomalib_clipsam.weights import store
from anomalib_clipsam.weights.table import LEARNED, WEIGHTS, Source, WeightFile, WeightPair

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from open_clip import CLIP
    from segment_anything.modeling import Sam

PROMPTS = "normal: ['{}']\nabnormal: ['broken {}']\ntemplates: ['a photo of a {}.']\n"
FAST = {"clip_size": 32, "map_size": 40, "ppg": {"min_score": 0.1}}
"""CLIP sees a very small image; with random weights its map lies near one half, so SAM is always asked."""


@pytest.fixture(scope="session")
def random_demo(clip: CLIP, sam: Sam, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with random weights that are named and look like the carried ones, and a short prompt file."""
    folder = tmp_path_factory.mktemp("demo")
    save_file(clip.state_dict(), folder / "clip.safetensors")
    save_file(sam.state_dict(), folder / "sam.safetensors")
    (folder / "prompts.yaml").write_text(PROMPTS)
    return folder


@pytest.fixture(autouse=True)
def _random_weights(random_demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Load those in the place of the carried ones."""
    monkeypatch.setattr(store, "CARRIED", random_demo)
    rows = {}
    for role, side in (("clip", 160), ("sam", 192)):
        file = random_demo / f"{role}.safetensors"
        source = Source(file.name, file.stat().st_size, hash_file(file))
        rows[role] = WeightFile(f"{role}_demo", role.upper(), "demo", side, "Apache-2.0", (source,))
    monkeypatch.setitem(WEIGHTS, "demo", WeightPair(**rows, map_size=192))


@pytest.fixture(scope="module")
def prompts(random_demo: Path) -> str:
    return str(random_demo / "prompts.yaml")


@pytest.fixture
def model(prompts: str) -> ClipSam:
    return ClipSam(weights="demo", prompts=prompts, **FAST).eval()


def asked_about(model: ClipSam, category: str | None = None) -> str:
    """Class name after Lightning's ``setup`` with a data module of that category."""
    model._trainer = SimpleNamespace(
        datamodule=None if category is None else SimpleNamespace(category=category),
        strategy=SimpleNamespace(checkpoint_io=None),
        precision="32-true",
    )
    model.setup("test")
    model._trainer = None
    return model.model.class_name


# ---------------------------------------------------------------- what anomalib sees


def test_direct_subclass_of_anomalib_module() -> None:
    """`list_models` and `get_model` see no others."""
    assert ClipSam in AnomalibModule.__subclasses__()


def test_zero_shot(model: ClipSam) -> None:
    assert model.learning_type is LearningType.ZERO_SHOT
    assert model.trainer_arguments == {}
    assert model.configure_optimizers() is None
    assert model.val_dataloader() == []
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_default_components(model: ClipSam) -> None:
    assert isinstance(model.pre_processor, ClipSamPreProcessor)
    assert isinstance(model.post_processor, ClipSamPostProcessor)
    assert model.pre_processor(torch.rand(1, 3, 30, 70)).shape == (1, 3, 192, 192)
    assert model.input_size == (192, 192)


def test_components_of_ones_own(prompts: str) -> None:
    pre_processor, post_processor = PreProcessor(Resize((192, 192))), PostProcessor()
    model = ClipSam("demo", prompts=prompts, pre_processor=pre_processor, post_processor=post_processor, **FAST)
    assert model.pre_processor is pre_processor
    assert model.post_processor is post_processor
    none = ClipSam(
        "demo", prompts=prompts, pre_processor=False, post_processor=False, evaluator=False, visualizer=False
    )
    assert (none.pre_processor, none.post_processor, none.evaluator, none.visualizer) == (None, None, None, None)


def test_configured_pre_processor() -> None:
    assert ClipSam.configure_pre_processor()(torch.rand(1, 3, 20, 30)).shape == (1, 3, 1024, 1024)
    small = ClipSam.configure_pre_processor((256, 256))
    assert small(torch.rand(1, 3, 20, 30)).shape == (1, 3, 256, 256)
    with pytest.raises(ValueError, match=r"image_size is \(256, 320\), but SAM's input frame is square"):
        ClipSam.configure_pre_processor((256, 320))


# ---------------------------------------------------------------- predictions


@pytest.mark.parametrize("size", [(300, 200), (192, 192), (64, 500), (1, 1)])
@pytest.mark.parametrize("refine", [True, False])
def test_predicts_without_an_engine(prompts: str, size: tuple[int, int], refine: bool) -> None:
    model = ClipSam("demo", class_name="part", prompts=prompts, refine=refine, **FAST).eval()
    batch = model(torch.rand(2, 3, *size))
    assert (batch.anomaly_map.shape, batch.pred_score.shape) == ((2, 40, 40), (2,))
    assert (batch.pred_mask.shape, batch.pred_label.shape) == ((2, 40, 40), (2,))
    assert batch.pred_mask.dtype == batch.pred_label.dtype == torch.bool
    for values in (batch.anomaly_map, batch.pred_score):
        assert torch.isfinite(values).all()
        assert values.amin() >= 0
        assert values.amax() <= 1
    assert model.model.class_name == "part"


def test_carried_weights_predict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    model = ClipSam(weights="demo", class_name="part").eval()
    batch = model(torch.rand(1, 3, 300, 200))
    assert batch.anomaly_map.shape == batch.pred_mask.shape == (1, 256, 256)
    for values in (batch.anomaly_map, batch.pred_score):
        assert values.amin() >= 0
        assert values.amax() <= 1


def test_mask_is_where_the_final_map_passes_the_threshold(prompts: str) -> None:
    post_processor = ClipSamPostProcessor(keep_good_masks=True)
    model = ClipSam(weights="demo", prompts=prompts, post_processor=post_processor, **FAST).eval()
    image = torch.rand(2, 3, 90, 120)
    stages = model.model.stages(model.pre_processor(image))
    batch = model(image)
    assert 0 < batch.pred_mask.sum() < batch.pred_mask.numel()
    assert torch.equal(batch.pred_mask, stages.fused_map > 0.5)
    assert torch.equal(batch.anomaly_map, stages.fused_map)


def test_validation_and_test_steps_give_the_predictions(model: ClipSam) -> None:
    image = model.pre_processor(torch.rand(2, 3, 50, 60))
    expected = model.model(image)
    for step in (model.validation_step, model.test_step, model.predict_step):
        batch = step(ImageBatch(image=image.clone()), 0)
        assert torch.equal(torch.as_tensor(batch.anomaly_map), expected.anomaly_map)
        assert torch.equal(torch.as_tensor(batch.pred_mask), expected.pred_mask)
        assert torch.equal(batch.pred_score, expected.pred_score)


@pytest.fixture
def three_pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(3):
        cv2.imwrite(str(folder / f"{index}.png"), np.full((40, 40, 3), 50 * index, np.uint8))
    return folder


def test_share_that_sam_skips_is_logged(
    model: ClipSam, three_pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model.model.ppg.min_score = 0.9  # random weights are never as sure: all images are skipped
    engine = Engine(default_root_dir=tmp_path / "results", logger=False, accelerator="cpu", enable_progress_bar=False)
    with caplog.at_level(logging.INFO, logger="anomalib_clipsam"):
        engine.predict(model, data_path=three_pictures, return_predictions=False)
        assert "SAM skipped 3 of 3 pictures (100 %): CLIP finds nothing suspicious in them." in caplog.messages
        assert model.closing_lines == []
        caplog.clear()
        model.model.ppg.min_score = 0.0
        engine.predict(model, data_path=three_pictures, return_predictions=False)
        assert "SAM skipped" not in caplog.text


def test_share_is_of_all_processes_and_said_once(model: ClipSam, caplog: pytest.LogCaptureFixture) -> None:
    """Each of two has seen a half of the pictures."""
    strategy = SimpleNamespace(reduce=lambda counts, reduce_op: 2 * counts if reduce_op == "sum" else 1 / 0)
    model._trainer = SimpleNamespace(strategy=strategy)
    with caplog.at_level(logging.INFO, logger="anomalib_clipsam"):
        for main in (True, False):
            refined = torch.tensor([True, True, True, False])
            model._report.count(SimpleNamespace(score=torch.zeros(4), refined=refined, unlike=None))
            model.on_predict_end()
            assert model._report._counts is None
            PassSummary().teardown(SimpleNamespace(is_global_zero=main), model, "validate")
            assert model.closing_lines == []
    model._trainer = None
    assert caplog.messages == ["SAM skipped 2 of 8 pictures (25 %): CLIP finds nothing suspicious in them."]


def test_threshold_is_explained_where_nobody_has_said_it(model: ClipSam) -> None:
    assert model.explain_threshold("--good", "--threshold") == (
        "The threshold, 0.5, is not fitted to these pictures: good ones may lie above it. A few good parts fit it, "
        "with --good; or set it with --threshold."
    )

    def explained(kind: type[Judge], share: float | None) -> str:
        stand_in = SimpleNamespace(
            thresholds=Thresholds(0.3, 0.4), passing_share=share, sources=("a",) * parts, copies=(), false_alarms=0.2
        )
        judge = SimpleNamespace(explain=partial(kind.explain, stand_in))
        return explain_threshold(model.post_processor, judge, "--good", "--threshold")

    parts = 4
    assert explained(FewShotJudge, None) == (
        "The threshold is set for 20 % false alarms, by 4 good parts and by how much good pictures of other products "
        "differ. So few parts cannot promise it: look at the pictures just above it. Give more good parts, or set it "
        "with --threshold."
    )
    parts = 1
    assert "by 1 good part and by how much" in explained(FewShotJudge, None)
    assert explained(FewShotJudge, 0.9) == (
        "The threshold lets 90 % of the 1 good part pass. Set another with --threshold."
    )
    assert explained(BatchJudge, 0.9) == (
        "The threshold is what 90 % of these pictures do not exceed: the rest are called defective, however many are. "
        "Look at the highest scores, and set it with --threshold."
    )
    assert explained(BatchJudge, None) == (
        "The threshold is set for 20 % false alarms, by those of these pictures that have the lowest scores. If most "
        "of them are damaged, or all have the same defect, set it with --threshold."
    )


def test_threshold_of_too_few_pictures_is_not_fitted(model: ClipSam) -> None:
    judge = build_judge(model.model.localizer, "batch", 0, {})
    found = explain_threshold(model.post_processor, judge, "--good", "--threshold")
    assert found.startswith("The threshold, 0.5, is not fitted")


@pytest.mark.parametrize(
    "post_processor",
    [
        ClipSamPostProcessor(image_threshold=0.5),
        ClipSamPostProcessor(image_sensitivity=0.5),
        ClipSamPostProcessor(enable_thresholding=False),
        PostProcessor(),
    ],
)
def test_threshold_that_a_user_or_labels_have_said_is_not_explained(
    model: ClipSam, post_processor: PostProcessor
) -> None:
    model.post_processor = post_processor
    assert model.explain_threshold("", "") is None
    model.post_processor = ClipSamPostProcessor()
    assert model.explain_threshold("", "") is not None
    model.post_processor.calibrated = True
    assert model.explain_threshold("", "") is None


def test_pictures_that_are_not_finite_are_named(model: ClipSam) -> None:
    """In every pass: an overflow was the verdict "good"."""
    logit_scale = model.model.localizer.clip.logit_scale
    logit_scale.fill_(torch.nan)
    batch = ImageBatch(image=torch.rand(2, 3, 192, 192), image_path=["shots/a.png", "shots/b.png"])
    for step in (model.validation_step, model.test_step, model.predict_step):
        with pytest.raises(NotFiniteError, match=r"^shots/a.png, shots/b.png: CLIP's map, computed in float32: NaN"):
            step(batch, 0)
    batch.image[1, 0, 0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"^shots/b.png: Of the batch's images, those at \[1\] hold NaN or infinite"):
        model.predict_step(batch, 0)
    with pytest.raises(NotFiniteError, match=r"^CLIP's map"):
        model.predict_step(ImageBatch(image=torch.rand(1, 3, 192, 192)), 0)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true"])
def test_precision_of_the_trainer_that_converts_weights_is_refused(
    model: ClipSam, three_pictures: Path, tmp_path: Path, precision: str
) -> None:
    engine = Engine(default_root_dir=tmp_path / "results", logger=False, accelerator="cpu", precision=precision)
    with pytest.raises(ValueError, match=rf"precision is '{precision}'.* command line --model\.precision bf16"):
        engine.predict(model, data_path=three_pictures)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("kept", [True, False])
def test_much_memory_is_warned_of(
    model: ClipSam,
    three_pictures: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    kept: bool,
) -> None:
    image, map_, mask, score = 192 * 192 * 3 * 4, 40 * 40 * 4, 40 * 40, 4
    bytes_ = 3 * (image + map_ + mask + score + 1)  # and the label
    engine = Engine(default_root_dir=tmp_path / "results", logger=False, accelerator="cpu", enable_progress_bar=False)
    for limit, warned in ((bytes_, False), (bytes_ - 1, kept)):
        monkeypatch.setattr(predicting, "MUCH_MEMORY", limit)
        caplog.clear()
        engine.predict(model, data_path=three_pictures, return_predictions=kept)
        assert ("--return_predictions false" in caplog.text) == warned


def test_what_decides_reaches_the_post_processor(prompts: str) -> None:
    """And ``min_area`` counts pixels of what is given, not of what the model sees."""
    model = ClipSam("demo", prompts=prompts, image_threshold=0.0, pixel_threshold=0.25, min_area=9, **FAST).eval()
    post_processor = model.post_processor
    assert post_processor.by_hand == {"image": 0.0, "pixel": 0.25}
    assert (post_processor.min_area, post_processor.keep_good_masks) == (9, False)
    assert ClipSam("demo", prompts=prompts, keep_good_masks=True, **FAST).post_processor.keep_good_masks
    image = torch.rand(1, 3, 90, 120)
    assert model(image).pred_mask.any()
    post_processor.min_area = 90 * 120 + 1
    assert not model(image).pred_mask.any()


@pytest.mark.parametrize("given", [{"image_threshold": 0.0}, {"min_area": 5}, {"keep_good_masks": True}])
def test_what_decides_is_not_dropped_beside_another_post_processor(prompts: str, given: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(given))} cannot be set beside a post-processor of your own"):
        ClipSam("demo", prompts=prompts, post_processor=PostProcessor(), **given, **FAST)


def test_arguments_reach_their_parts(prompts: str) -> None:
    ppg = {
        "min_score": 0.3,
        "region_ratio": 0.7,
        "num_positives": 4,
        "num_negatives": 2,
        "spacing": "rank",
        "interval": 50.0,
        "kernel_size": 31,
        "negatives": "most_similar",
    }
    model = ClipSam(
        "demo",
        prompts=prompts,
        clip_size=64,
        map_size=50,
        ppg=ppg,
        cps={"multimask": True, "box": "component", "passes": 2},
        fusion={"mode": "gate", "weight": 0.25},
        precision="bf16",
    ).model
    assert isinstance(model.localizer, DenseLocalizer)
    assert (model.localizer.image_size, model.map_size) == (64, 50)
    assert len(model.localizer.ensemble.templates) == 1
    found = {name: getattr(model.ppg, name) for name in inspect.signature(type(model.ppg)).parameters}
    assert found == {"frame_size": 192, **ppg}
    assert (model.cps.multimask, model.cps.box, model.cps.passes) == (True, "component", 2)
    assert (model.fusion.mode, model.fusion.weight, model.precision) == ("gate", 0.25, "bf16")


@pytest.mark.parametrize(
    ("group", "part"),
    [(PpgArguments, PointPromptGenerator), (CpsArguments, CascadedPrompts), (FusionArguments, Fusion)],
)
def test_groups_of_arguments_are_those_of_the_parts(group: type, part: type) -> None:
    """Names and types are written twice, in the part and in its group; they do not drift apart."""
    parameters = inspect.signature(part).parameters.items()
    written = {name: parameter.annotation for name, parameter in parameters if name not in ("frame_size", "sam")}
    assert {name: kind.__name__ for name, kind in get_type_hints(group).items()} == written


@pytest.mark.parametrize(
    ("size", "map_size"), [((192, 192), (40, 40)), ((200, 300), (27, 40)), ((300, 200), (40, 27)), ((40, 20), (40, 20))]
)
def test_true_masks_come_to_the_size_of_the_maps(
    model: ClipSam, size: tuple[int, int], map_size: tuple[int, int]
) -> None:
    """Whatever pre-processor was before. The left half stays the left half."""
    mask = torch.zeros(2, *size, dtype=torch.bool)
    mask[1, :, : size[1] // 2] = True
    for step in (model.validation_step, model.test_step):
        batch = step(ImageBatch(image=torch.rand(2, 3, *size), gt_mask=mask.clone()), 0)
        assert (batch.gt_mask.shape, batch.gt_mask.dtype) == ((2, *map_size), torch.bool)
        assert batch.anomaly_map.shape == batch.gt_mask.shape
        half = map_size[1] // 2
        assert batch.gt_mask[1, :, :half].all()
        assert not batch.gt_mask[1, :, half + 1 :].any()
        assert not batch.gt_mask[0].any()


@pytest.fixture
def labelled(tmp_path: Path) -> Folder:
    """A data module of two good and two defective pictures with masks, 30 x 40 pixels."""
    for index in range(2):
        for name, values in (("good", 60 + index), ("bad", 180 + index), ("mask", 0)):
            (tmp_path / "parts" / name).mkdir(parents=True, exist_ok=True)
            image = np.full((30, 40, 3), values, np.uint8)
            if name != "good":
                image[5:15, 20:35] = 255
            cv2.imwrite(str(tmp_path / "parts" / name / f"{index}.png"), image)
    return Folder(
        "parts",
        "good",
        tmp_path / "parts",
        "bad",
        "good",
        mask_dir="mask",
        val_split_mode="same_as_test",
        num_workers=0,
        eval_batch_size=3,
    )


def quiet_engine(tmp_path: Path, **more: object) -> Engine:
    return Engine(
        default_root_dir=tmp_path / "results", logger=False, accelerator="cpu", enable_progress_bar=False, **more
    )


@pytest.mark.parametrize("resize", [256, 300, (200, 300), None])
def test_pre_processor_of_ones_own_is_tested_with_masks(
    prompts: str, labelled: Folder, tmp_path: Path, resize: int | tuple[int, int] | None
) -> None:
    pre_processor = False if resize is None else PreProcessor(Resize(resize))
    model = ClipSam("demo", prompts=prompts, pre_processor=pre_processor, visualizer=False, **FAST)
    (metrics,) = quiet_engine(tmp_path).test(model, datamodule=labelled, verbose=False)
    assert 0 <= metrics["pixel_AUROC"] <= 1


@pytest.mark.parametrize("run", ["validate", "fit", "test", "train", "predict", "error"])
def test_nothing_is_kept_of_a_run(
    prompts: str, labelled: Folder, tmp_path: Path, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And within a run the test pass still runs no network again."""
    model = ClipSam("demo", prompts=prompts, refine=False, visualizer=False, references="batch", **FAST)
    engine, seen = quiet_engine(tmp_path), []
    stages = model.model.stages
    monkeypatch.setattr(model.model, "stages", lambda image: seen.append(len(image)) or stages(image))
    if run == "error":
        monkeypatch.setattr(model, "test_step", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.test(model, datamodule=labelled)
    else:
        getattr(engine, run)(model, datamodule=labelled)
    assert sum(seen) == (8 if run == "predict" else 4)
    assert (model._predictor.store.kept, model._predictor.store.used) == ({}, 0)
    assert model.model.judge._judged is None
    assert not model.model.judge._answers


@pytest.mark.parametrize("references", [{"references": "batch"}, {"k_shot": 2}])
def test_export_holds_nothing_of_the_users_files(
    prompts: str, random_demo: Path, sam: Sam, labelled: Folder, tmp_path: Path, references: dict
) -> None:
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    (tmp_path / "prompts.yaml").write_text(PROMPTS)
    files = {"prompts": str(tmp_path / "prompts.yaml"), "sam_weights": str(tmp_path / "sam.pth")}
    if "k_shot" in references:
        files["few_shot_source"] = str(tmp_path / "parts" / "good")
    model = ClipSam("demo", **files, **references, **FAST)
    engine = quiet_engine(tmp_path)
    engine.test(model, datamodule=labelled, verbose=False)
    path = engine.export(model, "torch", export_root=tmp_path / "export")
    with zipfile.ZipFile(path) as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    assert b"clip_sam" in content or b"ClipSam" in content
    assert str(tmp_path).encode() not in content
    assert dict(model.hparams)["prompts"] == files["prompts"]
    assert model.visualizer is not None
    exported = torch.load(path, weights_only=False)["model"].eval()
    image = torch.rand(1, 3, 50, 60)
    for found, expected in zip(exported(image), model.eval()(image), strict=True):
        assert torch.equal(found, expected)


def test_checkpoint_of_another_map_size_is_tested_with_masks(prompts: str, labelled: Folder, tmp_path: Path) -> None:
    arguments = {"prompts": prompts, "visualizer": False, **FAST}
    quiet_engine(tmp_path).test(ClipSam("demo", **arguments), datamodule=labelled, verbose=False)
    (path,) = (tmp_path / "results").rglob("*.ckpt")
    model = ClipSam("demo", **{**arguments, "map_size": 50})
    (metrics,) = quiet_engine(tmp_path).test(model, datamodule=labelled, ckpt_path=path, verbose=False)
    assert 0 <= metrics["pixel_AUROC"] <= 1


def test_adapters(prompts: str, tmp_path: Path) -> None:
    layers = nn.ModuleList(nn.Linear(160, 96) for _ in range(2))
    state_dict = {f"fc.{key}": value for key, value in layers.state_dict().items()}
    torch.save({"trainable_linearlayer": state_dict}, tmp_path / "adapters.pth")
    path = str(tmp_path / "adapters.pth")
    model = ClipSam("demo", prompts=prompts, localizer="april_gan", adapters=path, **FAST).eval()
    assert isinstance(model.model.localizer, AprilGanLocalizer)
    assert model.model.localizer.taps == (3, 6)
    assert torch.equal(model.model.localizer.adapters[1].weight, layers[1].weight)
    assert model(torch.rand(1, 3, 50, 60)).anomaly_map.shape == (1, 40, 40)


def test_activation_of_adapters_of_ones_own_is_clips(
    random_demo: Path, prompts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a published file it is that of its row, whatever it is called; `clip_quick_gelu` has the last word."""
    layer = nn.Linear(160, 96)
    torch.save(
        {"trainable_linearlayer": {f"fc.0.{key}": value for key, value in layer.state_dict().items()}}, tmp_path / "a"
    )
    arguments = {"prompts": prompts, "localizer": "april_gan", "adapters": str(tmp_path / "a"), "refine": False, **FAST}
    monkeypatch.setitem(WEIGHTS, "demo", replace(WEIGHTS["demo"], clip=replace(WEIGHTS["demo"].clip, quick_gelu=True)))
    assert activations(ClipSam("demo", **arguments)) == {"QuickGELU"}
    row = LEARNED["april_gan_visa"]
    source = replace(row.sources[0], git_blob=hash_git_blob(tmp_path / "a"))
    monkeypatch.setitem(LEARNED, row.name, replace(row, architecture="demo", sources=(source,)))
    assert activations(ClipSam("demo", **arguments)) == {"GELU"}
    assert activations(ClipSam("demo", clip_quick_gelu=True, **arguments)) == {"QuickGELU"}


def activations(model: ClipSam) -> set[str]:
    """Name the activations of both of CLIP's networks."""
    clip = model.model.localizer.clip
    return {type(block.mlp.gelu).__name__ for part in (clip.visual, clip) for block in part.transformer.resblocks}


# ---------------------------------------------------------------- learned weights


def learned_prompts(seed: int) -> dict[str, torch.Tensor]:
    """Learned prompts for the demo's CLIP, in the layout of Crane's and AnomalyCLIP's files."""
    generator = torch.Generator().manual_seed(seed)
    content = {"compound_prompts_text.0": torch.randn(4, 48, generator=generator)}
    for state, end in (("pos", 15), ("neg", 16)):
        content |= {
            f"ctx_{state}": torch.randn(1, 1, 12, 48, generator=generator),
            f"token_prefix_{state}": torch.randn(1, 1, 1, 48, generator=generator),
            f"token_suffix_{state}": torch.randn(1, 1, 64, 48, generator=generator),
            f"tokenized_prompts_{state}": (torch.arange(77) == end).int().view(1, 1, 77),
        }
    return {"prompt_learner": content}


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Bring learned weights for the demo's CLIP under the names of the table; the activation of each localizer.

    The pair ``"demo"`` has Crane's localizer for its own.
    """
    monkeypatch.setenv(store.WEIGHTS_VARIABLE, str(tmp_path))
    layers = nn.ModuleList(nn.Linear(160, 96) for _ in range(2))
    adapters = {"trainable_linearlayer": {f"fc.{key}": value for key, value in layers.state_dict().items()}}
    for seed, (name, row) in enumerate(LEARNED.items()):
        (source,) = row.sources
        torch.save(adapters if row.role == "adapters" else learned_prompts(seed), tmp_path / source.filename)
        source = replace(source, size=None, sha256=None, git_blob=hash_git_blob(tmp_path / source.filename))
        monkeypatch.setitem(LEARNED, name, replace(row, architecture="demo", sources=(source,)))
    clip = replace(WEIGHTS["demo"].clip, quick_gelu=True)
    monkeypatch.setitem(WEIGHTS, "demo", replace(WEIGHTS["demo"], clip=clip, localizer="crane"))
    return {row.localizer: "QuickGELU" if row.quick_gelu else "GELU" for row in LEARNED.values()}


@pytest.mark.parametrize("localizer", ["crane", "anomaly_clip", "april_gan", "dense"])
def test_activation_is_the_one_that_the_weights_were_trained_with(published: dict[str, str], localizer: str) -> None:
    """APRIL-GAN's published adapters know plain GELU, image and text; all others OpenAI's QuickGELU."""
    model = ClipSam("demo", localizer=localizer, refine=False, **FAST)
    expected = "GELU" if localizer == "april_gan" else "QuickGELU"
    assert published.get(localizer, "QuickGELU") == expected
    assert activations(model) == {expected}
    assert model.model.localizer.activation == expected


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({}, CraneLocalizer),
        ({"adapters": "anomaly_clip_mvtec"}, AnomalyClipLocalizer),
        ({"adapters": "april_gan_visa"}, AprilGanLocalizer),
        ({"adapters": None}, DenseLocalizer),
        ({"prompts": "prompts.yaml"}, DenseLocalizer),  # Crane would have no use for them
        ({"localizer": "dense"}, DenseLocalizer),
    ],
)
def test_localizer_is_the_pairs_own_unless_other_arguments_speak_against_it(
    published: dict[str, str], random_demo: Path, arguments: dict, kind: type
) -> None:
    if "prompts" in arguments:
        arguments = {"prompts": str(random_demo / arguments["prompts"])}
    assert type(ClipSam("demo", refine=False, **arguments, **FAST).model.localizer) is kind


def test_localizer_of_another_clip_is_dense(published: dict[str, str], clip: CLIP, tmp_path: Path) -> None:
    save_file(clip.state_dict(), tmp_path / "clip.safetensors")
    arguments = {"clip_architecture": "demo", "clip_weights": str(tmp_path / "clip.safetensors")}
    model = ClipSam("vit_b", **arguments, sam_architecture="demo", **FAST)
    assert type(model.model.localizer) is DenseLocalizer


class Visa(SimpleNamespace):
    """Called as anomalib's data module."""


class MVTecAD(SimpleNamespace):
    """Called as anomalib's data module."""


def set_up(model: ClipSam, datamodule: SimpleNamespace | None) -> None:
    strategy = SimpleNamespace(checkpoint_io=None)
    model._trainer = SimpleNamespace(datamodule=datamodule, strategy=strategy, precision="32-true")
    model.setup("test")
    model._trainer = None


@pytest.mark.parametrize("localizer", ["crane", "anomaly_clip", "april_gan"])
def test_learned_weights_were_never_trained_on_what_is_tested(
    published: dict[str, str], localizer: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = ClipSam("demo", localizer=localizer, refine=False, **FAST).eval()
    image, texts, said = torch.rand(1, 3, 40, 40), [], ""
    with caplog.at_level(logging.INFO, "anomalib_clipsam"):
        for datamodule, trained_on in ((None, "VisA"), (MVTecAD(), "VisA"), (Visa(), "MVTec AD"), (None, "VisA")):
            caplog.clear()
            set_up(model, datamodule)
            name = f"{localizer}_{'visa' if trained_on == 'VisA' else 'mvtec'}"
            message = f"The map's learned weights are {name}: its authors trained them on {trained_on}."
            assert (message in caplog.messages) == (message != said)  # logged when it changes
            said = message
            assert not [record for record in caplog.records if record.levelno > logging.INFO]
            assert model.frozen_weights()["localizer"]["name"] == f"clip_demo with {name}"
            model(image)
            texts.append(model.model.localizer.text.clone())
    if localizer != "april_gan":
        assert torch.equal(texts[0], texts[1])
        assert not torch.equal(texts[0], texts[2])
        assert torch.equal(texts[0], texts[3])


def test_weights_that_were_trained_on_what_is_tested_are_named(
    published: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    model = ClipSam("demo", adapters="crane_visa", refine=False, **FAST)
    set_up(model, MVTecAD())
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
    set_up(model, Visa())
    assert caplog.messages[-1].startswith("crane_visa was trained on VisA, which is tested: that is not zero-shot.")


@pytest.mark.parametrize("localizer", ["crane", "anomaly_clip"])
def test_image_score_is_the_published_one(published: dict[str, str], localizer: str) -> None:
    """The map's maximum has no part in it."""
    model = ClipSam("demo", localizer=localizer, refine=False, **FAST).eval()
    image = torch.rand(2, 3, 50, 70)
    score = model.model(image).pred_score
    assert torch.equal(score, model.model.localizer(resize_image(image, 40))[1])


def test_class_name_is_not_said_to_be_asked_about(published: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    model = ClipSam("demo", class_name="nut", refine=False, **FAST).eval()
    with caplog.at_level(logging.INFO, "anomalib_clipsam"):
        for _ in range(2):
            set_up(model, None)
            model(torch.rand(1, 3, 40, 40))
    assert sum("the class name is not used" in message for message in caplog.messages) == 1
    assert not any("ask about" in message for message in caplog.messages)


def test_checkpoint_of_another_activation_is_refused(published: dict[str, str]) -> None:
    """The weights are the same, and what they give is not."""
    checkpoint = checkpoint_of(ClipSam("demo", localizer="dense", refine=False, **FAST))
    ClipSam("demo", localizer="dense", refine=False, **FAST).on_load_checkpoint(dict(checkpoint))
    other = ClipSam("demo", localizer="dense", clip_quick_gelu=False, refine=False, **FAST)
    with pytest.raises(ValueError, match="made with QuickGELU in CLIP, and this model has GELU"):
        other.on_load_checkpoint(dict(checkpoint))


def test_checkpoint_of_other_learned_weights_is_refused(published: dict[str, str]) -> None:
    checkpoint = checkpoint_of(ClipSam("demo", adapters="crane_visa", refine=False, **FAST))
    ClipSam("demo", refine=False, **FAST).on_load_checkpoint(dict(checkpoint))
    other = ClipSam("demo", adapters="crane_mvtec", refine=False, **FAST)
    with pytest.raises(ValueError, match=r"clip_demo with crane_visa .* this model has clip_demo with crane_mvtec"):
        other.on_load_checkpoint(dict(checkpoint))


# ---------------------------------------------------------------- weights of one's own


def test_weights_of_ones_own(prompts: str, random_demo: Path, sam: Sam, tmp_path: Path) -> None:
    changed = {key: value * 0.5 for key, value in sam.state_dict().items()}
    save_file(changed, tmp_path / "own.safetensors")
    model = ClipSam(
        "vit_b",  # nothing of it is fetched
        prompts=prompts,
        clip_architecture="demo",
        clip_weights=str(random_demo / "clip.safetensors"),
        clip_quick_gelu=False,
        sam_architecture="demo",
        sam_weights=str(tmp_path / "own.safetensors"),
        clip_size=32,
        map_size=40,
    ).eval()
    token = "mask_decoder.iou_token.weight"
    assert torch.equal(model.model.sam.state_dict()[token], changed[token])
    assert {type(block.mlp.gelu) for block in model.model.localizer.clip.visual.transformer.resblocks} == {nn.GELU}
    assert model(torch.rand(1, 3, 20, 30)).anomaly_map.shape == (1, 40, 40)


# ---------------------------------------------------------------- class name


def test_order_of_class_names(prompts: str) -> None:
    """Argument, data module, checkpoint, "object"."""
    named = ClipSam("demo", class_name="nut", prompts=prompts, refine=False, **FAST)
    plain = ClipSam("demo", prompts=prompts, refine=False, **FAST)
    assert (asked_about(named), asked_about(plain)) == ("nut", "object")
    assert (asked_about(named, "bolt"), asked_about(plain, "bolt")) == ("nut", "bolt")
    for model in (named, plain):
        model._names.restored = "restored"
    assert (asked_about(named), asked_about(plain)) == ("nut", "restored")
    assert (asked_about(named, "bolt"), asked_about(plain, "bolt")) == ("nut", "bolt")


@pytest.mark.parametrize("category", ["01", "2-3"])
def test_a_category_without_letters_is_an_object(
    model: ClipSam, caplog: pytest.LogCaptureFixture, category: str
) -> None:
    with caplog.at_level(logging.INFO, logger="anomalib_clipsam"):
        assert asked_about(model, category) == "object"
    assert f"The category '{category}' has no letters" in caplog.text
    assert asked_about(model, "pcb4") == "pcb4"


@pytest.mark.parametrize("step", ["validation_step", "test_step", "predict_step"])
def test_each_picture_of_a_batch_is_asked_about_by_the_name_of_its_folder(
    prompts: str, tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = ClipSam("demo", prompts=prompts, class_name="folder", **FAST).eval()
    encoded = []
    encode = type(model.model.localizer)._encode_text

    def encode_once(localizer: DenseLocalizer, class_name: str) -> torch.Tensor:
        encoded.append(class_name)
        return encode(localizer, class_name)

    monkeypatch.setattr(type(model.model.localizer), "_encode_text", encode_once)
    images, names = torch.rand(4, 3, 192, 192), ["nut", "bolt", "nut", "hook"]
    for _ in range(2):
        batch = ImageBatch(image=images, image_path=[f"/data/{name}/0.png" for name in names])
        batch = getattr(model, step)(batch, 0)
    assert sorted(encoded) == ["bolt", "hook", "nut"]
    for index, name in enumerate(names):
        model.model.set_class_name(name)
        alone = model.model(images[index : index + 1])
        torch.testing.assert_close(batch.anomaly_map[index], alone.anomaly_map[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(batch.pred_score[index], alone.pred_score[0], atol=1e-5, rtol=0)
        assert torch.equal(torch.as_tensor(batch.pred_mask[index]), alone.pred_mask[0])
    assert len({float(score) for score in batch.pred_score}) == 4


@pytest.mark.parametrize("refused", [{"k_shot": 2}, {"references": "batch"}])
def test_many_products_are_not_compared_with_one_another(prompts: str, refused: dict) -> None:
    with pytest.raises(ValueError, match="class_name='folder' is for many products"):
        ClipSam("demo", prompts=prompts, class_name="folder", **refused, **FAST)


@pytest.mark.parametrize("method", ["to_torch", "to_onnx", "to_parts"])
def test_many_products_are_not_exported(prompts: str, tmp_path: Path, method: str) -> None:
    model = ClipSam("demo", prompts=prompts, class_name="folder", **FAST)
    with pytest.raises(ValueError, match="An exported model asks about one name"):
        getattr(model, method)(tmp_path)
    assert not list(tmp_path.iterdir())


def test_class_name_cannot_forge_lines_of_the_log(model: ClipSam, caplog: pytest.LogCaptureFixture) -> None:
    """It may be a stranger's checkpoint's."""
    with caplog.at_level(logging.INFO, "anomalib_clipsam"):
        asked_about(model, "nut\nERROR")
    assert r"Text prompts ask about 'nut\nERROR' (class name from the data module)." in caplog.messages


def test_class_name_is_renewed_and_logged(model: ClipSam, caplog: pytest.LogCaptureFixture) -> None:
    image = torch.rand(1, 3, 40, 40)
    with caplog.at_level(logging.INFO, "anomalib_clipsam"):
        texts = []
        for category in ("bolt", "nut", "bolt", None):
            asked_about(model, category)
            model(image)
            texts.append(model.model.localizer.text.clone())
    assert torch.equal(texts[0], texts[2])
    assert not torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[0], texts[3])
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0] == "Text prompts ask about 'bolt' (class name from the data module)."
    assert messages[-1] == "Text prompts ask about 'object' (class name from the default)."


def test_groups_of_arguments_as_benchmark_gives_them() -> None:
    model = ClipSam("demo", ppg=OmegaConf.create({"min_score": 0.6}))
    assert model.model.ppg.min_score == 0.6
    assert type(model.hparams["ppg"]) is dict  # what a checkpoint holds is read with `weights_only=True`


def test_videos_are_refused_before_a_pass(model: ClipSam) -> None:
    with pytest.raises(ValueError, match="UCSDped gives videos"):
        set_up(model, UCSDped())


@pytest.mark.parametrize(("k_shot", "source", "said"), [(0, None, 1), (1, None, 0), (1, "good", 1)])
def test_good_pictures_kept_for_a_training_are_told_once(
    caplog: pytest.LogCaptureFixture, k_shot: int, source: str | None, said: int
) -> None:
    """Unless good parts to compare with are read from them."""
    model = ClipSam("demo", refine=False, k_shot=k_shot, few_shot_source=source)
    datamodule = SimpleNamespace(normal_test_dir=None, train_data=range(18))
    with caplog.at_level(logging.INFO, "anomalib_clipsam"):
        set_up(model, datamodule)
        set_up(model, datamodule)
    told = [message for message in caplog.messages if message.startswith("18 good pictures are kept for a training")]
    assert len(told) == said


def test_class_name_is_logged_when_it_changes_only(caplog: pytest.LogCaptureFixture) -> None:
    model = ClipSam("demo")
    with caplog.at_level(logging.INFO, "anomalib_clipsam"):
        for category in ("bolt", "bolt", "nut", "nut", "bolt"):
            asked_about(model, category)
    assert [message.split("'")[1] for message in caplog.messages] == ["bolt", "nut", "bolt"]


# ---------------------------------------------------------------- hyper-parameters and checkpoints


def checkpoint_of(model: ClipSam) -> dict:
    """What Lightning writes of a model, as far as it concerns the model."""
    checkpoint = {
        "state_dict": model.state_dict(),
        "hyper_parameters": dict(model.hparams),
        "pytorch-lightning_version": "2.6.0",
    }
    model.on_save_checkpoint(checkpoint)
    return checkpoint


def test_hyper_parameters_are_plain(model: ClipSam, tmp_path: Path) -> None:
    arguments = set(inspect.signature(ClipSam).parameters)
    assert set(model.hparams) == arguments - {"pre_processor", "post_processor", "evaluator", "visualizer"}
    assert {type(value) for value in model.hparams.values()} <= {str, int, float, bool, dict, type(None)}
    torch.save(dict(model.hparams), tmp_path / "hparams.pt")
    restored = torch.load(tmp_path / "hparams.pt", weights_only=True)
    assert restored == dict(model.hparams)
    ClipSam(**restored)


def test_hyper_parameters_are_what_was_given() -> None:
    """A model in tiles came back from its checkpoint with the maps of a single look: the argument was overwritten."""
    for given in ({}, {"tiles": "auto"}, {"tiles": 256, "map_size": 700}):
        model = ClipSam(weights="demo", class_name="part", refine=False, **given)
        defaults = {name: one.default for name, one in inspect.signature(ClipSam).parameters.items()}
        expected = {**defaults, "weights": "demo", "class_name": "part", "refine": False, **given}
        assert dict(model.hparams) == {name: expected[name] for name in model.hparams}


def test_files_may_be_paths(random_demo: Path, tmp_path: Path) -> None:
    """A checkpoint and an export's metadata hold text: a path broke both."""
    files = {"clip_weights": "clip.safetensors", "sam_weights": "sam.safetensors", "prompts": "prompts.yaml"}
    files = {name: random_demo / file for name, file in files.items()}
    model = ClipSam("demo", class_name="part", **files, **FAST).eval()
    weights = json.loads(model.export_metadata()["weights"])
    assert weights["sam"]["name"] == "sam.safetensors"
    torch.save(checkpoint_of(model), tmp_path / "a.ckpt")
    loaded = ClipSam.load_from_checkpoint(tmp_path / "a.ckpt", map_location="cpu", weights_only=True)
    assert {name: loaded.hparams[name] for name in files} == {name: str(file) for name, file in files.items()}


def test_file_with_code_is_no_checkpoint_and_no_advice_is_given_to_run_it(tmp_path: Path) -> None:
    """As `anomalib export --ckpt_path` reads one."""
    torch.save({"state_dict": print}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"a\.ckpt is damaged or no checkpoint: Unsupported global") as raised:
        ClipSam.load_from_checkpoint(tmp_path / "a.ckpt")
    assert "weights_only" not in "".join(traceback.format_exception(raised.value))


def test_checkpoint_is_small_and_gives_the_same_predictions(model: ClipSam, prompts: str, tmp_path: Path) -> None:
    """After a calibration, and for the class name that it was made with, to the last bit."""
    image = torch.rand(3, 3, 60, 80)
    asked_about(model, "bolt")
    raw = model.model(model.pre_processor(image))
    labels = torch.tensor([0, 1, 1])
    masks = torch.rand(3, 40, 40) > 0.7
    masks[0] = False
    model.post_processor.on_validation_batch_end(
        None, None, ImageBatch(image=torch.rand(3, 3, 40, 40), gt_label=labels, gt_mask=masks, **raw._asdict())
    )
    model.post_processor.on_validation_epoch_end(None, None)
    expected = model(image)

    path = tmp_path / "model.ckpt"
    torch.save(checkpoint_of(model), path)
    assert path.stat().st_size < 1e6
    written = torch.load(path, weights_only=True)
    assert written["state_dict"]
    assert not [key for key in written["state_dict"] if key.startswith("model.")]

    loaded = ClipSam.load_from_checkpoint(path, map_location="cpu").eval()
    assert loaded.model.class_name == "bolt"
    for ours, right in zip(loaded(image), expected, strict=True):
        assert torch.equal(ours, right)
    fresh = ClipSam("demo", prompts=prompts, class_name="bolt", **FAST).eval()
    assert not torch.equal(fresh(image).pred_score, expected.pred_score)  # the calibration makes a difference

    restored = ClipSam("demo", prompts=prompts, **FAST).eval()  # as the Trainer does with `ckpt_path`
    restored.on_load_checkpoint(written)
    restored.load_state_dict(written["state_dict"], strict=True)
    for ours, right in zip(restored(image), expected, strict=True):
        assert torch.equal(ours, right)


def test_checkpoint_names_and_hashes_the_frozen_weights(model: ClipSam) -> None:
    saved = checkpoint_of(model)["clip_sam"]
    assert {part: entry["name"] for part, entry in saved["weights"].items()} == {
        "localizer": "clip_demo",
        "sam": "sam_demo",
    }
    assert all(len(entry["sha256"]) == 64 for entry in saved["weights"].values())
    assert saved["text"].shape == (2, 96)


def test_text_is_not_encoded_again(model: ClipSam, prompts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked_about(model, "bolt")
    checkpoint = checkpoint_of(model)
    restored = ClipSam("demo", prompts=prompts, **FAST).eval()
    restored.on_load_checkpoint(dict(checkpoint))
    monkeypatch.setattr("anomalib_clipsam.clip.localizers.base.encode_ensemble", lambda *_: 1 / 0)
    image = torch.rand(1, 3, 40, 40)
    restored(image)
    assert torch.equal(restored.model.localizer.text, checkpoint["clip_sam"]["text"])
    restored.model.set_class_name("hinge")
    with pytest.raises(ZeroDivisionError):  # another name has other embeddings, and no test has left these on disk
        restored(image)


@pytest.mark.parametrize("part", ["localizer", "sam"])
def test_other_frozen_weights_are_refused(model: ClipSam, prompts: str, part: str) -> None:
    checkpoint = checkpoint_of(model)
    other = ClipSam("demo", prompts=prompts, **FAST)
    parameter = next((other.model.localizer if part == "localizer" else other.model.sam).parameters())
    parameter.view(-1)[0] += 1e-3
    name = {"localizer": "clip_demo", "sam": "sam_demo"}[part]
    sha256 = checkpoint["clip_sam"]["weights"][part]["sha256"]
    message = (
        rf"made with other weights of the {part}: {name} \(SHA-256 of the values {sha256}\), and this model has {name}"
    )
    with pytest.raises(ValueError, match=message):
        other.on_load_checkpoint(checkpoint)


def test_same_weights_from_another_file(model: ClipSam, prompts: str, sam: Sam, tmp_path: Path) -> None:
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    other = ClipSam("demo", prompts=prompts, sam_weights=str(tmp_path / "sam.pth"), **FAST)
    assert other.frozen_weights()["sam"]["name"] == "sam.pth"
    other.on_load_checkpoint(checkpoint_of(model))


def test_checkpoint_without_sam_fits_a_model_with_it(model: ClipSam, prompts: str) -> None:
    plain = ClipSam("demo", prompts=prompts, refine=False, **FAST)
    assert plain.frozen_weights().keys() == {"localizer"}
    model.on_load_checkpoint(checkpoint_of(plain))
    plain.on_load_checkpoint(checkpoint_of(model))


@pytest.mark.parametrize(
    ("made_with", "own", "sentence"),
    [
        (
            {"localizer": "musc", "clip_size": 64},
            {"localizer": "dense", "clip_size": 32},
            "made with localizer='musc' and clip_size=64, and this model has localizer='dense' and clip_size=32",
        ),
        ({"clip_size": 64}, {"clip_size": 32}, "made with clip_size=64, and this model has clip_size=32"),
        (
            {"prompts": None},
            {},
            "made with prompts='a cropped photo of the object.', and this model has prompts='a photo of a object.'",
        ),
    ],
)
def test_checkpoint_of_other_settings_is_refused(prompts: str, made_with: dict, own: dict, sentence: str) -> None:
    arguments = {"prompts": prompts, "refine": False, **FAST}
    checkpoint = checkpoint_of(ClipSam("demo", **arguments | made_with))
    ClipSam("demo", **arguments | made_with).on_load_checkpoint(dict(checkpoint))
    with pytest.raises(ValueError, match=re.escape(f"{sentence}. Its thresholds would be wrong. Give the model the")):
        ClipSam("demo", **arguments | own).on_load_checkpoint(dict(checkpoint))


def test_lesser_differences_from_a_checkpoint_are_named_in_one_warning(
    prompts: str, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = {"prompts": prompts, "fusion": {"weight": 0.5}, **FAST}
    checkpoint = checkpoint_of(ClipSam("demo", class_name="bolt", **arguments))
    ClipSam("demo", **arguments).on_load_checkpoint(dict(checkpoint))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    other = {"class_name": "nut", "map_size": 50, "fusion": {"weight": 0.25}, "precision": "bf16"}
    ClipSam("demo", **arguments | other).on_load_checkpoint(dict(checkpoint))
    (message,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert message == (
        "The checkpoint's thresholds were found with fusion.weight=0.5 and map_size=40 and precision='float32' and "
        "class_name='bolt', and this model has fusion.weight=0.25 and map_size=50 and precision='bf16' and "
        "class_name='nut'. Calibrate anew without the checkpoint if labels or masks look wrong."
    )


def test_checkpoint_cannot_bring_frozen_weights(model: ClipSam, prompts: str) -> None:
    """Its hashes are right, and its weights are not those."""
    checkpoint = checkpoint_of(model)
    name = "model.cps.sam.mask_decoder.iou_token.weight"
    checkpoint["state_dict"] |= {name: torch.zeros(1, 128), "model.more": torch.zeros(1)}
    other = ClipSam("demo", prompts=prompts, **FAST)
    other.on_load_checkpoint(checkpoint)
    other.load_state_dict(checkpoint["state_dict"], strict=True)
    assert torch.equal(other.state_dict()[name], model.state_dict()[name])
    assert other.frozen_weights() == model.frozen_weights()


def without(*names: str) -> Callable[[dict], object]:
    """Leave an entry out of a checkpoint; of names, one lies within the other."""

    def leave_out(checkpoint: dict) -> None:
        for name in names[:-1]:
            checkpoint = checkpoint[name]
        del checkpoint[names[-1]]

    return leave_out


@pytest.mark.parametrize(
    ("change", "lacks"),
    [
        (without("state_dict"), "state_dict"),
        (without("clip_sam", "weights"), "weights"),
        (without("clip_sam", "weights", "localizer"), "localizer"),
        (without("clip_sam", "weights", "sam", "sha256"), "sha256"),
        (without("clip_sam", "text"), "text"),
        (without("clip_sam", "sentences"), "sentences"),
        (without("clip_sam", "class_name"), "class_name"),
        (lambda checkpoint: checkpoint.update(clip_sam=["text"]), "class_name, sentences, text, weights"),
        (lambda checkpoint: checkpoint["clip_sam"].update(weights={}), "localizer"),
        (lambda checkpoint: checkpoint["clip_sam"].update(good_parts={"memory": []}), "calibration, thresholds"),
        (lambda checkpoint: checkpoint["clip_sam"].update(references={}), "references"),
    ],
)
def test_checkpoint_that_lacks_something_is_refused(
    model: ClipSam, change: Callable[[dict], object], lacks: str
) -> None:
    checkpoint = checkpoint_of(model)
    change(checkpoint)
    with pytest.raises(ValueError, match=rf"^The checkpoint lacks {lacks}.* calibrate anew without it\.$"):
        model.on_load_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:, :95],
        lambda text: text.double(),
        lambda text: 100 * text,
        lambda text: torch.nan * text,
        lambda text: 0 * text,
    ],
)
def test_checkpoint_with_another_text_is_refused(
    model: ClipSam, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    checkpoint = checkpoint_of(model)
    checkpoint["clip_sam"]["text"] = change(checkpoint["clip_sam"]["text"])
    with pytest.raises(
        ValueError, match=r"The text directions of 'object' .* needs two finite ones of 96, of length 1"
    ):
        model.on_load_checkpoint(checkpoint)


def test_frozen_weights_are_hashed_once(model: ClipSam, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at every save and load, and for every class name: gigabytes take seconds."""
    checkpoint = checkpoint_of(model)
    sizes = []
    monkeypatch.setattr(
        "anomalib_clipsam.compute.hashing.hash_tensors",
        lambda tensors: sizes.append(sum(value.nbytes for value in tensors.values())) or hash_tensors(tensors),
    )
    model.on_load_checkpoint(dict(checkpoint))
    model.model.localizer.text_of("bolt")
    assert checkpoint_of(model)["clip_sam"]["weights"] == checkpoint["clip_sam"]["weights"]
    assert max(sizes) < 1e5
    assert sum(value.nbytes for value in model.model.sam.state_dict().values()) > 1e6


def test_checkpoint_of_another_model(model: ClipSam) -> None:
    checkpoint = checkpoint_of(model)
    del checkpoint["clip_sam"]
    with pytest.raises(ValueError, match=r"The checkpoint is not one of ClipSam\. Give the model"):
        model.on_load_checkpoint(checkpoint)


def test_state_dict_itself_is_complete(model: ClipSam) -> None:
    """`Engine.export(..., "torch")` needs the weights in it."""
    keys = model.state_dict().keys()
    assert {key.split(".")[1] for key in keys if key.startswith("model.")} == {"localizer", "cps"}


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": "vit_x"}, "Unknown weights 'vit_x'. Choose one of"),
        ({"localizer": "anything"}, "Unknown localizer 'anything'. Choose one of auto, dense, april_gan, anomaly_clip"),
        ({"localizer": "april_gan", "adapters": None}, "localizer='april_gan' needs learned weights"),
        ({"localizer": "dense", "adapters": "file.pt"}, "localizer='dense' has no use for `adapters`"),
        ({"adapters": "file.pt"}, "localizer='dense' has no use for `adapters`"),
        ({"localizer": "crane"}, "crane_visa goes with CLIP ViT-L-14-336, and this one is demo"),
        ({"adapters": "april_gan_visa"}, "april_gan_visa goes with CLIP ViT-L-14-336, and this one is demo"),
        (
            {"localizer": "crane", "adapters": "anomaly_clip_visa"},
            "anomaly_clip_visa is for localizer='anomaly_clip', not 'crane'",
        ),
        ({"sam_architecture": "vit_x"}, "Unknown sam_architecture 'vit_x'"),
        ({"clip_architecture": "ViT-B-32"}, "Name its file with `clip_weights`"),
        ({"map_size": 0}, "map_size is 0"),
        ({"map_size": -5}, "map_size is -5"),
        ({"clip_size": 33}, "clip_size is 33; it must be a multiple of the patch size, 8"),
        ({"clip_size": 0}, "clip_size is 0"),
        ({"ppg": {"min_score": 2}}, "min_score is 2"),
        ({"ppg": {"region_ratio": -1}}, "region_ratio is -1"),
        ({"ppg": {"num_positives": 0}}, "num_positives is 0"),
        ({"ppg": {"spacing": "x"}}, "Unknown spacing 'x'"),
        ({"ppg": {"interval": 0}}, "interval is 0"),
        ({"ppg": {"kernel_size": 4}}, "kernel_size is 4"),
        ({"ppg": {"negatives": "x"}}, "Unknown negatives 'x'"),
        ({"cps": {"box": "x"}}, "Unknown box 'x'"),
        ({"cps": {"passes": 4}}, "passes is 4"),
        ({"fusion": {"mode": "x"}}, "Unknown fusion 'x'"),
        ({"fusion": {"weight": 2}}, "fusion's weight is 2"),
    ],
)
def test_wrong_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClipSam(**{"weights": "demo", **arguments})


@pytest.mark.parametrize("name", ["prompts", "clip_weights", "sam_weights"])
def test_files_that_are_missing(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"no/such/file"):
        ClipSam("demo", **{name: "no/such/file"})


def test_missing_adapters() -> None:
    with pytest.raises(FileNotFoundError, match="adapters='no/such/file' is no file"):
        ClipSam("demo", localizer="april_gan", adapters="no/such/file")


@pytest.mark.parametrize("fusion", ["weighted", "x"])
def test_thresholds_and_fusion_are_checked_before_weights_are_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fusion: str
) -> None:
    """A wrong number is said at once, not after gigabytes were fetched."""
    monkeypatch.setattr(store, "CARRIED", tmp_path / "nothing")
    wrong = {"fusion": {"mode": fusion}} if fusion == "x" else {"ppg": {"min_score": 7}}
    with pytest.raises(ValueError, match=r"Unknown fusion|min_score"):
        ClipSam("demo", **wrong)


# ---------------------------------------------------------------- references


def compared(prompts: str, **more: object) -> ClipSam:
    return ClipSam("demo", prompts=prompts, refine=False, visualizer=False, **FAST, **more).eval()


@pytest.mark.parametrize(
    ("arguments", "judge", "learning_type"),
    [
        ({"references": "none"}, None, LearningType.ZERO_SHOT),
        ({"references": "self"}, "SelfJudge", LearningType.ZERO_SHOT),
        ({"references": "batch"}, "BatchJudge", LearningType.ZERO_SHOT),
        ({"k_shot": 2}, "FewShotJudge", LearningType.FEW_SHOT),
        ({"k_shot": 2, "references": "none"}, "FewShotJudge", LearningType.FEW_SHOT),
    ],
)
def test_references_choose_the_judge(
    prompts: str, arguments: dict, judge: str | None, learning_type: LearningType
) -> None:
    model = compared(prompts, **arguments)
    assert (None if model.model.judge is None else type(model.model.judge).__name__) == judge
    assert model.learning_type is learning_type
    assert model.compares_batch == (judge == "BatchJudge")


def test_reference_options_are_checked(prompts: str) -> None:
    model = compared(prompts, k_shot=1, reference_options={"text_share": 0.5, "taps": [2, 4], "rotate": True})
    assert (model.model.judge.combination.text_share, model.model.judge.rotate) == (0.5, True)
    assert model.model.localizer.reference_taps == (2, 4)
    with pytest.raises(ValueError, match="reference_options has no 'share'"):
        compared(prompts, k_shot=1, reference_options={"share": 0.5})
    with pytest.raises(TypeError, match="taps is 3, but must be of the type list"):
        compared(prompts, k_shot=1, reference_options={"taps": 3})


def test_good_parts_given_in_python_are_images_as_the_model_takes_them(prompts: str) -> None:
    model, images = compared(prompts, k_shot=3), torch.rand(3, 3, 50, 70)
    model.set_references(images)
    assert (model(images).anomaly_map < model(torch.rand(3, 3, 50, 70)).anomaly_map).float().mean() > 0.9
    assert model.post_processor.image_threshold.item() == pytest.approx(model.model.judge.thresholds.image)
    assert not model(images).pred_label.any()
    sources = model.model.judge.sources
    model.set_references(torch.rand(2, 3, 50, 70))
    assert len(model.model.judge.sources) == 2
    assert not set(sources) & set(model.model.judge.sources)
    for wrong in (torch.rand(3, 50, 70), torch.full((1, 3, 5, 5), float("nan"))):
        with pytest.raises(ValueError, match="Give floats in"):
            model.set_references(wrong)
    with pytest.raises(ValueError, match=r"This model compares with no good parts\. Make it with `k_shot`"):
        compared(prompts).set_references(images)


def test_a_model_without_good_parts_says_how_to_give_some(prompts: str) -> None:
    with pytest.raises(ValueError, match="k_shot=2 needs good parts"):
        compared(prompts, k_shot=2)(torch.rand(1, 3, 50, 70))


def settings_of(model: ClipSam) -> tuple:
    return tuple(model.model.settings().items())


def test_settings_know_the_references(prompts: str) -> None:
    """What a test pass reuses of a validation pass depends on them."""
    found = [settings_of(compared(prompts, references=kind)) for kind in ("none", "self", "batch")]
    for seed in (0, 1):
        model = compared(prompts, k_shot=1)
        model.set_references(torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(seed)))
        found.append(settings_of(model))
    assert len(set(found)) == 5
    assert settings_of(compared(prompts, references="self")) == found[1]


def test_checkpoint_brings_the_good_parts_back(prompts: str, tmp_path: Path) -> None:
    model = compared(prompts, k_shot=2)
    model.set_references(torch.rand(2, 3, 50, 70))
    torch.save(checkpoint_of(model), tmp_path / "a.ckpt")
    loaded = ClipSam.load_from_checkpoint(tmp_path / "a.ckpt", map_location="cpu").eval()
    image = torch.rand(2, 3, 50, 70)
    for found, expected in zip(loaded(image), model(image), strict=True):
        torch.testing.assert_close(found.float(), expected.float(), atol=2e-3, rtol=0)
    assert loaded.model.judge.sources == model.model.judge.sources
    assert loaded.model.judge.thresholds == model.model.judge.thresholds
    assert loaded.model.judge.max_median_distance == model.model.judge.max_median_distance


@pytest.mark.parametrize(
    ("made_with", "own", "sentence"),
    [
        ({"references": "none"}, {"references": "self"}, "other references: text alone, and this model has self"),
        ({"references": "batch"}, {"references": "none"}, "other references: batch, and this model has text alone"),
        (
            {"references": "self"},
            {"references": "self", "reference_options": {"taps": [1]}},
            "other references: self and .*'taps'.*, and this model has .*'taps': \\(1,\\)",
        ),
        ({"references": "batch"}, {"references": "batch", "reference_options": {"raw": True}}, "'raw': False"),
    ],
)
def test_checkpoint_of_other_references_is_refused(prompts: str, made_with: dict, own: dict, sentence: str) -> None:
    checkpoint = checkpoint_of(compared(prompts, **made_with))
    compared(prompts, **made_with).on_load_checkpoint(dict(checkpoint))
    with pytest.raises(ValueError, match=sentence):
        compared(prompts, **own).on_load_checkpoint(dict(checkpoint))
