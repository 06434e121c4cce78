# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""``report.html``: the tables and the pictures of a comparison in one page that needs no network."""

from __future__ import annotations

import base64
import json
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalib_clipsam.compare.config import PUBLISHED
from anomalib_clipsam.compare.pictures import INDEX
from anomalib_clipsam.compare.table import COSTS, METRIC_NAMES, data_lines, replace_file
from anomalib_clipsam.errors.errors import UserValueError, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anomalib_clipsam.compare.config import Comparison
    from anomalib_clipsam.compare.table import Row

PICTURES = "pictures"
"""Folder of the pictures, below that of the results; a folder in it belongs to a pair."""


def write_report(output: Path, comparison: Comparison, rows: Sequence[Row]) -> None:
    """Write the page.

    Args:
        output (Path): Folder of the results, with the pictures of each pair.
        comparison (Comparison): What is compared.
        rows (Sequence[Row]): All rows, in their order.

    Raises:
        ValueError: If a pair's index, which may come with a folder of results, names other files than its pictures.
    """
    data = {
        "mapSize": comparison.map_size,
        "seed": comparison.seed,
        "metrics": METRIC_NAMES,
        "costs": COSTS,
        "models": [model.label for model in comparison.models],
        "tables": [
            {
                "data": entry.label,
                "pictures": _count([row for row in rows if row.data == entry.label]),
                "lines": [vars(line) for line in data_lines([row for row in rows if row.data == entry.label], entry)],
                "published": [[name, *values] for name, values in PUBLISHED.get(entry.published, {}).items()],
            }
            for entry in comparison.data
        ],
        "failed": [[row.model, f"{row.data} {row.category}".rstrip(), row.error] for row in rows if row.error],
        "images": list(_images(output, rows).values()),
    }
    content = json.dumps(data).replace("<", "\\u003c")  # so that no label can end the script element
    template = files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    replace_file(output / "report.html", template.replace("null /* data */", content))


def _count(rows: Sequence[Row]) -> int:
    """Count the test images of a data set; a model may skip some that others take."""
    tested: dict[str, int] = {}
    for row in rows:
        tested[row.category] = max(tested.get(row.category, 0), row.test_images or 0)
    return sum(tested.values())


def _images(output: Path, rows: Sequence[Row]) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Gather the models' answers to each image in the report."""
    images: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in rows:
        folder = output / PICTURES / row.fingerprint
        if row.error or not (folder / INDEX).exists():
            continue
        for entry in json.loads((folder / INDEX).read_text(encoding="utf-8")):
            path, pictures = Path(entry["path"]), entry["pictures"]
            image = images.setdefault(
                (row.data, row.category, entry["path"]),
                {
                    "data": row.data,
                    "category": row.category or "all",
                    "kind": path.parent.name,
                    "name": path.name,
                    "defective": entry["defective"],
                    **{name: _inline(folder, pictures[name]) for name in ("image", "truth") if name in pictures},
                    "models": {},
                },
            )
            image["models"][row.model] = {
                "score": round(entry["score"], 4),
                "decision": entry["decision"],
                "overlap": entry.get("overlap"),
                **{name: _inline(folder, pictures[name]) for name in ("result",) if name in pictures},
                "stages": [[title, _inline(folder, name)] for title, name in entry["stages"].items()],
            }
    return images


def _inline(folder: Path, name: str) -> str:
    """Encode a pair's picture as a data URL.

    Raises:
        ValueError: If it is not one of the folder's own.
    """
    path = (folder / name).resolve()
    if path.parent != folder.resolve() or path.suffix != ".webp":
        msg = f"{folder / INDEX} names {printable(name)}, which is no picture beside it. Delete {folder}."
        raise UserValueError(msg)
    return "data:image/webp;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
