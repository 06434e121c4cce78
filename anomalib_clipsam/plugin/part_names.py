# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Names of parts by the folders of their pictures, for many products in one run.

A file maps folders to names::

    bottle: bottle
    metal_nut: metal nut
    "01": circuit board
"""

from __future__ import annotations

import logging
from pathlib import Path

from anomalib_clipsam.clip.prompts import read_yaml
from anomalib_clipsam.errors.errors import printable

logger = logging.getLogger(__name__)

FOLDER = "folder"
"""Class name that asks for the names of folders."""
SUFFIXES = (".yaml", ".yml")
"""What the name of a file ends with."""
DEFAULT_CLASS_NAME = "object"
"""Name of a part that nobody has named."""


def is_name(text: object) -> bool:
    """Say whether a folder's or a category's name can stand in a sentence: it has a letter."""
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
            raise FileNotFoundError(msg)
        content = read_yaml(path, "file of class names")
        wrong = not isinstance(content, dict) or not content
        if wrong or not all(isinstance(each, str) and each.strip() for each in (*content, *content.values())):
            msg = f"The file '{path}' must map folders to names, such as `metal_nut: metal nut`. Put numbers in quotes."
            raise ValueError(msg)
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
