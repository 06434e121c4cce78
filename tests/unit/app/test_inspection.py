# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""What the page asks of the model: looks, decisions, and which files are taken."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from anomalib.data import InferenceBatch
from anomalib.engine import Engine
from PIL import Image

from anomalib_clipsam import ClipSam
from anomalib_clipsam.app import inspection
from anomalib_clipsam.app.inspection import PANEL, Inspector, Look, decide, read_upload
from anomalib_clipsam.drawing.panels import FOUND, heat, outline
from anomalib_clipsam.drawing.stages import CROPS
from anomalib_clipsam.drawn_parts.drawing import draw_part
from anomalib_clipsam.references import Thresholds

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def inspector() -> Inspector:
    return Inspector("lite")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dented piece of leather, and a folder of two good ones."""
    folder = tmp_path_factory.mktemp("parts")
    (folder / "good").mkdir()
    Image.fromarray(draw_part("leather", np.random.default_rng(105), "dent")[0]).save(folder / "dent.png")
    for index in range(2):
        good, _ = draw_part("leather", np.random.default_rng(index))
        Image.fromarray(good).save(folder / "good" / f"{index}.png")
    return folder


@pytest.fixture
def look() -> Look:
    """A look with a score of 0.6 and two regions, whose means are 0.55 and 0.8, on a map of 4 x 8."""
    fused, mask = torch.zeros(1, 4, 8), torch.zeros(1, 4, 8, dtype=torch.bool)
    fused[0, 0, :2], fused[0, 3, 5:8] = 0.55, 0.8
    mask[0, 0, :2] = mask[0, 3, 5:8] = True
    picture = Image.new("RGB", (80, 40), (10, 120, 40))
    return Look(picture, InferenceBatch(torch.tensor([0.6]), None, fused, mask), None, {}, "object")


@pytest.mark.parametrize("with_good", [False, True])
def test_a_look_is_what_a_pass_of_anomalibs_says(
    inspector: Inspector, parts: Path, tmp_path: Path, with_good: bool
) -> None:
    shots = {"k_shot": 2, "few_shot_source": str(parts / "good")} if with_good else {}
    model = ClipSam(weights="lite", class_name="leather", visualizer=False, **shots)
    engine = Engine(default_root_dir=tmp_path, logger=False, accelerator="cpu", enable_progress_bar=False)
    (expected,) = engine.predict(model, data_path=parts / "dent.png", return_predictions=True)
    good = sorted((parts / "good").iterdir()) if with_good else ()
    look = inspector.look(parts / "dent.png", good, "  leather ")
    decision = decide(look)
    assert decision.score == pytest.approx(expected.pred_score.item(), abs=1e-6)
    assert decision.defective
    assert expected.pred_label.item()
    assert decision.regions == 1
    assert decision.share == pytest.approx(expected.pred_mask.float().mean().item())
    assert (look.class_name, look.notes) == ("leather", ())
    assert next(iter(look.steps)) == ("Text and good parts" if with_good else "CLIP map")
    assert [title for title in look.steps if title.startswith("Mask")][-1] == "Mask 3: + box, mask 2"
    assert {panel.size for panel in look.steps.values()} == {(PANEL, PANEL)}


def test_a_look_in_tiles_is_what_a_pass_in_tiles_says(parts: Path, tmp_path: Path) -> None:
    picture = Image.open(parts / "dent.png")
    wide = Image.new("RGB", (picture.width * 2, picture.height))
    wide.paste(picture)
    wide.paste(Image.open(parts / "good" / "0.png"), (picture.width, 0))
    wide.save(tmp_path / "wide.png")
    inspector = Inspector("lite", tiles=200)
    model = ClipSam(weights="lite", class_name="leather", tiles=200, visualizer=False)
    engine = Engine(default_root_dir=tmp_path, logger=False, accelerator="cpu", enable_progress_bar=False)
    (expected,) = engine.predict(model, data_path=tmp_path / "wide.png", return_predictions=True)
    look = inspector.look(tmp_path / "wide.png", class_name="leather")
    assert decide(look).score == pytest.approx(expected.pred_score.item(), abs=1e-6)
    assert look.predictions.anomaly_map.shape == expected.anomaly_map.shape
    assert list(look.steps) == ["CLIP map", CROPS]
    assert {panel.size for panel in look.steps.values()} == {(PANEL, PANEL // 2)}
    with pytest.raises(ValueError, match=r"this page looks at tiles\. Take them out, or leave --tiles out\.$"):
        inspector.look(tmp_path / "wide.png", [parts / "good" / "0.png"])
    inspector.model.model.misfit = lambda size: f"cannot be cut: {size}"
    with pytest.raises(ValueError, match=rf"^wide\.png cannot be cut: \({wide.width}, {wide.height}\)$"):
        inspector.look(tmp_path / "wide.png")


def test_good_parts_of_one_picture_do_not_judge_the_next(inspector: Inspector, parts: Path) -> None:
    alone = inspector.look(parts / "dent.png", class_name="leather")
    inspector.look(parts / "dent.png", sorted((parts / "good").iterdir()), "leather")
    assert inspector.model.model.judge is None
    again = inspector.look(parts / "dent.png", class_name="leather")
    assert torch.equal(again.predictions.anomaly_map, alone.predictions.anomaly_map)
    assert again.thresholds is None


def test_pictures_of_two_pages_wait_for_each_other(inspector: Inspector, parts: Path) -> None:
    """The model has one set of good parts at a time."""
    good = sorted((parts / "good").iterdir())
    asked = [(), good, (), good]
    expected = [decide(inspector.look(parts / "dent.png", each, "leather")).score for each in asked[:2]]
    scores: dict[int, float] = {}

    def ask(index: int) -> None:
        scores[index] = decide(inspector.look(parts / "dent.png", asked[index], "leather")).score

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [scores[index] for index in range(4)] == pytest.approx(expected * 2, abs=1e-6)
    assert expected[0] != pytest.approx(expected[1], abs=1e-3)


@pytest.mark.parametrize(
    ("image_threshold", "pixel_threshold", "defective", "regions", "share"),
    [
        (0.5, 0.5, True, 2, 5 / 32),
        (0.5, 0.7, True, 1, 3 / 32),
        (0.5, 0.9, True, 1, 3 / 32),  # the hottest place: a defective picture has an outline
        (0.59, 0.0, True, 2, 5 / 32),
        (0.61, 0.5, False, 0, 0),
        (1.0, 0.0, False, 0, 0),
    ],
)
def test_thresholds_move_verdict_and_outline(
    look: Look, image_threshold: float, pixel_threshold: float, defective: bool, regions: int, share: float
) -> None:
    decision = decide(look, image_threshold, pixel_threshold)
    assert decision.score == pytest.approx(0.6)
    assert (decision.defective, decision.regions) == (defective, regions)
    assert decision.share == pytest.approx(share)


def test_scores_are_counted_from_the_threshold_of_good_parts(look: Look) -> None:
    with_good = Look(look.picture, look.predictions, Thresholds(image=0.7, pixel=0.6), {}, "object")
    decision = decide(with_good)
    assert decision.score == pytest.approx(0.4)  # 0.1 below 0.7, and 0.5 stands for 0.7
    assert not decision.defective
    decision = decide(with_good, image_threshold=0.3)
    assert decision.defective
    assert decision.regions == 1  # the other, with 0.55, is below 0.6


def test_outline_and_map_are_drawn_as_in_the_pictures_of_a_pass(look: Look) -> None:
    decision = decide(look, pixel_threshold=0.7)
    mask = look.predictions.pred_mask[0].clone()
    mask[0] = False
    assert decision.outlined.tobytes() == outline(look.picture, mask, FOUND).tobytes()
    assert decision.map.tobytes() == heat(look.picture, look.predictions.anomaly_map[0], 0.7).tobytes()


def test_no_network_runs_when_a_threshold_moves(
    inspector: Inspector, parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = inspector.look(parts / "dent.png")

    def fail(*_: object) -> None:
        pytest.fail("a network ran")

    monkeypatch.setattr(torch.nn.Linear, "forward", fail)
    monkeypatch.setattr(torch.nn.Conv2d, "forward", fail)
    assert decide(look, 0.2).defective
    with pytest.raises(pytest.fail.Exception, match="a network ran"):
        inspector.look(parts / "dent.png")


def test_it_is_said_that_nothing_is_suspicious_and_that_a_part_is_another(
    inspector: Inspector, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = sorted((parts / "good").iterdir())
    look = inspector.look(good[0], class_name="leather")
    assert look.notes == ("CLIP finds nothing suspicious in it, so SAM was not asked.",)
    assert list(look.steps) == ["CLIP map"]
    other = tmp_path / "capsule.png"
    Image.fromarray(draw_part("capsule", np.random.default_rng(0))[0]).save(other)
    monkeypatch.setattr(inspection, "MOST_GOOD_PARTS", 1)
    look = inspector.look(other, good)
    assert look.notes[:2] == (
        "Of the 2 good parts, the first 1 are used.",
        "It is defective whatever the threshold: unlike every good part. Is it the same part, seen in the same way?",
    )


def test_files_that_are_refused_are_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = tmp_path / "part.png"
    Image.new("RGB", (60, 50)).save(picture)
    assert read_upload(picture).size == (60, 50)
    monkeypatch.setattr(inspection, "MOST_PIXELS", 2999)
    with pytest.raises(ValueError, match=r"^part.png has 0.0 megapixels, and 0 are allowed. Save it smaller, or crop"):
        read_upload(picture)
    monkeypatch.setattr(inspection, "MOST_BYTES", 10)
    with pytest.raises(ValueError, match=r"^part.png has 0.0 MB, and 0 MB are allowed. Save it smaller.$"):
        read_upload(picture)
    monkeypatch.undo()
    (tmp_path / "notes.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"^notes.png is no picture in BMP, JPEG, PNG, PPM, TIFF or WEBP.$"):
        read_upload(tmp_path / "notes.png")
    Image.fromarray(np.full((9, 9), 40000, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"^deep.png holds values from 40000 to 40000 .*save it with 8 bits a channel"):
        read_upload(tmp_path / "deep.png")
    with pytest.raises(FileNotFoundError, match=r"^gone.png is no longer here: files are deleted after an hour. Drop"):
        read_upload(tmp_path / "gone.png")


def test_a_picture_of_too_many_pixels_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = tmp_path / "part.png"
    Image.new("RGB", (60, 50)).save(picture)
    monkeypatch.setattr(inspection, "MOST_PIXELS", 2999)
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(ValueError, match="megapixels"):
        read_upload(picture)


def test_photograph_that_was_stored_lying_is_scored_as_stored_and_shown_upright(
    inspector: Inspector, parts: Path, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees, clockwise
    with Image.open(parts / "dent.png") as picture:
        picture.crop((0, 0, picture.width, picture.height // 2)).save(tmp_path / "lying.png", exif=exif)
        picture.crop((0, 0, picture.width, picture.height // 2)).save(tmp_path / "plain.png")
    lying, plain = (inspector.look(tmp_path / f"{name}.png") for name in ("lying", "plain"))
    assert torch.equal(lying.predictions.pred_score, plain.predictions.pred_score)
    assert torch.equal(lying.predictions.anomaly_map, plain.predictions.anomaly_map)
    for shown, expected in (
        (decide(lying).outlined, decide(plain).outlined),
        (decide(lying).map, decide(plain).map),
        *((lying.steps[title], panel) for title, panel in plain.steps.items() if "points" not in title),
    ):
        assert np.array_equal(np.asarray(shown), np.rot90(np.asarray(expected), -1))
    points = next(title for title in plain.steps if "negative points" in title)  # whose minus stays level
    assert not np.array_equal(np.asarray(lying.steps[points]), np.rot90(np.asarray(plain.steps[points]), -1))


def test_a_long_class_name_is_refused(inspector: Inspector, parts: Path) -> None:
    with pytest.raises(ValueError, match=r"^The class name has 81 letters, and 80 are allowed\. Give a shorter one\.$"):
        inspector.look(parts / "dent.png", class_name="a" * 81)
