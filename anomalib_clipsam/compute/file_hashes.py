# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Hashes of files, without torch, which takes long to import."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def hash_file(path: Path) -> str:
    """Hash a file.

    Args:
        path (Path): The file.

    Returns:
        str: Its SHA-256, in hexadecimal.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def hash_git_blob(path: Path) -> str:
    """Name a file as git does: its content and the length of it, hashed.

    Args:
        path (Path): The file.

    Returns:
        str: The blob's SHA-1, in hexadecimal.
    """
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
