# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""A progress bar for what a model looks at before a pass."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from lightning.pytorch.callbacks import RichProgressBar
from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lightning import Trainer


@contextmanager
def progress(trainer: Trainer | None, says: str, total: int) -> Iterator[Callable[[float], object]]:
    """Show a progress bar where the pass has one, once in several processes.

    Args:
        trainer (Trainer | None): Trainer of the pass; ``None`` outside passes, where there is no bar.
        says (str): What is done.
        total (int): Number of steps.

    Yields:
        Callable[[float], object]: Advances the bar by some steps.
    """
    bar = None if trainer is None else trainer.progress_bar_callback
    if isinstance(bar, RichProgressBar) and bar.progress is not None:  # the pass's own: a second would break its lines
        yield partial(bar.progress.advance, bar.progress.add_task(says, total=total))
        return
    hidden = bar is None or isinstance(bar, RichProgressBar) or not trainer.is_global_zero
    with tqdm(total=total, desc=says, leave=False, disable=hidden) as steps:
        yield steps.update
