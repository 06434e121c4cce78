# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Every command and every program of README.md is run: here, unless :data:`ELSEWHERE` says where.

A command that is new in README.md is run here, on small drawn pictures, the carried weights in place of the published.
"""

from __future__ import annotations

import ast
import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from anomalib_clipsam import ClipSam
from anomalib_clipsam.cli import main
from anomalib_clipsam.drawn_parts.drawing import draw_part
from anomalib_clipsam.plugin.post_processor import ClipSamPostProcessor

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
TESTS, BENCHMARK = "tests/integration", "test_benchmark_gives_one_table"
ELSEWHERE = {
    # command: the test that runs it, or the line of CI that does, or why nothing can
    "pip install .": "CI: pip install",
    "pip install '.[test]'": "CI: pip install",
    "pip install '.[app]'": "network: CI installs the extra with '.[test]', which holds it",
    "pytest": "CI: pytest",
    "anomalib test --model ClipSam --model.weights lite --data DrawnParts --data.category leather": "CI: main=(",
    "anomalib benchmark --config configs/benchmark_demo.yaml": f"{TESTS}/test_commands.py::{BENCHMARK}",
    "anomalib export --model ClipSam --export_type onnx --export_root exported": f"{TESTS}/test_export.py::pipeline",
    "anomalib-clipsam app": f"{TESTS}/test_app.py::served",
    "anomalib-clipsam weights list": f"{TESTS}/test_weights.py::test_fetched_pair_has_its_prompts",
    "anomalib-clipsam weights fetch vit_b": f"{TESTS}/test_weights.py::test_fetch_copies_what_is_here",
    "anomalib-clipsam weights fetch vit_b --to stick": f"{TESTS}/test_weights.py::test_fetched_pair_has_its_prompts",
    "anomalib-clipsam weights verify": f"{TESTS}/test_weights.py::test_verify_names_what_is_damaged",
}
"""Commands that are too slow to run once more, or that need a network: the tests use a server of their own."""


def blocks(language: str) -> list[str]:
    """Give the fenced blocks of README.md in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)


def commands() -> list[str]:
    """Give every command of README.md, in one spelling: without comments, one by one where ``&&`` joins some."""
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    parts = [part for line in lines for part in re.split(r"&&|\|", re.sub(r"(^|\s)#.*", "", line))]
    return [" ".join(part.split()) for part in parts if part.strip()]


def body(path: str, name: str) -> str:
    """Give the text of a function of a file, with the words that it has as texts."""
    source = (ROOT / path).read_text(encoding="utf-8")
    found = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == name]
    assert found, f"{path} has no function {name}: say in ELSEWHERE what runs the command."
    return ast.get_source_segment(source, found[0])


def test_readme_has_commands_and_programs() -> None:
    assert len(commands()) >= 20
    assert len(blocks("python")) >= 1
    fenced = re.findall(r"^```(\w*)$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    assert set(fenced) <= {"bash", "python", ""}, "a language that no test knows"


def test_readme_quotes_what_is_said_of_a_threshold() -> None:
    model = SimpleNamespace(post_processor=ClipSamPostProcessor(), model=SimpleNamespace(judge=None))
    said = ClipSam.explain_threshold(model, "--good FOLDER", "--threshold")
    assert said in (ROOT / "README.md").read_text(encoding="utf-8")


def test_what_is_run_elsewhere_is_still_in_readme() -> None:
    assert set(ELSEWHERE) <= set(commands())


@pytest.mark.parametrize("command", ELSEWHERE)
def test_what_is_run_elsewhere_is_run_there(command: str) -> None:
    """The test is there, and has the command's words, but for names of weights and folders."""
    where = ELSEWHERE[command]
    if where.startswith("CI: "):
        assert re.search(rf"^(\w+ )*{re.escape(where[4:])}", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.M)
    elif not where.startswith("network: "):
        path, name = where.split("::")
        words = shlex.split(command)[1:]
        needed = [word for word in words if not word.startswith("-") and word not in ("exported", "vit_b", "stick")]
        needed += [word for word in words if word == "--to"]
        text = body(path, name)
        assert [word for word in needed if Path(word).name not in text] == []


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders that README.md speaks of, with a few drawn pictures in each."""
    root = tmp_path_factory.mktemp("workplace")
    shutil.copytree(ROOT / "configs", root / "configs")

    def draw(folder: Path, defect: str | None, count: int, masks: Path | None = None) -> None:
        for index in range(count):
            picture, mask = draw_part("leather", np.random.default_rng(index), defect)
            for path, drawn in (
                (folder / f"{index:03}.png", picture),
                (masks and masks / f"{index:03}_mask.png", mask),
            ):
                if path is not None:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(drawn).save(path)

    draw(root / "good_parts", None, 4)
    draw(root / "my_pictures", "cut", 5)
    draw(root / "zips" / "good", None, 2)
    draw(root / "zips" / "defect", "cut", 2)
    for category in (
        root / "MVTecAD" / "bottle",
        *(root / "datasets" / "MVTecAD" / name for name in ("bottle", "carpet")),
    ):
        draw(category / "train" / "good", None, 4)
        draw(category / "test" / "good", None, 2)
        draw(category / "test" / "cut", "cut", 2, category / "ground_truth" / "cut")
    return root


def lighter(words: list[str], folder: Path) -> list[str]:
    """Put the carried weights in place of the published ones, and less into a comparison."""
    if words[0] == "anomalib":
        more = ["--data.num_workers=0"] if words[1] in ("test", "train") else []
        if "--model.post_processor.weights" in words:  # another model, whose backbone has no weights here
            return ["lite" if word == "vit_b" else word for word in words[1:]] + ["--model.pre_trained=false", *more]
        more += [] if "--model.weights" in words else ["--model.weights=lite"]
        return [*words[1:], *more]
    if words[1] == "compare":
        path = folder / words[words.index("--config") + 1]
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        config["models"] = [config["models"][0], config["models"][-1]]
        config["data"] = [{**entry, "categories": entry["categories"][:1], "max_images": 2} for entry in config["data"]]
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
    more = ["--weights", "lite"] if words[1] == "predictions" and "--weights" not in words else []
    return [*words[1:], *more]


def files(folder: Path) -> set[tuple[Path, int]]:
    """List the files below a folder, each with the time of its last change."""
    return {(path, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in commands() if command not in ELSEWHERE])
def test_a_command_of_readme_runs(
    command: str, workplace: Path, anomalib: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    words = shlex.split(command)
    assert words[0] in ("anomalib", "anomalib-clipsam"), "say in ELSEWHERE what runs it, or why nothing can"
    monkeypatch.chdir(workplace)
    before = files(workplace)
    (anomalib if words[0] == "anomalib" else lambda *given: main(given))(*lighter(words, workplace))
    said = capsys.readouterr().out
    written = [path for path, _ in files(workplace) - before]  # also where an earlier command has written
    assert written or "zipper" in said, "it has written nothing, and said nothing"
    for path in written:
        if path.suffix == ".png":
            with Image.open(path) as picture:
                picture.load()


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_a_program_of_readme_runs(number: int, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    program = blocks("python")[number].replace('weights="vit_b"', 'weights="lite"')
    names = {"images": torch.rand(1, 3, 64, 48)}
    exec(compile(program, "README.md", "exec"), names)  # of this project's own file
    assert names["stages"].fused_map.shape == (1, 256, 256)
