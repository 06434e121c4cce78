# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Models with seeded random weights, built once: no test of a unit depends on what the carried weights have learnt."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from open_clip import CLIP
    from segment_anything import SamPredictor
    from segment_anything.modeling import Sam
    from torch import nn

    from anomalib_clipsam.clip import PromptEnsemble

IMAGE_SIZES = ((150, 230), (192, 192), (200, 120))
"""Height and width of the images that SAM's predictors are set to: wide, square and tall."""


def _perturb(model: nn.Module) -> nn.Module:
    """Move every parameter a little, so that none is zero: biases, position embeddings, the bias of attention."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.requires_grad_(requires_grad=False).eval()


@pytest.fixture(scope="session")
def sam() -> Sam:
    """The demo's SAM with random weights. Shared: leave it as it is."""
    from anomalib_clipsam.sam import build_sam

    torch.manual_seed(1)
    return _perturb(build_sam("demo"))


@pytest.fixture(scope="session")
def clip() -> CLIP:
    """The demo's CLIP with random weights. Shared: leave it as it is."""
    from anomalib_clipsam.clip import build_clip

    torch.manual_seed(2)
    return _perturb(build_clip("demo", quick_gelu=False))


@pytest.fixture(scope="session")
def ensemble() -> PromptEnsemble:
    """A prompt ensemble that is encoded fast."""
    from anomalib_clipsam.clip import PromptEnsemble

    return PromptEnsemble(normal=("{}", "flawless {}"), abnormal=("broken {}",), templates=("a photo of a {}.",))


@pytest.fixture(scope="session")
def predictors(sam: Sam) -> list[SamPredictor]:
    """segment_anything's own predictors, one per size of :data:`IMAGE_SIZES`, each set to a random image."""
    from segment_anything import SamPredictor

    torch.manual_seed(3)
    torch.set_num_threads(1)
    predictors = []
    for size in IMAGE_SIZES:
        coarse = torch.rand(1, 3, 6, 5)
        image = torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1)
        predictors.append(SamPredictor(sam))
        predictors[-1].set_image((image[0] * 255).byte().permute(1, 2, 0).numpy())
    return predictors
