# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The localizer on a CNN: the self comparison against a naive one, the map against the text by hand, taps, export."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_clipsam.clip import PromptEnsemble, build_clip
from anomalib_clipsam.clip.build import find_clip_architecture
from anomalib_clipsam.clip.localizers import FeaturePyramid, PyramidLocalizer, build_pyramid
from anomalib_clipsam.clip.localizers.pyramid import (
    FAR,
    LIKE_SHARE,
    SELF_WEIGHT,
    TEMPERATURE,
    SelfComparison,
    deviations,
    magnitude,
    patch_features,
)

if TYPE_CHECKING:
    from pathlib import Path

SIZE, CHANNELS, EMBED = 96, (16, 24, 40, 112, 320), 96
"""Side of CLIP's square, channels of EfficientNet-Lite0's stages, and CLIP's embedding."""


@pytest.fixture(scope="module")
def localizer() -> PyramidLocalizer:
    torch.manual_seed(0)
    clip = build_clip("lite", quick_gelu=False)
    pyramid = FeaturePyramid(CHANNELS, EMBED, SIZE // 8, width=8, fine_width=6).eval()
    localizer = PyramidLocalizer(clip, PromptEnsemble(), SIZE, pyramid).eval()
    localizer.text = F.normalize(torch.randn(2, EMBED), dim=-1)
    return localizer


def test_self_comparison_is_the_definition() -> None:
    grid = 8
    patches = F.normalize(torch.randn(2, 5, grid, grid, generator=torch.Generator().manual_seed(1)), dim=1)
    distances, residual = SelfComparison(grid)(patches)
    count = round(LIKE_SHARE * (grid // 2) ** 2)
    for picture in range(2):
        references, places = [], []
        for row in range(0, grid, 2):
            for column in range(0, grid, 2):
                mean = patches[picture, :, row : row + 2, column : column + 2].mean((1, 2))
                references.append(mean / mean.norm())
                places.append((row + 1, column + 1))  # the corner that its four patches share
        for row in range(grid):
            for column in range(grid):
                token = patches[picture, :, row, column]
                cosines = torch.stack([token @ reference for reference in references])
                like = 1 - cosines.sort(descending=True).values[:count].mean()
                far = [max(abs(row + 0.5 - y), abs(column + 0.5 - x)) >= FAR for y, x in places]
                weights = (cosines.masked_fill(~torch.tensor(far), -1) / TEMPERATURE).softmax(0)
                rebuilt = sum(weight * reference for weight, reference in zip(weights, references, strict=True))
                nearest = 1 - cosines[torch.tensor(far)].max()
                assert torch.allclose(distances[picture, :, row, column], torch.stack([like, nearest]), atol=1e-5)
                assert torch.allclose(residual[picture, :, row, column], token - rebuilt, atol=1e-5)


def test_patches_unlike_the_rest_are_far_from_it_and_the_rest_is_not() -> None:
    patches = torch.zeros(1, 3, 12, 12)
    patches[:, 0] = 1
    patches[:, :, 4:6, 6:8] = torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1)
    distances, residual = SelfComparison(12)(patches)
    odd = (slice(4, 6), slice(6, 8))
    count = round(LIKE_SHARE * 36)  # its own place is the one that is like it
    assert torch.allclose(distances[0, :, 4, 6], torch.tensor([1 - 1 / count, 1.0]))
    assert torch.allclose(residual[(0, slice(None), *odd)], torch.tensor([-1.0, 1, 0]).view(3, 1, 1).expand(3, 2, 2))
    distances[(..., *odd)], residual[(..., *odd)] = 0, 0
    assert distances.abs().max() < 1e-6
    assert residual.abs().max() < 1e-6


def test_patch_features_weigh_both_stages_alike() -> None:
    fine, coarse = torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 2, 2)
    fine[:, 1], coarse[:, 2] = 7, 0.1
    features = patch_features((fine, coarse))
    expected = torch.tensor([0, 0.5**0.5, 0, 0, 0.5**0.5])
    assert torch.allclose(features, expected.view(1, 5, 1, 1).expand(1, 5, 4, 4))


def test_a_place_deviates_from_the_mean_around_it() -> None:
    stage = torch.zeros(1, 2, 16, 16)
    stage[0, :, 6, 6] = torch.tensor([3.0, 4.0])
    fine, coarse = deviations(stage)
    # in a cell of 4 whose centre is half a step off, 7 / 8 of its mean in each direction, 1 / 8 of a mean of 0
    assert torch.allclose(fine[0, :, 6, 6], stage[0, :, 6, 6] * (1 - (7 / 8) ** 2 / 16))
    assert torch.allclose(coarse[0, :, 6, 6], stage[0, :, 6, 6] * (1 - (11 / 16) ** 2 / 64))
    assert torch.allclose(magnitude(stage)[0, 0, 6, 6], torch.tensor(12.5**0.5))
    assert fine[0, :, 12:].abs().max() == 0


def test_map_and_score_compare_embeddings_with_the_text(localizer: PyramidLocalizer) -> None:
    image = torch.rand(2, 3, SIZE, SIZE)
    anomaly_map, score = localizer(image)
    taps, last = localizer.tap(image)
    embeddings, added, distances = localizer.pyramid(taps)
    like = distances[:, 0].flatten(1)
    unlike = (like - like.mean(1, keepdim=True)) / (like.std(1, correction=0, keepdim=True) + 1e-3)
    unlike = F.interpolate(unlike.view(2, 1, SIZE // 8, SIZE // 8), (SIZE // 4, SIZE // 4), mode="bilinear")
    scale = localizer.clip.logit_scale.exp()
    tokens = F.normalize(embeddings, dim=1).permute(0, 2, 3, 1)  # (B, 2 h, 2 w, C)
    logits = (scale * tokens @ localizer.text.T).permute(0, 3, 1, 2)
    logits[:, 1] += SELF_WEIGHT * unlike[:, 0]
    logits = F.interpolate(logits, (SIZE, SIZE), mode="bilinear")
    assert embeddings.shape == (2, EMBED, SIZE // 4, SIZE // 4)
    assert torch.allclose(anomaly_map, logits.softmax(1)[:, 1], atol=1e-5)
    visual = localizer.clip.visual
    embedding = visual.head(last.mean((2, 3))) + added
    assert torch.allclose(
        score, (scale * F.normalize(embedding, dim=-1) @ localizer.text.T).softmax(-1)[:, 1], atol=1e-5
    )
    assert anomaly_map.std() > 1e-4


def test_without_adapters_the_image_embedding_is_clips_own(localizer: PyramidLocalizer) -> None:
    image = torch.rand(1, 3, SIZE, SIZE)
    _, last = localizer.tap(image)
    visual = localizer.clip.visual
    assert torch.allclose(visual.head(visual.trunk.forward_head(last)), visual(2 * image - 1), atol=1e-5)


def test_taps_are_the_stages_at_an_eighth_and_a_sixteenth(localizer: PyramidLocalizer) -> None:
    image = torch.rand(2, 3, SIZE, SIZE)
    anomaly_map, score, taps = localizer.with_taps(image)
    plain_map, plain_score = localizer(image)
    assert torch.equal(anomaly_map, plain_map)
    assert torch.equal(score, plain_score)
    x = localizer.clip.visual.trunk.bn1(localizer.clip.visual.trunk.conv_stem(2 * image - 1))
    blocks = [x := block(x) for block in localizer.clip.visual.trunk.blocks]
    assert [tuple(tap.shape) for tap in taps] == [(2, 40, 12, 12), (2, 112, 6, 6)]
    for tap, stage in zip(taps, (blocks[2], blocks[4]), strict=True):
        assert torch.allclose(tap, stage, atol=1e-5)


@pytest.mark.parametrize("size", [(70, 130), (200, 120)])
def test_a_picture_that_is_not_square_gives_a_map_of_its_size(
    localizer: PyramidLocalizer, size: tuple[int, int]
) -> None:
    image = torch.rand(2, 3, *size)
    anomaly_map, score = localizer(image)
    assert anomaly_map.shape == (2, *size)
    assert score.shape == (2,)
    squashed = F.interpolate(image, (SIZE, SIZE), mode="bicubic", antialias=True).clamp(0, 1)
    square, square_score = localizer(squashed)
    assert torch.allclose(score, square_score, atol=1e-5)
    alone, _ = localizer(image[1:])
    assert torch.allclose(alone[0], anomaly_map[1], atol=1e-5)
    if min(size) >= SIZE:
        shrunk = F.interpolate(anomaly_map.unsqueeze(1), (SIZE, SIZE), mode="area").squeeze(1)
        assert (shrunk - square).abs().mean() < 0.02


def test_texts_the_other_way_round_turn_the_score_round(localizer: PyramidLocalizer) -> None:
    image = torch.rand(1, 3, SIZE, SIZE)
    _, score = localizer(image)
    text = localizer.text
    localizer.text = text.flip(0)
    _, turned_score = localizer(image)
    localizer.text = text
    assert torch.allclose(turned_score, 1 - score, atol=1e-5)


@pytest.mark.parametrize("size", [32, 100])
def test_sizes_that_no_stage_fits_are_refused(localizer: PyramidLocalizer, size: int) -> None:
    with pytest.raises(ValueError, match=f"clip_size is {size}; it must be a multiple of 32,"):
        PyramidLocalizer(localizer.clip, PromptEnsemble(), size, localizer.pyramid)


def test_adapters_are_built_from_their_state_dict(localizer: PyramidLocalizer) -> None:
    state_dict = localizer.pyramid.state_dict()
    built = PyramidLocalizer.build(PromptEnsemble(), SIZE, lambda: localizer.clip, lambda: state_dict).eval()
    built.text = localizer.text
    image = torch.rand(1, 3, SIZE, SIZE)
    assert torch.equal(built(image)[0], localizer(image)[0])
    del state_dict["adapter.weight"]
    with pytest.raises(ValueError, match=r"1 entries differ, such as 'adapter\.weight'"):
        build_pyramid(state_dict, localizer.clip, SIZE)


def test_references_compare_the_stages_of_the_tower_that_the_adapters_bring(localizer: PyramidLocalizer) -> None:
    torch.manual_seed(1)
    tower = build_clip("lite", quick_gelu=False).visual.trunk.eval()
    image = torch.rand(2, 3, SIZE, SIZE)
    stages = tower.forward_intermediates(2 * image - 1, intermediates_only=True)[2:4]
    tower.prune_intermediate_layers([2, 3])
    brought = {f"reference.{key}": value for key, value in tower.state_dict().items()}
    state_dict = {**localizer.pyramid.state_dict(), **brought}
    built = PyramidLocalizer.build(PromptEnsemble(), SIZE, lambda: localizer.clip, lambda: dict(state_dict)).eval()
    built.text = localizer.text
    anomaly_map, score, taps = built.with_taps(image)
    plain_map, plain_score = localizer(image)
    assert torch.equal(anomaly_map, plain_map)
    assert torch.equal(score, plain_score)
    for tap, stage in zip(taps, stages, strict=True):
        assert torch.allclose(tap, stage, atol=1e-5)
    del state_dict["reference.conv_stem.weight"]
    with pytest.raises(ValueError, match=r"1 entries differ, such as 'conv_stem\.weight'"):
        PyramidLocalizer.build(PromptEnsemble(), SIZE, lambda: localizer.clip, lambda: dict(state_dict))


def test_the_architecture_is_known_by_its_entries(localizer: PyramidLocalizer) -> None:
    shapes = {key: tuple(value.shape) for key, value in localizer.clip.state_dict().items()}
    assert find_clip_architecture(shapes) == "lite"
    shapes["visual.head.proj.weight"] = (EMBED, 7)
    assert find_clip_architecture(shapes) is None


def test_onnx_gives_the_same_for_any_number_of_pictures(localizer: PyramidLocalizer, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    file = tmp_path / "pyramid.onnx"
    batch = torch.export.Dim("batch", min=1, max=64)
    torch.onnx.export(
        localizer, (torch.rand(2, 3, SIZE, SIZE),), file, dynamo=True, dynamic_shapes=({0: batch},), verbose=False
    )
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for count in (1, 3):
        image = torch.rand(count, 3, SIZE, SIZE)
        given = session.run(None, {session.get_inputs()[0].name: image.numpy()})
        for theirs, ours in zip(given, localizer(image), strict=True):
            assert np.allclose(theirs, ours.detach().numpy(), atol=1e-4)
