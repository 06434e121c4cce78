# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Where the files of the table are found, how they are fetched, and how they are checked.

Every file is compared with its size and hash before it is used.
"""

from __future__ import annotations

import logging
import os
import shutil
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.request import Request, urlopen

from anomalib.utils.path import get_pretrained_weights_dir
from filelock import FileLock
from huggingface_hub import constants as hub_constants
from huggingface_hub import try_to_load_from_cache
from tqdm import tqdm

from anomalib_clipsam.compute.file_hashes import hash_file, hash_git_blob
from anomalib_clipsam.errors.errors import UserFileNotFoundError, UserOSError, UserValueError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anomalib_clipsam.weights.table import Source, WeightFile

logger = logging.getLogger(__name__)

WEIGHTS_VARIABLE = "ANOMALIB_CLIPSAM_WEIGHTS"
STALLED_AFTER = 60.0
"""Seconds without a byte after which a download is given up."""
CHUNK = 2**17
"""Bytes that are read at once."""
MARGIN = 2
"""How many times its size a file may have where the table knows only about how large it is."""
CARRIED = Path(__file__).parent / "carried"
"""Folder of the weights that the package carries."""


def folders() -> Iterator[Path]:
    """Return the folders that files are looked for in, the first choice first.

    Yields:
        Path: The folder that ``ANOMALIB_CLIPSAM_WEIGHTS`` names, if it names one, then anomalib's own.
    """
    own = os.environ.get(WEIGHTS_VARIABLE)
    if own:
        yield Path(own).expanduser()
    yield download_folder()  # last, since it is made where it is missing, and cannot be on a read-only disk


def download_folder() -> Path:
    """Return the folder that a download goes to.

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
            return CARRIED / source.filename, source
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
    """Compare a file with what the table knows of it.

    Args:
        path (Path): The file.
        source (Source): What it should be.

    Raises:
        ValueError: If size or hash differ.
        OSError: If the file cannot be read.
    """
    size = path.stat().st_size
    if size != (source.size or size):
        found, expected = f"{size:,} bytes", f"{source.size:,}"
    elif source.sha256:
        found, expected = f"SHA-256 {hash_file(path)}", source.sha256
    else:
        found, expected = f"git blob {hash_git_blob(path)}", source.git_blob
    if found.endswith(expected):
        return
    msg = (
        f"{path} is damaged or another file: it has {found}, not {expected}. Delete it, then fetch it again with "
        "`anomalib-clipsam weights fetch`, or bring a sound copy."
    )
    if source.address is None:
        msg = f"{path} is damaged: it has {found}, not {expected}. Install anomalib_clipsam again."
    raise UserValueError(msg)


def fetch(row: WeightFile, folder: Path) -> Path:
    """Bring a file of the table into a folder, from this machine or from the first of its sources that has it.

    A download is in a private folder until its hash is that of the table, and ends when it has more bytes. Of several
    processes one fetches and the others wait for it.

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
                except (OSError, HTTPException) as error:  # noqa: PERF203
                    failures.append(f"{source.address}: {' '.join(str(error).split()) or type(error).__name__}")
    except OSError as error:
        failures.append(f"{folder}: {error}")
    raise UserFileNotFoundError(_not_found(row, failures))


def _copy(path: Path, source: Source, folder: Path) -> Path:
    """Copy a file of this machine into a folder, checked."""
    check(path, source)
    target = folder / source.filename
    with _unfinished(target) as fresh:
        shutil.copyfile(path, fresh)
    return target


def _download(row: WeightFile, source: Source, folder: Path) -> Path:
    """Download one source into a folder, checked."""
    if hub_constants.HF_HUB_OFFLINE:
        msg = "not tried, because HF_HUB_OFFLINE is set"
        raise UserOSError(msg)
    free = shutil.disk_usage(folder).free
    if free < source.bytes:
        msg = f"{folder} has {free / 1e9:.2f} GB left, and the file has {source.bytes / 1e9:.2f} GB"
        raise UserOSError(msg)
    logger.info("Fetching %s (%s) from %s", row.name, size_of(source), source.address)
    target = folder / source.filename
    with _unfinished(target) as fresh:
        _read(source, fresh)
        kind, expected, found = (
            ("SHA-256", source.sha256, hash_file(fresh))
            if source.sha256
            else ("git blob id", source.git_blob, hash_git_blob(fresh))
        )
        if found != expected:
            msg = f"it gave {fresh.stat().st_size:,} bytes with the {kind} {found}, not {expected}"
            raise UserOSError(msg)
    return target


def _read(source: Source, path: Path) -> None:
    """Read what an address gives into a new file, up to the size that the table knows."""
    most = source.size or MARGIN * source.bytes
    request = Request(source.address, headers={"User-Agent": "anomalib_clipsam"})  # noqa: S310  # the table's own
    with (
        urlopen(request, timeout=STALLED_AFTER) as response,  # noqa: S310
        path.open("xb") as file,
        tqdm(total=source.bytes, unit="B", unit_scale=True, unit_divisor=1024) as progress,
    ):
        while chunk := response.read(CHUNK):
            progress.update(len(chunk))
            if progress.n > most:
                msg = f"it gives more than {most:,} bytes, and was stopped"
                raise UserOSError(msg)
            file.write(chunk)


@contextmanager
def _unfinished(path: Path) -> Iterator[Path]:
    """Return a place where nobody can have planted a link; what is written there becomes the file."""
    with TemporaryDirectory(prefix=".unfinished_", dir=path.parent) as private:
        fresh = Path(private, path.name)
        yield fresh
        fresh.replace(path)


def size_of(source: Source) -> str:
    """Describe how large a file is.

    Args:
        source (Source): The file.

    Returns:
        str: Megabytes, with "about" where the last byte is not known.
    """
    return f"{'' if source.size else 'about '}{source.bytes / 1e6:,.1f} MB"


def announce(rows: Sequence[WeightFile]) -> None:
    """Announce what will be fetched, and how large it is, before it begins.

    Args:
        rows (Sequence[WeightFile]): What is needed.
    """
    missing = [row for row in rows if find(row) is None]
    if missing and not hub_constants.HF_HUB_OFFLINE:
        named = ", ".join(f"{row.name} ({size_of(row.sources[0])})" for row in missing)
        total = sum(row.sources[0].bytes for row in missing)
        logger.warning("Not on this machine, and fetched now: %s. In all %.2f GB.", named, total / 1e9)


def _not_found(row: WeightFile, failures: list[str]) -> str:
    """Report where a file was looked for, what went wrong, what to bring and where to."""
    own = os.environ.get(WEIGHTS_VARIABLE)
    missing = ", which does not exist" if own and not Path(own).expanduser().is_dir() else ""
    looked = [
        f"the folder of {WEIGHTS_VARIABLE} ({own or 'not set'}{missing})",
        f"anomalib's folder of pretrained weights ({download_folder()})",
        f"the cache of the Hugging Face hub ({hub_constants.HF_HUB_CACHE})",
    ]
    addresses: dict[tuple, list[str]] = {}
    for source in row.sources:
        addresses.setdefault((source.filename, source.size, source.hash), []).append(source.address)
    files = [
        f"{filename} ({f'{size:,} bytes, ' if size else ''}{known_by}, from {' or '.join(where)})"
        for (filename, size, known_by), where in addresses.items()
    ]
    prepare = f" (`anomalib-clipsam weights fetch {row.name} --to FOLDER` prepares it on a machine with a network)"
    other = "localizer='dense', which needs none" if row.localizer else "weights='lite', which need no network"
    return (
        f"The weights {row.name} are neither in {', nor in '.join(looked)}, and fetching them failed: "
        f"{'; '.join(failures)}. Bring {', or '.join(files)} into a folder and set {WEIGHTS_VARIABLE} to "
        f"that folder{prepare}, or use {other}."
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
        raise UserFileNotFoundError(msg)
    return Path(path)
