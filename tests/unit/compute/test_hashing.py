# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Hashes of files and of weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safetensors.torch import save_file

from anomalib_clipsam.compute.hashing import hash_tensors
from anomalib_clipsam.weights.load import load_sam
from anomalib_clipsam.weights.table import find_sam

if TYPE_CHECKING:
    from pathlib import Path


def test_hash_is_of_names_shapes_and_values_alone(sam, tmp_path: Path) -> None:
    save_file(sam.state_dict(), tmp_path / "sam.safetensors")
    other_order = dict(reversed(load_sam(find_sam("demo"), str(tmp_path / "sam.safetensors")).state_dict().items()))
    assert hash_tensors(other_order) == hash_tensors(sam.state_dict())
    key = "mask_decoder.iou_token.weight"
    changed = {**other_order, key: other_order[key].clone()}
    changed[key][0, 0] += 1e-6
    renamed = {**other_order, "more": other_order.pop(key)}
    hashes = {hash_tensors(tensors) for tensors in (sam.state_dict(), changed, renamed, other_order)}
    assert len(hashes) == 4
