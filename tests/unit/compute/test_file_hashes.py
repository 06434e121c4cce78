# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Hashes of files."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from anomalib_clipsam.compute.file_hashes import hash_file, hash_git_blob

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("content", [b"", b"abc", bytes(range(256)) * (3 * 2**12) + b"rest"])
def test_hash_of_a_file_is_its_sha256(tmp_path: Path, content: bytes) -> None:
    """Also of one that is longer than the block of 1 MiB that is read at once."""
    (tmp_path / "file").write_bytes(content)
    assert hash_file(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_git_blob_is_gits(tmp_path: Path) -> None:
    """`printf 'what is up, doc?' | git hash-object --stdin`, from the book on git."""
    (tmp_path / "a").write_bytes(b"what is up, doc?")
    assert hash_git_blob(tmp_path / "a") == "bd9dbf5aae1a3862dd1526723246b20206e5fc37"
