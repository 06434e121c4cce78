# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""What the page writes, where it listens, and what is said where it cannot be served."""

from __future__ import annotations

import os
import re
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from anomalib.data import InferenceBatch
from PIL import Image

from anomalib_clipsam.app.inspection import Look
from anomalib_clipsam.app.page import (
    build_page,
    draw_example,
    listen,
    show_decision,
    show_refusal,
    show_steps,
    uploads,
)
from anomalib_clipsam.cli import build_parser, main

if TYPE_CHECKING:
    from collections.abc import Callable

PICTURE = Image.new("RGB", (20, 10))


def make_look(score: float = 0.6, notes: tuple[str, ...] = (), steps: tuple[str, ...] = ()) -> Look:
    fused = torch.full((1, 2, 4), 0.2)
    fused[0, 0, :2] = torch.tensor([0.8, 0.9])
    predictions = InferenceBatch(torch.tensor([score]), None, fused, fused > 0.5)
    return Look(PICTURE, predictions, None, dict.fromkeys(steps, PICTURE), "object", notes)


def words(page: str) -> str:
    """Read a piece of the page as a person would."""
    return " ".join(re.sub(r"<[^>]*>", " ", page).split())


@pytest.mark.parametrize(
    ("score", "pixel_threshold", "expected"),
    [
        (0.6, 0.5, "Defective Score 0.60, above the threshold 0.50. 1 region outlined, 25.0 % of the picture."),
        (0.6, 0.99, "Defective Score 0.60, above the threshold 0.50. 1 region outlined, 12.5 % of the picture."),
        (0.4, 0.5, "Good Score 0.40, not above the threshold 0.50. Nothing is outlined."),
    ],
)
def test_verdict_comes_first_and_is_said_in_words(score: float, pixel_threshold: float, expected: str) -> None:
    verdict, answer = show_decision(make_look(score), 0.5, pixel_threshold)
    assert words(verdict) == expected
    assert words(answer) == "Outline The picture, with what was found. Final map The redder, the more suspicious."
    assert len(re.findall('src="data:image/webp;base64,', answer)) == 2  # no file of it is left anywhere


class Asked:
    """Stands in for the model, and notes what it was asked."""

    uses_class_name = True
    in_tiles = False
    false_alarms = 0.2

    def __init__(self) -> None:
        self.asked: list[tuple] = []

    def look(self, *asked: object) -> Look:
        self.asked.append(asked)
        if asked[0] == "broken.png":
            msg = "broken.png is no picture"
            raise ValueError(msg)
        return replace(make_look(), class_name=str(asked[2]))


@pytest.fixture
def page() -> tuple[Asked, dict[str, Callable]]:
    """The model of a page, and what the page's events call."""
    pytest.importorskip("gradio", reason="Gradio is not installed")
    asked = Asked()
    with uploads():
        return asked, {event.name: event.fn for event in build_page(asked).fns.values()}


def test_the_networks_are_asked_once_per_picture_and_name(page: tuple[Asked, dict[str, Callable]]) -> None:
    asked, calls = page
    seen, verdict, _, _ = calls["look"]("a.png", None, "nut", 0.5, 0.5)
    assert words(verdict).startswith("Defective")
    assert asked.asked == [("a.png", (), "nut")]
    verdict, _ = calls["move"](seen, 0.7, 0.5)
    assert words(verdict) == "Good Score 0.60, not above the threshold 0.70. Nothing is outlined."
    skipped = calls["rename"](seen, "a.png", None, " nut ", 0.5, 0.5)  # the field was left as it was
    assert all(update == {"__type__": "update"} for update in (*skipped, *calls["move"](None, 0.7, 0.5)))
    assert len(asked.asked) == 1
    calls["rename"](seen, "a.png", ["b.png"], "bolt", 0.5, 0.5)
    assert asked.asked[1:] == [("a.png", ["b.png"], "bolt")]


def test_what_cannot_be_looked_at_takes_the_last_answer_away(page: tuple[Asked, dict[str, Callable]]) -> None:
    _, calls = page
    seen, verdict, answer, steps = calls["look"]("broken.png", None, "", 0.5, 0.5)
    assert words(verdict) == "Not checked broken.png is no picture"
    assert (seen, answer, steps) == (None, "", "")
    seen, verdict, answer, steps = calls["look"](None, None, "", 0.5, 0.5)
    assert words(verdict) == "No picture yet Drop one, or use a drawn part."
    assert (seen, answer, steps) == (None, "", "")


def test_notes_and_refusals_are_text_and_no_html() -> None:
    verdict, _ = show_decision(make_look(notes=("<b>x</b>",)), 0.5, 0.5)
    assert "<p>&lt;b&gt;x&lt;/b&gt;</p>" in verdict
    assert "&lt;img&gt;.png" in show_refusal(ValueError("<img>.png is no picture"))


def test_every_step_has_its_own_sentence() -> None:
    titles = ("CLIP map", "Text and good parts", "Extreme region, ring", "2 positive, 6 negative points")
    masks = ("Mask 1: points", "Mask 2: + mask 1", "Mask 3: + box, mask 2")
    page = show_steps(make_look(steps=(*titles, *masks)))
    sentences = re.findall(r"</b><span>(.*?)</span>", page)
    assert len(set(sentences)) == 7
    assert sentences[4] == "What SAM outlines from the points."
    assert re.findall(r"<b>(.*?)</b>", page) == [*titles, *masks]


def test_the_drawn_part_is_the_same_every_time() -> None:
    first, second = draw_example(), draw_example()
    assert first[0].tobytes() == second[0].tobytes()
    assert first[1] == "leather"


def test_it_listens_on_this_machine_alone_unless_told_otherwise() -> None:
    options = build_parser().parse_args(["app"])
    assert (options.weights, options.host, options.port) == ("lite", "127.0.0.1", 7860)
    with listen(options.host, 0) as address:
        port = address.getsockname()[1]
        assert address.getsockname()[0] == "127.0.0.1"
        with pytest.raises(
            OSError, match=rf"^Cannot listen on 127.0.0.1, port {port} \([\w ]*\). Choose another `--port`"
        ):
            listen("127.0.0.1", port)
        with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.2", port), timeout=5):
            pass  # another address of this machine
    for port in (-1, 2**16):
        with pytest.raises(OSError, match=rf"^Cannot listen on 127.0.0.1, port {port}"):
            listen("127.0.0.1", port)


def test_uploads_lie_in_a_folder_that_is_gone_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", "before")
    with uploads() as folder:
        assert os.environ["GRADIO_TEMP_DIR"] == folder
        (Path(folder) / "part.png").touch()
    assert not Path(folder).exists()
    assert os.environ["GRADIO_TEMP_DIR"] == "before"
    monkeypatch.delenv("GRADIO_TEMP_DIR")
    with uploads():
        pass
    assert "GRADIO_TEMP_DIR" not in os.environ


def test_without_gradio_a_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit) as raised:
        main(["app", "--port", "0"])
    assert raised.value.code == 2
    said = capsys.readouterr().err
    assert said == "anomalib-clipsam app: The page needs Gradio. Run: pip install 'anomalib_clipsam[app]'\n"
