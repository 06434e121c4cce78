# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Names of parts in the text prompts: one for all, or by the folders of the pictures, for many products in one run.

A file maps folders to names::

    bottle: bottle
    metal_nut: metal nut
    "01": circuit board
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from anomalib_clipsam.clip.prompts import read_yaml
from anomalib_clipsam.errors.errors import UserFileNotFoundError, UserValueError, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from anomalib_clipsam.torch_model import ClipSamModel

logger = logging.getLogger(__name__)

FOLDER = "folder"
"""Class name that asks for the names of folders."""
SUFFIXES = (".yaml", ".yml")
"""What the name of a file ends with."""
DEFAULT_CLASS_NAME = "object"
"""Name of a part that nobody has named."""


def is_name(text: object) -> bool:
    """Whether a folder's or a category's name can stand in a sentence: it has a letter."""
    return any(character.isalpha() for character in str(text))


class FolderNames:
    """Find the name of a part by the folder of its picture.

    Args:
        names (dict[str, str] | None): Folder -> name. The folder nearest to the picture counts, so that
            ``bottle/test/broken/0.png`` is found under ``bottle``. ``None`` takes the name of the folder that holds the
            picture itself. What has no name is an ``"object"``. Defaults to ``None``.
    """

    def __init__(self, names: dict[str, str] | None = None) -> None:
        self.names = names
        self._said: set[tuple[str, str]] = set()

    @classmethod
    def from_argument(cls, class_name: str | None) -> FolderNames | None:
        """Understand the argument ``class_name``.

        Args:
            class_name (str | None): ``"folder"``, a YAML file, or the name of a part.

        Returns:
            FolderNames | None: ``None`` if it names a part, or nothing.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file does not map folders to names.
        """
        if class_name == FOLDER:
            return cls()
        if class_name is None or not class_name.lower().endswith(SUFFIXES):
            return None
        path = Path(class_name)
        if not path.is_file():
            msg = f"There is no file '{path}' of class names. Give the path of a YAML file, or the name of the part."
            raise UserFileNotFoundError(msg)
        content = read_yaml(path, "file of class names")
        wrong = not isinstance(content, dict) or not content
        if wrong or not all(isinstance(each, str) and each.strip() for each in (*content, *content.values())):
            msg = f"The file '{path}' must map folders to names, such as `metal_nut: metal nut`. Put numbers in quotes."
            raise UserValueError(msg)
        return cls(content)

    def __call__(self, path: str | Path | None) -> str:
        """Name the part of a picture, and log each folder's name once.

        Args:
            path (str | Path | None): The picture's file; ``None`` if it has none.

        Returns:
            str: The name.
        """
        folders = [] if path is None else [folder.name for folder in Path(path).absolute().parents]
        if self.names is None:
            folder = folders[0] if folders else ""
            name = folder if is_name(folder) else DEFAULT_CLASS_NAME
        else:
            folder = next((folder for folder in folders if folder in self.names), folders[0] if folders else "")
            name = self.names.get(folder, DEFAULT_CLASS_NAME)
        if (folder, name) not in self._said:
            self._said.add((folder, name))
            logger.info("Text prompts ask about '%s' in the folder '%s'.", printable(name), printable(folder))
        return name


class PartNames:
    """The name that the text prompts ask about, chosen anew for each pass, or for each picture.

    Args:
        given (str | None): ClipSam's argument ``class_name``.
        log_once (Callable[[str, str], None]): Logs what is said about something when it changes only.

    Attributes:
        restored (str | None): Name that a checkpoint was made with.

    Raises:
        FileNotFoundError: If the argument names a file that does not exist.
        ValueError: If it is empty, or the file does not map folders to names.
    """

    def __init__(self, given: str | None, log_once: Callable[[str, str], None]) -> None:
        if given is not None and not given.strip():
            msg = "class_name is empty. Name the part, such as 'bottle', or leave class_name out."
            raise UserValueError(msg)
        self.argument = given
        self.folders = FolderNames.from_argument(given)
        self.given = None if self.folders else given
        self.restored: str | None = None
        self._log_once = log_once

    def check(self, k_shot: int, references: str | None) -> None:
        """Raise if many products would be compared with one another.

        Args:
            k_shot (int): Number of good parts to compare with.
            references (str | None): What else a picture is compared with.

        Raises:
            ValueError: If each folder has a name of its own, and pictures are compared across folders.
        """
        if self.folders is not None and (k_shot or references == "batch"):
            msg = (
                f"class_name='{self.argument}' is for many products, which cannot be compared with one another. Leave "
                "k_shot and references='batch' out, or give each product a run of its own."
            )
            raise UserValueError(msg)

    def choose(self, model: ClipSamModel, category: str | None) -> None:
        """Choose the name of a pass: argument, else the data module's category, else the checkpoint's, else a default.

        A category without letters, such as BTech's "01", names nothing.

        Args:
            model (ClipSamModel): The model that asks.
            category (str | None): Category of the data module, if it has one.
        """
        if self.folders is not None:
            return  # each picture has its own
        if category and not is_name(category):
            if not self.given:
                text = (
                    f"The category '{printable(category)}' has no letters to ask about. Name the part by `class_name`."
                )
                self._log_once("category", text)
            category = None
        choices = (
            (self.given, "argument"),
            (category, "data module"),
            (self.restored, "checkpoint"),
            (DEFAULT_CLASS_NAME, "default"),
        )
        name, source = next((name, source) for name, source in choices if name)
        if model.localizer.uses_class_name:
            text = f"Text prompts ask about '{printable(name)}' (class name from the {source})."
            self._log_once("class name", text)
        model.set_class_name(name)

    def of(self, model: ClipSamModel, path: str | Path | None) -> str:
        """Name the part of a picture.

        Args:
            model (ClipSamModel): The model that asks.
            path (str | Path | None): The picture's file; ``None`` if it has none.

        Returns:
            str: The name, as the text prompts ask about it.
        """
        if self.folders is None or not model.localizer.uses_class_name:
            return model.class_name
        return self.folders(path)


@contextmanager
def asking_about(model: ClipSamModel, name: str) -> Iterator[None]:
    """Ask about a part of this name for a while.

    Args:
        model (ClipSamModel): The model that asks.
        name (str): Name of the part.

    Yields:
        None: While the name holds.
    """
    before = model.class_name
    model.set_class_name(name)
    try:
        yield
    finally:
        model.set_class_name(before)
