# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""What the localizers on a ViT share: image sizes, position embeddings, the global score."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_clipsam.clip import PromptEnsemble, encode_ensemble
from anomalib_clipsam.clip.localizers import AprilGanLocalizer, DenseLocalizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from open_clip import CLIP

pytestmark = pytest.mark.open_clip

WIDTH, NATIVE, GRID = 160, 160, 20
"""The demo CLIP's width, the side of the images that it was made for, and of their patch grid."""


def test_position_embedding_at_the_native_grid_is_the_trained_one(clip: CLIP, ensemble: PromptEnsemble) -> None:
    assert DenseLocalizer(clip, ensemble, NATIVE)._position_embedding() is clip.visual.positional_embedding


@pytest.mark.parametrize("size", [64, 232])
def test_position_embedding_on_another_grid_is_open_clips(clip: CLIP, ensemble: PromptEnsemble, size: int) -> None:
    from open_clip.model import resize_pos_embed

    embedding = DenseLocalizer(clip, ensemble, size)._position_embedding()
    other = copy.deepcopy(clip)
    other.visual.grid_size = (size // 8, size // 8)
    state_dict = {"visual.positional_embedding": clip.visual.positional_embedding.clone()}
    resize_pos_embed(state_dict, other)
    expected = state_dict["visual.positional_embedding"]
    assert embedding.shape == (1 + (size // 8) ** 2, WIDTH)
    torch.testing.assert_close(embedding, expected, atol=1e-6, rtol=0)
    patches = clip.visual.positional_embedding[1:].T.reshape(1, WIDTH, GRID, GRID)
    plain = F.interpolate(patches, (size // 8, size // 8), mode="bicubic").flatten(2)[0].T
    assert (plain - expected[1:]).abs().max() > 1e-3


@pytest.mark.parametrize("image_size", [0, -8, 4, 63, 161])
def test_image_size_must_hold_whole_patches(clip: CLIP, ensemble: PromptEnsemble, image_size: int) -> None:
    with pytest.raises(ValueError, match=rf"clip_size is {image_size}; it must be a multiple of the patch size, 8"):
        DenseLocalizer(clip, ensemble, image_size)


@pytest.mark.parametrize("kind", ["dense", "april_gan"])
@torch.no_grad()
def test_global_score_is_that_of_open_clip(
    clip: CLIP, ensemble: PromptEnsemble, kind: str, normalised: Callable, adapters: Callable
) -> None:
    """The plain path through the blocks gives CLIP's own image embedding; APRIL-GAN's factor of the cosine is fixed."""
    localizer = (
        DenseLocalizer(clip, ensemble, NATIVE)
        if kind == "dense"
        else AprilGanLocalizer(clip, ensemble, NATIVE, adapters(1))
    )
    localizer.set_class_name("nut")
    image = torch.rand(3, 3, NATIVE, NATIVE)
    _, score = localizer(image)
    embedding = clip.encode_image(normalised(image), normalize=True)
    text = encode_ensemble(clip, ensemble, "nut")
    scale = clip.logit_scale.exp() if kind == "dense" else 100.0
    expected = (scale * embedding @ text.T).softmax(dim=-1)[:, 1]
    assert expected.std() > 1e-6
    torch.testing.assert_close(score, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(150, 230), (90, 50), (64, 64)])
@torch.no_grad()
def test_map_has_the_size_of_the_image(
    clip: CLIP, ensemble: PromptEnsemble, text: torch.Tensor, size: tuple[int, int], adapters: Callable
) -> None:
    for localizer in (
        DenseLocalizer(clip, ensemble, 64),
        AprilGanLocalizer(clip, ensemble, 64, adapters(2)),
    ):
        localizer._use_text(text)
        anomaly_map, score = localizer(torch.rand(2, 3, *size))
        assert (anomaly_map.shape, score.shape) == ((2, *size), (2,))
        for values in (anomaly_map, score):
            assert values.amin() >= 0
            assert values.amax() <= 1
        assert anomaly_map.std() > 1e-3


@torch.no_grad()
def test_batch_equals_one_at_a_time(clip: CLIP, ensemble: PromptEnsemble, text: torch.Tensor) -> None:
    localizer = DenseLocalizer(clip, ensemble, 64)
    localizer._use_text(text)
    image = torch.rand(3, 3, 70, 40)
    together = localizer(image)
    for i in range(3):
        for many, one in zip(together, localizer(image[i : i + 1]), strict=True):
            torch.testing.assert_close(many[i : i + 1], one, atol=1e-5, rtol=0)
