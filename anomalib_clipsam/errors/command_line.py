# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""How this package speaks on anomalib's command line: one sentence for an error that a user can mend, no line twice.

In Python the same errors are raised as everywhere. Errors that nobody has put into a sentence keep their traceback.
"""

from __future__ import annotations

import logging
import re
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from typing import TYPE_CHECKING

from anomalib_clipsam.errors.errors import MODEL_OPTIONS, UserError, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType
    from typing import TextIO

PACKAGE = __name__.partition(".")[0]
ADVICE = (
    (
        "Path contains non-printable characters",
        "path.py",
        "anomalib takes paths of ASCII characters only. Rename that folder, or give a symbolic link to it.",
    ),
    (
        "Invalid value for dtype 'str'",
        "mvtec_loco.py",
        "anomalib reads MVTecLOCO with pandas 2 only. Run: pip install 'pandas<3'",
    ),
    ("Path does not exist", "predict.py", "Give a folder of pictures, or one picture."),
    ("Found 0 images in", "predict.py", "Give a folder of files such as .png, .jpg, .bmp or .tif, or one of them."),
    ("``filename`` is not an image file", "predict.py", "Give a file such as .png, .jpg, .bmp or .tif, or a folder."),
)
"""Beginning of an error, a file of anomalib's that it comes through, and what it does not say."""
TALKATIVE = (
    "anomalib",
    "lightning.fabric.utilities.distributed",
    "lightning.pytorch.trainer.connectors.signal_connector",
    "lightning.pytorch.utilities.rank_zero",
    "lightning_fabric.utilities.rank_zero",
)
"""Loggers of what says nothing about the pictures, such as which services can be bought."""


def find_for_users(error: BaseException) -> BaseException | None:
    """Find the error that this package raised for whoever gave the arguments.

    Args:
        error (BaseException): What has ended the command.

    Returns:
        BaseException | None: That error, or one that jsonargparse has put into a text of its own, if it is a
        :class:`~anomalib_clipsam.errors.errors.UserError`.
    """
    if isinstance(error, UserError):
        return error
    if error.__traceback__ is None:
        return None
    frame = [frame for frame, _ in walk_tb(error.__traceback__)][-1]
    # jsonargparse tries "a model" and "nothing" in turn, and joins the texts of what either raised.
    joined = frame.f_code.co_name == "raise_union_unexpected_value"
    tried = frame.f_locals.get("exceptions") if joined else None
    return next(filter(None, map(find_for_users, tried or ())), None)


def find_advice(error: BaseException) -> str | None:
    """Find what an error of anomalib's does not say.

    Args:
        error (BaseException): What has ended the command.

    Returns:
        str | None: The advice; ``None`` where there is none in :data:`ADVICE`.
    """
    files = {Path(frame.f_code.co_filename).name for frame, _ in walk_tb(error.__traceback__)}
    found = (advice for begin, file, advice in ADVICE if str(error).startswith(begin) and file in files)
    return next(found, None)


def sentence(error: BaseException, options: Mapping[str, str]) -> str:
    """Phrase an error in the words of a command line: ``weights='lite'`` is ``--model.weights lite`` there.

    Args:
        error (BaseException): The error.
        options (Mapping[str, str]): Python's name of an argument -> the command line's, such as ``"--model.weights"``.

    Returns:
        str: One line.
    """
    text = printable(" ".join(str(error).split()))
    if not options:
        return text
    name = rf"\b({'|'.join(options)})"
    text = re.sub(rf"{name}='([^']*)'", lambda found: f"{options[found[1]]} {found[2]}", text)
    return re.sub(rf"`{name}`", lambda found: f"`{options[found[1]]}`", text)


def install_error_hook() -> None:
    """Prepare this process, which runs anomalib's command line. A second call does nothing."""
    if getattr(sys.excepthook, "__module__", None) == __name__:
        return
    shown_before = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        found, advice = find_for_users(error), find_advice(error)
        if found is not None:
            print(f"anomalib: {sentence(found, MODEL_OPTIONS)}", file=sys.stderr)
        elif advice is not None:
            print(f"anomalib: {printable(error).rstrip('.')}. {advice}", file=sys.stderr)
        else:
            shown_before(kind, error, traceback)

    sys.excepthook = show
    logging.getLogger(PACKAGE).addHandler(PrintedOnce())


@contextmanager
def only_our_lines() -> Iterator[None]:
    """Leave out what other libraries log about themselves and warn their callers of, but for errors."""
    loggers = [logging.getLogger(name) for name in TALKATIVE]
    levels = [each.level for each in loggers]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for each in loggers:
                each.setLevel(logging.ERROR)
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


class ToStderr(logging.StreamHandler):
    """Writes to what ``sys.stderr`` is by then: a progress bar puts its own there, which keeps lines out of the bar."""

    @property
    def stream(self) -> TextIO:
        """Where it writes."""
        return sys.stderr

    @stream.setter
    def stream(self, stream: TextIO) -> None:
        del stream  # the one that logging's own class would keep


class PrintedOnce(logging.Handler):
    """Keep our log lines from being printed twice: anomalib gives the root logger a plain handler and one of rich's.

    It stands at our own logger, and so comes before those two. The plain one stays: it does not wrap file names.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Tell rich's handler to leave our records to the plain one."""
        from rich.logging import RichHandler  # here, since `anomalib-clipsam --help` needs none of it

        del record
        handlers = logging.getLogger().handlers
        if any(type(handler) is logging.StreamHandler for handler in handlers):
            for handler in handlers:
                if isinstance(handler, RichHandler):
                    handler.addFilter(_not_ours)


def _not_ours(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] != PACKAGE
