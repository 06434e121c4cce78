# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The tables of a comparison."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from anomalib_clipsam.compare.config import Comparison, DataEntry, ModelEntry
from anomalib_clipsam.compare.table import TEST_BATCH, Row, read_rows, to_markdown, write_tables

COMPARISON = Comparison(
    models=(ModelEntry("A", "Padim"), ModelEntry("B|b", "Patchcore")),
    data=(DataEntry("Parts", "DrawnParts", categories=("key", "nut"), published="magnetic_tiles"),),
    map_size=64,
)
FIGURES = {
    "pixel_AUROC": 0.9,
    "pixel_F1Max": 1 / 3,
    "pixel_AP": 0.25,
    "pixel_AUPRO": math.nan,
    "image_AUROC": 0.5,
    "image_F1Max": 0.6,
    "image_AP": 0.7,
    "seconds_per_image": 0.0123,
    "peak_memory_mb": 1200.4,
    "train_images": 0,
    "test_images": 8,
}
ROWS = [
    Row("Parts", "key", "A", "1", **FIGURES),
    Row("Parts", "key", "B|b", "2", **{**FIGURES, "pixel_AUROC": 0.8, "pixel_AP": 0.3, "train_images": 10}),
    Row("Parts", "nut", "A", "3", **{**FIGURES, "pixel_AUROC": 0.7, "peak_memory_mb": 900.0}),
    Row("Parts", "nut", "B|b", "4", **{**FIGURES, "pixel_AUROC": 0.71}),
]


def line(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(start))


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = [*ROWS[:2], Row("Parts", "nut", "A", "3", error='RuntimeError: "no, really"')]
    assert read_rows(tmp_path / "results.csv") == []
    write_tables(tmp_path, COMPARISON, rows)
    read = read_rows(tmp_path / "results.csv")
    assert [replace(row, pixel_AUPRO=None) for row in read] == [replace(row, pixel_AUPRO=None) for row in rows]
    assert math.isnan(read[0].pixel_AUPRO)
    assert read[2].pixel_AUPRO is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.csv", "results.md"]


def test_planted_link_is_not_written_through(tmp_path: Path) -> None:
    """A folder of results may come from a stranger."""
    output, victim = tmp_path / "output", tmp_path / "victim"
    output.mkdir()
    victim.write_text("mine", encoding="utf-8")
    for name in ("results.csv.new", "results.md.new", "results.md"):
        (output / name).symlink_to(victim)
    write_tables(output, COMPARISON, ROWS)
    assert victim.read_text(encoding="utf-8") == "mine"
    assert len(read_rows(output / "results.csv")) == len(ROWS)
    assert not any(path.is_symlink() for path in output.iterdir())


def test_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text("model,score\nA,1\n", encoding="utf-8")
    with pytest.raises(ValueError, match="was not written by this version"):
        read_rows(tmp_path / "results.csv")


def test_best_is_bold_and_the_mean_is_of_all_categories() -> None:
    text = to_markdown(COMPARISON, ROWS)
    rest = "| - | **50.0** | **60.0** | **70.0** | 0.0123 |"
    assert line(text, "| key | A ") == f"| key | A | **90.0** | **33.3** | 25.0 {rest} 1200 | 0 |"
    assert line(text, "| key | B") == f"| key | B\\|b | 80.0 | **33.3** | **30.0** {rest} 1200 | 10 |"
    assert line(text, "| **mean** | A ") == f"| **mean** | A | **80.0** | **33.3** | 25.0 {rest} 1200 | - |"
    assert text.index("| **mean** | B") < text.index("| key | A ")  # the means come first
    assert "64 x 64 pixels" in text
    assert "Failed" not in text


def test_a_batch_is_marked_as_it_sees_the_test_images() -> None:
    row = replace(ROWS[0], train_images=TEST_BATCH, seconds_per_image=math.nan)
    assert line(to_markdown(COMPARISON, [row]), "| key | A ").endswith("| - | 1200 | test images |")


def test_failed_pair_is_a_row_that_says_why_and_has_no_mean() -> None:
    failed = Row("Parts", "nut", "B|b", "4", error="RuntimeError: no memory")
    text = to_markdown(COMPARISON, [*ROWS[:3], failed])
    assert line(text, "| nut | B").endswith("| - | - | - | failed |")
    assert line(text, "| **mean** | B") == "| **mean** | B\\|b |" + " - |" * 10
    assert "## Failed\n\n- B|b, Parts nut: RuntimeError: no memory\n" in text


def test_a_data_set_that_has_not_begun_has_no_mean_yet() -> None:
    comparison = replace(COMPARISON, data=(*COMPARISON.data, DataEntry("Later", "DrawnParts", categories=("a", "b"))))
    text = to_markdown(comparison, ROWS)
    assert line(text, "| **mean** | A ")
    assert text.count("**mean**") == 2


def test_published_figures_are_marked_as_such() -> None:
    text = to_markdown(COMPARISON, ROWS)
    block = text[text.index("*Published") :]
    assert "not measured here" in block.splitlines()[0]
    assert line(block, "| SAA+") == "| SAA+ | - | 35.4 | - | - |"
    plain = replace(COMPARISON, data=(replace(COMPARISON.data[0], published=None),))
    assert "SAA" not in to_markdown(plain, ROWS)
