# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the random scenes that the demo SAM is trained on."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

SCENES = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "scenes.py"))
MIN_DEFECT_AREA, MIN_SHAPE_AREA, Scene, draw_scene = (
    SCENES[name] for name in ("MIN_DEFECT_AREA", "MIN_SHAPE_AREA", "Scene", "draw_scene")
)
COUNT = 60


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """A fixed handful of scenes."""
    return [draw_scene(np.random.default_rng((3, index))) for index in range(COUNT)]


def test_types_and_shapes(scenes: list[Scene]) -> None:
    """Pictures are 8-bit RGB; every mask is a bool map of the same size."""
    for scene in scenes:
        assert scene.image.shape == (192, 192, 3)
        assert scene.image.dtype == np.uint8
        for mask in (scene.defect_mask, *scene.shape_masks):
            assert mask.shape == (192, 192)
            assert mask.dtype == bool


def test_same_generator_same_scene() -> None:
    """A scene depends on the generator's state alone, not on what was drawn before."""
    first = draw_scene(np.random.default_rng(11))
    draw_scene(np.random.default_rng(12))
    again = draw_scene(np.random.default_rng(11))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.defect_mask, again.defect_mask)
    assert len(first.shape_masks) == len(again.shape_masks)
    for one, other in zip(first.shape_masks, again.shape_masks, strict=True):
        np.testing.assert_array_equal(one, other)


def test_another_seed_another_scene(scenes: list[Scene]) -> None:
    """No two scenes are alike."""
    assert len({scene.image.tobytes() for scene in scenes}) == COUNT


@pytest.mark.parametrize("size", [96, 256])
def test_other_sizes(size: int) -> None:
    """The side is free."""
    for index in range(4):
        scene = draw_scene(np.random.default_rng(index), size)
        assert scene.image.shape == (size, size, 3)
        assert scene.defect_mask.shape == (size, size)


def test_masks_have_sensible_areas(scenes: list[Scene]) -> None:
    """Nothing that is listed is too small to point at, and no defect is the whole picture."""
    for scene in scenes:
        area = scene.defect_mask.sum()
        assert area == 0 or MIN_DEFECT_AREA <= area < 0.5 * scene.defect_mask.size
        assert all(mask.sum() >= MIN_SHAPE_AREA for mask in scene.shape_masks)


def test_variety(scenes: list[Scene]) -> None:
    """Scenes with and without defects, with none to several shapes, in grey and in colour, dark and bright."""
    with_defect = sum(scene.defect_mask.any() for scene in scenes)
    assert with_defect >= 0.8 * COUNT
    assert with_defect < COUNT
    counts = {len(scene.shape_masks) for scene in scenes}
    assert counts.issuperset({0, 1, 2})
    grey = sum(bool((np.ptp(scene.image.astype(int), axis=2) == 0).all()) for scene in scenes)
    assert grey > 0.1 * COUNT
    assert grey < 0.8 * COUNT
    means = [scene.image.mean() for scene in scenes]
    assert min(means) < 70
    assert max(means) > 180


def test_most_defects_lie_on_a_shape(scenes: list[Scene]) -> None:
    """Where there are shapes, most defects touch one: a click on the defect is then a click on the shape, too."""
    both = [scene for scene in scenes if scene.defect_mask.any() and scene.shape_masks]
    touching = sum(any((mask & scene.defect_mask).any() for mask in scene.shape_masks) for scene in both)
    assert touching > 0.6 * len(both)


def test_defects_can_be_seen(scenes: list[Scene]) -> None:
    """Nearly every defect changes its pixels against their near surroundings in mean or in spread."""
    import cv2

    seen, number = 0, 0
    for scene in scenes:
        if not scene.defect_mask.any():
            continue
        near = (
            cv2.dilate(scene.defect_mask.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool) & ~scene.defect_mask
        )
        inside, outside = scene.image[scene.defect_mask].astype(float), scene.image[near].astype(float)
        difference = np.abs(inside.mean(0) - outside.mean(0)).max() + np.abs(inside.std(0) - outside.std(0)).max()
        seen += difference > 5
        number += 1
    assert seen > 0.9 * number
