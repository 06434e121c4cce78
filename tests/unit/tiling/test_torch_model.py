# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Large pictures in tiles, with SAM of random weights and a localizer whose map is the picture's red channel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from anomalib_clipsam.errors.errors import NotFiniteError
from anomalib_clipsam.method.cps import CascadedPrompts
from anomalib_clipsam.method.fusion import FUSIONS, Fusion
from anomalib_clipsam.method.ppg import PointPromptGenerator
from anomalib_clipsam.tiling.layout import Tiling
from anomalib_clipsam.tiling.torch_model import WHOLE_WEIGHT, TiledClipSamModel, join_scores
from anomalib_clipsam.torch_model import ClipSamModel
from tests.unit.test_torch_model import FRAME, RedLocalizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from segment_anything.modeling import Sam

    Build = Callable[..., TiledClipSamModel]

VIEW = 48


class SeenLocalizer(RedLocalizer):
    """Notes what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def _localize(self, image: torch.Tensor, tapped: bool) -> tuple:
        self.seen.append(tuple(image.shape))
        return super()._localize(image, tapped)


@pytest.fixture
def build(sam: Sam) -> Build:
    """Build a model whose tiles have 48 px; arguments go to the tiling."""

    def build(refine: bool = True, fusion: str = "cautious", **tiling: object) -> TiledClipSamModel:
        parts = (
            PointPromptGenerator(FRAME, min_score=0.6),
            CascadedPrompts(sam),
            Fusion(fusion),
        )
        return TiledClipSamModel(
            SeenLocalizer(),
            VIEW,
            *(parts if refine else ()),
            tiling=Tiling(**{"side": VIEW, "overlap": 0.25, "batch": 4, **tiling}),
        ).eval()

    return build


def grey(height: int, width: int, value: float = 0.3) -> torch.Tensor:
    return torch.full((1, 3, height, width), value)


def spotted(*spots: tuple[int, int], size: tuple[int, int] = (600, 800), value: float = 0.9) -> torch.Tensor:
    """A grey picture with red spots of 8 px."""
    image = grey(*size)
    for row, column in spots:
        image[:, 0, row : row + 8, column : column + 8] = value
    return image


@pytest.mark.parametrize("size", [(48, 48), (300, 200), (97, 400)])
def test_a_constant_picture_has_a_constant_map(build: Build, size: tuple[int, int]) -> None:
    model = build(refine=False)
    stages = model.stages(grey(*size))
    tiled = len(model.grid(grey(*size))) > 1
    expected = 0.3 * (1 + WHOLE_WEIGHT * tiled)
    torch.testing.assert_close(stages.anomaly_map, torch.full((1, *size), expected), atol=1e-6, rtol=0)
    assert stages.score.tolist() == [1]  # a frame without structure


def test_a_small_spot_of_a_large_picture_is_seen_at_its_own_scale_and_in_its_place(build: Build) -> None:
    image = spotted((201, 617))
    tiled, squeezed = build(refine=False), ClipSamModel(RedLocalizer(), VIEW)
    anomaly_map = tiled.stages(image).anomaly_map[0]
    assert anomaly_map.shape == (600, 800)
    assert (anomaly_map > 0.6).nonzero().float().mean(dim=0).tolist() == pytest.approx([204.5, 620.5], abs=0.6)
    assert anomaly_map.max() > 0.65
    assert squeezed.stages(image).anomaly_map.max() < 0.5


def test_clip_sees_no_more_tiles_at_once_than_was_asked_for(build: Build) -> None:
    model = build(refine=False, batch=3)
    model.stages(grey(300, 200))
    *tiles, whole = model.localizer.seen
    assert whole[0] == 1
    assert {shape[2:] for shape in tiles} == {(VIEW, VIEW)}
    assert max(shape[0] for shape in tiles) == 3
    assert sum(shape[0] for shape in tiles) == len(model.grid(grey(300, 200)))


def test_the_batch_of_tiles_does_not_change_the_answer(build: Build) -> None:
    image = torch.rand(1, 3, 150, 230)
    one, other = (build(refine=False, batch=batch).stages(image) for batch in (1, 7))
    torch.testing.assert_close(one.anomaly_map, other.anomaly_map)
    torch.testing.assert_close(one.score, other.score)


def test_a_picture_does_not_depend_on_its_neighbours(build: Build) -> None:
    images = torch.cat([spotted((20, 30), size=(200, 300)), spotted((150, 200), size=(200, 300), value=0.8)])
    together, model = build().stages(images), build()
    for place, image in enumerate(images.split(1)):
        alone = model.stages(image)
        for name in ("anomaly_map", "score", "fused_map", "mask", "region"):
            assert torch.equal(getattr(together, name)[place : place + 1], getattr(alone, name))
        assert together.crops[place] == alone.crops[0]


def test_sam_sees_a_crop_of_its_own_resolution_around_each_suspicious_region(build: Build) -> None:
    model = build()
    shown = []
    encode = model.encode
    model.encode = lambda image: shown.append(tuple(image.shape)) or encode(image)
    stages = model.stages(spotted((40, 40), (500, 700)))
    assert shown == [(1, 3, FRAME, FRAME)] * 2
    assert len(stages.crops[0]) == 2
    assert stages.refined.tolist() == [True]
    assert model.stages(grey(600, 800)).refined.tolist() == [False]
    assert len(shown) == 2


@pytest.mark.parametrize("fusion", FUSIONS)
def test_masks_lie_in_the_crops_and_the_map_is_fused_in_every_mode(build: Build, fusion: str) -> None:
    stages = build(fusion=fusion).stages(spotted((40, 40), (500, 700)))
    inside = torch.zeros_like(stages.mask)
    for top, left, height, width in stages.crops[0]:
        inside[:, top : top + height, left : left + width] = True
    assert stages.mask.any()
    assert not stages.mask[~inside].any()
    assert stages.fused_map.shape == stages.anomaly_map.shape
    assert 0 <= stages.fused_map.min() <= stages.fused_map.max() <= 1
    outside = stages.fused_map[~inside & ~stages.region]
    if fusion in ("cautious", "weighted"):
        weight = build(fusion=fusion).fusion.weight
        torch.testing.assert_close(outside, (1 - weight) * stages.anomaly_map[~inside & ~stages.region])
    elif fusion == "agreement":
        assert (outside <= stages.anomaly_map[~inside & ~stages.region] + 1e-5).all()
    else:
        assert (outside == 0).all()


def test_a_region_that_sam_is_not_asked_about_is_its_own_mask(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anomalib_clipsam.tiling.crops.plan_crops.__defaults__", (1,))
    stages = build().stages(spotted((40, 40), (500, 700), size=(600, 800)))
    assert len(stages.crops[0]) == 1
    top, left, height, width = stages.crops[0][0]
    other = stages.region.clone()
    other[:, top : top + height, left : left + width] = False
    assert other.any()
    assert stages.mask[other].all()
    assert torch.equal(stages.fused_map[other], stages.anomaly_map[other])


def test_a_large_region_is_shown_whole(build: Build) -> None:
    image = grey(600, 800)
    image[:, 0, 100:500, 100:700] = 0.9
    assert build().stages(image).crops == (((0, 0, 600, 800),),)


def test_a_larger_map_size_is_the_longer_side(build: Build) -> None:
    assert build(refine=False, map_size=100).stages(grey(300, 200)).anomaly_map.shape == (1, 100, 67)


def test_what_is_wrong_with_values_is_said(build: Build) -> None:
    image = grey(200, 300)
    image[0, 0, 150, 250] = torch.nan
    with pytest.raises(NotFiniteError, match=r"those at \[0\] hold NaN"):
        build().stages(image)
    with pytest.raises(ValueError, match="hold values from"):
        build().stages(255 * grey(200, 300))


def test_pictures_of_too_many_tiles_are_named_before_they_are_read(build: Build) -> None:
    model = build()
    assert model.misfit((4000, 3000)) is None or "4000 x 3000" in model.misfit((4000, 3000))
    assert model.misfit((300, 200)) is None
    assert model.misfit((12000, 9000)).startswith("cannot be cut: 12000 x 9000 pixels make")


def test_settings_tell_tilings_apart(build: Build) -> None:
    assert build(overlap=0.5).settings() != build().settings()
    assert build(side=64).settings() != build().settings()
    assert build(batch=1).settings() == build().settings()


def test_scores() -> None:
    anomaly_map = torch.zeros(1, 5, 7)
    anomaly_map[0, 2, 3] = 0.4
    assert join_scores(torch.tensor([0.2, 0.8, 0.4]), anomaly_map, torch.tensor([0.3])).tolist() == pytest.approx([0.5])
