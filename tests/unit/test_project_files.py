# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The files beside the package say the same as the package."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from anomalib_clipsam import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomllib", reason="comes with Python 3.11")

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirement(name: str, extra: str | None = None) -> Requirement:
    """Find a requirement of the project by its name, among all of them or those of an extra."""
    listed = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    return next(Requirement(line) for line in listed if Requirement(line).name == name)


def test_changelog_and_citation_name_this_version() -> None:
    released = re.findall(r"^## \[(\d\S*)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert released[0] == (__version__, str(citation["date-released"]))
    assert citation["version"] == __version__


def test_ruff_before_a_commit_is_a_ruff_of_the_extra() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert repository["rev"].removeprefix("v") in requirement("ruff", "dev").specifier


def test_workflow_begins_at_the_lower_bounds() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    rows = workflow["jobs"]["run"]["strategy"]["matrix"]["include"]
    lowest = {name: next(iter(requirement(name).specifier)).version for name in ("torch", "torchvision")}
    assert PROJECT["requires-python"] == f">={rows[0]['python']}"
    for name, version in lowest.items():
        assert rows[0][name].removesuffix(".0") == version
    newest = " ".join(f"{name}=={rows[-1][name]}" for name in lowest)
    assert f"torch=${{TORCH:-{newest}}}" in (ROOT / ".ci/run").read_text(encoding="utf-8")
