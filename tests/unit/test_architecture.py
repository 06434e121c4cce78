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
METHOD = {"ppg", "cps", "fusion", "frame", "tiles"}
ALLOWED = {
    "cli": {"app", "command_line", "compare", "results", "lightning_model", "passes", "weights", "clip"},
    "app": {"results", "lightning_model", "passes", "clip", "demo", "messages"},
    "compare": {"results", "lightning_model", "passes", "torch_model", "weights", "demo", "messages"},
    "results": {"torch_model", *METHOD, "compute"},
    "lightning_model": {
        "passes",
        "results",
        "deploy",
        "torch_model",
        "tiled_model",
        *METHOD,
        "weights",
        "clip",
        "compute",
        "arguments",
        "messages",
    },
    "passes": {"torch_model", "refiner", *METHOD, "weights", "arguments", "messages"},
    "deploy": {"torch_model", "clip"},
    "tiled_model": {"torch_model", "refiner", *METHOD, "clip", "compute"},
    "torch_model": {"refiner", *METHOD, "clip", "compute"},
    "refiner": {*METHOD, "compute"},
    "weights": {"clip", "sam", "compute", "messages"},
    "fusion": set(),
    "cps": {"ppg", "frame", "sam"},
    "ppg": {"frame"},
    "clip": {"compute", "messages"},
    "sam": {"compute"},
    "tiles": {"frame"},
    "frame": set(),
    "arguments": set(),
    "messages": set(),
    "compute": set(),
    "demo": set(),
    "command_line": {"lightning_model", "messages"},
    "_autoload": set(),
}
"""Room, a folder or a module of the root -> the rooms that it may import."""
PUBLIC = {
    "ClipSam": "lightning_model",
    "ClipSamModel": "torch_model",
    "DrawnParts": "demo",
    "PromptVisualizer": "results",
    "SamPostProcessor": "passes",
    "ResultVisualizer": "results",
}
"""What the package itself gives -> where it is from."""


def room_of(module: str) -> str:
    """Name the room of ``anomalib_clipsam.room...``."""
    return module.split(".")[1]


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


MODULES = {
    str(path.relative_to(ROOT)): path.relative_to(ROOT).parts[0].removesuffix(".py")
    for path in sorted(ROOT.rglob("*.py"))
    if path != ROOT / "__init__.py"
}


def test_every_room_is_in_the_picture() -> None:
    assert set(MODULES.values()) == set(ALLOWED)


def test_the_picture_has_no_circle() -> None:
    assert list(TopologicalSorter(ALLOWED).static_order())


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module: str) -> None:
    room = MODULES[module]
    assert imported_rooms((ROOT / module).read_text(encoding="utf-8")) - {room} <= ALLOWED[room]


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
