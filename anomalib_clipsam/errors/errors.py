# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""How messages quote what others made: names of files, contents of files, errors of libraries.

A stranger may have chosen them. They must neither forge lines of a log nor advise to run what they hold.
"""

from __future__ import annotations

MODEL_OPTIONS: dict[str, str] = {}
"""Name of an argument of ClipSam's in Python -> its option on anomalib's command line. ClipSam's module fills it."""


def printable(text: object) -> str:
    r"""Write a text with its control characters escaped: line ends, terminal codes, changes of direction.

    Args:
        text (object): The text, or a path.

    Returns:
        str: One line; ``"\n"`` stands in it as a backslash and an n.
    """
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in str(text))


def reason(error: Exception) -> str:
    """Explain why a file could not be loaded, without torch's advice to run the code in it.

    Args:
        error (Exception): What ``torch.load`` or a library like it raised.

    Returns:
        str: The first line of the reason, or the error's name if it gives none, with a full stop.
    """
    text = str(error).rpartition("WeightsUnpickler error:")[2].strip()  # what comes before it is the advice
    first = (text.split(" Please ")[0].splitlines() or [""])[0].rstrip(".")
    return f"{printable(first) or type(error).__name__}."


def counted(number: int, thing: str) -> str:
    """Name a number of things: ``"1 good part"``, ``"2 good parts"``.

    Args:
        number (int): How many.
        thing (str): One of them; its plural has an s.

    Returns:
        str: Both.
    """
    return f"{number} {thing}{'s' * (number != 1)}"


class UserError(Exception):
    """An error that whoever gave the arguments or files can mend: its text ends with what to do.

    A command line shows its text alone, without a traceback. Each of its kinds is one of Python's own, too.
    """


class UserValueError(UserError, ValueError):
    """A value that is unknown, outside its range, or does not go with another."""


class UserTypeError(UserError, TypeError):
    """A value of another type."""


class UserOSError(UserError, OSError):
    """A file that cannot be read or written."""


class UserFileNotFoundError(UserError, FileNotFoundError):
    """A file that does not exist."""


class UserFileExistsError(UserError, FileExistsError):
    """A file or folder that is in the way."""


class UserImportError(UserError, ImportError):
    """A package that cannot be used."""


class UserModuleNotFoundError(UserError, ModuleNotFoundError):
    """A package that is not installed."""


class NotFiniteError(UserValueError):
    """Something about some images is NaN or infinite, so that there is no verdict.

    Args:
        message (str): What, and what to do.
        images (list[int]): Places of these images in the batch.
    """

    def __init__(self, message: str, images: list[int]) -> None:
        super().__init__(message)
        self.images = images
