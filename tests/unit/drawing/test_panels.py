# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Maps, masks and points over pictures, and sheets of panels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_clipsam.drawing.panels import (
    BLACK,
    FOUND,
    NEGATIVE,
    POSITIVE,
    RING,
    WHITE,
    fill,
    heat,
    mark,
    orientation_of,
    outline,
    sheet,
    upright,
)

if TYPE_CHECKING:
    from pathlib import Path


def near(picture: Image.Image, color: tuple[int, int, int]) -> np.ndarray:
    """Where a picture has a colour, ``(H, W)``."""
    return (np.abs(np.asarray(picture).astype(int) - color) < 3).all(axis=-1)


def test_points_differ_by_sign_and_colour_and_absent_ones_are_not_drawn() -> None:
    black = Image.new("RGB", (90, 60))
    marked = mark(black, [(20, 15, 1), (70, 40, 0), (45, 30, -1)])
    assert near(marked, POSITIVE)[10:21, 15:26].sum() > 20
    assert near(marked, NEGATIVE)[35:46, 65:76].sum() > 20
    assert not np.asarray(marked)[25:36, 40:51].any()
    white = near(marked, (255, 255, 255))
    assert white[13, 20]  # the upright stroke of the plus
    assert not white[38, 70]  # which a minus has not


def test_minus_lies_flat_once_its_picture_is_turned() -> None:
    marked = upright(mark(Image.new("RGB", (90, 60)), [(20, 15, 0)], sideways=True), 6)
    white = near(marked, WHITE)  # the point is at x = 59 - 15, y = 20
    assert white[20, 42] == white[20, 46] is np.True_
    assert not white[18, 44]


def test_mask_of_another_size_is_filled_in() -> None:
    mask = torch.zeros(4, 8)
    mask[:2, :4] = 1
    filled = np.asarray(fill(Image.new("RGB", (80, 40)), mask, RING))
    assert filled[5, 10].tolist() == pytest.approx([value * 0.55 for value in RING], abs=2)
    assert not filled[25:, :].any()


def test_map_is_invisible_where_it_is_low_and_strongest_from_the_threshold_on() -> None:
    grey = Image.new("RGB", (40, 10), (100, 100, 100))
    values = torch.tensor([0.0, 0.25, 0.35, 0.5, 0.9]).repeat_interleave(8)[None].repeat(10, 1)
    values[:, -1] = torch.nan  # as nothing
    change = np.abs(np.asarray(heat(grey, values)).astype(int) - 100).sum(axis=-1)[5]
    assert not change[:14].any()
    assert 0 < change[20] < change[28]
    assert change[36] > 100
    assert not change[-1]


@pytest.mark.parametrize(("color", "rim"), [(WHITE, BLACK), (FOUND, WHITE)])
def test_outline_shows_on_parts_of_its_own_colour_and_leaves_the_inside(
    color: tuple[int, int, int], rim: tuple[int, int, int]
) -> None:
    mask = torch.zeros(20, 30)
    mask[5:15, 5:20] = 1
    row = np.asarray(outline(Image.new("RGB", (30, 20), color), mask, color))[10]
    assert [tuple(row[column].tolist()) for column in (2, 3, 4, 5, 6)] == [color, color, rim, color, color]
    dark = (9, 9, 9)
    row = np.asarray(outline(Image.new("RGB", (30, 20), dark), mask, color))[10]
    assert [tuple(row[column].tolist()) for column in (3, 4, 5, 6, 7)] == [dark, rim, color, dark, dark]
    row = np.asarray(outline(Image.new("RGB", (300, 200), dark), mask, color))[100]  # a large one's is wider
    assert [tuple(row[column].tolist()) for column in (47, 48, 49, 50, 51)] == [dark, rim, color, color, dark]


def test_holes_and_specks_are_outlined_thinly() -> None:
    dark = (9, 9, 9)
    mask = torch.zeros(200, 300)
    mask[50:150, 50:250] = 1
    mask[90:110, 140:160] = 0  # a hole
    mask[20:23, 20:23] = 1  # a speck
    drawn = np.asarray(outline(Image.new("RGB", (300, 200), dark), mask, FOUND))
    assert (drawn[85:115, 135:165] == FOUND).all(axis=-1).sum() == pytest.approx(4 * 20, abs=8)
    assert (drawn[15:28, 15:28] == FOUND).all(axis=-1).any()
    for region in (drawn[85:115, 135:165], drawn[15:28, 15:28]):
        assert not (region == WHITE).any()  # no rim
    assert (drawn[40:60, 100:120] == WHITE).all(axis=-1).any()


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (39, 19)), (6, (19, 0)), (8, (0, 39))])
def test_photographs_are_turned_as_their_exif_data_say(
    tmp_path: Path, orientation: int, corner: tuple[int, int]
) -> None:
    lying = Image.new("RGB", (40, 20))
    lying.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[274] = orientation
    lying.save(tmp_path / "part.png", exif=exif)
    assert orientation_of(tmp_path / "part.png") == orientation
    assert upright(lying, orientation).getpixel(corner) == (255, 0, 0)
    assert lying.size == (40, 20)


def test_what_names_no_orientation_is_left_as_it_is(tmp_path: Path) -> None:
    Image.new("RGB", (4, 2)).save(tmp_path / "plain.png")
    assert [orientation_of(path) for path in (tmp_path / "plain.png", tmp_path / "gone.png", None)] == [1, 1, 1]


def test_sheet_has_rows_of_whole_panels_and_room_for_its_words() -> None:
    panels = {caption: Image.new("RGB", (100, 50), (200, 0, 0)) for caption in ("a", "b", "c")}
    made = np.asarray(sheet(panels, 2)).astype(int)
    assert (made == (200, 0, 0)).all(axis=-1).sum() == 3 * 100 * 50
    assert made[:14].min() == 255
    with_line = sheet(panels, 2, "Good", (0, 158, 115), "score 0.10")
    assert with_line.height == len(made) + 28
    assert near(with_line, (0, 158, 115))[:42].sum() > 50
    assert (np.asarray(with_line)[42:] == np.asarray(sheet(panels, 2))[14:]).all()
    long = sheet({"a caption that is wider than its panel": panels["a"]}, 4, "Defective", None, "a long line " * 9)
    assert (np.asarray(long)[:, -14:] == 255).all()
    assert (np.asarray(long)[:, 300:] < 255).any()
