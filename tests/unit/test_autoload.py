# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The import hook, in new processes, with small stand-ins for anomalib and for the modules of the plugin."""

import os
import shutil
import subprocess
import textwrap
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

import anomalib_clipsam

PTH = "anomalib_clipsam_autoload.pth"
WARNING = "RuntimeWarning: anomalib runs without the plugin anomalib_clipsam"

# The order in which anomalib's own modules import each other: `models` begins, `data` begins and ends, `models` ends.
FILES = {
    "anomalib/__init__.py": "",
    "anomalib/data/__init__.py": """
        class AnomalibDataModule: ...
        __all__ = ["AnomalibDataModule"]
    """,
    "anomalib/models/__init__.py": """
        from anomalib.models.components import AnomalibModule
        from anomalib.models.image import Padim
        __all__ = ["Padim"]
        ALLOWED_MODULES = {"anomalib.models"}
        def list_models():
            return sorted({cls.__name__ for cls in AnomalibModule.__subclasses__()})
    """,
    "anomalib/models/components.py": """
        import anomalib.data
        class AnomalibModule: ...
    """,
    "anomalib/models/image.py": """
        from anomalib.models.components import AnomalibModule
        class Padim(AnomalibModule): ...
        __all__ = ["Padim"]
    """,
    "anomalib_clipsam/prompts.py": """
        from anomalib.models.image import Padim
        class Prompts: ...
    """,
    "anomalib_clipsam/torch_model.py": """
        from anomalib_clipsam.prompts import Prompts
        class ClipSamModel: ...
    """,
    "anomalib_clipsam/lightning_model.py": """
        from anomalib.models.components import AnomalibModule
        from anomalib_clipsam.torch_model import ClipSamModel
        class ClipSam(AnomalibModule): ...
    """,
    "anomalib_clipsam/drawn_parts/__init__.py": "",
    "anomalib_clipsam/drawn_parts/datamodule.py": """
        from anomalib.data import AnomalibDataModule
        from anomalib.models.components import AnomalibModule
        class DrawnParts(AnomalibDataModule): ...
    """,
}

Run = Callable[..., subprocess.CompletedProcess[str]]


def pth_file() -> Path:
    """Find the ``.pth`` file: beside the package, where it lies both in a checkout and after an install."""
    return Path(anomalib_clipsam.__file__).parents[1] / PTH


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A new environment with the real hook and the stand-ins; its ``site-packages``."""
    venv.create(tmp_path / "venv", with_pip=False)
    (folder,) = (tmp_path / "venv").glob("Lib/site-packages" if os.name == "nt" else "lib/python*/site-packages")
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
    for name in ("__init__.py", "_autoload.py"):
        shutil.copy(Path(anomalib_clipsam.__file__).parent / name, folder / "anomalib_clipsam")
    shutil.copy(pth_file(), folder)
    return folder


@pytest.fixture
def run(site: Path, tmp_path: Path) -> Run:
    """Run lines of Python in that environment; gives what they wrote."""
    python = tmp_path / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    def run(code: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "ANOMALIB_CLIPSAM"))}
        result = subprocess.run(
            [str(python), *options, "-c", textwrap.dedent(code)],
            capture_output=True,
            text=True,
            check=False,
            env=kept | environment,
            cwd=tmp_path,
            timeout=60,
        )
        assert result.returncode == 0, result.stderr
        return result

    return run


ALL_THERE = """
    import sys
    models, data = sys.modules["anomalib.models"], sys.modules["anomalib.data"]
    from anomalib_clipsam.lightning_model import ClipSam
    from anomalib_clipsam.drawn_parts.datamodule import DrawnParts
    assert models.ClipSam is models.image.ClipSam is ClipSam
    assert data.DrawnParts is DrawnParts
    assert models.__all__ == models.image.__all__ == ["Padim", "ClipSam"]
    assert data.__all__ == ["AnomalibDataModule", "DrawnParts"]
    assert models.list_models() == ["ClipSam", "Padim"]
    assert models.ALLOWED_MODULES == {"anomalib.models", "anomalib_clipsam"}  # `anomalib benchmark` looks there
"""

NOT_THERE = """
    import sys
    import anomalib.models as models
    import anomalib.data as data
    assert not hasattr(models, "ClipSam") and not hasattr(models.image, "ClipSam") and not hasattr(data, "DrawnParts")
    assert models.__all__ == ["Padim"] and data.__all__ == ["AnomalibDataModule"]
    assert models.list_models() == ["Padim"]
    assert models.ALLOWED_MODULES == {"anomalib.models"}
"""


@pytest.mark.parametrize(
    "first",
    [
        "import anomalib.models",
        "from anomalib.models import ClipSam",
        "from anomalib.models.image import ClipSam",
        "from anomalib.data import DrawnParts; import anomalib.models",
        "import anomalib_clipsam, anomalib.models",
        "from anomalib_clipsam import ClipSam",
        "from anomalib_clipsam import ClipSamModel",
        "from anomalib_clipsam import DrawnParts",
        "import anomalib_clipsam.lightning_model",
        "import anomalib_clipsam.torch_model",
        "import anomalib_clipsam.prompts",
        "import anomalib_clipsam.drawn_parts.datamodule",
        "import anomalib.models, importlib; importlib.reload(anomalib.models)",
        "import anomalib.models, importlib; importlib.reload(anomalib.data); importlib.reload(anomalib.models)",
        "import anomalib_clipsam._autoload as hook; hook.install(); import anomalib.models",
    ],
)
def test_whatever_is_imported_first_all_is_there(run: Run, first: str) -> None:
    result = run(f"{first}\n{textwrap.dedent(ALL_THERE)}", "-W", "always")
    assert (result.stdout, result.stderr) == ("", "")


def test_start_of_python_loads_only_the_hook(run: Run) -> None:
    """The hook imports no module that a start without it would not, so that it costs next to nothing."""
    modules = "import sys; print(*sorted(sys.modules))"
    without = set(run(modules, ANOMALIB_CLIPSAM_AUTOLOAD="0").stdout.split())
    assert set(run(modules).stdout.split()) - without == {"anomalib_clipsam", "anomalib_clipsam._autoload"}


def test_package_import_is_light(run: Run) -> None:
    run("""
        import sys
        before = set(sys.modules)
        import anomalib_clipsam
        assert set(sys.modules) == before
        assert {"ClipSam", "ClipSamModel", "DrawnParts", "__version__"} <= set(dir(anomalib_clipsam))
        assert anomalib_clipsam.ClipSam is anomalib_clipsam.__dict__["ClipSam"]
        try:
            anomalib_clipsam.Clipsam
        except AttributeError as error:
            assert "ClipSam, ClipSamModel, DrawnParts" in str(error)
        else:
            raise AssertionError
    """)


def test_switched_off(run: Run) -> None:
    result = run(NOT_THERE + "    assert 'anomalib_clipsam' not in sys.modules", ANOMALIB_CLIPSAM_AUTOLOAD="0")
    assert result.stderr == ""


def test_package_has_gone_and_the_pth_file_stayed(run: Run, site: Path) -> None:
    shutil.rmtree(site / "anomalib_clipsam")
    assert run(NOT_THERE).stderr == ""


@pytest.mark.parametrize("file", ["__init__.py", "_autoload.py"])
def test_start_of_python_survives_anything(run: Run, site: Path, file: str) -> None:
    (site / "anomalib_clipsam" / file).write_text("this is not Python")
    assert run(NOT_THERE).stderr == ""


@pytest.mark.parametrize("cause", ["raise ValueError('a reason')", "import no_such_module", "this is not Python", ""])
def test_broken_plugin_leaves_anomalib_as_it_is_and_one_warning(run: Run, site: Path, cause: str) -> None:
    for name in ("lightning_model.py", "drawn_parts/datamodule.py"):
        (site / "anomalib_clipsam" / name).write_text(cause)
    result = run(f"{NOT_THERE}    import importlib; importlib.reload(models); importlib.reload(data)", "-W", "always")
    assert result.stderr.count("Warning") == 1
    assert WARNING in result.stderr
    assert "ANOMALIB_CLIPSAM_AUTOLOAD=0" in result.stderr
    assert "a reason" in result.stderr or "a reason" not in cause


def test_warning_turned_into_an_error_does_not_raise(run: Run, site: Path) -> None:
    (site / "anomalib_clipsam/lightning_model.py").write_text("raise ValueError")
    result = run("import anomalib.models", "-W", "error")
    assert "anomalib runs without the plugin" in result.stderr
    assert "Traceback" not in result.stderr


def test_broken_model_leaves_the_data_module(run: Run, site: Path) -> None:
    (site / "anomalib_clipsam/lightning_model.py").write_text("raise ValueError")
    result = run("from anomalib.data import DrawnParts; import anomalib.models; print(anomalib.models.list_models())")
    assert result.stdout == "['Padim']\n"
    assert result.stderr.count(WARNING) == 1


def test_own_import_of_a_broken_module_only_raises(run: Run, site: Path) -> None:
    """Who imports the plugin sees its error, and no warning about the same."""
    (site / "anomalib_clipsam/lightning_model.py").write_text("import anomalib.models\nraise ValueError('a reason')")
    result = run("""
        try:
            import anomalib_clipsam.lightning_model
        except ValueError as error:
            print(error)
    """)
    assert (result.stdout, result.stderr) == ("a reason\n", "")


def test_error_of_anomalib_itself_passes_unchanged(run: Run, site: Path) -> None:
    (site / "anomalib/models/image.py").write_text("raise ValueError('a reason')")
    result = run("""
        try:
            import anomalib.models
        except ValueError as error:
            print(error)
        from anomalib.data import AnomalibDataModule
    """)
    assert (result.stdout, result.stderr) == ("a reason\n", "")


def test_specs_and_loaders_stay_what_they_are(run: Run) -> None:
    run("""
        import importlib.machinery, importlib.util, inspect, sys
        spec = importlib.util.find_spec("anomalib.models")
        assert type(spec.loader) is importlib.machinery.SourceFileLoader and "anomalib.models" not in sys.modules
        import anomalib.models as models
        from anomalib_clipsam import ClipSam
        for module in (models, inspect.getmodule(ClipSam)):
            loader = module.__spec__.loader
            assert loader is module.__loader__ and type(loader) is importlib.machinery.SourceFileLoader
            assert set(vars(loader)) == {"name", "path"}
            assert module.__spec__.origin == module.__file__ and module.__spec__.name == module.__name__
        assert "def list_models" in inspect.getsource(models)
        assert inspect.getsource(ClipSam).startswith("class ClipSam")
        assert importlib.util.find_spec("anomalib.models") is models.__spec__
        assert importlib.util.find_spec("anomalib.models.nothing") is None
        assert importlib.util.find_spec("anomalib_clipsam.nothing") is None
    """)


def test_another_hook_of_the_same_kind(run: Run) -> None:
    """A finder that asks all others, as tracing tools bring it, on either side of this one."""
    run(f"""
        import sys, importlib.util

        class Other:
            busy = False
            def find_spec(self, name, path=None, target=None):
                if self.busy:
                    return None
                self.busy = True
                try:
                    return importlib.util.find_spec(name)
                finally:
                    self.busy = False

        sys.meta_path[:] = [Other(), sys.meta_path[0], Other(), *sys.meta_path[1:]]
        import anomalib.models
        exec({textwrap.dedent(ALL_THERE)!r})
    """)


def test_command_line_is_prepared_after_anomalib_has_prepared_it(run: Run, site: Path) -> None:
    (site / "anomalib/cli").mkdir()
    (site / "anomalib/cli/__init__.py").write_text("from anomalib.cli.cli import main")
    (site / "anomalib/cli/cli.py").write_text(
        "import sys\nimport anomalib.models\nsys.excepthook = 'theirs'\ndef main(): ..."
    )
    (site / "anomalib_clipsam/errors").mkdir()
    (site / "anomalib_clipsam/errors/__init__.py").touch()
    (site / "anomalib_clipsam/errors/command_line.py").write_text(
        "import sys\ndef install_error_hook(): sys.stdout.write('after ' + str(sys.excepthook))"
    )
    assert run("from anomalib.cli.cli import main\nfrom anomalib.models import ClipSam").stdout == "after theirs"
    assert run("import anomalib.models").stdout == ""


def test_threads_see_the_class_when_their_import_ends(run: Run, site: Path) -> None:
    for name in ("models/components.py", "models/image.py", "data/__init__.py"):
        path = site / "anomalib" / name
        path.write_text(f"import time; time.sleep(0.05)\n{path.read_text()}")
    run("""
        import threading
        seen = []
        def use():
            from anomalib.data import DrawnParts
            from anomalib.models import ClipSam
            seen.append(ClipSam)
        threads = [threading.Thread(target=use) for _ in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert len(seen) == 8 and len(set(seen)) == 1, seen
    """)


@pytest.mark.parametrize("broken", [False, True])
def test_spawned_process(run: Run, site: Path, tmp_path: Path, broken: bool) -> None:
    """A worker knows the class too, and does not repeat the warning of its parent."""
    if broken:
        (site / "anomalib_clipsam/lightning_model.py").write_text("raise ValueError")
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
            import multiprocessing

            def names(_):
                import anomalib.models
                return anomalib.models.list_models()

            if __name__ == "__main__":
                here = names(0)
                with multiprocessing.get_context("spawn").Pool(2) as pool:
                    assert pool.map(names, range(2)) == [here, here]
                print(here)
        """),
    )
    result = run(f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')")
    assert result.stdout == ("['Padim']\n" if broken else "['ClipSam', 'Padim']\n")
    assert result.stderr.count("Warning:") == broken
