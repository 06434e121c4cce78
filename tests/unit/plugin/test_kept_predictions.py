# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Predictions that a validation pass leaves to the test pass."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING
from unittest.mock import Mock

import pytest
import torch
from anomalib.data import InferenceBatch

from anomalib_clipsam.plugin.kept_predictions import PredictionStore, RunEnd

if TYPE_CHECKING:
    from tests.unit.conftest import FakeCuda

CPU = torch.device("cpu")


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    files = [tmp_path / name for name in ("a.png", "b.png")]
    for file in files:
        file.write_bytes(b"picture")
    return [str(file) for file in files]


def predicted(*, mask: bool = True) -> InferenceBatch:
    maps = torch.rand(2, 5, 7)
    return InferenceBatch(pred_score=torch.rand(2), anomaly_map=maps, pred_mask=maps > 0.5 if mask else None)


@pytest.mark.parametrize("mask", [True, False])
def test_what_is_kept_is_given(paths: list[str], mask: bool) -> None:
    store, images, expected = PredictionStore(), torch.rand(2, 3, 16, 24), predicted(mask=mask)
    store.put(store.keys(paths, images, "settings"), expected)
    order = [1, 0]
    found = store.get(store.keys([paths[i] for i in order], images[order], "settings"), CPU)
    assert torch.equal(found.pred_score, expected.pred_score[order])
    assert torch.equal(found.anomaly_map, expected.anomaly_map[order])
    assert found.pred_mask is None if not mask else torch.equal(found.pred_mask, expected.pred_mask[order])
    store.clear()
    assert store.get(store.keys(paths, images, "settings"), CPU) is None
    assert store.used == 0


def test_whatever_determines_a_prediction_is_in_its_key(paths: list[str]) -> None:
    store, images = PredictionStore(), torch.rand(2, 3, 16, 24)
    store.put(store.keys(paths, images, "settings"), predicted())
    assert store.get(store.keys(paths, images, "settings"), CPU) is not None
    assert store.get(store.keys(paths, images, "others"), CPU) is None
    assert store.get(store.keys(paths, images + 0.1, "settings"), CPU) is None
    assert store.get(store.keys(paths, images[..., :16], "settings"), CPU) is None
    assert store.get(store.keys(paths[::-1], images, "settings"), CPU) is None
    os.utime(paths[1], ns=(1, 1))
    assert store.get(store.keys(paths, images, "settings"), CPU) is None
    assert store.get(store.keys(paths[:1], images[:1], "settings"), CPU) is not None
    Path(paths[0]).write_bytes(b"another picture")
    assert store.get(store.keys(paths[:1], images[:1], "settings"), CPU) is None


@pytest.mark.parametrize("known", [None, [], ["a.png"], ["no/such/file", "b.png"]])
def test_images_that_are_not_known_by_their_files(known: list[str] | None) -> None:
    store = PredictionStore()
    keys = store.keys(known, torch.rand(2, 3, 16, 24), "settings")
    assert keys is None
    store.put(keys, predicted())
    assert store.kept == {}
    assert store.get(keys, CPU) is None


def test_a_batch_is_moved_as_a_whole(paths: list[str], fake_cuda: FakeCuda) -> None:
    """Scores, maps and masks: three copies, however many pictures."""
    with torch.device("cuda"):
        predictions = predicted()
    PredictionStore().put(["a", "b"], predictions)
    assert fake_cuda.waits == ["aten._to_copy.default"] * 3


def test_memory_is_bounded(paths: list[str]) -> None:
    size = 4 + 5 * 7 * 4 + 5 * 7
    images = torch.rand(2, 3, 16, 24)
    for limit, kept in ((2 * size, 2), (2 * size - 1, 1), (size, 1), (size - 1, 0)):
        store = PredictionStore(limit)
        keys = store.keys(paths, images, "settings")
        for _ in range(2):  # a second time takes no room
            store.put(keys, predicted())
        assert (len(store.kept), store.used) == (kept, kept * size)
        assert (store.get(keys, CPU) is None) == (kept < 2)


@pytest.mark.parametrize(
    ("stage", "printed", "forgets"),
    [
        ("validate", True, True),  # asked for by itself, or by `fit`
        ("validate", False, False),  # before a test or a predict pass
        ("test", True, True),
        ("predict", True, True),
    ],
)
def test_a_run_ends_with_its_last_pass(stage: str, printed: bool, forgets: bool) -> None:
    forget = Mock()
    trainer = SimpleNamespace(validate_loop=SimpleNamespace(verbose=printed))
    end = RunEnd(forget)
    end.setup(trainer, None, stage)
    assert forget.called == (stage == "validate")
    forget.reset_mock()
    end.teardown(trainer, None, stage)
    assert forget.called == forgets


def test_an_error_ends_a_run() -> None:
    forget = Mock()
    RunEnd(forget).on_exception(None, None, KeyboardInterrupt())
    forget.assert_called_once_with()
