# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""What anomalib's command line shows of this package's errors and log lines."""

from __future__ import annotations

import logging
import sys
from io import StringIO
from typing import TYPE_CHECKING, Any

import pytest
from anomalib.data import PredictDataset
from anomalib.data.utils.path import validate_path
from jsonargparse import ArgumentParser
from rich.logging import RichHandler

from anomalib_clipsam import ClipSam, DrawnParts
from anomalib_clipsam.errors.command_line import ToStderr, find_for_users, install_error_hook, sentence
from anomalib_clipsam.method.ppg import PointPromptGenerator
from anomalib_clipsam.weights import store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def raised(function: Callable, *arguments: Any) -> Exception:
    """What a call raises."""
    with pytest.raises(Exception) as info:  # noqa: PT011  # the tests look at it
        function(*arguments)
    return info.value


def parsed(kind: type, *arguments: str) -> Exception:
    """What jsonargparse makes of an error in a constructor."""
    parser = ArgumentParser()
    parser.add_argument("--it", type=kind | None)
    return raised(parser.instantiate_classes, parser.parse_args([f"--it=anomalib_clipsam.{kind.__name__}", *arguments]))


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[Exception], str]:
    """Show an error as the interpreter would at the end of a command."""
    monkeypatch.setattr(
        sys, "excepthook", lambda _kind, error, _traceback: print(f"as before: {error}", file=sys.stderr)
    )
    monkeypatch.setattr(logging.getLogger("anomalib_clipsam"), "handlers", [])
    install_error_hook()

    def show(error: Exception) -> str:
        sys.excepthook(type(error), error, error.__traceback__)
        return capsys.readouterr().err

    return show


def test_error_of_ours_is_one_sentence(shown: Callable) -> None:
    text = shown(raised(ClipSam, "litte"))
    assert text == "anomalib: Unknown weights 'litte'. Choose one of vit_h, vit_l, vit_b, mobile, lite, demo.\n"


@pytest.mark.parametrize(
    ("kind", "argument", "said"),
    [
        (ClipSam, "--it.weights=litte", "anomalib: Unknown weights 'litte'. Choose one of vit_h, "),
        (DrawnParts, "--it.category=lether", "anomalib: DrawnParts has no category 'lether'. Choose one of: "),
        (
            ClipSam,
            "--it.weights=mobile",
            "or use --model.weights lite, which need no network.",
        ),
    ],
)
def test_error_in_jsonargparse_s_wrapping_is_one_sentence(
    shown: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: type, argument: str, said: str
) -> None:
    monkeypatch.setenv(store.WEIGHTS_VARIABLE, str(tmp_path))
    monkeypatch.setattr(store, "download_folder", lambda: tmp_path)
    monkeypatch.setattr(store, "try_to_load_from_cache", lambda *_args, **_kwargs: None)
    text = shown(parsed(kind, argument))
    assert said in text
    assert (text.count("\n"), text.count("Union")) == (1, 0)


def test_damaged_weights_that_the_package_carries_are_one_sentence(
    shown: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "lite_clip.safetensors").write_bytes(b"damaged")
    monkeypatch.setattr(store, "CARRIED", tmp_path)
    text = shown(parsed(ClipSam, "--it.weights=lite"))
    assert text.startswith(f"anomalib: {tmp_path / 'lite_clip.safetensors'} is damaged: it has 7 bytes, not ")
    assert text.endswith("Install anomalib_clipsam again.\n")


def test_other_errors_are_shown_as_before(shown: Callable) -> None:
    """Those of other packages, also where this one called them, and what Python comes upon."""
    assert shown(raised(int, "x")).startswith("as before: invalid literal")
    assert shown(raised(store.check, "no path", None)).startswith("as before: 'str' object has no")
    assert shown(raised(PointPromptGenerator().extreme_region, 3)).startswith("as before: ")
    assert find_for_users(ValueError("never raised")) is None


def test_folder_outside_ascii(shown: Callable) -> None:
    text = shown(raised(validate_path, "größe"))
    assert text.startswith("anomalib: Path contains non-printable characters: größe. anomalib takes paths of ASCII ")
    assert text.count("\n") == 1


def test_what_is_no_picture_s_place(shown: Callable, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    for place, said in (
        ("nowhere", f"Path does not exist: {tmp_path / 'nowhere'}. Give a folder of pictures, or one picture.\n"),
        ("", f"Found 0 images in {tmp_path}. Give a folder of files such as "),
        ("notes.txt", f"``filename`` is not an image file: {tmp_path / 'notes.txt'}. Give a file such as "),
    ):
        text = shown(raised(PredictDataset, tmp_path / place))
        assert text.startswith(f"anomalib: {said}")
        assert text.count("\n") == 1


def test_pandas_3_and_mvtec_loco(shown: Callable) -> None:
    """The error alone may have any cause: it must come through anomalib's file."""

    def raised_in(file: str) -> Exception:
        return raised(exec, compile("raise TypeError(\"Invalid value for dtype 'str'. Some more.\")", file, "exec"))

    assert shown(raised_in("anomalib/data/mvtec_loco.py")) == (
        "anomalib: Invalid value for dtype 'str'. Some more. anomalib reads MVTecLOCO with pandas 2 only. Run: pip "
        "install 'pandas<3'\n"
    )
    assert shown(raised_in("elsewhere.py")).startswith("as before: Invalid value")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Use weights='demo',\nor not.", "Use --model.weights demo, or not."),
        ("Set `k_shot` to 4.", "Set `--model.k_shot` to 4."),
        ("map_weights='a' and `min_score`", "map_weights='a' and `min_score`"),
    ],
)
def test_words_of_the_command_line(text: str, expected: str) -> None:
    options = {name: f"--model.{name}" for name in ("weights", "k_shot")}
    assert sentence(ValueError(text), options) == expected


def test_log_lines_are_printed_once(shown: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anomalib gives the root logger two handlers that print; its own lines are left alone."""
    lines: list[str] = []

    plain, rich = logging.StreamHandler(), RichHandler()
    monkeypatch.setattr(plain, "emit", lambda record: lines.append(f"plain {record.getMessage()}"))
    monkeypatch.setattr(rich, "emit", lambda record: lines.append(f"rich {record.getMessage()}"))
    monkeypatch.setattr(logging.getLogger(), "handlers", [plain, rich])
    logging.getLogger("anomalib_clipsam.some").warning("ours")
    logging.getLogger("anomalib.some").warning("theirs")
    assert lines == ["plain ours", "plain theirs", "rich theirs"]
    monkeypatch.setattr(logging.getLogger(), "handlers", [RichHandler()])
    logging.getLogger("anomalib_clipsam.some").warning("alone")
    assert logging.getLogger().handlers[0].filters == []


def test_log_lines_go_where_stderr_is_when_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    handler, later = ToStderr(), StringIO()
    monkeypatch.setattr(sys, "stderr", later)
    handler.emit(logging.makeLogRecord({"msg": "a line"}))
    assert later.getvalue() == "a line\n"
