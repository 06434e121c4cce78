# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the drawn parts."""

import cv2
import numpy as np
import pytest

from anomalib_clipsam.drawn_parts.drawing import (
    CATEGORIES,
    DEFECTS,
    DRAWING_VERSION,
    HELD_OUT_CATEGORIES,
    TRAINING_CATEGORIES,
    defects_of,
    draw_part,
    draw_part_layers,
)

TEXTURES = (
    "brushed_metal",
    "weave",
    "wood",
    "carpet",
    "perforated",
    "printed_grid",
    "tread_plate",
    "leather",
    "mosaic",
)

# Width in pixels of the rim around a mask where a defect's soft edge may still change the picture a little: half the
# widest edge (22 px, of a discoloration) and the camera's blur; a wound with a sharp edge needs only the blur.
SOFT_RIM = {"discoloration": 26, "stain": 12, "dent": 8}
SHARP_RIM = 3


def test_categories_are_split_without_overlap() -> None:
    assert len(set(CATEGORIES)) == len(CATEGORIES) == 25
    assert not set(TRAINING_CATEGORIES) & set(HELD_OUT_CATEGORIES)
    assert set(TRAINING_CATEGORIES) | set(HELD_OUT_CATEGORIES) == set(CATEGORIES)
    assert set(HELD_OUT_CATEGORIES) == {"leather", "mosaic", "capsule", "connector", "key"}


def test_every_defect_befalls_some_training_and_all_names_are_known() -> None:
    assert {kind for name in CATEGORIES for kind in defects_of(name)} == set(DEFECTS)
    # What is scored on the held-out categories was seen in training, on other parts.
    trained = {kind for name in TRAINING_CATEGORIES for kind in defects_of(name)}
    assert {kind for name in HELD_OUT_CATEGORIES for kind in defects_of(name)} <= trained


@pytest.mark.parametrize("category", CATEGORIES)
def test_good_part_has_no_defect_and_a_silhouette(category: str) -> None:
    part = draw_part_layers(category, np.random.default_rng(1))
    assert part.image.shape == (256, 256, 3)
    assert part.image.dtype == np.uint8
    assert part.defect_mask.shape == part.part_mask.shape == (256, 256)
    assert part.defect_mask.dtype == part.part_mask.dtype == np.bool_
    assert not part.defect_mask.any()
    if category in TEXTURES:
        assert part.part_mask.all()
    else:
        assert 0.06 < part.part_mask.mean() < 0.7
        border = np.ones((256, 256), bool)
        border[2:-2, 2:-2] = False
        assert not (part.part_mask & border).any()
    # A picture with something in it: neither black, nor burnt out, nor plain.
    assert 10 < part.image.mean() < 245
    assert part.image.std() > 3


@pytest.mark.parametrize("category", CATEGORIES)
def test_defect_changes_the_mask_and_nothing_else(category: str) -> None:
    good = draw_part_layers(category, np.random.default_rng(2))
    for defect in defects_of(category):
        bad = draw_part_layers(category, np.random.default_rng(2), defect)
        mask = bad.defect_mask
        assert np.array_equal(bad.part_mask, good.part_mask), defect
        assert mask.any(), defect
        assert not (mask & ~bad.part_mask).any(), defect
        assert 0.002 < mask.mean() < 0.075, (defect, mask.mean())
        change = np.abs(bad.image.astype(int) - good.image).mean(2)
        assert change[mask].mean() > 9, (defect, change[mask].mean())
        rim = SOFT_RIM.get(defect, SHARP_RIM)
        near = cv2.dilate(mask.astype(np.uint8), np.ones((2 * rim + 1, 2 * rim + 1), np.uint8)) > 0
        # A few pixels of an antialiased edge may lie alone, below the mask's threshold.
        assert (change[~near] > 8).sum() <= 25, (defect, (change[~near] > 8).sum())


@pytest.mark.parametrize(("category", "defect"), [("washer", None), ("pcb", "missing_part"), ("weave", "distortion")])
def test_same_generator_draws_the_same_picture(category: str, defect: str | None) -> None:
    first = draw_part_layers(category, np.random.default_rng(3), defect)
    again = draw_part_layers(category, np.random.default_rng(3), defect)
    other = draw_part_layers(category, np.random.default_rng(4), defect)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.defect_mask, again.defect_mask)
    assert not np.array_equal(first.image, other.image)


def test_draw_part_is_the_picture_and_the_mask_of_the_layers() -> None:
    image, mask = draw_part("key", np.random.default_rng(5), "dent")
    layers = draw_part_layers("key", np.random.default_rng(5), "dent")
    assert np.array_equal(image, layers.image)
    assert np.array_equal(mask, layers.defect_mask)


def test_one_generator_draws_one_picture_after_another() -> None:
    rng = np.random.default_rng(6)
    assert not np.array_equal(draw_part("ring", rng)[0], draw_part("ring", rng)[0])


@pytest.mark.parametrize("defect", ["scratch", "crack"])
def test_thin_defects_survive_a_resize_to_192(defect: str) -> None:
    for seed in range(4):
        _, mask = draw_part("ring", np.random.default_rng(seed), defect)
        # The widest place of the line, twice the distance to its edge.
        assert 2 * cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5).max() >= 4
        small = cv2.resize(mask.astype(np.float32), (192, 192), interpolation=cv2.INTER_AREA) > 0.5
        assert small.mean() > 0.8 * mask.mean()


def test_unknown_names_list_the_choices() -> None:
    with pytest.raises(ValueError, match=r"no category 'cog'. Choose one of: brushed_metal, .*key"):
        draw_part("cog", np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"no category 'cog'. Choose one of: "):
        defects_of("cog")
    with pytest.raises(ValueError, match=r"A carpet has no defect 'crack'. Choose one of: stain, .*cut"):
        draw_part("carpet", np.random.default_rng(0), "crack")


def test_pictures_are_those_of_their_version() -> None:
    """Whoever changes how parts look must raise ``DRAWING_VERSION`` and write down the new mean colours."""
    assert DRAWING_VERSION == 1
    means = {name: draw_part(name, np.random.default_rng(7), "stain")[0].mean((0, 1)) for name in HELD_OUT_CATEGORIES}
    expected = {
        "leather": (134.5, 91.0, 63.9),
        "mosaic": (89.1, 113.7, 81.4),
        "capsule": (140.4, 145.2, 139.6),
        "connector": (145.1, 144.7, 146.8),
        "key": (141.5, 131.4, 138.4),
    }
    for name, mean in means.items():
        # Half a level of 255: other builds of OpenCV and numpy may round otherwise.
        assert np.allclose(mean, expected[name], atol=0.5), (name, mean)
