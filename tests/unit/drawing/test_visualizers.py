# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The pictures of a pass: what was found, and ClipSam's stages."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from anomalib.data import Folder, ImageBatch, ImageItem, PredictDataset
from anomalib.engine import Engine
from anomalib.models import Padim
from anomalib.visualization import ImageVisualizer
from PIL import Image

from anomalib_clipsam import ClipSam, PromptVisualizer, ResultVisualizer
from anomalib_clipsam.drawing.panels import BOX, FOUND, POSITIVE, heat
from anomalib_clipsam.drawing.stages import draw_item
from anomalib_clipsam.drawing.verdict import heading, image_threshold, own_name
from anomalib_clipsam.drawn_parts.drawing import draw_part
from anomalib_clipsam.plugin.part_names import asking_about


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
    with asking_about(model.model, "leather"):
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
        ("CLIP map by text", model.model.view(image)[0]),
        ("Text and references", model.model.localize(image)[1].map),
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
    sizes = {Image.open(path).size for path in pictures}
    assert len(sizes) == 1
    assert min(height for _, height in sizes) > 2 * 64  # two rows of panels


def item_of(path: Path | None = None, *, defective: bool = True, **more: Any) -> ImageItem:
    """A prediction for a picture of 8 x 8 whose upper left quarter is damaged, according to the map and the mask."""
    anomaly_map = torch.zeros(8, 8)
    anomaly_map[:4, :4] = 0.9 if defective else 0.1
    return ImageItem(
        image=torch.full((3, 8, 8), 0.2),
        image_path=None if path is None else str(path),
        anomaly_map=anomaly_map,
        pred_mask=anomaly_map > 0.5,
        pred_score=anomaly_map.max(),
        pred_label=torch.tensor(defective),
        **more,
    )


def panels_of(sheet: Image.Image, width: int, height: int, count: int) -> list[np.ndarray]:
    """Cut the panels out of a picture of one row, that are as wide as their captions or wider."""
    return [
        np.asarray(sheet)[14 + 28 : 14 + 28 + height, 14 + index * (width + 8) : 14 + index * (width + 8) + width]
        for index in range(count)
    ]


def test_result_has_the_proportions_of_the_file_and_nothing_but_map_and_outline_over_it(tmp_path: Path) -> None:
    file = Image.new("RGB", (300, 150), (40, 60, 80))
    file.save(tmp_path / "a.png")
    truth = torch.zeros(8, 8, dtype=torch.bool)
    truth[4:, 4:] = True
    item = item_of(tmp_path / "a.png", gt_mask=truth, gt_label=torch.tensor(True))
    picture, true_mask, heated, outlined = panels_of(ResultVisualizer(200).visualize(item, 0.5), 200, 100, 4)
    assert (picture == (40, 60, 80)).all()
    for panel, rows, columns in (
        (true_mask, slice(0, 45), slice(0, 95)),
        (heated, slice(60, 100), slice(120, 200)),
        (outlined, slice(60, 100), slice(120, 200)),
    ):
        assert (panel != (40, 60, 80)).any()
        assert (panel[rows, columns] == (40, 60, 80)).all()  # nothing is drawn far from map and mask
    assert (outlined[20:30, 20:60] == (40, 60, 80)).all()  # nor inside of an outline
    assert near(Image.fromarray(outlined), FOUND)[:, 97:103].any()


def test_photograph_that_was_stored_lying_is_drawn_upright_with_its_map_and_outline(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees, clockwise
    for name, data in (("lying", exif), ("plain", None)):
        Image.effect_noise((300, 150), 50).save(tmp_path / f"{name}.png", exif=data)
    Image.open(tmp_path / "lying.png").convert("L").save(tmp_path / "plain.png")
    lying, plain = (ResultVisualizer(200).visualize(item_of(tmp_path / f"{name}.png")) for name in ("lying", "plain"))
    turned = panels_of(lying, 100, 200, 3)
    for panel, expected in zip(turned, panels_of(plain, 200, 100, 3), strict=True):
        assert np.array_equal(panel, np.rot90(expected, -1))
    assert not np.array_equal(turned[0], turned[2])


def test_good_picture_stays_as_it_is() -> None:
    panels = panels_of(ResultVisualizer(100).visualize(item_of(defective=False)), 100, 100, 3)
    assert (np.stack(panels) == 51).all()


def test_picture_without_a_file_or_whose_file_is_gone_is_drawn_from_the_image(tmp_path: Path) -> None:
    whole, gone = (ResultVisualizer(100).visualize(item_of(path)) for path in (None, tmp_path / "gone.png"))
    assert np.array_equal(np.asarray(whole), np.asarray(gone))


def test_batch_gives_a_list_and_an_image_without_a_prediction_its_picture() -> None:
    batch = ImageBatch(torch.rand(2, 3, 8, 8), pred_score=torch.tensor([0.1, 0.9]))
    first, second = ResultVisualizer(64).visualize(batch)
    assert first.size == second.size
    assert not np.array_equal(np.asarray(first), np.asarray(second))


def test_line_above_says_that_a_defective_picture_has_no_outline() -> None:
    item = item_of()
    item.pred_mask = torch.zeros(8, 8, dtype=torch.bool)
    assert heading(item) == ("Defective", FOUND, "score 0.90   nothing outlined")
    item.pred_label = torch.tensor(False)
    assert heading(item) == ("Good", POSITIVE, "score 0.90")


def test_map_s_colours_are_explained_where_there_is_room() -> None:
    wide, narrow = (ResultVisualizer(size).visualize(item_of()) for size in (240, 200))
    assert (wide.width, narrow.width) == (2 * 14 + 3 * (240 + 8) - 8, 2 * 14 + 3 * (200 + 8) - 8)
    column = 14 + 200 + 8 + 60  # under the map, right of its name
    assert (np.asarray(narrow)[14 + 28 + 200 :, column : column + 100] == 255).all()
    column = 14 + 240 + 8 + 60
    assert (np.asarray(wide)[14 + 28 + 240 :, column : column + 100] < 255).any()


@pytest.mark.parametrize(
    ("said", "labelled", "expected"),
    [
        (True, None, ("Defective", "score 0.90   threshold 0.50")),
        (True, True, ("Defective", "score 0.90   threshold 0.50")),
        (True, False, ("Defective", "score 0.90   threshold 0.50   a false alarm: labelled good")),
        (False, True, ("Good", "score 0.10   threshold 0.50   missed: labelled defective")),
        (False, False, ("Good", "score 0.10   threshold 0.50")),
    ],
)
def test_line_above_says_verdict_score_threshold_and_errors(
    said: bool, labelled: bool | None, expected: tuple[str, str]
) -> None:
    item = item_of(defective=said, gt_label=None if labelled is None else torch.tensor(labelled))
    verdict, color, figures = heading(item, 0.5)
    assert (verdict, figures) == expected
    assert color == (FOUND if said else POSITIVE)
    assert heading(ImageItem(image=torch.rand(3, 8, 8))) == ("Not judged", None, "")


def test_threshold_is_that_of_the_scores_as_they_are_left(model: ClipSam) -> None:
    assert image_threshold(model) == 0.5
    moved = ClipSam(weights="demo", refine=False, image_threshold=0.7)
    assert image_threshold(moved) == 0.5  # the score is normalised so that it is
    moved.post_processor.enable_normalization = False
    assert image_threshold(moved) == pytest.approx(0.7)
    moved.post_processor.image_sensitivity = 0.4
    moved.post_processor.enable_normalization = True
    assert image_threshold(moved) == pytest.approx(0.6)
    moved.post_processor.enable_thresholding = False
    assert image_threshold(moved) is None
    assert image_threshold(torch.nn.Linear(1, 1)) is None


def test_it_is_the_default_and_a_user_s_own_wins() -> None:
    assert isinstance(ClipSam(weights="demo", refine=False).visualizer, ResultVisualizer)
    own = ImageVisualizer()
    assert ClipSam(weights="demo", refine=False, visualizer=own).visualizer is own


def test_results_lie_where_anomalib_puts_them_for_any_model(tmp_path: Path, drawn: np.ndarray) -> None:
    """The same names below the same folder as those of anomalib's own visualizer, and the same for another model."""
    for folder in ("good", "bad"):
        (tmp_path / "parts" / folder).mkdir(parents=True)
        for name in ("a.jpg", "b.PNG"):
            Image.fromarray(drawn).resize((300, 200)).save(tmp_path / "parts" / folder / name)
    folders = {"normal_dir": "good", "abnormal_dir": "bad", "normal_test_dir": "good", "val_split_mode": "same_as_test"}
    data = Folder("parts", root=tmp_path / "parts", num_workers=0, **folders)
    found = []
    for visualizer in (ResultVisualizer(64), ImageVisualizer()):
        model = Padim(pre_trained=False, backbone="resnet18", n_features=8, visualizer=visualizer)
        engine = Engine(default_root_dir=tmp_path / type(visualizer).__name__, accelerator="cpu", logger=False)
        engine.train(model, datamodule=data)
        root = Path(engine.trainer.default_root_dir) / "images"
        found.append(sorted(path.relative_to(root).as_posix() for path in root.rglob("*.*")))
    assert found[0] == found[1]
    assert len(found[0]) == 4


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
def test_clip_looks_once_for_all_panels(drawn: np.ndarray, references: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ClipSam(weights="demo", references=references).eval()
    image = model.pre_processor(torch.tensor(drawn).permute(2, 0, 1)[None] / 255)
    view = Mock(wraps=model.model.view)
    monkeypatch.setattr(model.model, "view", view)
    draw_item(model.model, image, ImageItem(image=image[0]), 16)
    view.assert_called_once()


def test_the_name_is_as_before_where_drawing_fails(drawn: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ClipSam(weights="demo", class_name="a").eval()
    image = model.pre_processor(torch.tensor(drawn).permute(2, 0, 1)[None] / 255)
    monkeypatch.setattr(model.model, "stages", Mock(side_effect=RuntimeError("no memory")))
    with pytest.raises(RuntimeError, match="no memory"):
        draw_item(model.model, image, ImageItem(image=image[0]), 16, "b")
    assert model.model.class_name == "a"
