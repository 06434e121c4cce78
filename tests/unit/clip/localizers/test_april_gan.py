# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""APRIL-GAN's map against a naive one, its taps, and its adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from anomalib_clipsam.clip import PromptEnsemble, build_clip
from anomalib_clipsam.clip.localizers import AprilGanLocalizer, build_adapters

if TYPE_CHECKING:
    from collections.abc import Callable

    from open_clip import CLIP

pytestmark = pytest.mark.open_clip

NATIVE = 160
"""Side of the images that the demo's CLIP was made for."""


@torch.no_grad()
def test_april_gan_equals_a_naive_one(
    clip: CLIP,
    ensemble: PromptEnsemble,
    text: torch.Tensor,
    run_and_record: Callable,
    naive_map: Callable,
    adapters: Callable,
) -> None:
    layers = adapters(3)
    localizer = AprilGanLocalizer(clip, ensemble, NATIVE, layers)
    localizer._use_text(text)
    image = torch.rand(2, 3, NATIVE, NATIVE)
    anomaly_map, _ = localizer(image)

    _, _, outputs = run_and_record(clip, image)
    expected = torch.zeros(2, NATIVE, NATIVE)
    for layer, block in zip(layers, (2, 4, 6), strict=True):
        tokens = outputs[block - 1][:, 1:] @ layer.weight.T + layer.bias
        expected += naive_map(tokens, text, 100.0) / 3
    assert anomaly_map.shape == (2, NATIVE, NATIVE)
    assert expected.amax() - expected.amin() > 0.2
    assert (anomaly_map - expected).abs().max() < 1e-3  # a hundredfold cosine makes much of the last bits


def test_default_taps_are_the_published_ones(ensemble: PromptEnsemble) -> None:
    with torch.device("meta"):
        large = build_clip("ViT-L-14-336", quick_gelu=True)
        layers = nn.ModuleList(nn.Linear(1024, 768) for _ in range(4))
    localizer = AprilGanLocalizer(large, ensemble, 518, layers)
    assert localizer.taps == (6, 12, 18, 24)
    assert localizer.grid == (37, 37)


@pytest.mark.parametrize("taps", [(1,), (1, 2, 3), (0, 1), (6, 7), (-1, 2), (3, 3)])
def test_taps_must_fit(clip: CLIP, ensemble: PromptEnsemble, taps: tuple[int, ...], adapters: Callable) -> None:
    with pytest.raises(ValueError, match="do not fit 2 adapters and 6 blocks"):
        AprilGanLocalizer(clip, ensemble, 64, adapters(2), taps)


@torch.no_grad()
def test_taps_go_with_their_adapters_in_the_order_given(
    clip: CLIP, ensemble: PromptEnsemble, text: torch.Tensor, adapters: Callable
) -> None:
    layers, image = adapters(2), torch.rand(1, 3, 64, 64)
    maps = []
    for taps, order in (((2, 5), (0, 1)), ((5, 2), (1, 0)), ((5, 2), (0, 1))):
        localizer = AprilGanLocalizer(clip, ensemble, 64, nn.ModuleList(layers[i] for i in order), taps)
        localizer._use_text(text)
        maps.append(localizer(image)[0])
    torch.testing.assert_close(maps[0], maps[1])
    assert (maps[0] - maps[2]).abs().max() > 1e-2


def published(count: int = 2, width: int = 3, embed: int = 2) -> dict[str, torch.Tensor]:
    return {
        f"fc.{i}.{name}": torch.randn(shape)
        for i in range(count)
        for name, shape in (("weight", (embed, width)), ("bias", (embed,)))
    }


@pytest.mark.parametrize("layout", ["published file", "layer", "list"])
def test_adapters_from_the_published_layout(layout: str) -> None:
    weights = published()
    state_dict = {
        "published file": {"trainable_linearlayer": weights},
        "layer": weights,
        "list": {key.removeprefix("fc."): value for key, value in weights.items()},
    }[layout]
    layers = build_adapters(state_dict, width=3, embed_dim=2)
    assert len(layers) == 2
    tokens = torch.randn(4, 3)
    for i, layer in enumerate(layers):
        torch.testing.assert_close(layer(tokens), tokens @ weights[f"fc.{i}.weight"].T + weights[f"fc.{i}.bias"])


@pytest.mark.parametrize(
    "state_dict",
    [
        {},
        {"trainable_linearlayer": {}},
        published(width=4),
        published(embed=3),
        {key: value for key, value in published().items() if key != "fc.1.bias"},
        {key: value for key, value in published().items() if not key.startswith("fc.0")},
        {**published(), "fc.0.scale": torch.ones(1)},
        {"fc.0.weight": torch.randn(2, 3), "fc.0.bias": "no tensor"},
        {"epoch": 3, "lr": 0.1},
    ],
)
def test_adapters_that_do_not_fit(state_dict: dict) -> None:
    with pytest.raises(ValueError, match=r"'fc.<tap>.weight' of shape \(2, 3\) .* trained with the same CLIP"):
        build_adapters(state_dict, width=3, embed_dim=2)
