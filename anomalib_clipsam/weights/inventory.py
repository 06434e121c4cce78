# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""What of the table is on this machine: listed, fetched by name, verified, each as text for the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anomalib_clipsam.errors.errors import UserValueError
from anomalib_clipsam.weights.store import WEIGHTS_VARIABLE, announce, check, fetch, find, folders, locate, size_of
from anomalib_clipsam.weights.table import WEIGHTS, all_rows, pair_files

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def list_weights() -> str:
    """Write the table of weights.

    Returns:
        str: A line per row: name, role, the ``weights`` that use it, size, licence, and where it is on this machine.
    """
    lines = [("NAME", "ROLE", "WEIGHTS", "SIZE", "LICENCE", "HERE")]
    for name, row in all_rows().items():
        path, source = find(row) or ("no", row.sources[0])
        used = ", ".join(pair for pair in WEIGHTS if row in pair_files(pair))
        lines.append((name, row.role, used, size_of(source), row.licence, str(path)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    places = ", ".join(map(str, folders()))
    return "\n".join([*table, "", f"Looked for in {places}, and in the cache of the Hugging Face hub.", ""])


def fetch_weights(names: Sequence[str], folder: Path | None) -> str:
    """Bring weights to this machine, or into a folder that is carried to another.

    Args:
        names (Sequence[str]): Values of ``--model.weights`` such as ``"vit_b"``, or names of rows such as
            ``"sam_vit_b"``.
        folder (Path | None): Where to. ``None`` takes anomalib's folder of pretrained weights, and leaves alone what is
            anywhere here.

    Returns:
        str: A line per file.

    Raises:
        OSError: If a file cannot be had.
        ValueError: If a name is unknown, or a file that is here is another one.
    """
    rows = all_rows()
    unknown = [name for name in names if name not in WEIGHTS and name not in rows]
    if unknown:
        msg = f"Unknown weights '{unknown[0]}'. Choose of {', '.join([*WEIGHTS, *rows])}."
        raise UserValueError(msg)
    wanted = {}
    for name in names:
        for row in pair_files(name) if name in WEIGHTS else (rows[name],):
            wanted[row.name] = row
    announce(list(wanted.values()))
    lines = []
    for name, row in wanted.items():
        path = locate(row) if folder is None else fetch(row, folder)
        lines.append(f"{name}: {path}")
    if folder is not None:
        lines.append(f"On the other machine, set {WEIGHTS_VARIABLE} to the folder that this one is copied to.")
    return "\n".join([*lines, ""])


def verify_weights() -> tuple[str, bool]:
    """Compare every file of the table that is here with its size and hash.

    Returns:
        tuple[str, bool]: A line per row, and whether all files that are here are sound.
    """
    lines, sound = [], True
    for name, row in all_rows().items():
        found = find(row)
        if found is None:
            lines.append(f"{name}: not here")
            continue
        try:
            check(*found)
        except (OSError, ValueError) as error:
            lines.append(f"{name}: {error}")
            sound = False
        else:
            lines.append(f"{name}: sound, {found[0]}")
    return "\n".join([*lines, ""]), sound
