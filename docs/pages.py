# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""MkDocs: README.md and its neighbours become pages; links that are right in the repository are right on the site."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "report.md",
}
"""File of the repository -> page of the site."""
ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):<code>~?(?:[\w.]+\.)?(\w+)</code>")
"""A name in a docstring, such as ``:class:`~package.module.Name```, as it comes out of Markdown."""
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s:]+)(#[^)\s]*)?\)")
"""A link to a file: whether it is a picture, its text, path and anchor. Addresses have a colon."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages whose text lies outside of ``docs``."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page; of files that the site does not have, such as examples, the text stays."""
    del config
    folder = "" if page.file.src_uri in PAGES.values() else "docs"

    def rewrite(link: re.Match[str]) -> str:
        picture, text, path, anchor = link.groups()
        inside = posixpath.normpath(posixpath.join(folder, path))  # in the repository
        target = PAGES.get(inside, inside.removeprefix("docs/"))
        if files.get_file_from_path(target) is None and (ROOT / inside).exists():
            return f"`{inside}`" if text == path else text
        return f"{picture}[{text}]({target}{anchor or ''})"

    return LINK.sub(rewrite, markdown)


def on_page_content(html: str, **_: object) -> str:
    """Write the names in docstrings as code; the roles before them are Sphinx's."""
    return ROLE.sub(r"<code>\1</code>", html)
