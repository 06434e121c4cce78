# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""What a folder of results that a stranger made can bring into the page."""

from __future__ import annotations

import base64
import json
import re
from typing import TYPE_CHECKING

import pytest

from anomalib_clipsam.compare.config import Comparison, DataEntry, ModelEntry
from anomalib_clipsam.compare.pictures import INDEX
from anomalib_clipsam.compare.report import PICTURES, write_report
from anomalib_clipsam.compare.table import Row

if TYPE_CHECKING:
    from pathlib import Path

COMPARISON = Comparison(models=(ModelEntry("A", "Padim"),), data=(DataEntry("Parts", "DrawnParts"),))
ROW = Row("Parts", "", "A", "0123", pixel_AUROC=0.5)
END = "</script><script>alert(1)</script><!--"


def written(output: Path, picture: str, stage: str = "own.webp", path: str = "good/0.png") -> str:
    """Write a page whose one image has these pictures; its text."""
    folder = output / PICTURES / ROW.fingerprint
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "own.webp").write_bytes(b"own")
    entry = {"path": path, "defective": False, "score": 0.5, "decision": None}
    entry |= {"pictures": {"image": picture}, "stages": {"CLIP map": stage}}
    (folder / INDEX).write_text(json.dumps([entry]), encoding="utf-8")
    write_report(output, COMPARISON, [ROW])
    return (output / "report.html").read_text(encoding="utf-8")


def test_pictures_beside_the_index_are_shown(tmp_path: Path) -> None:
    assert written(tmp_path, "own.webp").count(base64.b64encode(b"own").decode()) == 2


@pytest.mark.parametrize("kind", ["absolute", "above", "below", "link", "index", "folder", "line end"])
@pytest.mark.parametrize("place", ["pictures", "stages"])
def test_other_files_are_not(tmp_path: Path, kind: str, place: str) -> None:
    secret = tmp_path / "secret.webp"
    secret.write_bytes(b"secret")
    folder = tmp_path / PICTURES / ROW.fingerprint
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "own.webp").write_bytes(b"secret")
    (folder / "link.webp").symlink_to(secret)
    name = {
        "absolute": str(secret),
        "above": "../../secret.webp",
        "below": "deep/own.webp",
        "link": "link.webp",
        "index": INDEX,
        "folder": ".",
        "line end": "a\n../own.png",
    }[kind]
    with pytest.raises(ValueError, match=r"index\.json names .*, which is no picture beside it\. Delete .*0123\."):
        written(tmp_path, **{"picture": "own.webp", ("picture" if place == "pictures" else "stage"): name})
    assert not (tmp_path / "report.html").exists()


def test_no_text_ends_the_script_or_is_read_as_html(tmp_path: Path) -> None:
    text = written(tmp_path, "own.webp", path=f"{END}/{END}.png")
    assert text.count("</script>") == text.count("<script") == 1
    assert json.loads(re.search(r"const data = (.*);\n", text).group(1))["images"][0]["name"].endswith("<!--.png")
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|srcdoc|\.href", text)
