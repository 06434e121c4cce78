# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Where tiles lie, how they are blended, and what SAM is asked about."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from anomalib_clipsam.tiling.blending import Blend, blend_weights
from anomalib_clipsam.tiling.crops import crop_around, plan_crops
from anomalib_clipsam.tiling.layout import LARGEST_MAP, MOST_TILES, TileGrid, Tiling, starts

CPU = torch.device("cpu")
SIZES = [(300, 200), (1000, 700), (120, 1000), (999, 1001), (64, 64)]


def tiling(**arguments: object) -> Tiling:
    return Tiling(**{"side": "auto", "overlap": 0.25, "batch": 4, **arguments})


@pytest.mark.parametrize(
    ("whole", "length", "overlap", "expected"),
    [
        (10, 10, 0.25, [0]),
        (8, 10, 0.25, [0]),
        (11, 10, 0.0, [0, 1]),
        (20, 10, 0.0, [0, 10]),
        (21, 10, 0.0, [0, 6, 11]),
        (16, 8, 0.5, [0, 4, 8]),
    ],
)
def test_the_fewest_tiles_reach_from_end_to_end(whole: int, length: int, overlap: float, expected: list[int]) -> None:
    assert starts(whole, length, overlap) == expected


@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.25, 0.5, 0.75])
def test_neighbours_share_what_was_asked_for(overlap: float) -> None:
    for whole in range(20, 200):
        places = starts(whole, 20, overlap)
        assert places[0] == 0
        assert places[-1] == whole - 20
        steps = [after - before for before, after in pairwise(places)]
        assert all(0 < step <= max(1, 20 * (1 - overlap) + 0.5) for step in steps)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("map_size", [64, 100, 300])
def test_tiles_are_squares_that_cover_map_and_picture(size: tuple[int, int], map_size: int) -> None:
    grid = TileGrid.over(size, map_size, min(100, *size), 0.25)
    seen, shown = torch.zeros(grid.size, dtype=torch.bool), torch.zeros(size, dtype=torch.bool)
    for window in grid:
        top, left, height, width = window
        assert height == width
        seen[top : top + height, left : left + width] = True
        rows, columns = grid.pixels(window)
        assert rows.stop - rows.start == pytest.approx(columns.stop - columns.start, rel=0.05, abs=2)
        shown[rows, columns] = True
    assert seen.all()
    assert shown.all()
    assert len(list(grid)) == len(grid)


def test_a_part_of_the_map_shows_its_pixels_of_the_picture() -> None:
    grid = TileGrid.over((300, 600), 200, 150, 0.25)
    assert grid.size == (100, 200)
    assert grid.tile == (50, 50)
    assert grid.pixels((10, 20, 50, 50)) == (slice(30, 180), slice(60, 210))


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
def test_where_all_tiles_say_the_same_the_blend_says_that(overlap: float) -> None:
    grid = TileGrid.over((301, 517), 517, 100, overlap)
    blend = Blend(grid, overlap, CPU)
    for window in grid:
        blend.add(window, torch.full(grid.tile, 0.37))
    assert len(grid) > 1
    torch.testing.assert_close(blend.result(), torch.full(grid.size, 0.37), atol=1e-6, rtol=0)


def test_a_blend_runs_evenly_from_tile_to_tile() -> None:
    grid = TileGrid.over((100, 180), 180, 100, 0.2)
    assert grid.columns == (0, 80)
    blend = Blend(grid, 0.2, CPU)
    for window, value in zip(grid, (0.0, 1.0), strict=True):
        blend.add(window, torch.full(grid.tile, value))
    row = blend.result()[50]
    assert (row[:80] == 0).all()
    assert (row[100:] == 1).all()
    assert (row[80:100].diff() > 0).all()
    assert row.diff().max() < 0.1
    torch.testing.assert_close(row[80:100] + row[80:100].flip(0), torch.ones(20))


def test_a_window_is_symmetric_above_zero_and_one_within() -> None:
    window = blend_weights(40, 0.25, CPU)
    assert torch.equal(window, window.T)
    torch.testing.assert_close(window, window.flip(0))
    assert window.min() > 0
    assert (window[10:30, 10:30] == 1).all()
    assert blend_weights(1, 0.25, CPU).item() > 0


def test_auto_takes_the_scale_of_one_look_and_leaves_small_pictures_whole() -> None:
    assert len(tiling().grid((1024, 1024), 256)) == 1
    grid = tiling(map_size=2048).grid((512, 1408), 256)
    assert grid.tile == (372, 372)
    assert grid.pixels((0, 0, 372, 372)) == (slice(0, 256), slice(0, 256))
    assert (len(grid.rows), len(grid.columns)) == (3, 8)


def test_auto_takes_larger_tiles_before_there_are_too_many() -> None:
    grid = tiling().grid((30000, 20000), 256)
    assert len(grid) <= MOST_TILES
    assert grid.pixels(next(iter(grid)))[0].stop > 256


@pytest.mark.parametrize(("picture", "size"), [((4000, 3000), (1024, 768)), ((200, 700), (200, 700))])
def test_a_map_grows_with_the_picture_up_to_a_bound(picture: tuple[int, int], size: tuple[int, int]) -> None:
    assert tiling().grid(picture, 256).size == size
    assert LARGEST_MAP == 1024
    assert tiling(map_size=500).grid(picture, 256).size[1 - (picture[0] > picture[1])] <= 500


def test_a_strip_has_tiles_of_its_own_height() -> None:
    grid = tiling(side=400).grid((100, 1000), 256)
    assert grid.tile == (100, 100)
    assert grid.rows == (0,)
    assert len(grid.columns) == 13


def test_a_number_that_makes_too_many_tiles_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^12000 x 9000 pixels make [\d,]+ tiles of 64 px, but 4,096 are the most"):
        tiling(side=64).grid((9000, 12000), 256)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"side": "large"}, "Give 'auto', or the side of a tile in pixels"),
        ({"side": 31}, "sees nothing in less than 32 px"),
        ({"overlap": 0.8}, "tile_overlap is 0.8; it is a share of a tile. Choose between 0 and 0.75."),
        ({"overlap": -0.1}, "Choose between 0 and 0.75"),
        ({"overlap": float("nan")}, "Choose between 0 and 0.75"),
        ({"batch": 0}, "Choose 1 or more"),
    ],
)
def test_arguments_outside_their_range_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiling(**wrong)


# ---------------------------------------------------------------- what SAM is asked about


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((50, 40, 4, 4), (32, 42, 20, 20)),  # left, top, width, height -> top, left, height, width
        ((0, 0, 4, 4), (0, 0, 20, 20)),
        ((196, 96, 4, 4), (80, 180, 20, 20)),
        ((50, 40, 30, 10), (15, 35, 60, 60)),
        ((10, 10, 80, 20), (0, 0, 100, 200)),  # too large for a crop
    ],
)
def test_a_crop_is_a_square_around_its_region_or_the_whole(box: tuple, expected: tuple) -> None:
    assert crop_around(box, (100, 200), 20) == expected


def test_on_a_strip_a_crop_has_its_height() -> None:
    assert crop_around((500, 10, 4, 4), (30, 1000), 100) == (0, 452, 30, 100)


def test_sam_is_asked_once_for_regions_that_share_a_crop_the_most_suspicious_first() -> None:
    anomaly_map = torch.zeros(200, 400)
    for (row, column), value in {(20, 20): 0.5, (28, 26): 0.6, (100, 300): 0.9, (180, 40): 0.7}.items():
        anomaly_map[row : row + 4, column : column + 4] = value
    crops, left = plan_crops(anomaly_map > 0, anomaly_map, 40)
    assert [crop.window for crop in crops] == [(82, 282, 40, 40), (160, 22, 40, 40), (10, 8, 40, 40)]
    assert [len(crop.labels) for crop in crops] == [1, 1, 2]
    assert not left.any()


def test_what_no_crop_has_is_left() -> None:
    anomaly_map = torch.zeros(100, 400)
    for number in range(5):
        anomaly_map[50, 40 + 80 * number] = 0.9 - 0.1 * number
    crops, left = plan_crops(anomaly_map > 0, anomaly_map, 20, most=3)
    assert len(crops) == 3
    assert left.nonzero().tolist() == [[50, 280], [50, 360]]


def test_without_a_region_sam_is_not_asked() -> None:
    crops, left = plan_crops(torch.zeros(50, 60, dtype=torch.bool), torch.rand(50, 60), 20)
    assert crops == []
    assert not left.any()
