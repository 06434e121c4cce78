# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""All pictures of a pass, before the pass."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from anomalib.data import PredictDataset
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from PIL import Image
from rich.progress import Progress
from torch.utils.data import DataLoader, IterableDataset

from anomalib_clipsam.data.unreadable import PictureCheck
from anomalib_clipsam.data.whole_pass import WholePass

INF = float("inf")


@pytest.fixture
def dataset(tmp_path: Path) -> PredictDataset:
    for value in range(7):
        Image.fromarray(np.full((8, 9, 3), 10 * value, np.uint8)).save(tmp_path / f"{value}.png")
    return PredictDataset(tmp_path)


def loader(dataset: PredictDataset, **more: object) -> DataLoader:
    size = {} if "batch_sampler" in more else {"batch_size": 3}
    return DataLoader(dataset, collate_fn=dataset.collate_fn, **size, **more)


def values(whole: WholePass) -> list[int]:
    return [round(float(image.mean()) * 25.5) for batch in whole for image in batch.image]


def test_every_picture_comes_once_in_a_mixed_order_that_is_the_same_every_time(dataset: PredictDataset) -> None:
    whole = WholePass(loader(dataset), [INF])
    assert (whole.pictures, len(whole)) == (7, 3)
    assert sorted(values(whole)) == list(range(7)) != values(whole)
    assert values(whole) == values(WholePass([loader(dataset)], [INF]))


def test_a_pass_over_some_batches_is_looked_at_as_far_as_it_goes(dataset: PredictDataset) -> None:
    whole = WholePass([loader(dataset), loader(dataset)], [1, 2])
    assert whole.pictures == 9
    assert sorted(values(whole)) == [0, 0, 1, 1, 2, 2, 3, 4, 5]
    assert sorted(values(WholePass(loader(dataset, batch_sampler=[[0], [1, 2]]), [2]))) == list(range(7))


def test_each_of_several_processes_looks_at_all_pictures_also_one_with_fewer(dataset: PredictDataset) -> None:
    for share, batches in (([0, 2, 4, 6], 2), ([1, 3, 5], 1), ([6], 1)):
        assert sorted(values(WholePass(loader(dataset, sampler=share), [batches], 2))) == list(range(7))
    assert sorted(values(WholePass(loader(dataset, sampler=[0, 2, 4, 6]), [1], 2))) == list(range(6))


def test_bar_stands_in_that_of_the_pass_and_changes_nothing(
    dataset: PredictDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = WholePass(loader(dataset), [INF])
    rich = RichProgressBar()

    def seen(bar: object, main: bool = True) -> int:
        trainer = SimpleNamespace(progress_bar_callback=bar, is_global_zero=main)
        return sum(len(batch.image) for batch in whole.shown(trainer, "Comparing"))

    assert (seen(None), seen(rich), seen(TQDMProgressBar(), main=False)) == (7, 7, 7)
    assert capsys.readouterr().err == ""
    rich.progress = Progress(disable=True)
    assert seen(rich) == 7
    (task,) = rich.progress.tasks
    assert (task.description, task.completed, task.total) == ("Comparing", 3, 3)
    assert seen(TQDMProgressBar()) == 7
    assert "Comparing: " in capsys.readouterr().err


def test_files_tell_one_pass_from_another(dataset: PredictDataset, tmp_path: Path) -> None:
    files = WholePass(loader(dataset), [INF]).files
    assert [Path(path).name for path, *_ in files] == [f"{value}.png" for value in range(7)]
    assert files == WholePass(loader(dataset), [INF]).files
    assert files != WholePass(loader(dataset), [2]).files
    Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(tmp_path / "0.png", compress_level=0)
    assert files != WholePass(loader(dataset), [INF]).files
    assert WholePass(DataLoader(torch.rand(4, 2), batch_size=2), [2]).files is None


def test_a_loader_that_is_iterated_already_goes_on(dataset: PredictDataset) -> None:
    own = loader(dataset, num_workers=1, persistent_workers=True)
    iterator = iter(own)
    next(iterator)
    assert len(values(WholePass(own, [INF]))) == 7
    assert len(list(iterator)) == 2


def test_no_validation_data_are_no_pictures() -> None:
    assert WholePass([], []).pictures == WholePass([[]], [0]).pictures == 0


def test_data_without_a_length_are_refused() -> None:
    class Endless(IterableDataset):
        def __iter__(self) -> None:
            raise AssertionError

    with pytest.raises(TypeError, match="must know how many pictures come"):
        WholePass(DataLoader(Endless()), [INF])


def test_pictures_that_vanish_before_a_look_are_passed_over(dataset: PredictDataset, tmp_path: Path) -> None:
    own, check = loader(dataset), PictureCheck()
    source = SimpleNamespace(instance=own, name="predict_dataloader")
    check.setup(SimpleNamespace(predict_loop=SimpleNamespace(_data_source=source)), None, "predict")
    (tmp_path / "3.png").unlink()
    whole = WholePass(own, [INF])
    assert (str(tmp_path / "3.png"), 0, 0) in whole.files
    assert sorted(values(whole)) == [0, 1, 2, 4, 5, 6]
    check.restore()
