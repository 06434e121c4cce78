# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Tests of the data module that draws its pictures."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from anomalib.data import AnomalibDataModule
from PIL import Image

from anomalib_clipsam.drawn_parts import datamodule as module
from anomalib_clipsam.drawn_parts.datamodule import STAMP, DrawnParts
from anomalib_clipsam.drawn_parts.drawing import CATEGORIES, HELD_OUT_CATEGORIES, defects_of, draw_part

CATEGORY = "key"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> DrawnParts:
    """A category that is drawn once for the tests that only read it."""
    parts = DrawnParts(tmp_path_factory.mktemp("drawn"), CATEGORY)
    parts.prepare_data()
    return parts


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Draw three pictures for each category; gives the list of the categories drawn."""
    calls = []
    draw = module.draw_category

    def count(folder: Path, category: str) -> None:
        calls.append(category)
        draw(folder, category)

    monkeypatch.setattr(module, "TRAIN_GOOD", 1)
    monkeypatch.setattr(module, "TEST_GOOD", 1)
    monkeypatch.setattr(module, "defects_of", lambda _: ("dent",))
    monkeypatch.setattr(module, "_TEST_DEFECTIVE", 1)
    monkeypatch.setattr(module, "_TEST_DEFECTIVE_OF_A_KIND", 1)
    monkeypatch.setattr(module, "draw_category", count)
    return calls


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_defaults() -> None:
    parts = DrawnParts()
    assert parts.name == "DrawnParts"
    assert parts.root == Path("./datasets/DrawnParts")
    assert parts.category in HELD_OUT_CATEGORIES
    assert (parts.train_batch_size, parts.eval_batch_size, parts.num_workers) == (8, 8, 0)


def test_is_found_by_its_name() -> None:
    # What `--data DrawnParts` looks through.
    assert DrawnParts in AnomalibDataModule.__subclasses__()


def test_unknown_category_lists_the_choices() -> None:
    with pytest.raises(ValueError, match=r"no category 'cog'. Choose one of: brushed_metal, .*key"):
        DrawnParts(category="cog")


def test_layout_is_that_of_mvtec_ad(drawn: DrawnParts) -> None:
    assert [path.name for path in drawn.root.iterdir()] == [CATEGORY]
    folder = drawn.root / CATEGORY
    expected = {STAMP}
    expected |= {f"train/good/{i:03}.png" for i in range(10)}
    expected |= {f"test/good/{i:03}.png" for i in range(20)}
    for kind in defects_of(CATEGORY):
        expected |= {f"test/{kind}/{i:03}.png" for i in range(4)}
        expected |= {f"ground_truth/{kind}/{i:03}_mask.png" for i in range(4)}
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == expected


def test_every_category_has_about_thirty_defective_pictures() -> None:
    for category in CATEGORIES:
        kinds = len(defects_of(category))
        assert 24 <= kinds * max(4, 30 // kinds) <= 36


def test_written_files_are_the_drawn_pictures(drawn: DrawnParts) -> None:
    folder = drawn.root / CATEGORY
    rng = module._generator(CATEGORY, "test", "dent", 2)
    image, mask = draw_part(CATEGORY, rng, "dent")
    assert np.array_equal(np.array(Image.open(folder / "test/dent/002.png")), image)
    assert np.array_equal(np.array(Image.open(folder / "ground_truth/dent/002_mask.png")), mask.astype(np.uint8) * 255)


def test_generators_are_stable_and_differ() -> None:
    # Written down: a data set is the same on every machine and in every process.
    assert module._generator("key", "test", None, 0).integers(2**32) == 481538182
    keys = [("key", "test", None, 0), ("key", "test", None, 1), ("key", "train", None, 0), ("key", "test", "dent", 0)]
    keys.append(("capsule", "test", None, 0))
    assert len({int(module._generator(*key).integers(2**62)) for key in keys}) == len(keys)


def test_reads_as_an_anomalib_data_module(drawn: DrawnParts) -> None:
    drawn.setup()
    assert len(drawn.train_data) == 10
    assert len(drawn.test_data) == 20 + 4 * len(defects_of(CATEGORY))
    batch = next(iter(drawn.test_dataloader()))
    assert batch.image.shape == (8, 3, 256, 256)
    # anomalib sorts by path: chip, contamination, dent, ... and good between them.
    assert batch.gt_label.all()
    assert batch.gt_mask.flatten(1).any(1).all()
    assert drawn.test_data.samples.label_index.sum() == 4 * len(defects_of(CATEGORY))


def test_second_use_draws_nothing(tmp_path: Path, quick: list[str]) -> None:
    DrawnParts(tmp_path, CATEGORY).prepare_data()
    before = _files(tmp_path)
    DrawnParts(tmp_path, CATEGORY).prepare_data()
    assert quick == [CATEGORY]
    assert _files(tmp_path) == before
    DrawnParts(tmp_path, "capsule").prepare_data()
    assert quick == [CATEGORY, "capsule"]


def test_interrupted_drawing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: list[str]) -> None:
    drawn = []

    def interrupted(*args: object) -> tuple:
        drawn.append(args)
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return draw_part(*args)

    with monkeypatch.context() as patch:
        patch.setattr(module, "draw_part", interrupted)
        with pytest.raises(KeyboardInterrupt):
            DrawnParts(tmp_path, CATEGORY).prepare_data()
    assert list(tmp_path.iterdir()) == []
    DrawnParts(tmp_path, CATEGORY).prepare_data()
    assert [path.name for path in tmp_path.iterdir()] == [CATEGORY]


def test_other_process_was_quicker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: list[str]) -> None:
    draw = module.draw_category

    def overtaken(folder: Path, category: str) -> None:
        draw(folder, category)
        draw(tmp_path / category, category)

    monkeypatch.setattr(module, "draw_category", overtaken)
    DrawnParts(tmp_path, CATEGORY).prepare_data()
    assert [path.name for path in tmp_path.iterdir()] == [CATEGORY]
    assert (tmp_path / CATEGORY / STAMP).is_file()


def test_overtaken_at_the_last_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: list[str]) -> None:
    rename = Path.rename

    def late(self: Path, target: Path) -> Path:
        module.draw_category(target, CATEGORY)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    DrawnParts(tmp_path, CATEGORY).prepare_data()
    assert [path.name for path in tmp_path.iterdir()] == [CATEGORY]


def test_four_at_once(tmp_path: Path, quick: list[str]) -> None:
    barrier = threading.Barrier(4, timeout=30)

    def prepare() -> None:
        parts = DrawnParts(tmp_path, CATEGORY)
        barrier.wait()
        parts.prepare_data()

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(prepare) for _ in range(4)]:
            done.result(60)
    assert [path.name for path in tmp_path.iterdir()] == [CATEGORY]
    assert module._is_current(tmp_path / CATEGORY)


def test_other_version_is_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: list[str]) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "DRAWING_VERSION", 0)
        DrawnParts(tmp_path, CATEGORY).prepare_data()
    DrawnParts(tmp_path, CATEGORY).prepare_data()
    assert quick == [CATEGORY, CATEGORY]
    stamp = json.loads((tmp_path / CATEGORY / STAMP).read_text())
    assert stamp["drawing_version"] == module.DRAWING_VERSION
    assert [path.name for path in tmp_path.iterdir()] == [CATEGORY]


@pytest.mark.parametrize("name", ["mine.txt", "test/good/000.png", "test/good/mine.png"])
def test_files_of_a_user_are_never_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: list[str], name: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "DRAWING_VERSION", 0)
        DrawnParts(tmp_path, CATEGORY).prepare_data()
    (tmp_path / CATEGORY / name).write_bytes(b"mine")
    before = _files(tmp_path)
    with pytest.raises(FileExistsError, match=f"such as {name}. Give another root, or move that folder"):
        DrawnParts(tmp_path, CATEGORY).prepare_data()
    assert _files(tmp_path) == before


@pytest.mark.parametrize("stamp", [None, "not json", "[]", '{"other": 1}'])
def test_folder_of_another_origin_is_refused(tmp_path: Path, quick: list[str], stamp: str | None) -> None:
    folder = tmp_path / CATEGORY / "test"
    folder.mkdir(parents=True)
    (folder / "mine.png").write_bytes(b"mine")
    if stamp is not None:
        (tmp_path / CATEGORY / STAMP).write_text(stamp)
    before = _files(tmp_path)
    with pytest.raises(FileExistsError, match=r"was not drawn by DrawnParts.* Give another root"):
        DrawnParts(tmp_path, CATEGORY).prepare_data()
    assert quick == []
    assert _files(tmp_path) == before


def test_file_in_the_way_is_refused(tmp_path: Path, quick: list[str]) -> None:
    (tmp_path / CATEGORY).write_text("mine")
    with pytest.raises(FileExistsError, match="was not drawn by DrawnParts"):
        DrawnParts(tmp_path, CATEGORY).prepare_data()
    assert (tmp_path / CATEGORY).read_text() == "mine"


def test_empty_folder_is_filled(tmp_path: Path, quick: list[str]) -> None:
    (tmp_path / CATEGORY).mkdir()
    DrawnParts(tmp_path, CATEGORY).prepare_data()
    assert quick == [CATEGORY]
    assert (tmp_path / CATEGORY / "test/dent/000.png").is_file()
