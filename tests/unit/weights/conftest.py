# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Places where files of weights are looked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from anomalib_clipsam.weights import store
from anomalib_clipsam.weights.store import WEIGHTS_VARIABLE

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Empty places to look in, by what they are, in the order in which they are looked in; downloads fail a test."""
    places = {"own": tmp_path / "own", "anomalib": tmp_path / "anomalib" / "clip_sam", "hub": tmp_path / "hub"}
    monkeypatch.setattr(store, "urlopen", lambda *_args, **_kwargs: pytest.fail("a download"))
    monkeypatch.setattr(store, "get_pretrained_weights_dir", lambda: tmp_path / "anomalib")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(places["hub"]))
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(places["own"]))
    return places
