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
from anomalib.engine import Engine
from PIL import Image
from torch.utils.data import DataLoader

from anomalib_clipsam import ClipSam
from anomalib_clipsam.cli import main
from anomalib_clipsam.demo.drawing import draw_part
from anomalib_clipsam.results.drawing import BOX
from anomalib_clipsam.results.visualizer import draw_item

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
        assert at_edges.max() <= steps[8:-8].quantile(0.99)
        assert at_edges.max() < 0.001
    assert anomaly_map.max() < 0.1


def test_a_checkpoint_found_without_tiles_is_refused_with_them(tmp_path: Path) -> None:
    engine, model = Engine(default_root_dir=tmp_path), ClipSam(weights="lite", refine=False)
    engine.trainer_arguments = None
    checkpoint = {"state_dict": model.state_dict(), "pytorch-lightning_version": "2.6"}
    model.on_save_checkpoint(checkpoint)
    with pytest.raises(ValueError, match=r"made with tiles=None, and this model has tiles='auto'"):
        ClipSam(weights="lite", refine=False, tiles="auto").on_load_checkpoint(checkpoint)


@pytest.mark.parametrize("references", [{"k_shot": 2}, {"references": "batch"}])
def test_references_that_compare_whole_pictures_are_refused_with_tiles(references: dict) -> None:
    with pytest.raises(ValueError, match="Good parts and the batch are compared as wholes"):
        ClipSam(weights="lite", tiles="auto", **references)


def test_the_picture_itself_is_a_reference_for_each_of_its_tiles(model: ClipSam) -> None:
    image = torch.from_numpy(damaged(SIZES["wide"])).permute(2, 0, 1)[None] / 255
    itself = ClipSam(weights="lite", class_name="carpet", tiles=256, references="self", refine=False).eval()
    stages = itself.model.stages(image)
    assert itself.model.judge.judged == len(itself.model.grid(image))
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
