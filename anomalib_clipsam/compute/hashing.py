# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Hashes of weights."""

from __future__ import annotations

import hashlib
import operator
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Mapping


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hash a network's weights: their names, shapes and values, whatever file they came in.

    Args:
        tensors (Mapping[str, torch.Tensor]): Weights by name.

    Returns:
        str: SHA-256, in hexadecimal.
    """
    digest = hashlib.sha256()
    for key, value in sorted(tensors.items()):
        digest.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


SAMPLES = 16
"""Values of each parameter that are looked at to see that it is the one that was hashed."""


class _Hashed(NamedTuple):
    """What was hashed, how it can be known again, and its hash."""

    parameters: list[nn.Parameter]
    state: tuple[list, str]
    digest: str


_HASHED: WeakKeyDictionary[nn.Module, _Hashed] = WeakKeyDictionary()


def hash_weights(network: nn.Module, tensors: Mapping[str, torch.Tensor]) -> str:
    """Return :func:`hash_tensors` of a network's weights, computed once as long as they stay the same.

    Gigabytes take seconds. That a parameter is the same is known by its identity, torch's count of writes to it, and
    some of its values, which also survive a move to another device. Buffers, which do not survive it, are small, and
    are hashed every time.

    Args:
        network (nn.Module): Whose weights they are.
        tensors (Mapping[str, torch.Tensor]): Weights by name, parameters as such: ``state_dict(keep_vars=True)``.

    Returns:
        str: SHA-256, in hexadecimal.
    """
    parameters = {
        name: value
        for name, value in tensors.items()
        if isinstance(value, nn.Parameter) and not value.is_inference()  # torch counts no writes to those
    }
    versions = [(name, str(value.dtype), value._version) for name, value in parameters.items()]  # noqa: SLF001
    rest = {name: value for name, value in tensors.items() if name not in parameters}
    sampled = {str(name): _sample(value) for name, value in parameters.items()}
    objects, state = list(parameters.values()), (versions, hash_tensors({**rest, **sampled}))
    known = _HASHED.get(network)
    same = known is not None and known.state == state and len(known.parameters) == len(objects)
    if same and all(map(operator.is_, known.parameters, objects)):
        return known.digest
    digest = hash_tensors(tensors)
    _HASHED[network] = _Hashed(objects, state, digest)
    return digest


def _sample(value: torch.Tensor) -> torch.Tensor:
    """Take up to :data:`SAMPLES` values, evenly."""
    flat = value.detach().flatten()
    return flat[:: max(1, flat.numel() // SAMPLES)][:SAMPLES]


def picture_key(image: torch.Tensor) -> str:
    """Name a picture by its pixels.

    Args:
        image (torch.Tensor): ``(3, height, width)``.

    Returns:
        str: SHA-256, in hexadecimal.
    """
    return hashlib.sha256(image.detach().cpu().contiguous().numpy().data).hexdigest()
