# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The progress bar before a pass: where it is shown, and that looks at good parts move it by a step a picture."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar

from anomalib_clipsam.data.good_parts import WatchedViews
from anomalib_clipsam.data.progress import progress
from anomalib_clipsam.references.judge import View


class Tasks:
    """Stands in for Rich's progress."""

    def __init__(self) -> None:
        self.done = {}

    def add_task(self, says: str, total: int) -> tuple[str, int]:
        self.done[says, total] = 0.0
        return says, total

    def advance(self, task: tuple[str, int], steps: float) -> None:
        self.done[task] += steps


def trainer(bar: object, first: bool = True) -> SimpleNamespace:
    return SimpleNamespace(progress_bar_callback=bar, is_global_zero=first)


@pytest.mark.parametrize(
    "hidden", [None, trainer(None), trainer(TQDMProgressBar(), first=False), trainer(RichProgressBar(), first=False)]
)
def test_nothing_is_shown_where_a_pass_has_no_bar(hidden: object, capsys: pytest.CaptureFixture[str]) -> None:
    with progress(hidden, "Looking", 2) as advance:
        advance(1)
    assert "".join(capsys.readouterr()) == ""


def test_a_bar_of_its_own_is_shown_beside_tqdm_s(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(trainer(TQDMProgressBar()), "Looking", 2) as advance:
        advance(1)
    assert "Looking" in capsys.readouterr().err


def test_looks_at_good_parts_advance_rich_s_bar_by_one_a_picture() -> None:
    bar, counts = RichProgressBar(), {5: [2, 2, 1], 1: [1]}
    bar.progress = Tasks()
    model = SimpleNamespace(
        count_views=lambda image: image.shape[-1],
        join=None,
        views=lambda image: (
            View(torch.zeros(number, 3, 3), torch.zeros(number)) for number in counts[image.shape[-1]]
        ),
    )
    with progress(trainer(bar), "Looking", 2) as advance:
        for width in counts:
            seen = list(WatchedViews(model, advance).views(torch.zeros(1, 3, 1, width)))
            assert [len(view.map) for view in seen] == counts[width]
    assert bar.progress.done == {("Looking", 2): pytest.approx(2)}
