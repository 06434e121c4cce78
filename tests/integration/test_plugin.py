# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The package as pip installs it, plainly and editable, beside the real anomalib."""

import os
import subprocess
import sys
import textwrap
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PTH = "anomalib_clipsam_autoload.pth"

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module", params=["plain", "editable"])
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A new environment that sees the packages of this one, with the checkout installed in it by pip.

    Without a network: nothing but this package is installed, and hatchling is taken from this environment.
    """
    folder = tmp_path_factory.mktemp(request.param) / "venv"
    venv.create(folder, with_pip=False)
    (site,) = folder.glob("Lib/site-packages" if os.name == "nt" else "lib/python*/site-packages")
    # As lines of a `.pth` file these folders come last on the path, and their own `.pth` files are not read.
    parents = [path for path in sys.path if Path(path).name in {"site-packages", "dist-packages"}]
    (site / "zz_parents.pth").write_text("".join(f"{path}\n" for path in parents), encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(_program(folder, "python")), "install", "--quiet"]
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed", "--disable-pip-version-check"]
    result = subprocess.run(
        [*pip, *options, *(["--editable"] if request.param == "editable" else []), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
        env=_environment(),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return request.param, site


@pytest.fixture
def run(installed: tuple[str, Path], tmp_path: Path) -> Run:
    """Run lines of Python in that environment, in an empty folder."""

    def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            [str(_program(_folder(installed[1]), "python")), "-c", textwrap.dedent(code)],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=_environment() | environment,
        )
        assert result.returncode == 0, result.stderr
        return result

    return run


def _environment() -> dict[str, str]:
    """Give the environment variables without those that would let a process find the checkout or miss the hook."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "ANOMALIB_CLIPSAM"))}


def _folder(site: Path) -> Path:
    """Give the folder of the environment with this ``site-packages``."""
    return site.parents[1] if os.name == "nt" else site.parents[2]


def _program(folder: Path, name: str) -> Path:
    """Give the path of a program of the environment in ``folder``."""
    return folder / ("Scripts" if os.name == "nt" else "bin") / f"{name}{'.exe' if os.name == 'nt' else ''}"


def test_files(installed: tuple[str, Path]) -> None:
    kind, site = installed
    assert (site / PTH).read_bytes() == (ROOT / PTH).read_bytes()
    (metadata,) = site.glob("anomalib_clipsam-*.dist-info")
    record = (metadata / "RECORD").read_text(encoding="utf-8")
    assert f"\n{PTH}," in f"\n{record}", "pip uninstall must find the file"
    assert "ClipSam = anomalib_clipsam:ClipSam" in (metadata / "entry_points.txt").read_text(encoding="utf-8")
    own = {path.relative_to(ROOT).as_posix() for path in (ROOT / "anomalib_clipsam").rglob("*") if path.is_file()}
    own = {name for name in own if not name.endswith(".pyc")}
    there = {path.relative_to(site).as_posix() for path in (site / "anomalib_clipsam").rglob("*") if path.is_file()}
    if kind == "plain":
        assert {name for name in there if not name.endswith(".pyc")} == own
        assert "anomalib_clipsam/py.typed" in there
    else:
        assert there == set()
        own_pth = [
            path.name for path in site.glob("*.pth") if str(ROOT) in path.read_text(encoding="utf-8").split("\n")
        ]
        assert own_pth, "an editable install adds the checkout to the path"
        assert max(own_pth) < PTH, "Python must read it before the hook, which needs that path"


def test_start_of_python_loads_only_the_hook(run: Run) -> None:
    modules = "import sys; print(*sorted(sys.modules))"
    without = set(run(modules, ANOMALIB_CLIPSAM_AUTOLOAD="0").stdout.split())
    assert set(run(modules).stdout.split()) - without == {"anomalib_clipsam", "anomalib_clipsam._autoload"}


def test_program(installed: tuple[str, Path]) -> None:
    program = _program(_folder(installed[1]), "anomalib-clipsam")
    result = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=True, env=_environment())
    assert result.stdout.count(".") == 2


@pytest.mark.slow
def test_every_way_in(run: Run) -> None:
    """All that anomalib can do with the name of a model or data module, with no import of ours."""
    result = run("""
        import anomalib.data, anomalib.models
        from anomalib.cli import AnomalibCLI
        from anomalib.data import DrawnParts, get_datamodule
        from anomalib.models import ClipSam, get_model, list_models
        from anomalib.models.image import ClipSam as FromImage

        assert ClipSam is FromImage and ClipSam.__module__ == "anomalib_clipsam.lightning_model"
        assert "clip_sam" in list_models() and "ClipSam" in list_models("pascal")
        assert {"ClipSam"} <= set(anomalib.models.__all__) and {"DrawnParts"} <= set(anomalib.data.__all__)
        assert type(get_model("clip_sam", weights="demo")) is ClipSam
        for path in ("ClipSam", "anomalib_clipsam.ClipSam", "anomalib.models.ClipSam", "anomalib.models.image.ClipSam"):
            assert type(get_model({"class_path": path, "init_args": {"weights": "demo"}})) is ClipSam
        assert type(get_datamodule({"class_path": "DrawnParts"})) is DrawnParts
        for name in ("ClipSam", "anomalib_clipsam.ClipSam", "anomalib.models.ClipSam"):
            for data in ("DrawnParts", "anomalib_clipsam.DrawnParts"):
                cli = AnomalibCLI(["test", "--model", name, "--model.weights", "demo", "--data", data], run=False)
                assert (type(cli.model), type(cli.datamodule)) == (ClipSam, DrawnParts)
    """)
    assert "anomalib runs without" not in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("installed", ["plain"], indirect=True)
def test_switched_off(run: Run) -> None:
    """The full name needs no hook; the bare one is unknown, as before."""
    run(
        """
        import anomalib.data, anomalib.models
        from anomalib.cli import AnomalibCLI
        assert not hasattr(anomalib.models, "ClipSam") and not hasattr(anomalib.data, "DrawnParts")
        assert "clip_sam" not in anomalib.models.list_models()
        model = ["--model", "anomalib_clipsam.ClipSam", "--model.weights", "demo"]
        cli = AnomalibCLI(["test", *model, "--data", "anomalib_clipsam.DrawnParts"], run=False)
        assert (type(cli.model).__name__, type(cli.datamodule).__name__) == ("ClipSam", "DrawnParts")
        """,
        ANOMALIB_CLIPSAM_AUTOLOAD="0",
    )


@pytest.mark.slow
@pytest.mark.parametrize("installed", ["plain"], indirect=True)
def test_plugin_without_a_dependency(run: Run) -> None:
    """What most often breaks: anomalib is there as before, with one warning that names the cause."""
    result = run("""
        import sys
        sys.modules["anomalib_clipsam.torch_model"] = None
        import anomalib.data, anomalib.models
        from anomalib.models import Padim, list_models
        assert "padim" in list_models() and "clip_sam" not in list_models()
        assert not hasattr(anomalib.models, "ClipSam")
    """)
    assert result.stderr.count("anomalib runs without the plugin anomalib_clipsam") == 1
    assert "anomalib_clipsam.torch_model" in result.stderr
