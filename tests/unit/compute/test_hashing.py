# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Hashes of files and of weights."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from anomalib_clipsam.compute.hashing import hash_file, hash_git_blob, hash_tensors
from anomalib_clipsam.weights.load import load_sam
from anomalib_clipsam.weights.table import find_sam

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


def test_hash_of_weights_is_that_of_their_header_and_bytes() -> None:
    """``a``, of bytes 0 to 3, then ``b``, whose values lie in memory in another order."""
    tensors = {"b": torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T, "a": torch.arange(4, dtype=torch.uint8)}
    digest = hashlib.sha256(b"a (4,) torch.uint8" + bytes(range(4)) + b"b (2, 2) torch.float32")
    digest.update(torch.tensor([1.0, 3.0, 2.0, 4.0]).numpy().tobytes())
    assert hash_tensors(tensors) == digest.hexdigest()


def test_hash_is_of_names_shapes_and_values_alone(sam, tmp_path: Path) -> None:
    save_file(sam.state_dict(), tmp_path / "sam.safetensors")
    other_order = dict(
        reversed(
            load_sam(replace(find_sam("lite"), architecture="demo"), str(tmp_path / "sam.safetensors"))
            .state_dict()
            .items()
        )
    )
    assert hash_tensors(other_order) == hash_tensors(sam.state_dict())
    key = "mask_decoder.iou_token.weight"
    changed = {**other_order, key: other_order[key].clone()}
    changed[key][0, 0] += 1e-6
    renamed = {**other_order, "more": other_order.pop(key)}
    hashes = {hash_tensors(tensors) for tensors in (sam.state_dict(), changed, renamed, other_order)}
    assert len(hashes) == 4
