# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Good parts: which are read, from where, and what is said where they cannot be."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from anomalib.data import Folder
from PIL import Image

from anomalib_clipsam.data import good_parts

if TYPE_CHECKING:
    from collections.abc import Sequence


def grey(path: Path, value: int, size: tuple[int, int] = (40, 30)) -> None:
    """Write a picture of one grey; width and height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), value, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for value in (3, 1, 2):
        grey(tmp_path / "good" / f"{value}.png", 10 * value)
        grey(tmp_path / "defect" / f"{value}.png", 200)
    return tmp_path


def read_good_parts(number: int, source: object, datamodule: object, **more: object) -> good_parts.GoodParts:
    """Good parts as they are."""
    return good_parts.read_good_parts(number, source, datamodule, lambda picture: picture, **more)


def values(parts: Sequence[torch.Tensor]) -> list[int]:
    return [round(float(part.mean()) * 255) for part in parts]


def test_the_first_files_of_a_folder_are_read(folder: Path) -> None:
    parts = read_good_parts(2, folder / "good", None)
    assert values(parts) == [10, 20]
    assert {tuple(part.shape) for part in parts} == {(3, 30, 40)}


def test_one_picture_is_a_source_too(folder: Path) -> None:
    assert values(read_good_parts(1, folder / "good" / "3.png", None)) == [30]


def test_good_parts_may_be_of_several_sizes(folder: Path) -> None:
    grey(folder / "good" / "0.png", 5, size=(20, 50))
    assert [tuple(part.shape) for part in read_good_parts(2, folder / "good", None)] == [(3, 50, 20), (3, 30, 40)]


def test_without_a_folder_they_are_the_training_data_s_normal_pictures(folder: Path) -> None:
    data = Folder("parts", "good", folder, "defect", "good", val_split_mode="same_as_test", num_workers=0)
    data.setup()
    assert values(read_good_parts(2, None, data)) == [10, 20]


def test_fewer_than_asked_for_are_counted(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"k_shot is 4, but few_shot_source='.*good' has 3 good parts\. Add pictures"):
        read_good_parts(4, folder / "good", None)
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match=r"k_shot is 1, but few_shot_source='.*empty' has 0 good parts"):
        read_good_parts(1, folder / "empty", None)


def test_a_folder_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none' does not exist\. Give a folder of at least 2 good parts"):
        read_good_parts(2, folder / "none", None)


def test_without_any_source_the_flag_is_named() -> None:
    for datamodule in (None, SimpleNamespace()):
        with pytest.raises(ValueError, match=r"k_shot=2 needs good parts.* --model\.few_shot_source FOLDER"):
            read_good_parts(2, None, datamodule)


def test_a_broken_one_is_named_and_not_passed_over(folder: Path) -> None:
    (folder / "good" / "1.png").write_bytes(b"no picture")
    with pytest.raises(
        ValueError, match=r"A good part cannot be used: .*1\.png is no picture in BMP, .* or WEBP\. Mend the file"
    ):
        read_good_parts(2, folder / "good", None)


def test_parts_are_read_and_prepared_when_they_are_asked_for(folder: Path) -> None:
    parts = good_parts.read_good_parts(2, folder / "good", None, lambda picture: 1 - picture)
    grey(folder / "good" / "2.png", 100)
    assert values(parts) == [245, 155]
    assert values(parts) == [245, 155]


def test_a_part_that_the_model_cannot_take_is_named(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"A good part cannot be used: .*1\.png cannot be cut: 40 x 30; .*2\.png"):
        read_good_parts(2, folder / "good", None, fits=lambda size: f"cannot be cut: {size[0]} x {size[1]}")
