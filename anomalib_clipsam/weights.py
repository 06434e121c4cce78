# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The weights: one table, and how a file becomes a model.

The architecture is built by name and the state dict is loaded into it here, so that behaviour never depends on how a
file is named. ``.safetensors`` files are read by safetensors, state dicts with ``weights_only=True``; an archive of
TorchScript, as OpenAI published CLIP, is opened only when its SHA-256 is the one of the table.
"""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file

from anomalib_clipsam.clip.build import build_clip
from anomalib_clipsam.sam.build import build_sam

if TYPE_CHECKING:
    from open_clip import CLIP
    from segment_anything.modeling import Sam
    from torch import nn

logger = logging.getLogger(__name__)

WEIGHTS_VARIABLE = "ANOMALIB_CLIPSAM_WEIGHTS"
_DEMO = Path(__file__).parent / "demo"


@dataclass(frozen=True)
class WeightFile:
    """One file of weights.

    Args:
        architecture (str): Name that the architecture is built by.
        image_size (int): Side of the square that the model is shown, in pixels.
        filename (str): Name of the file.
        size (int): Size in bytes; 0 where it is not known.
        licence (str): SPDX identifier of the licence.
        url (str | None): Where it is fetched from; ``None`` for a file that the package carries.
        sha256 (str | None): Its hash; ``None`` for a file that the package carries.
        quick_gelu (bool): Whether a CLIP was trained with QuickGELU.
    """

    architecture: str
    image_size: int
    filename: str
    size: int
    licence: str
    url: str | None = None
    sha256: str | None = None
    quick_gelu: bool = False


@dataclass(frozen=True)
class WeightPair:
    """A CLIP and a SAM that go together.

    Args:
        clip (WeightFile): CLIP's weights.
        sam (WeightFile): SAM's weights.
        map_size (int): Default side of maps and masks, in pixels.
    """

    clip: WeightFile
    sam: WeightFile
    map_size: int


_OPENAI_SHA256 = "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02"
_CLIP = WeightFile(
    architecture="ViT-L-14-336",
    image_size=518,
    filename="ViT-L-14-336px.pt",
    size=0,
    licence="MIT",
    url=f"https://openaipublic.azureedge.net/clip/models/{_OPENAI_SHA256}/ViT-L-14-336px.pt",
    sha256=_OPENAI_SHA256,
    quick_gelu=True,
)


def _sam(architecture: str, filename: str, size: int, sha256: str) -> WeightFile:
    url = f"https://dl.fbaipublicfiles.com/segment_anything/{filename}"
    return WeightFile(architecture, 1024, filename, size, "Apache-2.0", url, sha256)


def _published(sam: WeightFile) -> WeightPair:
    return WeightPair(_CLIP, sam, map_size=518)


WEIGHTS: dict[str, WeightPair] = {
    "vit_h": _published(
        _sam(
            "vit_h",
            "sam_vit_h_4b8939.pth",
            2_564_550_879,
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        ),
    ),
    "vit_l": _published(
        _sam("vit_l", "sam_vit_l_0b3195.pth", 0, "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),
    ),
    "vit_b": _published(
        _sam(
            "vit_b",
            "sam_vit_b_01ec64.pth",
            375_042_383,
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        ),
    ),
    "demo": WeightPair(
        WeightFile("demo", 160, "clip.safetensors", 0, "Apache-2.0"),
        WeightFile("demo", 192, "sam.safetensors", 0, "Apache-2.0"),
        map_size=192,
    ),
}


def get_weights(name: str) -> WeightPair:
    """Look a pair up in the table.

    Args:
        name (str): ``"vit_h"``, ``"vit_l"``, ``"vit_b"`` or ``"demo"``.

    Returns:
        WeightPair: The pair.

    Raises:
        ValueError: If there is no such pair.
    """
    if name not in WEIGHTS:
        msg = f"Unknown weights '{name}'. Choose one of {', '.join(WEIGHTS)}."
        raise ValueError(msg)
    return WEIGHTS[name]


def find_sam(architecture: str) -> WeightFile:
    """Look SAM's weights up by their architecture.

    Args:
        architecture (str): ``"vit_h"``, ``"vit_l"``, ``"vit_b"`` or ``"demo"``.

    Returns:
        WeightFile: The row of the table.

    Raises:
        ValueError: If there is no such architecture.
    """
    rows = {pair.sam.architecture: pair.sam for pair in WEIGHTS.values()}
    if architecture not in rows:
        msg = f"Unknown sam_architecture '{architecture}'. Choose one of {', '.join(rows)}."
        raise ValueError(msg)
    return rows[architecture]


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


def locate(file: WeightFile) -> Path:
    """Find a file of the table here, or fetch it.

    Looked for in the package (demo weights), in the folder that ``ANOMALIB_CLIPSAM_WEIGHTS`` names, and in torch's hub
    folder, where a download goes. A download is checked against its SHA-256 before it gets its name.

    Args:
        file (WeightFile): Row of the table.

    Returns:
        Path: Where it is.

    Raises:
        FileNotFoundError: If it is not here and cannot be fetched; the message says what to bring and where to.
    """
    if file.url is None:
        return _DEMO / file.filename
    hub = Path(torch.hub.get_dir()) / "checkpoints"
    folders = [Path(os.environ[WEIGHTS_VARIABLE]), hub] if os.environ.get(WEIGHTS_VARIABLE) else [hub]
    for folder in folders:
        if (folder / file.filename).is_file():
            return folder / file.filename
    logger.info("Fetching %s from %s to %s", file.filename, file.url, hub)
    try:
        hub.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(file.url, str(hub / file.filename), hash_prefix=file.sha256)
    except (OSError, RuntimeError) as error:
        msg = (
            f"{file.filename} is neither in {' nor in '.join(map(str, folders))}, and fetching {file.url} failed: "
            f"{error}. Bring the file (SHA-256 {file.sha256}) into a folder and set {WEIGHTS_VARIABLE} to that folder, "
            "or use weights='demo', which need no network."
        )
        raise FileNotFoundError(msg) from error
    return hub / file.filename


def explicit_file(path: str, argument: str) -> Path:
    """Check a file that the user named.

    Args:
        path (str): The file.
        argument (str): Name of the argument, for the message.

    Returns:
        Path: The file.

    Raises:
        FileNotFoundError: If it does not exist.
    """
    if not Path(path).is_file():
        msg = f"{argument}='{path}' is no file. Correct the path, or leave {argument} out to use the table's weights."
        raise FileNotFoundError(msg)
    return Path(path)


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
            if hashlib.sha256(path.read_bytes()).hexdigest() != _OPENAI_SHA256:
                msg = "it is a TorchScript archive, and not the one that OpenAI published"
                raise ValueError(msg)
            return torch.jit.load(path, map_location="cpu").state_dict()
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        msg = f"The weights file {path} cannot be read: {error}. Bring an undamaged file of weights."
        raise ValueError(msg) from error
    if isinstance(content, dict):
        content = content.get("state_dict", content)
    if not isinstance(content, dict):
        msg = f"The weights file {path} holds a {type(content).__name__}, not a state dict. Bring a file of weights."
        raise ValueError(msg)  # noqa: TRY004  # the file's content is at fault, not an argument's type
    return content


def _is_torchscript(path: Path) -> bool:
    """Tell a TorchScript archive (a zip file with code) from a state dict."""
    import zipfile

    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _load(model: nn.Module, path: Path, what: str) -> nn.Module:
    """Load a file into a model, in float32, or say what does not fit."""
    state_dict = read_state_dict(path)
    for key in ("input_resolution", "context_length", "vocab_size"):  # beside the weights in OpenAI's archive
        state_dict.pop(key, None)
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    found = {
        str(key): tuple(value.shape) if torch.is_tensor(value) else type(value).__name__
        for key, value in state_dict.items()
    }
    if expected != found:
        wrong = sorted({key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key)})
        msg = (
            f"{path} does not fit {what}: {len(wrong)} of {len(expected)} entries differ, such as '{wrong[0]}' "
            f"(file: {found.get(wrong[0], 'missing')}, architecture: {expected.get(wrong[0], 'unknown')}). "
            "Name the architecture that the file was made for."
        )
        raise ValueError(msg)
    model.load_state_dict({key: value.float() for key, value in state_dict.items()})
    return model.eval()
