# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Which pictures a process scores, and what is refused before anything is read."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from anomalib_clipsam.predictions.run import (
    Pictures,
    Share,
    check_trainer,
    hash_content,
    leave_out_results,
    list_pictures,
)


def shares(monkeypatch: pytest.MonkeyPatch, count: int, scored: set[str], processes: int) -> list[list[int]]:
    dataset = SimpleNamespace(image_filenames=[Path(f"{place}.png") for place in range(count)])
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: processes > 1)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: processes)
    found = []
    for rank in range(processes):
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        share = Share(dataset, scored)
        found.append(list(share))
        assert len(share) == len(found[-1])
    return found


def test_each_of_several_processes_takes_its_part_of_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shares(monkeypatch, 5, set(), 1) == [[0, 1, 2, 3, 4]]
    assert shares(monkeypatch, 5, set(), 2) == [[0, 2, 4], [1, 3]]
    assert shares(monkeypatch, 5, {"0.png", "3.png"}, 2) == [[1, 4], [2]]


def test_a_process_for_which_nothing_is_left_still_takes_part(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shares(monkeypatch, 3, {"0.png", "1.png"}, 3) == [[2], [0], [0]]


def test_pictures_that_a_pass_leaves_out_shift_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are left out after the sampler was made."""
    dataset = SimpleNamespace(image_filenames=[Path(f"{place}.png") for place in range(4)])
    share = Share(dataset, {"0.png"})
    dataset.image_filenames = dataset.image_filenames[2:]
    assert list(share) == [0, 1]


@pytest.mark.parametrize("arguments", [{"devices": "many"}, {"devices": "0"}, {"accelerator": "abacus"}])
def test_what_lightning_cannot_do_is_said_before_anything_is_read(arguments: dict[str, str]) -> None:
    ((name, value),) = arguments.items()
    with pytest.raises(ValueError, match=f"Lightning cannot run with .*{name}='{value}'.* Choose others"):
        check_trainer(**{"accelerator": "cpu", **arguments})


def test_results_of_this_and_earlier_runs_are_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "earlier" / "journal").mkdir(parents=True)
    (tmp_path / "earlier" / "settings.json").write_text("{}")
    (tmp_path / "line" / "settings.json").parent.mkdir()
    (tmp_path / "line" / "settings.json").write_text("of a camera")
    names = ["a.png", "line/a.png", "out/masks/a.png", "earlier/masks/sub/a.png"]
    files = [tmp_path / name for name in names]
    assert leave_out_results(files, tmp_path, tmp_path / "out") == files[:2]
    with pytest.raises(ValueError, match="has no pictures but results"):
        leave_out_results(files[2:], tmp_path, tmp_path / "out")


def test_pictures_of_any_name_are_listed_and_read(tmp_path: Path) -> None:
    folder = tmp_path / "Prüfteile"
    (folder / "Schicht 2").mkdir(parents=True)
    for name in ("größe.PNG", "Schicht 2/a.jpg"):
        Image.new("RGB", (4, 2)).save(folder / name)
    (folder / "notes.txt").write_text("none")
    files = list_pictures(folder)
    assert files == [folder / "Schicht 2" / "a.jpg", folder / "größe.PNG"]
    assert list_pictures(files[1]) == files[1:]
    assert [tuple(item.image.shape) for item in Pictures(files)] == [(3, 2, 4)] * 2


def test_content_tells_files_and_folders_from_others(tmp_path: Path) -> None:
    for value in (0, 1):
        Image.new("L", (4, 4), value).save(tmp_path / f"{value}.png")
    before = hash_content(tmp_path)
    assert before == " ".join(hash_content(tmp_path / f"{value}.png") for value in (0, 1))
    Image.new("L", (4, 4), 9).save(tmp_path / "1.png")
    assert hash_content(tmp_path) != before
