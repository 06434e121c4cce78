# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""``anomalib-clipsam app`` as a user has it: one server, asked by a program and looked at in a browser."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from anomalib_clipsam.app.inspection import MOST_BYTES
from anomalib_clipsam.app.page import draw_example
from anomalib_clipsam.drawn_parts.drawing import draw_part

if TYPE_CHECKING:
    from collections.abc import Iterator


class Served(NamedTuple):
    """A server that runs."""

    process: subprocess.Popen
    address: str
    temporary: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve the page on a free port, in a temporary folder of its own; a proxy that is not there ends calls home."""
    pytest.importorskip("gradio", reason="Gradio is not installed")
    temporary = tmp_path_factory.mktemp("temporary")
    nowhere = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https", "HTTP", "HTTPS")}
    process = subprocess.Popen(
        [sys.executable, "-m", "anomalib_clipsam.cli", "app", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=temporary,
        env={**os.environ, **nowhere, "TMPDIR": str(temporary), "HF_HUB_OFFLINE": "1"},
    )
    try:
        line = process.stdout.readline()
        found = re.fullmatch(r"Open (http://127\.0\.0\.1:\d+) in a browser\. Ctrl\+C ends the server\.\n", line)
        assert found, line + process.stderr.read()
        yield Served(process, found[1], temporary)
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, str]:
    """The page's own example, and two good pieces of leather."""
    pictures = {"dent": draw_example()[0]}
    pictures |= {
        f"good{index}": Image.fromarray(draw_part("leather", np.random.default_rng(index))[0]) for index in (0, 1)
    }
    for name, picture in pictures.items():
        picture.save(tmp_path / f"{name}.png")
    return {name: str(tmp_path / f"{name}.png") for name in pictures}


@pytest.fixture
def client(served: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    from gradio_client import Client

    return Client(served.address, verbose=False, download_files=str(tmp_path), analytics_enabled=False)


@pytest.mark.slow
def test_a_program_asks_the_server(served: Served, client: Any, parts: dict[str, str]) -> None:
    from gradio_client import handle_file

    picture, good = handle_file(parts["dent"]), [handle_file(parts["good0"]), handle_file(parts["good1"])]
    verdict, answer, steps = client.predict(picture, good, "leather", 0.5, 0.5, api_name="/look")
    assert "<strong>Defective</strong>" in verdict
    assert answer.count("<figure>") == 2
    assert steps.count("<figure>") == 6
    verdict, answer = client.predict(1.0, 0.5, api_name="/move")
    assert "<strong>Good</strong>" in verdict
    assert "not above the threshold 1.00. Nothing is outlined." in verdict
    assert answer.count("<figure>") == 2
    verdict, answer, steps = client.predict(None, None, "", 0.5, 0.5, api_name="/look")
    assert "<strong>No picture yet</strong>" in verdict
    assert (answer, steps) == ("", "")
    (folder,) = served.temporary.glob("anomalib_clipsam_app_*")  # all that it writes lies in there
    assert {path.name for path in folder.rglob("*.png")} >= {"dent.png", "good0.png", "good1.png"}


@pytest.mark.slow
def test_an_upload_is_bounded_while_it_comes_in(served: Served) -> None:
    import httpx

    with httpx.Client(base_url=f"{served.address}/gradio_api", trust_env=False, timeout=60) as http:
        small = http.post("/upload", files={"files": ("small.png", bytes(MOST_BYTES // 4))})
        large = http.post("/upload", files={"files": ("large.png", bytes(MOST_BYTES + 1))})
    assert (small.status_code, large.status_code) == (200, 413)
    assert large.text == f"File size exceeded maximum allowed size of {MOST_BYTES} bytes."
    assert list(served.temporary.rglob("small.png"))
    assert not list(served.temporary.rglob("large.png"))
    assert all(path.stat().st_size < MOST_BYTES for path in served.temporary.rglob("*") if path.is_file())


@pytest.mark.slow
def test_a_file_of_the_machine_cannot_be_asked_for(served: Served, parts: dict[str, str]) -> None:
    """The page takes what was uploaded, and no path."""
    import httpx

    with httpx.Client(base_url=f"{served.address}/gradio_api", trust_env=False, timeout=60) as http:
        picture = {"path": parts["dent"], "meta": {"_type": "gradio.FileData"}}
        event = http.post("/call/look", json={"data": [picture, None, "", 0.5, 0.5]}).json()["event_id"]
        answer = http.get(f"/call/look/{event}").text
        assert "event: error" in answer
        assert "Defective" not in answer
        assert http.get(f"/file={parts['dent']}").status_code == 403


@pytest.mark.slow
@pytest.mark.parametrize(("width", "height"), [(1400, 1000), (390, 844)])
def test_a_person_tries_the_drawn_part(served: Served, browser: Any, tmp_path: Path, width: int, height: int) -> None:
    said: list[str] = []
    tab = browser.new_page(viewport={"width": width, "height": height})
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on(
        "request",
        lambda request: request.url.startswith((served.address, "data:", "blob:")) or said.append(request.url),
    )
    tab.goto(served.address)
    tab.get_by_role("button", name="Use a drawn part").click()
    tab.wait_for_selector("#steps figure", timeout=120_000)
    assert tab.locator("#verdict").inner_text().startswith("Defective\nScore 0.98, above the threshold 0.50.")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    before = tab.locator("#answer img").first.get_attribute("src")
    tab.get_by_label("number input for Threshold of the score").fill("0.999")
    tab.wait_for_selector("#verdict >> text=Good", timeout=60_000)
    assert tab.locator("#answer img").first.get_attribute("src") != before
    picture = tmp_path / "page.png"
    tab.screenshot(path=picture, full_page=True)
    tab.close()
    assert said == []
    with Image.open(picture) as shot:
        assert shot.width == width
        assert len(shot.convert("RGB").getcolors(2**24)) > 1000  # the pictures are there


@pytest.mark.slow
def test_nothing_is_left_when_the_server_ends(served: Served) -> None:
    """The last test of this file."""
    assert list(served.temporary.iterdir())
    served.process.send_signal(signal.SIGINT)
    said, complained = served.process.communicate(timeout=120)
    assert served.process.returncode == 0, complained
    assert said == ""
    assert list(served.temporary.iterdir()) == []
