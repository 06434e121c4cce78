# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The rows of a comparison as ``results.csv`` and ``results.md``."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from anomalib_clipsam.compare.config import PUBLISHED
from anomalib_clipsam.compare.metrics import IMAGE_METRICS, PIXEL_METRICS
from anomalib_clipsam.errors.errors import UserValueError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from anomalib_clipsam.compare.config import Comparison, DataEntry

METRICS = (*PIXEL_METRICS, *IMAGE_METRICS)
HEADINGS = ("pixel AUROC", "F1-max", "AP", "AUPRO", "image AUROC", "F1-max", "AP")
METRIC_NAMES = ("pixel AUROC", "pixel F1-max", "pixel AP", "pixel AUPRO", "image AUROC", "image F1-max", "image AP")
COSTS = ("s / image", "peak MB", "trained on")

TEST_BATCH = -1
"""In place of a number of training images: a model that compares the unlabelled test images with one another."""


@dataclass(frozen=True)
class Row:
    """The figures of a model on a category.

    Args:
        data (str): Label of the data set.
        category (str): The category, or ``""``.
        model (str): Label of the model.
        fingerprint (str): Of the configuration that made it.
        error (str): Why the pair failed; ``""`` if it did not. Defaults to ``""``.
        pixel_AUROC (float | None): As the other metrics, in [0, 1]; NaN if undefined, None if the pair failed.
        seconds_per_image (float | None): Of the network alone, after warm-up.
        peak_memory_mb (float | None): Of the whole pair.
        train_images (int | None): Images of the category that the model has seen; None for a checkpoint, and
            :data:`TEST_BATCH`.
        test_images (int | None): Number of test images.
    """

    data: str
    category: str
    model: str
    fingerprint: str
    error: str = ""
    pixel_AUROC: float | None = None  # noqa: N815  # anomalib's names
    pixel_F1Max: float | None = None  # noqa: N815
    pixel_AP: float | None = None  # noqa: N815
    pixel_AUPRO: float | None = None  # noqa: N815
    image_AUROC: float | None = None  # noqa: N815
    image_F1Max: float | None = None  # noqa: N815
    image_AP: float | None = None  # noqa: N815
    seconds_per_image: float | None = None
    peak_memory_mb: float | None = None
    train_images: int | None = None
    test_images: int | None = None


def read_rows(path: Path) -> list[Row]:
    """Read the rows that an earlier run has written.

    Args:
        path (Path): ``results.csv``; it need not exist.

    Returns:
        list[Row]: The rows.

    Raises:
        ValueError: If the file has other columns.
    """
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != [f.name for f in fields(Row)]:
            msg = f"{path} was not written by this version. Move it elsewhere, or give another output folder."
            raise UserValueError(msg)
        return [Row(**{name: _value(name, text) for name, text in row.items()}) for row in reader]


def _value(name: str, text: str) -> str | float | None:
    if name in {"data", "category", "model", "fingerprint", "error"}:
        return text
    return None if not text else int(text) if name.endswith("_images") else float(text)


def write_tables(output: Path, comparison: Comparison, rows: Sequence[Row]) -> None:
    """Write both tables.

    Args:
        output (Path): Folder.
        comparison (Comparison): What is compared.
        rows (Sequence[Row]): The rows so far, in their order.
    """
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, [f.name for f in fields(Row)])
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    replace_file(output / "results.csv", file.getvalue())
    replace_file(output / "results.md", to_markdown(comparison, rows))


def replace_file(path: Path, text: str) -> None:
    """Write a file; a process that is killed leaves the old one or the new one.

    Args:
        path (Path): The file.
        text (str): What it will hold.
    """
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)  # left by a killed process, or a link to a file of somebody's
    with fresh.open("x", encoding="utf-8", newline="") as file:
        file.write(text)
    fresh.replace(path)


def to_markdown(comparison: Comparison, rows: Sequence[Row]) -> str:
    """Write the rows as a paper would: a block per data set, the best in bold, a row of means.

    Args:
        comparison (Comparison): What is compared.
        rows (Sequence[Row]): The rows.

    Returns:
        str: Markdown.
    """
    side = comparison.map_size
    note = (
        f"In %, from raw maps, all brought to {side} x {side} pixels; AUPRO up to 0.3 false positives; seconds of the "
        f"network alone, once warm. Seed {comparison.seed}. The best of each category is bold."
    )
    lines = ["# Comparison", "", note]
    for data in comparison.data:
        lines += ["", f"## {data.label}", "", *_block([row for row in rows if row.data == data.label], data)]
        if data.published:
            lines += ["", *_published(data)]
    failed = [row for row in rows if row.error]
    if failed:
        lines += ["", "## Failed", ""]
        lines += [f"- {row.model}, {row.data} {row.category}".rstrip() + f": {row.error}" for row in failed]
    return "\n".join([*lines, ""])


def _block(rows: Sequence[Row], data: DataEntry) -> list[str]:
    lines = [_line(["category", "model", *HEADINGS, *COSTS]), _line([":--", ":--", *["--:"] * 10])]
    for line in data_lines(rows, data):
        category = f"**{line.category}**" if line.mean else line.category
        cells = [f"**{text}**" if best else text for text, best in zip(line.cells, line.best, strict=True)]
        lines.append(_line([category, line.model, *cells]))
    return lines


@dataclass(frozen=True)
class Line:
    """A line of a table, as text.

    Args:
        category (str): The category.
        model (str): Label of the model.
        cells (tuple[str, ...]): Metrics in %, then costs; ``"-"`` where there is no figure.
        best (tuple[bool, ...]): Which of them are the best of the category.
        mean (bool): Whether it is an average over the categories.
    """

    category: str
    model: str
    cells: tuple[str, ...]
    best: tuple[bool, ...]
    mean: bool


def data_lines(rows: Sequence[Row], data: DataEntry) -> list[Line]:
    """Return the lines of a data set: the means, then by category.

    Args:
        rows (Sequence[Row]): The rows of the data set.
        data (DataEntry): The data set.

    Returns:
        list[Line]: The lines.
    """
    several = len(data.categories) > 1
    lines = _group(list(means(rows, len(data.categories))), "mean", mean=True) if several and rows else []
    for category in dict.fromkeys(row.category for row in rows):
        lines += _group([row for row in rows if row.category == category], category or "all")
    return lines


def means(rows: Sequence[Row], categories: int) -> Iterable[Row]:
    """Average each model over the categories of a data set.

    Args:
        rows (Sequence[Row]): The rows of the data set.
        categories (int): Number of its categories.

    Yields:
        Row: A row per model, empty unless all its categories are there.
    """
    averaged = [f.name for f in fields(Row) if f.name in (*METRICS, "seconds_per_image")]
    for model in dict.fromkeys(row.model for row in rows):
        own = [row for row in rows if row.model == model]
        if len(own) < categories or any(row.error for row in own):
            yield Row(own[0].data, "", model, "", error="not all categories are there")
            continue
        yield Row(
            own[0].data,
            "",
            model,
            "",
            **{name: sum(getattr(row, name) for row in own) / len(own) for name in averaged},
            peak_memory_mb=max(row.peak_memory_mb for row in own),
        )


def _group(rows: Sequence[Row], category: str, *, mean: bool = False) -> list[Line]:
    top = [max((_shown(getattr(row, metric)) for row in rows), key=_number) for metric in METRICS]
    lines = []
    for row in rows:
        cells = [_shown(getattr(row, metric)) for metric in METRICS]
        best = [cell == highest != "-" for cell, highest in zip(cells, top, strict=True)]
        cells.append(_rounded(row.seconds_per_image, ".3g"))
        cells.append(_rounded(row.peak_memory_mb, ".0f"))
        seen = {None: "-", TEST_BATCH: "test images"}.get(row.train_images, str(row.train_images))
        cells.append("failed" if row.error and not mean else seen)
        lines.append(Line(category, row.model, tuple(cells), (*best, False, False, False), mean))
    return lines


def _rounded(value: float | None, form: str) -> str:
    """Write a figure; ``"-"`` where there is none."""
    return "-" if value is None or math.isnan(value) else format(value, form)


def _shown(value: float | None) -> str:
    """Write a metric in [0, 1] in %."""
    return _rounded(None if value is None else 100 * value, ".1f")


def _number(text: str) -> float:
    return -1.0 if text == "-" else float(text)


def _published(data: DataEntry) -> list[str]:
    rows = PUBLISHED[data.published].items()
    return [
        "*Published, zero-shot, mean over the whole data set. Copied from papers, not measured here, at other sizes:*",
        "",
        _line(["method", *HEADINGS[:4]]),
        _line([":--", *["--:"] * 4]),
        *[_line([name, *["-" if value is None else str(value) for value in values]]) for name, values in rows],
    ]


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
