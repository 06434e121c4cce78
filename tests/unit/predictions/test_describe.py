# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""What a prediction says of an image, in pixels of its file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.data import ImageItem
from PIL import Image

from anomalib_clipsam.predictions.describe import Region, describe, parts_of


def item_of(path: Path, mask: torch.Tensor, anomaly_map: torch.Tensor | None = None) -> ImageItem:
    return ImageItem(
        image=torch.zeros(3, 8, 8),
        image_path=str(path),
        pred_mask=mask,
        anomaly_map=anomaly_map,
        pred_score=torch.tensor(0.123456),
        pred_label=torch.tensor(True),
    )


def test_mask_and_regions_are_in_pixels_of_the_file(tmp_path: Path) -> None:
    Image.new("RGB", (12, 4)).save(tmp_path / "a.png")
    mask = torch.tensor([[0, 0, 1, 1], [1, 0, 0, 0]], dtype=torch.bool)  # a pixel is 3 x 2 of the file
    values = torch.tensor([[0.0, 0.0, 0.6, 0.8], [0.55, 0.0, 0.0, 0.0]])
    found = describe(item_of(tmp_path / "a.png", mask, values))
    assert (found.size, found.score, found.label, found.mask_area) == ((12, 4), 0.1235, "defective", 18)
    assert found.regions == (Region((6, 0, 12, 2), 12, 0.7), Region((0, 2, 3, 4), 6, 0.55))
    assert found.mask.tolist() == np.kron(mask.numpy(), np.full((2, 3), 255)).tolist()


@pytest.mark.parametrize("size", [(13, 5), (31, 17), (7, 3), (5, 4)])
def test_area_is_that_of_the_mask_also_where_pixels_of_the_map_are_not_whole(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    Image.new("RGB", size).save(tmp_path / "a.png")
    mask = torch.rand(6, 10) > 0.6
    found = describe(item_of(tmp_path / "a.png", mask, torch.full((6, 10), 0.75)))
    assert found.mask.shape == size[::-1]
    assert found.mask_area == np.count_nonzero(found.mask) > 0
    assert {region.score for region in found.regions} == {0.75}
    covered = np.zeros_like(found.mask)
    for x0, y0, x1, y1 in (region.box for region in found.regions):
        covered[y0:y1, x0:x1] = 255
    assert np.array_equal(found.mask & covered, found.mask)


def test_pixels_that_touch_by_a_corner_are_one_part() -> None:
    mask = np.zeros((5, 6), np.uint8)
    mask[0, 0] = mask[1, 1] = mask[3, 4] = 255
    (first, inside), (second, _) = parts_of(mask)
    assert (first, second) == ((0, 0, 2, 2), (4, 3, 5, 4))
    assert inside.tolist() == [[True, False], [False, True]]


def test_an_empty_mask_has_no_regions_and_no_mask_no_area(tmp_path: Path) -> None:
    found = describe(item_of(tmp_path / "gone.png", torch.zeros(4, 4, dtype=torch.bool)))
    assert (found.mask_area, found.regions, found.size) == (0, (), (8, 8))
    bare = describe(ImageItem(image=torch.zeros(3, 5, 6)))
    assert (bare.file, bare.score, bare.label, bare.mask_area, bare.size) == ("", None, None, None, (6, 5))


def test_a_mask_without_a_map_has_regions_without_a_score(tmp_path: Path) -> None:
    found = describe(item_of(tmp_path / "gone.png", torch.ones(4, 4, dtype=torch.bool)))
    assert found.regions == (Region((0, 0, 8, 8), 64, None),)
