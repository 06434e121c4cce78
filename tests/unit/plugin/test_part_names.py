# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Names of parts by the folders of their pictures."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from anomalib_clipsam.plugin.part_names import FolderNames

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/data/bottle/0.png", "bottle"),
        ("/data/metal nut 2/0.png", "metal nut 2"),
        ("/data/01/0.png", "object"),
        ("/0.png", "object"),
        (None, "object"),
    ],
)
def test_the_folder_that_holds_a_picture_names_it(path: str | None, name: str) -> None:
    assert FolderNames.from_argument("folder")(path) == name


def test_a_file_names_the_nearest_folder(tmp_path: Path) -> None:
    file = tmp_path / "names.yaml"
    file.write_text("metal_nut: metal nut\n'01': circuit board\nbroken: splinter\n")
    names = FolderNames.from_argument(str(file))
    paths = ("metal_nut/test/bent/0.png", "a/01/0.png", "01/broken/0.png", "cable/0.png")
    assert [names(f"/data/{path}") for path in paths] == ["metal nut", "circuit board", "splinter", "object"]


def test_each_name_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    names = FolderNames()
    with caplog.at_level(logging.INFO, logger="anomalib_clipsam"):
        for path in ("/a/bottle/0.png", "/a/bottle/1.png", "/a/01/0.png", "/b/bottle/0.png", "/a/01/1.png"):
            names(path)
    assert [record.getMessage() for record in caplog.records] == [
        "Text prompts ask about 'bottle' in the folder 'bottle'.",
        "Text prompts ask about 'object' in the folder '01'.",
    ]


@pytest.mark.parametrize("name", [None, "bottle", "folders", "yaml"])
def test_the_name_of_a_part_is_none_of_folders(name: str | None) -> None:
    assert FolderNames.from_argument(name) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("01: circuit board", "must map folders to names, such as `metal_nut: metal nut`. Put numbers in quotes"),
        ("bottle: ' '", "must map folders to names"),
        ("bottle: [a, b]", "must map folders to names"),
        ("- bottle", "must map folders to names"),
        ("", "must map folders to names"),
        ("a: [", r"The file of class names '.*names\.yml' is not readable as YAML"),
        ("a: &x b\nc: *x", r"The file of class names '.*' has YAML aliases"),
    ],
)
def test_a_file_that_says_something_else(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "names.yml").write_text(content)
    with pytest.raises(ValueError, match=message):
        FolderNames.from_argument(str(tmp_path / "names.yml"))


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no file 'none\.YAML' of class names"):
        FolderNames.from_argument("none.YAML")
