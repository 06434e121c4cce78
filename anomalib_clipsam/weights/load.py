# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""From a file of weights to a model.

The architecture is built by name and the state dict is loaded into it here, so that behaviour never depends on how a
file is named. ``.safetensors`` files are read by safetensors, state dicts with ``weights_only=True``; the one archive
of TorchScript that is opened is the one that OpenAI published, known by its SHA-256.
"""

from __future__ import annotations

from pickle import UnpicklingError
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file

from anomalib_clipsam.clip.build import build_clip, find_clip_architecture
from anomalib_clipsam.compute.file_hashes import hash_file, hash_git_blob
from anomalib_clipsam.errors.errors import UserValueError, reason
from anomalib_clipsam.sam.build import build_sam, find_sam_architecture
from anomalib_clipsam.sam.tiny_vit import rename_published
from anomalib_clipsam.weights.store import explicit_file, locate
from anomalib_clipsam.weights.table import LEARNED, OPENAI_CLIP

if TYPE_CHECKING:
    from pathlib import Path

    from open_clip import CLIP
    from segment_anything.modeling import Sam
    from torch import nn

    from anomalib_clipsam.weights.table import WeightFile


def load_adapters(adapters: str) -> dict[str, torch.Tensor]:
    """Read learned weights beside CLIP's.

    Args:
        adapters (str): Local file, or a name of :data:`LEARNED`.

    Returns:
        dict[str, torch.Tensor]: What the file holds.
    """
    named = adapters in LEARNED
    return read_state_dict(locate(LEARNED[adapters]) if named else explicit_file(adapters, "adapters"))


def find_learned(adapters: str) -> WeightFile | None:
    """Find the row of learned weights: a file is known by its content, whatever it is called.

    Args:
        adapters (str): Local file, or a name of :data:`LEARNED`.

    Returns:
        WeightFile | None: The row; ``None`` for a file that is none of the published ones.
    """
    if adapters in LEARNED:
        return LEARNED[adapters]
    path = explicit_file(adapters, "adapters")
    known = {hash_file(path), hash_git_blob(path)}
    rows = (row for row in LEARNED.values() for source in row.sources if {source.sha256, source.git_blob} & known)
    return next(rows, None)


def load_clip(row: WeightFile, path: str | None = None) -> CLIP:
    """Build a CLIP and load its weights.

    Args:
        row (WeightFile): Architecture and activation, and the file unless ``path`` names one.
        path (str | None): Local file with open_clip's or OpenAI's state dict. Defaults to ``None``.

    Returns:
        CLIP: The model in eval mode, in float32.
    """
    file = locate(row) if path is None else explicit_file(path, "clip_weights")
    return _load(build_clip(row.architecture, row.quick_gelu), file, f"CLIP '{row.architecture}'")


def load_sam(row: WeightFile, path: str | None = None) -> Sam:
    """Build a SAM and load its weights.

    Args:
        row (WeightFile): Architecture, and the file unless ``path`` names one.
        path (str | None): Local file with segment_anything's state dict. Defaults to ``None``.

    Returns:
        Sam: The model in eval mode, in float32.
    """
    file = locate(row) if path is None else explicit_file(path, "sam_weights")
    return _load(build_sam(row.architecture), file, f"SAM '{row.architecture}'")


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict without running code from the file.

    Args:
        path (Path): ``.safetensors``, a state dict written by ``torch.save``, or OpenAI's published TorchScript
            archive.

    Returns:
        dict[str, torch.Tensor]: The content.

    Raises:
        ValueError: If the file is damaged or of another kind.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if _is_torchscript(path):
            if hash_file(path) != OPENAI_CLIP.sha256:
                msg = "it is a TorchScript archive, and not the one that OpenAI published"
                raise UserValueError(msg)
            return torch.jit.load(path, map_location="cpu").state_dict()
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  # each of the libraries raises what it likes
        msg = f"The weights file {path} cannot be read: {reason(error)} Bring an undamaged file of weights."
        # a traceback shows the cause too, and torch's text advises to run the file's code
        raise UserValueError(msg) from (None if isinstance(error, UnpicklingError) else error)
    if isinstance(content, dict):
        content = content.get("state_dict", content)
    if not isinstance(content, dict):
        msg = f"The weights file {path} holds a {type(content).__name__}, not a state dict. Bring a file of weights."
        raise UserValueError(msg)  # the file's content is at fault, not an argument's type
    return content


def _is_torchscript(path: Path) -> bool:
    """Tell a TorchScript archive (a zip file with code) from a state dict."""
    import zipfile

    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _shapes(state_dict: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...] | str]:
    """Shape of every entry, or the type of what is no tensor."""
    return {
        str(key): tuple(value.shape) if torch.is_tensor(value) else type(value).__name__
        for key, value in state_dict.items()
    }


def _load(model: nn.Module, path: Path, what: str) -> nn.Module:
    """Load a file into a model, in float32, or say what does not fit."""
    state_dict = rename_published(read_state_dict(path))
    for key in ("input_resolution", "context_length", "vocab_size"):  # beside the weights in OpenAI's archive
        state_dict.pop(key, None)
    expected, found = _shapes(model.state_dict()), _shapes(state_dict)
    if expected != found:
        wrong = sorted({key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key)})
        fits = [
            f"{argument}='{name}'"
            for argument, name in (
                ("clip_architecture", find_clip_architecture(found)),
                ("sam_architecture", find_sam_architecture(found)),
            )
            if name is not None
        ]
        advice = f"It fits {fits[0]}." if fits else "Name the architecture that the file was made for."
        msg = (
            f"{path} does not fit {what}: {len(wrong)} of {len(expected)} entries differ, such as '{wrong[0]}' "
            f"(file: {found.get(wrong[0], 'missing')}, architecture: {expected.get(wrong[0], 'unknown')}). {advice}"
        )
        raise UserValueError(msg)
    model.load_state_dict({key: value.float() for key, value in state_dict.items()})
    return model.eval()
