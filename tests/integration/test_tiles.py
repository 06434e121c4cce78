# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Large pictures in tiles, with the carried weights, through anomalib."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
import torch
from anomalib.data import Folder, ImageItem, PredictDataset
from anomalib.data.utils import read_image
from anomalib.engine import Engine
from PIL import Image
from torch.utils.data import DataLoader

from anomalib_clipsam import ClipSam
from anomalib_clipsam.cli import main
from anomalib_clipsam.drawing.panels import BOX
from anomalib_clipsam.drawing.stages import draw_item
from anomalib_clipsam.drawn_parts.drawing import draw_part
from anomalib_clipsam.references import Thresholds
from anomalib_clipsam.references.bounds import image_level, pixel_level

if TYPE_CHECKING:
    from pathlib import Path

SIZES = {"wide": (300, 620), "tall": (700, 280), "small": (200, 240)}
"""Height and width of the pictures; the tiles of these tests have 256 px."""


def surface(category: str, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Cover a picture with a drawn surface and its mirror images, ``(height, width, 3)`` of 8 bits."""
    drawn, _ = draw_part(category, np.random.default_rng(seed))
    block = np.concatenate([drawn, drawn[:, ::-1]], 1)
    block = np.concatenate([block, block[::-1]], 0)
    times = [-(-length // 512) for length in size]
    return np.tile(block, (*times, 1))[: size[0], : size[1]].copy()


def damaged(size: tuple[int, int]) -> np.ndarray:
    """A surface with a dark scratch of 24 px."""
    image = surface("carpet", size)
    row, column = size[0] // 2, size[1] - 60
    for step in range(24):
        image[row + step // 3 : row + step // 3 + 3, column + step] = 10
    return image


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    for name, size in SIZES.items():
        Image.fromarray(damaged(size)).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def model() -> ClipSam:
    torch.set_num_threads(1)
    return ClipSam(weights="lite", class_name="carpet", tiles=256).eval()


def test_a_folder_of_several_sizes_keeps_aspects_and_no_picture_depends_on_another(
    model: ClipSam, folder: Path, tmp_path: Path
) -> None:
    """In one batch, which anomalib would resize to the largest; the image that is kept is as small as its map."""
    loader = DataLoader(PredictDataset(folder), batch_size=3, collate_fn=PredictDataset(folder).collate_fn)
    batches = Engine(default_root_dir=tmp_path).predict(model, dataloaders=[loader])
    assert loader.batch_size == 3
    assert [len(batch.image) for batch in batches] == [1, 1, 1]
    for batch in batches:
        name = batch.image_path[0].rsplit("/", 1)[1].removesuffix(".png")
        size = SIZES[name]
        assert batch.anomaly_map.shape == batch.pred_mask.shape == (1, *size)
        assert batch.image.shape == (1, 3, *size)
        alone = model(torch.from_numpy(damaged(size)).permute(2, 0, 1)[None] / 255)
        torch.testing.assert_close(batch.anomaly_map, alone.anomaly_map, atol=1e-5, rtol=0)
        torch.testing.assert_close(batch.pred_score, alone.pred_score, atol=1e-5, rtol=0)
    (picture,) = tmp_path.rglob("wide.png")
    width, height = Image.open(picture).size
    assert width > height


def test_the_table_has_boxes_in_pixels_of_the_file(folder: Path, tmp_path: Path) -> None:
    options = ["--weights", "lite", "--class-name", "carpet", "--tiles", "256", "--quiet"]
    main(["predictions", str(folder), "--to", str(tmp_path / "table.csv"), *options])
    with (tmp_path / "table.csv").open() as file:
        rows = {row["file"].rsplit("/", 1)[1]: row for row in csv.DictReader(file)}
    height, width = SIZES["wide"]
    x0, y0, x1, y1 = (int(value) for value in rows["wide.png"]["boxes"].split("; ")[0].split())
    assert x0 <= width - 48 <= x1
    assert y0 <= height // 2 + 4 <= y1
    assert (x1 - x0) * (y1 - y0) < 3000


def test_labelled_pictures_of_several_sizes_are_measured(model: ClipSam, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    (tmp_path / "mask").mkdir()
    for name, size in SIZES.items():
        Image.fromarray(surface("carpet", size)).save(tmp_path / "good" / f"{name}.png")
        mask = (damaged(size) != surface("carpet", size)).any(axis=2)
        Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "mask" / f"{name}.png")
    data = Folder(
        "large",
        tmp_path / "good",
        normal_test_dir=tmp_path / "good",
        abnormal_dir=folder,
        mask_dir=tmp_path / "mask",
        val_split_mode="same_as_test",
        num_workers=0,
    )
    (figures,) = Engine(default_root_dir=tmp_path / "results").test(model, datamodule=data)
    assert figures["image_AUROC"] == 1
    assert figures["pixel_AUROC"] > 0.98
    assert data.eval_batch_size == 32


def flawless(texture: str, side: int) -> torch.Tensor:
    """A flawless surface ``(1, 3, side, side)`` without any repetition that tiles could share."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:side, 0:side].astype(np.float32)
    noise = rng.standard_normal((side, side)).astype(np.float32)
    image = {
        "grey": np.full((side, side), 0.5, np.float32),
        "grain": 0.5 + 0.08 * cv2.GaussianBlur(noise, (0, 0), 1.5),
        "weave": 0.5 + 0.1 * np.sin(0.47 * columns + 0.13 * rows) * np.sin(0.41 * rows) + 0.01 * noise,
    }[texture]
    return torch.from_numpy(image).expand(1, 3, side, side).clone()


@pytest.mark.parametrize("texture", ["grey", "grain", "weave"])
def test_no_seam_is_visible_in_the_map_of_a_flawless_surface(texture: str) -> None:
    """At the edges of tiles the map changes no more than elsewhere."""
    model = ClipSam(weights="lite", class_name="carpet", tiles=256, refine=False).eval()
    image = flawless(texture, 640)
    anomaly_map = model.model.stages(image).anomaly_map[0]
    grid = model.model.grid(image)
    assert (grid.rows, grid.columns) == ((0, 192, 384), (0, 192, 384))
    edges = sorted({edge for first in grid.columns for edge in (first, first + 256)} - {0, 640})
    for steps in (anomaly_map.diff(dim=1).abs().mean(dim=0), anomaly_map.diff(dim=0).abs().mean(dim=1)):  # (639,)
        at_edges = torch.stack([steps[edge - 2 : edge + 2].max() for edge in edges])
        assert at_edges.max() <= max(steps[8:-8].quantile(0.99), 0.0005)  # what no colour shows
        assert at_edges.max() < 0.001
    assert anomaly_map.max() < 0.1


def checkpoint_of(model: ClipSam) -> dict:
    """What Lightning and the model write into a checkpoint."""
    checkpoint = {"state_dict": model.state_dict(), "pytorch-lightning_version": "2.6"}
    model.on_save_checkpoint(checkpoint)
    return checkpoint


@pytest.mark.parametrize(("made_with", "own"), [(None, "auto"), ("auto", None), ("auto", 256)])
def test_a_checkpoint_found_with_other_tiles_is_refused(made_with: str | None, own: str | int | None) -> None:
    checkpoint = checkpoint_of(ClipSam(weights="lite", refine=False, tiles=made_with))
    with pytest.raises(ValueError, match=f"made with tiles={made_with!r}, and this model has tiles={own!r}"):
        ClipSam(weights="lite", refine=False, tiles=own).on_load_checkpoint(checkpoint)


BATCH = {"weights": "lite", "class_name": "carpet", "references": "batch", "refine": False}


def test_of_an_unlabelled_batch_in_tiles_the_damaged_picture_stands_out(tmp_path: Path) -> None:
    """Of 1, 2 and 4 tiles; nothing depends on how many come at once."""
    sizes = {"0": (120, 200), "1": (200, 110), "damaged": (220, 180), "3": (128, 120), "4": (90, 120), "5": (128, 128)}
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for seed, (name, size) in enumerate(sizes.items()):
        image = surface("carpet", size, seed)
        if name == "damaged":
            for step in range(24):
                image[100 + step // 3 : 103 + step // 3, 120 + step] = 10
        Image.fromarray(image).save(pictures / f"{name}.png")
    found = []
    for several, tile_batch in ((1, 4), (4, 3)):
        model = ClipSam(**BATCH, tiles=128, tile_batch=tile_batch, reference_options={"passing_share": 0.8})
        loader = DataLoader(PredictDataset(pictures), several, collate_fn=PredictDataset(pictures).collate_fn)
        batches = Engine(default_root_dir=tmp_path / str(several)).predict(model, dataloaders=[loader])
        found.append({batch.image_path[0].rsplit("/", 1)[1].removesuffix(".png"): batch for batch in batches})
        assert model.model.judge.thresholds.image == pytest.approx(model.post_processor.image_threshold.item())
    one, other = found
    assert one.keys() == sizes.keys()
    for name, batch in one.items():
        assert batch.anomaly_map.shape == (1, *sizes[name])
        torch.testing.assert_close(batch.anomaly_map, other[name].anomaly_map, atol=2e-3, rtol=0)
        torch.testing.assert_close(batch.pred_score, other[name].pred_score, atol=2e-3, rtol=0)
    scores = {name: batch.pred_score.item() for name, batch in one.items()}
    assert [name for name, batch in one.items() if bool(batch.pred_label)] == ["damaged"]
    assert max(scores, key=scores.get) == "damaged"
    row, column = np.unravel_index(int(one["damaged"].anomaly_map[0].argmax()), sizes["damaged"])
    assert 90 < row < 122
    assert 110 < column < 154


def test_no_seam_is_visible_in_the_map_of_a_picture_that_others_judge() -> None:
    model = ClipSam(**BATCH, tiles=128).eval().model
    noise = np.random.default_rng(0).standard_normal((6, 320, 320)).astype(np.float32)
    grain = [torch.from_numpy(0.5 + 0.08 * cv2.GaussianBlur(one, (0, 0), 1.5)).expand(1, 3, -1, -1) for one in noise]
    images = [grain[0], *(image[..., :128, :128] for image in grain[1:])]
    model.judge.begin(len(images))
    for step in model.judge.steps(model).values():
        for image in images:
            step(image)
    anomaly_map = model.stages(images[0]).anomaly_map[0]
    assert model.grid(images[0]).rows == model.grid(images[0]).columns == (0, 96, 192)
    for steps in (anomaly_map.diff(dim=1).abs().mean(dim=0), anomaly_map.diff(dim=0).abs().mean(dim=1)):  # (319,)
        at_edges = torch.stack([steps[edge - 2 : edge + 2].max() for edge in (96, 128, 192, 224)])
        assert at_edges.max() <= steps[8:-8].quantile(0.99)
    with pytest.raises(ValueError, match="With tiles, leave them out"):
        ClipSam(**BATCH, tiles=128, reference_options={"windows": [1, 2]})


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good parts of several sizes: two are cut into tiles, one is not."""
    folder = tmp_path_factory.mktemp("good")
    for number, size in enumerate(SIZES.values()):
        Image.fromarray(surface("carpet", size, seed=number + 1)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def compared(good: Path) -> ClipSam:
    """A model that has seen these parts."""
    few = {"k_shot": 3, "few_shot_source": str(good), "reference_options": {"memory_limit": 9000}}
    model = ClipSam(weights="lite", class_name="carpet", tiles=256, refine=False, **few).eval()
    model.learn_good_parts()
    return model


def test_good_parts_are_seen_in_tiles_too_and_share_a_bounded_memory(compared: ClipSam, good: Path) -> None:
    """A part has a third of the memory: 6 tiles of 500 patches, 8 of 375, and a picture whose 1600 patches all fit."""
    parts = [read_image(path, as_tensor=True)[None] for path in sorted(good.iterdir())]
    assert [len(compared.model.grid(part)) for part in parts] == [6, 8, 1]
    assert compared.model.judge.reference.size == 6 * 500 + 8 * 375 + 1600


def test_good_parts_have_other_defaults_in_tiles_and_what_a_user_sets_wins() -> None:
    own = ClipSam(weights="lite", tiles=256, refine=False, k_shot=1, reference_options={"text_share": 0.2}).model.judge
    assert (own.combination.text_share, own.reference.memory_limit) == (0.2, 8192)
    found = [
        ClipSam(weights="lite", refine=False, **given).model.judge.combination.text_share
        for given in ({"k_shot": 1}, {"k_shot": 1, "tiles": 256}, {"references": "self", "tiles": 256})
    ]
    assert found == [0.2, 0.5, 0.3]


def test_levels_are_of_what_the_model_gives_for_each_good_part_with_the_patches_of_the_others(
    compared: ClipSam, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, maps, scores = compared.model.judge, [], []
    memory, spans = judge.reference.memory, [slice(0, 3000), slice(3000, 6000), slice(6000, 7600)]
    with monkeypatch.context() as patch:
        patch.setattr(judge, "finish", lambda answer: answer)  # before the levels are put at 0.5
        for path, span in zip(sorted(good.iterdir()), spans, strict=True):
            judge.reference.set_memory(tuple(torch.cat([tap[: span.start], tap[span.stop :]]) for tap in memory))
            stages = compared.model.stages(read_image(path, as_tensor=True)[None])
            maps.append(stages.anomaly_map)
            scores.append(stages.score)
    judge.reference.set_memory(memory)
    assert judge.levels.pixel == pytest.approx(pixel_level(maps), abs=1e-4)
    assert judge.levels.image == pytest.approx(image_level(torch.cat(scores)), abs=5e-3)
    assert judge.thresholds == Thresholds(0.5, 0.5)


def test_a_folder_is_compared_with_good_parts_in_tiles(compared: ClipSam, folder: Path, tmp_path: Path) -> None:
    batches = Engine(default_root_dir=tmp_path).predict(compared, data_path=folder)
    assert compared.post_processor.image_threshold.item() == pytest.approx(compared.model.judge.thresholds.image)
    for batch in batches:
        image = read_image(batch.image_path[0], as_tensor=True)[None]
        torch.testing.assert_close(batch.anomaly_map, compared(image).anomaly_map, atol=1e-5, rtol=0)
        assert bool(batch.pred_label)
        row, column = np.unravel_index(int(batch.anomaly_map[0].argmax()), batch.anomaly_map[0].shape)
        assert abs(int(row) - image.shape[-2] // 2 - 5) < 24
        assert abs(int(column) - image.shape[-1] + 48) < 24


def test_a_checkpoint_brings_good_parts_of_tiles_back(compared: ClipSam, folder: Path, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(compared)
    torch.save({**checkpoint, "hyper_parameters": dict(compared.hparams)}, tmp_path / "a.ckpt")
    loaded = ClipSam.load_from_checkpoint(tmp_path / "a.ckpt", map_location="cpu").eval()
    image = read_image(folder / "wide.png", as_tensor=True)[None]
    answers = [dict(zip(("score", "label", "map", "mask"), model(image), strict=True)) for model in (loaded, compared)]
    for name in ("score", "label", "map"):  # the memory is kept in half precision
        torch.testing.assert_close(answers[0][name], answers[1][name], atol=3e-3, rtol=0)
    assert max(answers[0]["map"].shape) > 256
    assert loaded.model.judge.thresholds == compared.model.judge.thresholds
    with pytest.raises(ValueError, match="made with tiles=256, and this model has tiles=None"):
        ClipSam(weights="lite", refine=False, k_shot=3).on_load_checkpoint(checkpoint)


def test_good_parts_may_be_given_as_tensors_of_several_sizes(compared: ClipSam, good: Path) -> None:
    given = ClipSam(weights="lite", class_name="carpet", tiles=256, refine=False, k_shot=3).eval()
    given.model.judge.reference.memory_limit = 9000
    given.set_references([read_image(path, as_tensor=True) for path in sorted(good.iterdir())])
    assert given.model.judge.sources == compared.model.judge.sources
    assert given.model.judge.thresholds == compared.model.judge.thresholds
    with pytest.raises(ValueError, match="Give floats in"):
        given.set_references([torch.rand(1, 3, 300, 300)])
    with pytest.raises(TypeError, match="Give floats in"):
        given.set_references([])


def test_a_good_part_of_too_many_tiles_is_named(tmp_path: Path) -> None:
    Image.new("RGB", (600, 600)).save(tmp_path / "0.png")
    few = {"k_shot": 1, "few_shot_source": str(tmp_path)}
    model = ClipSam(weights="lite", tiles=32, tile_overlap=0.75, refine=False, **few)
    with pytest.raises(ValueError, match=r"A good part cannot be used: .*0\.png cannot be cut: 600 x 600 pixels make"):
        model.learn_good_parts()


def test_the_picture_itself_is_a_reference_for_each_of_its_tiles(model: ClipSam) -> None:
    image = torch.from_numpy(damaged(SIZES["wide"])).permute(2, 0, 1)[None] / 255
    itself = ClipSam(weights="lite", class_name="carpet", tiles=256, references="self", refine=False).eval()
    judged = []
    itself.model.judge.register_forward_hook(lambda _, inputs, answer: judged.append(len(answer.map)))
    stages = itself.model.stages(image)
    assert sum(judged) == len(itself.model.grid(image))
    assert stages.anomaly_map.shape == (1, *SIZES["wide"])
    assert not torch.equal(stages.anomaly_map, model.model.stages(image).anomaly_map)


def test_the_stages_are_drawn_with_the_crops_that_sam_saw(model: ClipSam) -> None:
    image = torch.from_numpy(damaged(SIZES["wide"])).permute(2, 0, 1)[None] / 255
    panels = draw_item(model.model, image, ImageItem(image=image[0]), 310)
    assert list(panels)[:3] == ["Image", "CLIP map", "Extreme region, crops that SAM saw"]
    yellow = (np.asarray(panels["Extreme region, crops that SAM saw"]) == BOX).all(axis=2)
    assert panels["Image"].size == (310, 150)
    assert yellow.any()


def test_a_model_with_tiles_is_not_exported_as_a_graph(model: ClipSam, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No number of tiles fits every picture"):
        model.to_onnx(tmp_path)
