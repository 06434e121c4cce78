# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The notebook runs from top to bottom, offline."""

from __future__ import annotations

from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebook.ipynb"


@pytest.mark.slow
def test_notebook_runs(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # kept without outputs
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources=resources).execute()
    scores, picture, table = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    lines = "".join(output.text for output in scores if output.output_type == "stream" and output.name == "stdout")
    assert "000.png" in lines
    assert any("image/png" in output.get("data", {}) for output in picture)
    text = next(output.data["text/markdown"] for output in table if "text/markdown" in output.get("data", {}))
    assert "| key | ClipSam |" in text
    assert "Failed" not in text
    assert (tmp_path / "results" / "notebook" / "report.html").exists()
