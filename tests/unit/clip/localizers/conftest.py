# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Naive localizers, from open_clip's own passes, and the adapters and texts that they take."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from anomalib_clipsam.clip.localizers.base import CLIP_MEAN, CLIP_STD

if TYPE_CHECKING:
    from collections.abc import Callable

    from open_clip import CLIP

WIDTH, EMBED, NATIVE, GRID = 160, 96, 160, 20
"""The demo CLIP's width and embedding, the side of the images that it was made for, and of their patch grid."""


@pytest.fixture
def text() -> torch.Tensor:
    """Two directions far apart, so that maps reach from near 0 to near 1."""
    return F.normalize(torch.randn(2, EMBED), dim=-1)


def _normalised(image: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (image - mean) / std


@pytest.fixture
def normalised() -> Callable:
    """What CLIP sees of an image that has its size."""
    return _normalised


def _run_and_record(clip: CLIP, image: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """Encode with open_clip itself; its embedding, and what went into and came out of each block, ``(B, L, D)``."""
    inputs, outputs = [], []

    def hook(block: nn.Module, given: tuple[torch.Tensor, ...], result: torch.Tensor) -> None:
        batch_first = block.attn.batch_first
        inputs.append(given[0] if batch_first else given[0].transpose(0, 1))
        outputs.append(result if batch_first else result.transpose(0, 1))

    handles = [block.register_forward_hook(hook) for block in clip.visual.transformer.resblocks]
    embedding = clip.encode_image(_normalised(image))
    for handle in handles:
        handle.remove()
    return embedding, inputs, outputs


@pytest.fixture
def run_and_record() -> Callable:
    """open_clip's embedding of an image, and the tokens before and after each block."""
    return _run_and_record


def _naive_map(tokens: torch.Tensor, text: torch.Tensor, scale: float) -> torch.Tensor:
    """APRIL-GAN's map of patch tokens ``(B, h * w, C)``, pixel by pixel of the grid, at the native size."""
    maps = torch.zeros(len(tokens), 2, GRID, GRID)
    for b in range(len(tokens)):
        for row in range(GRID):
            for column in range(GRID):
                token = tokens[b, row * GRID + column]
                maps[b, :, row, column] = scale * (text @ (token / token.norm()))
    maps = F.interpolate(maps, (NATIVE, NATIVE), mode="bilinear", align_corners=True)
    return (maps[:, 1].exp() / maps.exp().sum(dim=1)).clamp(0, 1)


@pytest.fixture
def naive_map() -> Callable:
    """APRIL-GAN's map, pixel by pixel of the grid."""
    return _naive_map


def _adapters(count: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(WIDTH, EMBED) for _ in range(count)).requires_grad_(requires_grad=False)


@pytest.fixture
def adapters() -> Callable:
    """As many random adapters as are asked for."""
    return _adapters
