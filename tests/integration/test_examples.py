# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The examples that run exported files, called without arguments; test_export.py runs them with files."""

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", ["gate.py", "onnx_runtime.py", "openvino_runtime.py", "tiles.py"])
def test_without_arguments_an_example_says_how_it_is_used(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(sys, "argv", [name])
    with pytest.raises(SystemExit) as raised:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert f"`python {name} model" in raised.value.code  # a text is printed, and the process ends with 1
