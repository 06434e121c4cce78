# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Who may import whom, as docs/architecture.md draws it: one way, also for type checkers."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import anomalib_clipsam

ROOT = Path(anomalib_clipsam.__file__).parent
ARROWS = {
    "cli": {"app", "compare", "predictions", "lightning_model", "plugin", "weights", "clip", "errors"},
    "app": {"predictions", "lightning_model", "plugin", "data", "drawing", "references", "drawn_parts", "errors"},
    "compare": {"lightning_model", "sam_post_processor", "drawing", "weights", "drawn_parts", "errors"},
    "predictions": {"lightning_model", "drawing", "compute", "errors"},
    "lightning_model": {
        "export",
        "plugin",
        "data",
        "drawing",
        "references",
        "method",
        "weights",
        "arguments",
        "errors",
    },
    "sam_post_processor": {"plugin", "data", "torch_model", "method", "weights", "arguments", "errors"},
    "export": {"torch_model", "errors"},
    "plugin": {
        "data",
        "tiling",
        "torch_model",
        "references",
        "method",
        "weights",
        "clip.localizers",
        "clip",
        "compute",
        "arguments",
        "errors",
    },
    "data": {"references", "errors"},
    "drawing": {"torch_model", "method", "errors"},
    "tiling": {"torch_model", "references", "method", "compute", "errors"},
    "torch_model": {"references", "method", "clip.localizers", "compute"},
    "references": {"references.distances", "clip.localizers", "clip", "compute", "errors"},
    "references.distances": {"clip", "compute", "errors"},
    "method": {"sam", "compute", "errors"},
    "weights": {"clip", "sam", "compute", "errors"},
    "clip.localizers": {"clip", "compute", "errors"},
    "clip": {"compute", "errors"},
    "sam": {"compute", "errors"},
    "drawn_parts": {"errors"},
    "compute": {"errors"},
    "arguments": {"errors"},
    "errors": set(),
    "_autoload": set(),
}
"""Room, a folder or a module of the root -> the rooms that it imports: these, and no others."""
PUBLIC = {
    "ClipSam": "lightning_model",
    "ClipSamModel": "torch_model",
    "DrawnParts": "drawn_parts",
    "PromptVisualizer": "drawing",
    "SamPostProcessor": "sam_post_processor",
    "ResultVisualizer": "drawing",
}
"""What the package itself gives -> where it is from."""


STOREYS = (
    {"cli", "app", "compare", "predictions"},
    {"lightning_model", "sam_post_processor", "export", "plugin", "data", "drawing"},
    {"tiling", "torch_model", "references", "references.distances", "method"},
    {"weights", "clip", "clip.localizers", "sam", "compute"},
)
"""Commands, plugin, method and nets: none knows those before it. What is in none of them stands on the shelf."""
FOLDERS = {".".join(path.relative_to(ROOT).parts) for path in ROOT.rglob("*") if path.is_dir()}


def room_of(module: str) -> str:
    """Name the room of ``anomalib_clipsam.room...``: its folder, or itself if it is at the root."""
    parts = module.split(".")[1:]
    folders = (".".join(parts[:number]) for number in range(len(parts), 0, -1))
    return next((folder for folder in folders if folder in FOLDERS), parts[0])


def imported_rooms(source: str) -> set[str]:
    """Name the rooms that a module imports anywhere: at its head, in functions, for type checkers."""
    rooms = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            rooms |= {room_of(name.name) for name in node.names if name.name.startswith("anomalib_clipsam.")}
        elif isinstance(node, ast.ImportFrom) and node.module == "anomalib_clipsam":
            rooms |= {PUBLIC.get(name.name, name.name) for name in node.names if name.name != "__version__"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("anomalib_clipsam."):
            rooms.add(room_of(node.module))
    return rooms


def found_arrows() -> dict[str, set[str]]:
    """Room -> the rooms that its modules import."""
    arrows: dict[str, set[str]] = {}
    for path in sorted(ROOT.rglob("*.py")):
        if path == ROOT / "__init__.py":
            continue
        module = ".".join(("anomalib_clipsam", *path.relative_to(ROOT).with_suffix("").parts))
        room = room_of(module.removesuffix(".__init__"))
        arrows.setdefault(room, set()).update(imported_rooms(path.read_text(encoding="utf-8")) - {room})
    return arrows


def test_rooms_import_what_the_picture_shows_and_nothing_else() -> None:
    assert found_arrows() == ARROWS


def test_the_picture_has_no_circle() -> None:
    assert list(TopologicalSorter(ARROWS).static_order())


def test_no_storey_knows_one_above_it() -> None:
    for number, storey in enumerate(STOREYS):
        above = set().union(*STOREYS[:number])
        for room in storey:
            assert not ARROWS[room] & above, room
    on_a_storey = set().union(*STOREYS)
    for room in ARROWS.keys() - on_a_storey:
        assert not ARROWS[room] & on_a_storey, room


def test_lines_of_the_files_and_of_clip_sam() -> None:
    """Whoever adds to a file sees when it needs another room."""
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in ROOT.rglob("*.py")}
    assert lines[ROOT / "lightning_model.py"] <= 450
    assert [str(path) for path, number in lines.items() if number > 480 and path.parent.name != "drawn_parts"] == []


@pytest.mark.parametrize(
    "source",
    [
        "from anomalib_clipsam.lightning_model import ClipSam",
        "import anomalib_clipsam.lightning_model",
        "from anomalib_clipsam import ClipSam",
        "from anomalib_clipsam import lightning_model",
        "def f():\n    from anomalib_clipsam.lightning_model import ClipSam",
        "if TYPE_CHECKING:\n    from anomalib_clipsam.lightning_model import ClipSam",
    ],
)
def test_no_form_of_import_is_overlooked(source: str) -> None:
    assert imported_rooms(source) == {"lightning_model"}
