# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The notebook is stored as it runs, from top to bottom, offline."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from nbformat import NotebookNode

NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebook.ipynb"
nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")


def shown(notebook: NotebookNode) -> list[tuple[str, ...]]:
    """Say of each code cell what kinds of outputs it has."""
    return [
        tuple(output.get("name") or "image/png" * ("image/png" in output.data) or "text" for output in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def scores(notebook: NotebookNode) -> dict[str, list[list[float]]]:
    """Give the scores that stand behind the name of a picture, in tables and in what is printed."""
    texts = [
        output.get("text") or output.data["text/plain"]
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    ]
    found: dict[str, list[list[float]]] = {}
    for name, rest in re.findall(r"^(\d\d\.png) +(.*)$", "\n".join(texts), re.M):
        found.setdefault(name, []).append([float(number) for number in re.findall(r"\d\.\d+", rest)])
    return found


def test_notebook_is_stored_with_small_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert NOTEBOOK.stat().st_size < 1_500_000
    kinds = [kind for cell in shown(notebook) for kind in cell]
    assert kinds.count("image/png") == 5
    assert "stderr" not in kinds
    assert len(scores(notebook)) == 12
    numbers = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert numbers == list(range(1, len(numbers) + 1))  # one run, from top to bottom


@pytest.mark.slow
def test_notebook_runs_and_shows_what_is_stored(tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    stored = nbformat.read(NOTEBOOK, as_version=4)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources=resources).execute()
    assert [set(kinds) for kinds in shown(notebook)] == [set(kinds) for kinds in shown(stored)]
    expected, found = scores(stored), scores(notebook)
    assert expected.keys() == found.keys()
    for name, rows in expected.items():
        for row, fresh in zip(rows, found[name], strict=True):
            assert fresh == pytest.approx(row, abs=0.02), name
    # the file that was exported answers as torch does
    assert found["06.png"][-1] == pytest.approx([found["06.png"][1][1]], abs=0.02)
    assert (tmp_path / "exported" / "weights" / "onnx" / "model.onnx").exists()
