# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Text embeddings on disk: an ensemble is encoded once per weights, sentences and machine, not once per run."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from anomalib.utils.path import get_pretrained_weights_dir
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return the folder of the embeddings.

    Returns:
        Path: A folder beside anomalib's pretrained weights.
    """
    return get_pretrained_weights_dir() / "clip_sam" / "text"


def cache_key(weights: str, activation: str, sentences: Sequence[Sequence[str]]) -> str:
    """Name what determines the embeddings.

    Args:
        weights (str): Hash of the text tower's weights.
        activation (str): Its activation, which the weights do not tell.
        sentences (Sequence[Sequence[str]]): Sentences about a normal and about an abnormal part.

    Returns:
        str: SHA-256, in hexadecimal.
    """
    return hashlib.sha256(json.dumps([weights, activation, sentences]).encode()).hexdigest()


def is_text(value: Any, size: int, unit: bool = True) -> bool:
    """Check whether something can be text embeddings, wherever it was read.

    Args:
        value (Any): What was read.
        size (int): Size C of CLIP's embedding.
        unit (bool): Whether each direction must have the length 1. Defaults to ``True``.

    Returns:
        bool: Whether it is a tensor ``(2, C)`` of finite numbers in float32, of that length.
    """
    if not isinstance(value, torch.Tensor) or value.shape != (2, size) or value.dtype != torch.float32:
        return False
    lengths = value.norm(dim=-1)
    return bool(lengths.isfinite().all()) and (not unit or bool(((lengths - 1).abs() < 1e-3).all()))


def load_text(key: str, size: int) -> torch.Tensor | None:
    """Read embeddings.

    Args:
        key (str): What :func:`cache_key` gave.
        size (int): Size C of CLIP's embedding.

    Returns:
        torch.Tensor | None: ``(2, C)``, or ``None`` if they are not there, not readable, or none by :func:`is_text`.
    """
    try:
        text = load_file(cache_folder() / f"{key}.safetensors")["text"]
    except (OSError, SafetensorError, KeyError) as error:
        logger.debug("No text embeddings from disk: %s", error)
        return None
    return text if is_text(text, size) else None


def save_text(key: str, text: torch.Tensor) -> None:
    """Write embeddings, if the disk allows it; nothing depends on it.

    Args:
        key (str): What :func:`cache_key` gave.
        text (torch.Tensor): ``(2, C)``.
    """
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".unfinished_", dir=folder) as private:  # nobody can have planted a link there
            fresh = Path(private, "text.safetensors")
            save_file({"text": text.contiguous()}, fresh)
            fresh.replace(folder / f"{key}.safetensors")
    except (OSError, SafetensorError) as error:
        logger.debug("Text embeddings are not kept on disk: %s", error)
