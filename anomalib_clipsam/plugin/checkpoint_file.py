# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""How checkpoints are read: a damaged file, or one that is no checkpoint, raises an error that names it."""

from __future__ import annotations

from contextlib import contextmanager
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from lightning.fabric.plugins import CheckpointIO

from anomalib_clipsam.errors.errors import UserFileNotFoundError, UserValueError, reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lightning import Trainer

UNREADABLE = (RuntimeError, UnpicklingError, EOFError, ValueError, LookupError, AttributeError, TypeError, ImportError)
"""What ``torch.load`` raises for a damaged file, by where the damage is."""


class CheckedCheckpointIO(CheckpointIO):
    """The trainer's own checkpoint I/O, with an error that names the file.

    Args:
        inner (CheckpointIO): The trainer's own.
    """

    def __init__(self, inner: CheckpointIO) -> None:
        self.inner = inner

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Write a checkpoint. Arguments as Lightning's."""
        self.inner.save_checkpoint(*args, **kwargs)

    def remove_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Remove a checkpoint. Arguments as Lightning's."""
        self.inner.remove_checkpoint(*args, **kwargs)

    def teardown(self) -> None:
        """Finish pending writes."""
        self.inner.teardown()

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint.

        Args:
            path (Any): The file.
            *args: As Lightning's.
            **kwargs: As Lightning's.

        Returns:
            dict[str, Any]: What it holds.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it cannot be read.
        """
        try:
            with naming(path, UNREADABLE):
                return self.inner.load_checkpoint(path, *args, **kwargs)
        except FileNotFoundError as error:
            msg = f"There is no checkpoint {path}. Correct the path, or leave it out to calibrate anew."
            raise UserFileNotFoundError(msg) from error


@contextmanager
def naming(path: Any, kinds: tuple[type[Exception], ...]) -> Iterator[None]:
    """Name a checkpoint in the errors of what reads it.

    Args:
        path (Any): The file.
        kinds (tuple[type[Exception], ...]): Errors that mean that it cannot be read.

    Raises:
        ValueError: In their place.
    """
    try:
        yield
    except kinds as error:
        msg = (
            f"{path} is damaged or no checkpoint: {reason(error)} Give the file that `anomalib test` or `train` "
            "has written, or leave the path out to calibrate anew."
        )
        # a traceback shows the cause too, and torch's text advises to run the file's code
        raise UserValueError(msg) from (None if isinstance(error, UnpicklingError) else error)


def check_entries(saved: Any, types: dict[str, type | tuple[type, ...]]) -> None:
    """Raise unless something that was read from a checkpoint has some entries.

    Args:
        saved (Any): What was read.
        types (dict[str, type | tuple[type, ...]]): Type of each entry that it must have.

    Raises:
        ValueError: If one is missing or of another type.
    """
    entries = saved if isinstance(saved, dict) else {}
    wrong = [name for name, kinds in types.items() if not isinstance(entries.get(name), kinds)]
    if wrong:
        msg = (
            f"The checkpoint lacks {', '.join(wrong)}, or has something else there. Give an unchanged file that "
            "`anomalib test` or `train` has written, or calibrate anew without it."
        )
        raise UserValueError(msg)


def check_what_is_read(trainer: Trainer) -> None:
    """Let a trainer read checkpoints with :class:`CheckedCheckpointIO`.

    Args:
        trainer (Trainer): The trainer, before it reads a checkpoint.
    """
    checkpoint_io = trainer.strategy.checkpoint_io
    if not isinstance(checkpoint_io, CheckedCheckpointIO):
        trainer.strategy.checkpoint_io = CheckedCheckpointIO(checkpoint_io)
