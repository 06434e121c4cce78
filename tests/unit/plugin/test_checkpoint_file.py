# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""How Lightning reads a checkpoint: everything is passed on, and a damaged file gets a sentence."""

from __future__ import annotations

import pickle
import traceback
from pickle import UnpicklingError
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest
import torch
from lightning.fabric.plugins import CheckpointIO, TorchCheckpointIO

from anomalib_clipsam.plugin.checkpoint_file import UNREADABLE, CheckedCheckpointIO, check_what_is_read

if TYPE_CHECKING:
    from pathlib import Path

ADVICE = r"Give the file that `anomalib test` or `train` has written, or leave the path out to calibrate anew\."


def test_checkpoint_is_written_read_and_removed_as_before(tmp_path: Path) -> None:
    checked, path = CheckedCheckpointIO(TorchCheckpointIO()), tmp_path / "model.ckpt"
    checked.save_checkpoint({"epoch": 3, "scale": torch.tensor([0.5, 2.0])}, path)
    content = checked.load_checkpoint(path)
    assert content.keys() == {"epoch", "scale"}
    assert content["epoch"] == 3
    assert content["scale"].tolist() == [0.5, 2.0]
    checked.remove_checkpoint(path)
    assert not path.exists()


def test_every_call_is_passed_on_with_its_arguments() -> None:
    inner = Mock(spec=CheckpointIO)
    checked = CheckedCheckpointIO(inner)
    checked.save_checkpoint({}, "a.ckpt", storage_options={"x": 1})
    checked.remove_checkpoint("a.ckpt")
    checked.teardown()
    assert checked.load_checkpoint("a.ckpt", map_location="cpu") is inner.load_checkpoint.return_value
    inner.save_checkpoint.assert_called_once_with({}, "a.ckpt", storage_options={"x": 1})
    inner.remove_checkpoint.assert_called_once_with("a.ckpt")
    inner.teardown.assert_called_once_with()
    inner.load_checkpoint.assert_called_once_with("a.ckpt", map_location="cpu")


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_cannot_be_read_is_named_with_the_first_line_of_the_reason(kind: type[Exception]) -> None:
    inner = Mock(spec=CheckpointIO)
    inner.load_checkpoint.side_effect = kind("the reason.\nmore about it")
    with pytest.raises(ValueError, match=rf"^a\.ckpt is damaged or no checkpoint: the reason\. {ADVICE}$") as raised:
        CheckedCheckpointIO(inner).load_checkpoint("a.ckpt")
    assert raised.value.__cause__ is (None if kind is UnpicklingError else inner.load_checkpoint.side_effect)


def test_reason_without_words_is_the_name_of_the_error() -> None:
    inner = Mock(spec=CheckpointIO)
    inner.load_checkpoint.side_effect = EOFError()
    with pytest.raises(ValueError, match=rf"^a\.ckpt is damaged or no checkpoint: EOFError\. {ADVICE}$"):
        CheckedCheckpointIO(inner).load_checkpoint("a.ckpt")


@pytest.mark.parametrize("form", ["zip", "pickle"])
def test_code_is_neither_run_nor_advised_to_be_run(tmp_path: Path, form: str) -> None:
    """Not even in the traceback: torch says how to load the file all the same."""
    path = tmp_path / "model.ckpt"
    torch.save({"a": print}, path) if form == "zip" else path.write_bytes(pickle.dumps({"a": print}))
    with pytest.raises(ValueError, match=rf"model\.ckpt is damaged or no checkpoint: Unsupported .*{ADVICE}") as raised:
        CheckedCheckpointIO(TorchCheckpointIO()).load_checkpoint(path)
    said = "".join(traceback.format_exception(raised.value))
    assert "weights_only" not in said
    assert "add_safe_globals" not in said


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_truncated_file(tmp_path: Path, share: float) -> None:
    path = tmp_path / "model.ckpt"
    torch.save({"scale": torch.rand(100)}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=rf"model\.ckpt is damaged or no checkpoint: .*{ADVICE}"):
        CheckedCheckpointIO(TorchCheckpointIO()).load_checkpoint(path)


def test_missing_file_is_called_missing(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"There is no checkpoint .*nothing\.ckpt\. Correct the path, or leave it"
    ):
        CheckedCheckpointIO(TorchCheckpointIO()).load_checkpoint(tmp_path / "nothing.ckpt")


def test_trainer_reads_checked_and_is_wrapped_once() -> None:
    inner = TorchCheckpointIO()
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(checkpoint_io=inner))
    check_what_is_read(trainer)
    checked = trainer.strategy.checkpoint_io
    assert isinstance(checked, CheckedCheckpointIO)
    assert checked.inner is inner
    check_what_is_read(trainer)
    assert trainer.strategy.checkpoint_io is checked
