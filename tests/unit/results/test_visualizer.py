# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The pictures of ClipSam's stages."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from anomalib.data import Folder, ImageBatch, ImageItem, PredictDataset
from anomalib.engine import Engine
from PIL import Image

from anomalib_clipsam import ClipSam, PromptVisualizer
from anomalib_clipsam.demo.drawing import draw_part
from anomalib_clipsam.results.visualizer import BOX, NEGATIVE, POSITIVE, RING, draw_item, fill, heat, mark, own_name


@pytest.fixture(scope="module")
def model() -> ClipSam:
    return ClipSam(weights="demo", class_name="capsule", references="none", ppg={"min_score": 0.1}).eval()


@pytest.fixture(scope="module")
def drawn() -> np.ndarray:
    return draw_part("capsule", np.random.default_rng(3), "crack")[0]


def near(picture: Image.Image, color: tuple[int, int, int]) -> np.ndarray:
    """Where a picture has a colour, ``(H, W)``."""
    return (np.abs(np.asarray(picture).astype(int) - color) < 3).all(axis=-1)


def test_panels_follow_the_method_and_have_the_proportions_of_the_file(
    model: ClipSam, drawn: np.ndarray, tmp_path: Path
) -> None:
    wide = Image.fromarray(drawn).resize((300, 200))
    wide.save(tmp_path / "wide.png")
    image = model.pre_processor(torch.tensor(drawn).permute(2, 0, 1)[None] / 255)
    item = ImageItem(
        image=image[0],
        image_path=str(tmp_path / "wide.png"),
        gt_mask=torch.zeros(256, 256, dtype=torch.bool),
        pred_score=torch.tensor(0.71),
        pred_label=torch.tensor(True),
        pred_mask=torch.ones(256, 256, dtype=torch.bool),
    )
    panels = draw_item(model.model, image, item, 150)
    stages = model.model.stages(image)
    labels = stages.prompts.labels[0].tolist()
    assert list(panels) == [
        "Image and true mask",
        "CLIP map",
        "Extreme region, ring",
        f"{labels.count(1)} positive, {labels.count(0)} negative points",
        "Mask 1: points",
        "Mask 2: + mask 1",
        "Mask 3: + box, mask 2",
        "Result: defective, 0.71",
    ]
    assert {panel.size for panel in panels.values()} == {(150, 100)}
    points = panels[list(panels)[3]]
    (x, y), label = stages.prompts.coords[0, 0].tolist(), labels[0]
    assert label == 1
    column, row = int((x + 0.5) * 150 / 256), int((y + 0.5) * 100 / 256)
    found = near(points, POSITIVE)[max(0, row - 5) : row + 6, max(0, column - 5) : column + 6]
    assert found.sum() > 20  # the disc lies where the point is, in a panel of other proportions than the frame
    box = near(panels["Mask 3: + box, mask 2"], BOX)
    x0, y0, x1, y1 = stages.cascade.box[0].tolist()
    rows, columns = np.nonzero(box)
    assert [columns.min(), rows.min(), columns.max(), rows.max()] == pytest.approx(
        [x0 * 150 / 256, y0 * 100 / 256, x1 * 150 / 256, y1 * 100 / 256], abs=2
    )


def test_without_refinement_there_are_map_and_result(drawn: np.ndarray) -> None:
    model = ClipSam(weights="demo", class_name="capsule", references="none", refine=False).eval()
    image = model.pre_processor(torch.tensor(drawn).permute(2, 0, 1)[None] / 255)
    panels = draw_item(model.model, image, ImageItem(image=image[0]), 64)
    score = model.model.stages(image).score.item()
    assert list(panels) == ["Image", "CLIP map", f"Result: {score:.2f}"]
    assert panels["Image"].size == (64, 64)


def test_an_image_is_drawn_as_it_was_asked_about(drawn: np.ndarray) -> None:
    """With ``class_name="folder"``, by its own name."""
    model = ClipSam(weights="demo", class_name="folder", references="none", refine=False).eval()
    image = model.pre_processor(torch.tensor(drawn).permute(2, 0, 1)[None] / 255)
    item = ImageItem(image=image[0], image_path="/data/leather/0.png")
    assert own_name(model, item) == "leather"
    assert own_name(torch.nn.Linear(1, 1), item) is None
    item = ImageItem(image=image[0])
    panels = draw_item(model.model, image, item, 64, "leather")
    assert model.model.class_name == "object"
    with model.asking_about("leather"):
        expected = draw_item(model.model, image, item, 64)
    other = draw_item(model.model, image, item, 64)
    assert np.array_equal(np.asarray(panels["CLIP map"]), np.asarray(expected["CLIP map"]))
    assert not np.array_equal(np.asarray(panels["CLIP map"]), np.asarray(other["CLIP map"]))


def test_references_have_a_panel_beside_the_text_s(drawn: np.ndarray) -> None:
    model = ClipSam(weights="demo", class_name="capsule", references="self", refine=False).eval()
    image = model.pre_processor(torch.tensor(drawn).permute(2, 0, 1)[None] / 255)
    panels = draw_item(model.model, image, ImageItem(image=image[0]), 64)
    assert list(panels)[:3] == ["Image", "CLIP map by text", "Text and references"]
    for title, anomaly_map in (
        ("CLIP map by text", model.model.look(image)[0]),
        ("Text and references", model.model.localize(image)[0]),
    ):
        assert np.array_equal(np.asarray(panels[title]), np.asarray(heat(panels["Image"], anomaly_map[0])))
    assert not np.array_equal(np.asarray(panels["CLIP map by text"]), np.asarray(panels["Text and references"]))


def test_image_without_an_extreme_region_has_neither_points_nor_box(drawn: np.ndarray) -> None:
    model = ClipSam(weights="demo", class_name="capsule", references="none", ppg={"min_score": 1.0}).eval()
    image = model.pre_processor(torch.tensor(drawn).permute(2, 0, 1)[None] / 255)
    panels = draw_item(model.model, image, ImageItem(image=image[0]), 64)
    plain = np.asarray(panels["Image"])
    for title in ("0 positive, 0 negative points", "Extreme region, ring", "Mask 3: + box, mask 2"):
        assert np.array_equal(np.asarray(panels[title]), plain)


def test_another_model_is_refused() -> None:
    image = torch.rand(1, 3, 8, 8)
    with pytest.raises(TypeError, match="The model is Conv2d, and has none of ClipSam"):
        draw_item(torch.nn.Conv2d(3, 1, 1), image, ImageItem(image=image[0]), 64)
    with pytest.raises(ValueError, match="field_size is 0"):
        PromptVisualizer(field_size=0)


def test_points_differ_by_sign_and_colour_and_absent_ones_are_not_drawn() -> None:
    black = Image.new("RGB", (90, 60))
    marked = mark(black, [(20, 15, 1), (70, 40, 0), (45, 30, -1)])
    assert near(marked, POSITIVE)[10:21, 15:26].sum() > 20
    assert near(marked, NEGATIVE)[35:46, 65:76].sum() > 20
    assert not np.asarray(marked)[25:36, 40:51].any()
    white = near(marked, (255, 255, 255))
    assert white[13, 20]  # the upright stroke of the plus
    assert not white[38, 70]  # which a minus has not


def test_mask_of_another_size_is_filled_in() -> None:
    mask = torch.zeros(4, 8)
    mask[:2, :4] = 1
    filled = np.asarray(fill(Image.new("RGB", (80, 40)), mask, RING))
    assert filled[5, 10].tolist() == pytest.approx([value * 0.55 for value in RING], abs=2)
    assert not filled[25:, :].any()


@pytest.mark.parametrize("predict", [False, True])
def test_test_and_predict_write_a_picture_per_image(tmp_path: Path, drawn: np.ndarray, predict: bool) -> None:
    (tmp_path / "part").mkdir()
    for name in ("a", "b"):
        Image.fromarray(drawn).save(tmp_path / "part" / f"{name}.jpg")
    visualizer = PromptVisualizer(field_size=64, output_dir=tmp_path / "out")
    arguments: dict[str, Any] = {"default_root_dir": tmp_path / "runs", "accelerator": "cpu", "logger": False}
    model = ClipSam(weights="demo", visualizer=visualizer)
    if predict:
        Engine(**arguments).predict(model, dataset=PredictDataset(tmp_path / "part"))
    else:
        data = Folder("parts", normal_dir="part", root=tmp_path, abnormal_dir="part", num_workers=0)
        Engine(**arguments).test(model, datamodule=data)
    pictures = sorted((tmp_path / "out").rglob("*.png"))
    assert pictures
    assert {Image.open(path).size for path in pictures} == {(4 * 64, 2 * 64)}


def test_no_picture_overwrites_another(model: ClipSam, drawn: np.ndarray, tmp_path: Path) -> None:
    """Files that differ in their endings only, and pictures that have no file."""
    trainer = SimpleNamespace(default_root_dir=tmp_path / "out")
    (tmp_path / "part").mkdir()
    paths = [str(tmp_path / "part" / name) for name in ("a.png", "a.jpg", "a.tif")]
    for path in paths:
        Image.fromarray(drawn).save(path)
    images = model.pre_processor(torch.tensor(drawn).permute(2, 0, 1)[None] / 255).expand(3, -1, -1, -1)
    visualizer = PromptVisualizer(field_size=16)
    visualizer.on_predict_batch_end(trainer, model, None, ImageBatch(images, image_path=paths), 0)
    for number in (0, 1):
        visualizer.on_predict_batch_end(trainer, model, None, ImageBatch(images[:2]), number)
    out = tmp_path / "out" / "images"
    assert {path.relative_to(out).as_posix() for path in out.rglob("*.*")} == {
        "part/a.png",
        "part/a.jpg.png",
        "part/a.tif.png",
        *(f"picture_0_{number}_{index}.png" for number in (0, 1) for index in (0, 1)),
    }


@pytest.mark.parametrize("references", ["none", "self"])
def test_its_own_look_is_not_counted(drawn: np.ndarray, references: str) -> None:
    model = ClipSam(weights="demo", references=references).eval()
    image = model.pre_processor(torch.tensor(drawn).permute(2, 0, 1)[None] / 255)
    model.model(image)
    torch_model = model.model

    def counts() -> tuple[int, ...]:
        judge = torch_model.judge
        return (torch_model.images_seen, torch_model.images_refined, *(() if judge is None else (judge.judged,)))

    before = counts()
    draw_item(torch_model, image, ImageItem(image=image[0]), 16)
    assert counts() == before
    assert before[0] == 1
