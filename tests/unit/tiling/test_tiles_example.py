# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The example that cuts large pictures without torch, beside the package."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from anomalib_clipsam.tiling import blending, crops
from anomalib_clipsam.tiling import layout as tiles
from anomalib_clipsam.tiling import torch_model as tiled_model

EXAMPLE = runpy.run_path(str(Path(__file__).parents[3] / "examples" / "tiles.py"))


@pytest.mark.parametrize("whole", [50, 100, 101, 257, 1024])
def test_the_example_places_tiles_as_the_package_does(whole: int) -> None:
    assert EXAMPLE["starts"](whole, 100) == tiles.starts(whole, 100, EXAMPLE["OVERLAP"])


@pytest.mark.parametrize("length", [1, 7, 100])
def test_the_example_weighs_tiles_as_the_package_does(length: int) -> None:
    expected = blending.blend_weights(length, EXAMPLE["OVERLAP"], torch.device("cpu"))
    np.testing.assert_allclose(EXAMPLE["window"](length), expected.numpy(), atol=1e-6)


def test_the_example_has_the_package_s_numbers() -> None:
    assert EXAMPLE["WHOLE_WEIGHT"] == tiled_model.WHOLE_WEIGHT
    assert (EXAMPLE["LARGEST_MAP"], EXAMPLE["MAX_CROPS"]) == (tiles.LARGEST_MAP, crops.MAX_CROPS)
