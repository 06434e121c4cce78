# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""What all tests share: no network, and the same numbers every time."""

import os
from pathlib import Path

import pytest

# Read by huggingface_hub, and so by open_clip and timm, when they are first imported.
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    """Begin every test with the same random numbers, on one thread: sums then have one order."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def text_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep text embeddings in a folder of the session's own, not in the user's."""
    folder = tmp_path_factory.getbasetemp() / "text_embeddings"
    monkeypatch.setattr("anomalib_clipsam.clip.text_cache.cache_folder", lambda: folder)
    return folder
