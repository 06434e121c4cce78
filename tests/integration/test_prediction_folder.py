# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The command ``anomalib-clipsam predictions`` into a folder: killed, gone on with, and by two processes."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from anomalib_clipsam.cli import main
from anomalib_clipsam.drawn_parts.drawing import draw_part

COMMAND = [sys.executable, "-m", "anomalib_clipsam.cli"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 13 drawn capsules in two sizes, some of them cracked; one file is no picture."""
    root = tmp_path_factory.mktemp("line")
    for index in range(13):
        image, _ = draw_part("capsule", np.random.default_rng(index), "crack" if index % 3 == 0 else None)
        image = image if index % 4 else cv2.resize(image, (300, 200))
        assert cv2.imwrite(str(root / f"{index:02}.png"), image[..., ::-1])
    (root / "broken.png").write_text("no picture")
    return root


def arguments(line: Path, to: Path, *more: str) -> list[str]:
    return ["predictions", str(line), "--to", str(to), "--weights", "demo", *more]


def content(folder: Path) -> dict[str, bytes]:
    """Give all that a user gets, and that does not tell which process has written it."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.parent.name != "journal")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.slow
def test_killed_and_gone_on_with_by_two_processes_is_as_one_process_in_one_go(
    line: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(arguments(line, tmp_path / "whole", "--pictures"))
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("14 pictures: ")
    assert last.endswith(
        f", 1 not scored. In {tmp_path / 'whole'}: predictions.csv, regions.csv, predictions.jsonl, coco.json, masks, "
        "pictures."
    )
    with (tmp_path / "whole" / "predictions.csv").open(encoding="utf-8") as file:
        labels = [row["label"] for row in csv.DictReader(file)]
    assert (len(labels), set(labels)) == (13, {"defective", "good"})
    assert len(list((tmp_path / "whole" / "pictures").iterdir())) == 13
    for path in (tmp_path / "whole" / "masks").iterdir():
        with Image.open(path) as mask, Image.open(line / path.name) as picture:
            assert mask.size == picture.size

    stopped, journal = tmp_path / "stopped", tmp_path / "stopped" / "journal"
    command = [*COMMAND, *arguments(line, stopped, "--pictures", "--quiet", "--accelerator", "cpu")]
    process = subprocess.Popen(command, env=ENVIRONMENT)
    try:
        while process.poll() is None and sum(path.read_bytes().count(b"}") for path in journal.glob("*.jsonl")) < 4:
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    lines = (journal / "0.jsonl").read_bytes().count(b'"state"')
    assert 0 < lines < 13  # it was killed half way
    result = subprocess.run(
        [*command, "--devices", "2"], env=ENVIRONMENT, timeout=400, check=True, capture_output=True, text=True
    )
    assert result.stdout == f"{last.replace(str(tmp_path / 'whole'), str(stopped))}\n"
    assert content(stopped) == content(tmp_path / "whole")
    shares = [path.read_bytes().count(b'"state"') for path in sorted(journal.glob("*.jsonl"))]
    assert sum(shares) == 13  # none was scored twice
    assert (len(shares), min(shares) > 0) == (2, True)

    main(arguments(line, stopped, "--pictures"))  # nothing is left but the file that is no picture
    assert content(stopped) == content(tmp_path / "whole")
    with pytest.raises(SystemExit) as raised:
        main(arguments(line, stopped, "--pictures", "--threshold", "0.7"))
    assert raised.value.code == 2
    assert "made in another way: --threshold was None and is 0.7. Give" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_two_processes_compare_a_batch_as_one_does(line: Path, tmp_path: Path) -> None:
    """Each looks at all pictures, though one has a picture fewer to score."""
    options = ["--references", "batch", "--quiet"]
    main(arguments(line, tmp_path / "one", *options))
    command = [*COMMAND, *arguments(line, tmp_path / "two", *options, "--accelerator", "cpu", "--devices", "2")]
    subprocess.run(command, env=ENVIRONMENT, timeout=400, check=True)
    assert content(tmp_path / "two") == content(tmp_path / "one")


def test_results_inside_the_folder_of_pictures_are_not_taken_for_pictures(
    tmp_path: Path, line: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a batch of several pictures gives what pictures one by one give."""
    monkeypatch.chdir(tmp_path)
    for name in ("00.png", "01.png", "03.png"):
        (tmp_path / name).write_bytes((line / name).read_bytes())
    main(arguments(Path(), Path("out"), "--batch-size", "3", "--quiet"))
    first = content(tmp_path / "out")
    (tmp_path / "out" / "predictions.csv").unlink()
    main(arguments(Path(), Path("out"), "--batch-size", "2", "--quiet"))
    assert capsys.readouterr().out.count("3 pictures: 2 defective, 1 good. In out: ") == 2
    assert content(tmp_path / "out") == first
    assert first.keys() >= {"masks/00.png", "masks/03.png"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch-size", "0"], "The batch size is 0, but it is a number of pictures. Choose 1 or more."),
        (["--devices", "many"], "--devices many"),
        (["--to", "a.csv", "--pictures"], "a.csv is a table only. Give --to a folder for pictures"),
        (["--to", "a.csv", "--devices", "2"], "a.csv is a table only. Give --to a folder for pictures"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_leaves_nothing(
    tmp_path: Path, line: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(arguments(line, tmp_path / "out", *options))
    assert raised.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())
