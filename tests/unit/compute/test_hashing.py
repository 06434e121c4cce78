# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Hashes of weights."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from anomalib_clipsam.compute import hashing
from anomalib_clipsam.compute.hashing import hash_tensors, hash_weights
from anomalib_clipsam.weights.load import load_sam
from anomalib_clipsam.weights.table import find_sam

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


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


@pytest.fixture
def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(40, 30), nn.BatchNorm1d(30)).requires_grad_(requires_grad=False)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of every call of ``hash_tensors``."""
    calls = []

    def record(tensors: dict[str, torch.Tensor]) -> str:
        calls.append(sum(value.nbytes for value in tensors.values()))
        return hash_tensors(tensors)

    monkeypatch.setattr(hashing, "hash_tensors", record)
    return calls


def hash_of(network: nn.Module) -> str:
    return hash_weights(network, network.state_dict(keep_vars=True))


def test_weights_that_stay_are_hashed_once(network: nn.Sequential, hashed: list[int]) -> None:
    """Also when they lie elsewhere in memory, as after a move to a GPU and back; buffers are then new tensors."""
    expected = hash_tensors(network.state_dict())
    assert hash_of(network) == expected
    network._apply(torch.clone)
    assert hash_of(network) == expected
    assert [size > 1000 for size in hashed] == [False, True, False]


@pytest.mark.parametrize(
    "change",
    [
        lambda network: network[0].weight[3, 4].add_(1),
        lambda network: network[1].running_mean.add_(1),
        lambda network: network[0].load_state_dict(nn.Linear(40, 30).state_dict()),
        lambda network: setattr(network[0], "weight", nn.Parameter(network[0].weight + 1, requires_grad=False)),
        lambda network: network.half().float(),
        lambda network: network.double(),
    ],
)
def test_weights_that_change_are_hashed_again(network: nn.Sequential, change: Callable[[nn.Module], object]) -> None:
    before = hash_of(network)
    change(network)
    assert hash_of(network) == hash_tensors(network.state_dict()) != before


def test_networks_have_hashes_of_their_own(network: nn.Sequential) -> None:
    other = nn.Sequential(nn.Linear(40, 30), nn.BatchNorm1d(30))
    assert hash_of(network) != hash_of(other)
    assert hash_of(network) == hash_tensors(network.state_dict())
