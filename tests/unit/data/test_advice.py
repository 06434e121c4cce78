# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""What is said before a pass whose data or results would surprise."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import yaml
from anomalib.data import Folder, PredictDataset, UCSDped
from PIL import Image
from torch.utils.data import DataLoader

from anomalib_clipsam.data.advice import find_overwritten, find_results_inside, find_unused, refuse_videos
from anomalib_clipsam.data.unreadable import PictureCheck

if TYPE_CHECKING:
    from lightning import LightningDataModule

CONFIG = Path(__file__).parents[3] / "configs" / "folder.yaml"


def pictures(folder: Path, number: int) -> Path:
    folder.mkdir(parents=True)
    for index in range(number):
        Image.new("L", (8, 8), index).save(folder / f"{index}.png")
    return folder


def folder_module(root: Path, **arguments: object) -> LightningDataModule:
    """A data module of good pictures, set up."""
    data = Folder("zips", root=root, normal_dir="good", seed=0, **arguments)
    data.setup()
    return data


def test_videos_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"UCSDped gives videos, and ClipSam looks at single pictures. Save their frame"
    ):
        refuse_videos(UCSDped())
    refuse_videos(None)


def test_good_pictures_that_are_kept_for_a_training(tmp_path: Path) -> None:
    pictures(tmp_path / "good", 10)
    data = folder_module(tmp_path)
    assert len(data.train_data) == 8
    assert find_unused(data).startswith(
        "8 good pictures are kept for a training, and ClipSam needs none. To test on all"
    )
    followed = folder_module(tmp_path, normal_test_dir="good", val_split_mode="same_as_test")
    assert (len(followed.test_data), len(followed.val_data)) == (10, 10)
    assert find_unused(followed) is None
    assert find_unused(None) is None


def test_ready_configuration_tests_all_pictures(tmp_path: Path) -> None:
    pictures(tmp_path / "good", 10)
    pictures(tmp_path / "defect", 3)
    arguments = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["data"]["init_args"]
    data = Folder(**arguments | {"root": tmp_path})
    data.setup()
    assert (len(data.test_data), len(data.val_data)) == (13, 13)
    assert find_unused(data) is None


def test_results_that_overwrite_others(tmp_path: Path) -> None:
    apart = [tmp_path / "a" / "0.png", tmp_path / "b" / "0.png", tmp_path / "a" / "1.png"]
    assert find_overwritten(apart, None) is None
    same = [tmp_path / line / "today" / "0.png" for line in ("a", "b", "c")]
    said = find_overwritten(same, None)
    assert said.startswith(
        f"2 of 3 pictures of the results will overwrite others: {same[0]} and {same[1]} both become "
    )
    known = SimpleNamespace(name=tmp_path.name, category=None)  # below the data set's folder all folders count
    assert find_overwritten(same, known) is None
    assert list(tmp_path.iterdir()) == []


def test_results_among_the_pictures(tmp_path: Path) -> None:
    paths = [tmp_path / "pictures" / f"{index}.png" for index in range(2)]
    assert find_results_inside(paths, tmp_path / "results" / "images") is None
    assert find_results_inside(paths, tmp_path / "pictures2" / "images") is None
    assert find_results_inside(paths[:1], tmp_path / "pictures" / "results") is None
    inside = tmp_path / "pictures" / "results"
    assert find_results_inside(paths, inside).startswith(f"The results are written to {inside}, inside the folder")


@pytest.mark.parametrize("visualizer", [SimpleNamespace(output_dir=None), None])
def test_warnings_come_before_the_pass(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, visualizer: SimpleNamespace | None
) -> None:
    """Where pictures of the results are written."""
    for line in ("a", "b"):
        pictures(tmp_path / line / "today", 1)
    source = DataLoader(PredictDataset(tmp_path))
    loop = SimpleNamespace(_data_source=SimpleNamespace(instance=source))
    trainer = SimpleNamespace(predict_loop=loop, is_global_zero=True, default_root_dir=tmp_path / "results")
    with caplog.at_level(logging.WARNING, "anomalib_clipsam"):
        PictureCheck().setup(trainer, SimpleNamespace(visualizer=visualizer), "predict")
    beginnings = [message.partition(" ")[0] for message in caplog.messages]
    assert beginnings == (["1", "The"] if visualizer else [])
