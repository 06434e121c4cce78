# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The command ``anomalib-clipsam``."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml
from PIL import Image

from anomalib_clipsam import __version__
from anomalib_clipsam.cli import main
from anomalib_clipsam.clip.prompts import PromptEnsemble


def test_prompts_are_printed_as_a_prompt_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main(["prompts"])
    path = tmp_path / "prompts.yaml"
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    assert PromptEnsemble.from_file(path) == PromptEnsemble()
    main(["prompts", "--prompts", str(path)])
    assert capsys.readouterr().out == path.read_text(encoding="utf-8")


def test_class_name_is_put_into_the_sentences_of_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "prompts.yaml"
    path.write_text(
        'normal: ["{}"]\nabnormal: ["bent {}", "rusty {}"]\ntemplates: ["a {}.", "one {}!"]', encoding="utf-8"
    )
    main(["prompts", "--prompts", str(path), "--class-name", "metal nut"])
    assert yaml.safe_load(capsys.readouterr().out) == {
        "normal": ["a metal nut.", "one metal nut!"],
        "abnormal": ["a bent metal nut.", "one bent metal nut!", "a rusty metal nut.", "one rusty metal nut!"],
    }


@pytest.mark.parametrize("text", [None, "normal: [", "normal: 1", "other: []", "normal: [no place for the name]"])
def test_error_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    text: str | None,
) -> None:
    path = tmp_path / "prompts.yaml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit) as raised:
        main(["prompts", "--prompts", str(path)])
    out, err = capsys.readouterr()
    assert (raised.value.code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("anomalib-clipsam prompts: ")


@pytest.mark.parametrize("name", ["", " "])
def test_empty_class_name_is_refused(capsys: pytest.CaptureFixture[str], name: str) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["prompts", "--class-name", name])
    assert raised.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("anomalib-clipsam prompts: The class name is empty. Name the part")


def test_commands_import_no_more_than_they_need() -> None:
    """Torch takes ten seconds to import, and anomalib's models give warnings of their own when they are."""
    program = """
        import sys
        from anomalib_clipsam.cli import main
        main(["weights", "list"])
        assert not {"torch", "anomalib.data", "anomalib.models"} & set(sys.modules)
        main(["prompts"])
        assert not {"anomalib.data", "anomalib.models"} & set(sys.modules)
    """
    result = subprocess.run(
        [sys.executable, "-W", "always::FutureWarning", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_error_has_no_control_characters(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["prompts", "--prompts", str(tmp_path / "a\x1b[2J\nb.yaml")])
    assert r"a\x1b[2J b.yaml" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"{__version__}\n"


def test_without_a_command_it_says_what_there_is_and_how_to_begin(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main([])
    out = " ".join(capsys.readouterr().out.split())
    assert raised.value.code == 2
    assert "To begin: anomalib-clipsam predictions FOLDER --weights lite --to results --pictures" in out
    assert 0 < out.index("predictions find defects") < out.index("app try it") < out.index("prompts print")


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ("nowhere", "'nowhere' does not exist. Give a folder of pictures, or one picture."),
        ("notes.txt", "'notes.txt' is no picture by its name. Give a folder of files such as .png, .jpg, .bmp or .tif"),
        ("empty/", "'empty' has no pictures. Give a folder of files such as "),
    ],
)
def test_wrong_path_is_said_before_weights_are_fetched(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if made.endswith("/"):
        Path(made).mkdir()
    elif made == "notes.txt":
        Path(made).write_text("no picture", encoding="utf-8")
    with pytest.raises(SystemExit) as raised:
        main(["predictions", made.rstrip("/"), "--to", "out"])  # vit_b, which would be fetched
    assert raised.value.code == 2
    assert f"anomalib-clipsam predictions: {said}" in capsys.readouterr().err.splitlines()[-1]
    assert not Path("out").exists()


def test_good_parts_outside_ascii(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for folder in ("parts", "größe"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / folder / "a.png")
    with pytest.raises(SystemExit):
        main(["predictions", str(tmp_path / "parts"), "--to", str(tmp_path / "out"), "--good", str(tmp_path / "größe")])
    assert "größe. anomalib takes paths of ASCII characters only. Rename that folder" in capsys.readouterr().err
