# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The weights: one table, where a file is looked for, and how it becomes a model.

The architecture is built by name and the state dict is loaded into it here, so that behaviour never depends on how a
file is named. Every file of the table is compared with its size and SHA-256 before it is used. ``.safetensors`` files
are read by safetensors, state dicts with ``weights_only=True``; the one archive of TorchScript that is opened is the
one that OpenAI published, known by its SHA-256.

Sources:
    - CLIP: https://github.com/openai/CLIP, and the same weights as open_clip's state dict,
      https://huggingface.co/timm/vit_large_patch14_clip_336.openai
    - SAM: https://github.com/facebookresearch/segment-anything#model-checkpoints
    - APRIL-GAN's adapters: https://github.com/ByChelsea/VAND-APRIL-GAN
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from anomalib.utils.path import get_pretrained_weights_dir
from filelock import FileLock
from huggingface_hub import constants as hub_constants
from huggingface_hub import hf_hub_url, try_to_load_from_cache
from safetensors.torch import load_file

from anomalib_clipsam.clip.build import build_clip, find_clip_architecture
from anomalib_clipsam.hashing import hash_file
from anomalib_clipsam.sam.build import build_sam, find_sam_architecture

if TYPE_CHECKING:
    from collections.abc import Iterator

    from open_clip import CLIP
    from segment_anything.modeling import Sam
    from torch import nn

logger = logging.getLogger(__name__)

WEIGHTS_VARIABLE = "ANOMALIB_CLIPSAM_WEIGHTS"
STALLED_AFTER = 60.0
"""Seconds without a byte after which a download is given up."""
_DEMO = Path(__file__).parent / "demo"


@dataclass(frozen=True)
class Source:
    """A file that holds the weights, and where it is published. What two sources of a row give is the same model.

    Args:
        filename (str): Name of the file on this machine.
        size (int | None): Size in bytes; ``None`` where it is not known.
        sha256 (str | None): Its hash; ``None`` where it is not known. Such a file is never fetched, only brought.
        url (str | None): Address. Defaults to ``None``.
        repository (str | None): Repository of the Hugging Face hub, in place of an address. Defaults to ``None``.
        revision (str | None): Commit in that repository. Defaults to ``None``.
        path (str | None): Path of the file in that repository. Defaults to ``None``.
    """

    filename: str
    size: int | None
    sha256: str | None
    url: str | None = None
    repository: str | None = None
    revision: str | None = None
    path: str | None = None

    @property
    def address(self) -> str | None:
        """Where it is fetched from; ``None`` for a file that the package carries."""
        if self.repository is None:
            return self.url
        return hf_hub_url(self.repository, self.path, revision=self.revision)


@dataclass(frozen=True)
class WeightFile:
    """A row of the table: one network's weights.

    Args:
        name (str): Name of the row.
        role (str): ``"CLIP"``, ``"SAM"`` or ``"adapters"``.
        architecture (str): Name that the architecture is built by; of adapters, the CLIP that they go with.
        image_size (int): Side of the square that the model is shown, in pixels.
        licence (str): SPDX identifier of the licence.
        sources (tuple[Source, ...]): Where it comes from, the first choice first.
        quick_gelu (bool): Whether a CLIP was trained with QuickGELU. Defaults to ``False``.
    """

    name: str
    role: str
    architecture: str
    image_size: int
    licence: str
    sources: tuple[Source, ...]
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


_OPENAI = Source(
    filename="ViT-L-14-336px.pt",
    size=934_088_680,
    sha256="3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
    url="https://openaipublic.azureedge.net/clip/models/"
    "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02/ViT-L-14-336px.pt",
)
_CLIP = WeightFile(
    name="clip_vit_l_14_336",
    role="CLIP",
    architecture="ViT-L-14-336",
    image_size=518,
    licence="MIT",
    sources=(
        Source(
            filename="ViT-L-14-336px.safetensors",
            size=1_711_828_444,
            sha256="fbc415c3d0d7b79faed8f5ccfb740c32b7c4f5ffe7283b851f89c6231c01a8e0",
            repository="timm/vit_large_patch14_clip_336.openai",
            revision="81e38efc4637de5023b10e75a7f9bd1c6fa6b010",
            path="open_clip_model.safetensors",
        ),
        _OPENAI,
    ),
    quick_gelu=True,
)


def _sam(architecture: str, filename: str, size: int, sha256: str) -> WeightFile:
    url = Source(filename, size, sha256, url=f"https://dl.fbaipublicfiles.com/segment_anything/{filename}")
    hub = Source(
        filename,
        size,
        sha256,
        repository="ybelkada/segment-anything",
        revision="7790786db131bcdc639f24a915d9f2c331d843ee",
        path=f"checkpoints/{filename}",
    )
    return WeightFile(f"sam_{architecture}", "SAM", architecture, 1024, "Apache-2.0", (hub, url))


def _demo(role: str, image_size: int, size: int, sha256: str) -> WeightFile:
    source = Source(f"{role.lower()}.safetensors", size, sha256)
    return WeightFile(f"{role.lower()}_demo", role, "demo", image_size, "Apache-2.0", (source,))


WEIGHTS: dict[str, WeightPair] = {
    "vit_h": WeightPair(
        _CLIP,
        _sam(
            "vit_h",
            "sam_vit_h_4b8939.pth",
            2_564_550_879,
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        ),
        map_size=518,
    ),
    "vit_l": WeightPair(
        _CLIP,
        _sam(
            "vit_l",
            "sam_vit_l_0b3195.pth",
            1_249_524_607,
            "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        ),
        map_size=518,
    ),
    "vit_b": WeightPair(
        _CLIP,
        _sam(
            "vit_b",
            "sam_vit_b_01ec64.pth",
            375_042_383,
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        ),
        map_size=518,
    ),
    "demo": WeightPair(
        _demo("CLIP", 160, 8_818_306, "a56e36bddb16a39ddf9230e0914eb980303e3525ec67655f3742e55901dd6480"),
        _demo("SAM", 192, 5_600_720, "398ebb8300492ef234f2caaf14878f525a38662f782a030fa478cde06d34bf86"),
        map_size=192,
    ),
}


def _adapters(data: str) -> WeightFile:
    source = Source(
        filename=f"{data}_pretrained.pth",
        size=None,
        sha256=None,
        url="https://github.com/ByChelsea/VAND-APRIL-GAN (exps/pretrained)",
    )
    return WeightFile(f"april_gan_{data}", "adapters", _CLIP.architecture, _CLIP.image_size, "MIT", (source,))


ADAPTERS: dict[str, WeightFile] = {row.name: row for row in (_adapters("mvtec"), _adapters("visa"))}
"""APRIL-GAN's adapters by name, which says what they were trained on. Their hashes are not known here."""


# ------------------------------------------------------------------------------------------------ the table
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


def all_rows() -> dict[str, WeightFile]:
    """List the rows of the table.

    Returns:
        dict[str, WeightFile]: Rows by name.
    """
    return {row.name: row for pair in WEIGHTS.values() for row in (pair.clip, pair.sam)} | ADAPTERS


# ------------------------------------------------------------------------------------------------ finding files
def folders() -> Iterator[Path]:
    """Give the folders that files are looked for in, the first choice first.

    Yields:
        Path: The folder that ``ANOMALIB_CLIPSAM_WEIGHTS`` names, if it names one, then anomalib's own.
    """
    own = os.environ.get(WEIGHTS_VARIABLE)
    if own:
        yield Path(own).expanduser()
    yield download_folder()  # last, since it is made where it is missing, and cannot be on a read-only disk


def download_folder() -> Path:
    """Give the folder that a download goes to.

    Returns:
        Path: Ours in anomalib's folder of pretrained weights.
    """
    return get_pretrained_weights_dir() / "clip_sam"


def find(row: WeightFile) -> tuple[Path, Source] | None:
    """Find a file of the table on this machine. It is not opened.

    Looked for in the package (demo weights), in the folder that ``ANOMALIB_CLIPSAM_WEIGHTS`` names, in anomalib's
    folder of pretrained weights, and in the cache of the Hugging Face hub.

    Args:
        row (WeightFile): Row of the table.

    Returns:
        tuple[Path, Source] | None: Where it is, and which of the row's sources it should be; ``None`` if not here.
    """
    for source in row.sources:
        if source.address is None:
            return _DEMO / source.filename, source
    for folder in folders():
        for source in row.sources:
            if (folder / source.filename).is_file():
                return folder / source.filename, source
    for source in row.sources:
        if source.repository is not None:
            cached = try_to_load_from_cache(source.repository, source.path, revision=source.revision)
            if isinstance(cached, str):
                return Path(cached), source
    return None


def locate(row: WeightFile) -> Path:
    """Find a file of the table here, or fetch it, and check it.

    Args:
        row (WeightFile): Row of the table.

    Returns:
        Path: Where it is.

    Raises:
        FileNotFoundError: If it is not here and cannot be fetched; the message says what to bring and where to.
        ValueError: If the file that is here is not the one that the table knows.
    """
    found = find(row)
    if found is None:
        return fetch(row, download_folder())
    check(*found)
    return found[0]


def check(path: Path, source: Source) -> None:
    """Compare a file with what the table knows of it. Where that is nothing, every file passes.

    Args:
        path (Path): The file.
        source (Source): What it should be.

    Raises:
        ValueError: If size or SHA-256 differ.
        OSError: If the file cannot be read.
    """
    if source.sha256 is None:
        return
    size = path.stat().st_size
    if size != source.size:
        found, expected = f"{size:,} bytes", f"{source.size:,}"
    else:
        found, expected = f"SHA-256 {hash_file(path)}", source.sha256
        if found.endswith(expected):
            return
    msg = (
        f"{path} is damaged or another file: it has {found}, not {expected}. Delete it, then fetch it again with "
        "`anomalib-clipsam weights fetch`, or bring a sound copy."
    )
    if source.address is None:
        msg = f"{path} is damaged: it has {found}, not {expected}. Install anomalib_clipsam again."
    raise ValueError(msg)


def fetch(row: WeightFile, folder: Path) -> Path:
    """Bring a file of the table into a folder, from this machine or from the first of its sources that has it.

    A download has a temporary name until its size and SHA-256 are those of the table. Of several processes one fetches
    and the others wait for it.

    Args:
        row (WeightFile): Row of the table.
        folder (Path): Where to; made if need be.

    Returns:
        Path: The file in that folder.

    Raises:
        FileNotFoundError: If no source gives it, or the hub is set to be offline.
        ValueError: If a file of that name is there and is another one.
    """
    failures = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{row.name}.lock"):
            for source in row.sources:
                if (folder / source.filename).is_file():  # another process has just fetched it
                    check(folder / source.filename, source)
                    return folder / source.filename
            found = find(row)
            if found is not None:
                try:
                    return _copy(*found, folder)
                except ValueError as error:  # a damaged one here does not stand in the way of a sound one
                    failures.append(str(error))
            for source in row.sources:
                try:
                    return _download(row, source, folder)
                except (OSError, RuntimeError, HTTPException) as error:  # noqa: PERF203
                    failures.append(f"{source.address}: {' '.join(str(error).split()) or type(error).__name__}")
    except OSError as error:
        failures.append(f"{folder}: {error}")
    raise FileNotFoundError(_not_found(row, failures))


def _copy(path: Path, source: Source, folder: Path) -> Path:
    """Copy a file of this machine into a folder, checked."""
    check(path, source)
    target = folder / source.filename
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        shutil.copyfile(path, partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _download(row: WeightFile, source: Source, folder: Path) -> Path:
    """Download one source into a folder, checked."""
    if source.sha256 is None:
        msg = "not tried, because its SHA-256 is not known"
        raise OSError(msg)
    if hub_constants.HF_HUB_OFFLINE:
        msg = "not tried, because HF_HUB_OFFLINE is set"
        raise OSError(msg)
    free = shutil.disk_usage(folder).free
    if free < source.size:
        msg = f"{folder} has {free / 1e9:.2f} GB left, and the file has {source.size / 1e9:.2f} GB"
        raise OSError(msg)
    logger.info("Fetching %s (%.2f GB) from %s", row.name, source.size / 1e9, source.address)
    path = folder / source.filename
    with _patience(STALLED_AFTER):
        torch.hub.download_url_to_file(source.address, str(path), hash_prefix=source.sha256)
    return path


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """Give up on a connection that is silent for so long: ``torch.hub`` waits for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _not_found(row: WeightFile, failures: list[str]) -> str:
    """Say where a file was looked for, what went wrong, what to bring and where to."""
    own = os.environ.get(WEIGHTS_VARIABLE)
    missing = ", which does not exist" if own and not Path(own).expanduser().is_dir() else ""
    looked = [
        f"the folder of {WEIGHTS_VARIABLE} ({own or 'not set'}{missing})",
        f"anomalib's folder of pretrained weights ({download_folder()})",
        f"the cache of the Hugging Face hub ({hub_constants.HF_HUB_CACHE})",
    ]
    addresses: dict[tuple, list[str]] = {}
    for source in row.sources:
        addresses.setdefault((source.filename, source.size, source.sha256), []).append(source.address)
    files = [
        f"{filename} ({f'{size:,} bytes, SHA-256 {sha256}, ' if sha256 else ''}from {' or '.join(where)})"
        for (filename, size, sha256), where in addresses.items()
    ]
    known = row.sources[0].sha256 is not None
    prepare = f" (`anomalib-clipsam weights fetch {row.name} --to FOLDER` prepares it on a machine with a network)"
    other = "localizer='dense', which needs none" if row.role == "adapters" else "weights='demo', which need no network"
    return (
        f"The weights {row.name} are neither in {', nor in '.join(looked)}, and fetching them failed: "
        f"{'; '.join(failures)}. Bring {', or '.join(files)} into a folder and set {WEIGHTS_VARIABLE} to "
        f"that folder{prepare if known else ''}, or use {other}."
    )


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


# ------------------------------------------------------------------------------------------------ from file to model
def load_adapters(adapters: str) -> dict[str, torch.Tensor]:
    """Read the weights of APRIL-GAN's adapters.

    Args:
        adapters (str): Local file, or a name of :data:`ADAPTERS`.

    Returns:
        dict[str, torch.Tensor]: Their state dict, see :func:`anomalib_clipsam.clip.build_adapters`.
    """
    named = adapters in ADAPTERS
    return read_state_dict(locate(ADAPTERS[adapters]) if named else explicit_file(adapters, "adapters"))


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
            if hash_file(path) != _OPENAI.sha256:
                msg = "it is a TorchScript archive, and not the one that OpenAI published"
                raise ValueError(msg)
            return torch.jit.load(path, map_location="cpu").state_dict()
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).split("\n", maxsplit=1)[0]  # torch goes on with advice to run the file's code
        msg = f"The weights file {path} cannot be read: {reason}. Bring an undamaged file of weights."
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


def _shapes(state_dict: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...] | str]:
    """Shape of every entry, or the type of what is no tensor."""
    return {
        str(key): tuple(value.shape) if torch.is_tensor(value) else type(value).__name__
        for key, value in state_dict.items()
    }


def _load(model: nn.Module, path: Path, what: str) -> nn.Module:
    """Load a file into a model, in float32, or say what does not fit."""
    state_dict = read_state_dict(path)
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
        raise ValueError(msg)
    model.load_state_dict({key: value.float() for key, value in state_dict.items()})
    return model.eval()
