# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""What all tests share: no network, and the same numbers every time."""

import os

import pytest

# Read by huggingface_hub, and so by open_clip and timm, when they are first imported.
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    """Begin every test with the same random numbers, on one thread: sums then have one order."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
