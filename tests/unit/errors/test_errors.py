# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""How messages quote what others made."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError

import pytest

from anomalib_clipsam.errors.errors import counted, printable, reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain name 部 ø.png", "plain name 部 ø.png"),
        (Path("a") / "b.png", str(Path("a") / "b.png")),
        ("a\nERROR b\r\t", r"a\nERROR b\r\t"),
        ("\x1b[2J\x07\x00\x7f\x9b", r"\x1b[2J\x07\x00\x7f\x9b"),
        ("\u202egnp.exe\u2028\ufeff", r"\u202egnp.exe\u2028\ufeff"),
        ("\udcff", r"\udcff"),  # a byte of a file name that is no UTF-8
    ],
)
def test_text_is_one_line_without_control_characters(text: object, expected: str) -> None:
    assert printable(text) == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("the reason.\nmore"), "the reason."),
        (RuntimeError("the reason"), "the reason."),
        (RuntimeError("a \x1b[1mbold\x1b[0m one"), r"a \x1b[1mbold\x1b[0m one."),
        (EOFError(), "EOFError."),
        (UnpicklingError("You can. \nWeightsUnpickler error: Unsupported. Please use it.\nMore"), "Unsupported."),
        (
            UnpicklingError("You can. WeightsUnpickler error: \n\nUnsupported operand 149\n\nMore"),
            "Unsupported operand 149.",
        ),
        (UnpicklingError("You can. WeightsUnpickler error: "), "UnpicklingError."),
    ],
)
def test_reason_is_one_line_without_advice(error: Exception, expected: str) -> None:
    assert reason(error) == expected


@pytest.mark.parametrize(("number", "text"), [(0, "0 good parts"), (1, "1 good part"), (2, "2 good parts")])
def test_things_are_counted(number: int, text: str) -> None:
    assert counted(number, "good part") == text
