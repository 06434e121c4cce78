# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Where files of weights are found, and how they are checked. Nothing is fetched."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from anomalib_clipsam.compute.file_hashes import hash_file
from anomalib_clipsam.weights import store
from anomalib_clipsam.weights.store import WEIGHTS_VARIABLE, fetch, find, locate
from anomalib_clipsam.weights.table import Source, WeightFile, find_sam, pair_files

ROW = WeightFile(
    "some",
    "SAM",
    "vit_b",
    1024,
    "MIT",
    (
        Source("some.safetensors", 7, "", repository="owner/name", revision="0" * 40, path="folder/model.safetensors"),
        Source("some.pth", 7, "", url="https://example.invalid/some.pth"),
    ),
)


def cached(hub: Path) -> Path:
    """Where the cache of the hub would have :data:`ROW`'s file."""
    return hub / "models--owner--name" / "snapshots" / ("0" * 40) / "folder" / "model.safetensors"


def written_row(path: Path, content: bytes = b"weights") -> WeightFile:
    """Write a file; :data:`ROW` with the size and hash of ``b"weights"``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    sound = hashlib.sha256(b"weights").hexdigest()
    return replace(ROW, sources=tuple(replace(source, sha256=sound) for source in ROW.sources))


def test_order_of_places(places: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of the variable, anomalib's folder, the hub's cache; the first source first within a folder."""
    files = [
        *(places[name] / filename for name in ("own", "anomalib") for filename in ("some.safetensors", "some.pth")),
        cached(places["hub"]),
    ]
    for file in files:
        row = written_row(file)
    for file in files:
        assert find(row)[0] == locate(row) == file
        file.unlink()
    assert find(row) is None
    written_row(files[0])
    monkeypatch.setenv(WEIGHTS_VARIABLE, "")
    assert find(row) is None


def test_lite_is_carried_and_small() -> None:
    rows = pair_files("lite")
    assert [row.name for row in rows] == ["clip_lite", "sam_lite", "pyramid_lite"]
    files = [locate(row) for row in rows]
    assert all(file.is_file() for file in files)
    assert sum(file.stat().st_size for file in files) < 25e6
    assert sorted(files) == sorted(files[0].parent.glob("*.safetensors"))  # no others are carried
    for row, file in zip(rows, files, strict=True):
        (source,) = row.sources
        assert (source.size, source.sha256) == (file.stat().st_size, hash_file(file))


def test_carried_file_is_never_looked_for_elsewhere(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path))
    (tmp_path / "lite_sam.safetensors").touch()
    assert locate(find_sam("lite")) == Path(store.__file__).parent / "carried" / "lite_sam.safetensors"


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"short", "5 bytes, not 7"), (b"WEIGHTS", f"SHA-256 {hashlib.sha256(b'WEIGHTS').hexdigest()}")],
)
@pytest.mark.parametrize("place", ["own", "anomalib", "hub"])
def test_damaged_file_is_refused_and_named(places: dict[str, Path], place: str, content: bytes, reason: str) -> None:
    path = cached(places["hub"]) if place == "hub" else places[place] / "some.pth"
    row = written_row(path, content)
    with pytest.raises(ValueError, match=f"{path} is damaged or another file: it has {reason}.* Delete it, then fetch"):
        locate(row)
    assert path.read_bytes() == content  # it is the user's to delete


def test_damaged_package(places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "CARRIED", tmp_path)
    (tmp_path / "lite_sam.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"is damaged: it has 5 bytes.* Install anomalib_clipsam again"):
        locate(find_sam("lite"))


def test_planted_link_is_not_written_through(places: dict[str, Path], tmp_path: Path) -> None:
    """Neither where a file goes to, nor where an unfinished one could be guessed to be."""
    row = written_row(places["own"] / "some.pth")
    target, victim = tmp_path / "target", tmp_path / "victim"
    target.mkdir()
    victim.write_bytes(b"mine")
    names = [source.filename + end for source in row.sources for end in ("", ".partial", f".{os.getpid()}.partial")]
    for name in names:
        (target / name).symlink_to(victim if name.endswith("partial") else tmp_path / "nowhere")
    path = fetch(row, target)
    assert path.read_bytes() == b"weights"
    assert not path.is_symlink()
    assert victim.read_bytes() == b"mine"
    assert not (tmp_path / "nowhere").exists()
    assert sorted(path.name for path in target.iterdir() if path.suffix != ".lock") == sorted(names)


def test_folder_that_cannot_be_made(places: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "anomalib").write_text("a file where a folder should be")
    with pytest.raises(FileNotFoundError, match=f"some are neither in .* Bring .* set {WEIGHTS_VARIABLE}"):
        locate(ROW)
