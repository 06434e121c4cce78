# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The page of a comparison, read as text and used in a browser.

The browser tests need playwright and a Chromium: the one of ``playwright install chromium``, or the program that the
variable ``ANOMALIB_CLIPSAM_CHROMIUM`` names.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from anomalib_clipsam.compare.config import Comparison, DataEntry, ModelEntry
from anomalib_clipsam.compare.pictures import INDEX
from anomalib_clipsam.compare.report import PICTURES, write_report
from anomalib_clipsam.compare.table import METRICS, Row

if TYPE_CHECKING:
    from collections.abc import Iterator

A, B = "A </script><b>", "B"
COMPARISON = Comparison(
    models=(ModelEntry(A, "ClipSam"), ModelEntry(B, "Padim")),
    data=(DataEntry("Parts", "DrawnParts", categories=("key", "nut"), published="visa"),),
)
IMAGES = (("good", "0.png", False, 0.9), ("crack", "1.png", True, 0.7), ("crack", "2.png", True, 0.1))
"""Kind, file, whether defective, and A's score; B says the opposite."""


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two models on two categories, one pair of which failed, and three images of each category."""
    output = tmp_path_factory.mktemp("report")
    rows = []
    for category in ("key", "nut"):
        for model, value in ((A, 0.25), (B, 0.1 if category == "key" else 0.3)):
            fingerprint = f"{category}{model[0]}"
            failed = category == "nut" and model == B
            figures = {} if failed else {**dict.fromkeys(METRICS, value), "seconds_per_image": 0.1}
            costs = {} if failed else {"peak_memory_mb": 900.0, "train_images": 0, "test_images": 3}
            error = "RuntimeError: no room" if failed else ""
            rows.append(Row("Parts", category, model, fingerprint, error, **figures, **costs))
            if not failed:
                _draw(output / PICTURES / fingerprint, category, clip_sam=model == A)
    write_report(output, COMPARISON, rows)
    return output / "report.html"


def _draw(folder: Path, category: str, *, clip_sam: bool) -> None:
    folder.mkdir(parents=True)
    for name in ("image", "truth", "map", "mask", "stage"):
        Image.new("RGB", (32, 20), "red").save(folder / f"{name}.webp")
    entries = [
        {
            "path": f"{category}/{kind}/{name}",
            "defective": defective,
            "score": score if clip_sam else 1 - score,
            "decision": (score if clip_sam else 1 - score) > 0.5,
            "pictures": {part: f"{part}.webp" for part in ("image", "truth", "map", "mask")},
            "stages": {"CLIP map": "stage.webp", "Mask 1: points": "stage.webp"} if clip_sam else {},
        }
        for kind, name, defective, score in IMAGES
    ]
    (folder / INDEX).write_text(json.dumps(entries), encoding="utf-8")


def test_page_holds_all_and_needs_no_network(page_path: Path) -> None:
    text = page_path.read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)=["'](?!data:)|https?://|@import|fetch\(""", text)
    data = json.loads(re.search(r"const data = (.*);\n", text).group(1))
    assert [(image["category"], image["name"]) for image in data["images"][:4]] == [
        ("key", "0.png"),
        ("key", "1.png"),
        ("key", "2.png"),
        ("nut", "0.png"),
    ]
    first = data["images"][0]
    assert first["models"][A]["score"] == 0.9
    assert [title for title, _ in first["models"][A]["stages"]] == ["CLIP map", "Mask 1: points"]
    assert first["models"][B]["stages"] == []
    assert list(data["images"][3]["models"]) == [A]
    assert all(first[name].startswith("data:image/webp;base64,") for name in ("image", "truth"))
    assert data["failed"] == [[B, "Parts nut", "RuntimeError: no room"]]
    assert text.count("</script>") == 1  # the label could not end the script


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        try:
            program = os.environ.get("ANOMALIB_CLIPSAM_CHROMIUM")
            started = playwright.chromium.launch(
                executable_path=program, args=["--no-sandbox", "--headless=shell", "--no-zygote"]
            )
        except api.Error as error:
            pytest.skip(f"there is no Chromium: {str(error).splitlines()[0]}")
        yield started
        started.close()


@pytest.fixture
def page(browser: Any, page_path: Path) -> Iterator[Any]:
    """The page in a new tab; whatever is said on the console fails the test, and so does a request."""
    said: list[str] = []
    tab = browser.new_page(viewport={"width": 1200, "height": 900})
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: request.url.startswith("data:") or said.append(request.url))
    tab.set_content(page_path.read_text(encoding="utf-8"))
    yield tab
    tab.close()
    assert said == []


def column(page: Any, index: int) -> list[str]:
    return page.locator("table").first.locator(f"tbody td:nth-child({index})").all_inner_texts()


def titles(page: Any) -> list[str]:
    return [title.replace(" ", "") for title in page.locator("article h3").all_inner_texts()]


def test_table_sorts_by_a_heading_with_mouse_and_keyboard(page: Any) -> None:
    assert column(page, 3) == ["25.0", "10.0", "25.0", "-", "25.0", "-"]
    header = page.locator("table").first.locator("th").nth(2)
    header.locator("button").click()
    assert header.get_attribute("aria-sort") == "descending"
    assert column(page, 3) == ["25.0", "25.0", "25.0", "10.0", "-", "-"]
    header.locator("button").focus()
    page.keyboard.press("Enter")
    assert header.get_attribute("aria-sort") == "ascending"
    assert column(page, 3) == ["10.0", "25.0", "25.0", "25.0", "-", "-"]
    page.locator("table").first.locator("th button").nth(1).click()
    assert column(page, 2) == ["B"] * 3 + [A] * 3
    assert page.locator("table [aria-sort]").count() == 1


def test_images_are_filtered_and_the_worst_misses_come_first(page: Any) -> None:
    # Of A: misses by 0.4 in good 0.png and in crack 2.png, right in crack 1.png.
    assert titles(page)[:3] == ["key/good/0.png", "key/crack/2.png", "nut/good/0.png"]
    page.select_option("#kind", "crack")
    assert titles(page) == ["key/crack/2.png", "nut/crack/2.png", "key/crack/1.png", "nut/crack/1.png"]
    page.select_option("#order", B)
    page.select_option("#category", "key")
    assert titles(page) == ["key/crack/1.png", "key/crack/2.png"]
    assert page.locator("#count").inner_text() == "2 of 6 images"
    page.select_option("#order", "")
    page.select_option("#kind", "")
    assert titles(page) == ["key/good/0.png", "key/crack/1.png", "key/crack/2.png"]


def test_misses_and_false_alarms_are_said_in_words(page: Any) -> None:
    page.select_option("#order", "")
    captions = page.locator("article").nth(0).locator("figcaption.wrong").all_inner_texts()
    assert captions == [f"{A}: 0.90 defective (false alarm)"]
    captions = page.locator("article").nth(1).locator("figcaption.wrong").all_inner_texts()
    assert captions == [f"{B}: 0.30 good (missed)"]


def test_picture_is_enlarged_turned_over_and_closed_by_keyboard(page: Any) -> None:
    button = page.locator("figure button").first
    button.focus()
    page.keyboard.press("Enter")
    assert page.locator("dialog").is_visible()
    assert page.locator("#zoom-image").bounding_box()["width"] > 400
    assert page.locator("#zoom-text").inner_text().startswith("Photograph: Parts, key, good, 0.png")
    page.keyboard.press("ArrowRight")
    assert page.locator("#zoom-text").inner_text().startswith("True mask")
    page.keyboard.press("ArrowLeft")
    page.locator("#previous").click()  # from the first to the last
    assert "nut, crack, 1.png" in page.locator("#zoom-text").inner_text()
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()
    assert page.evaluate("document.activeElement.closest('figure') !== null")


def test_story_opens_and_every_picture_has_an_alternative_text(page: Any) -> None:
    assert not page.get_by_text("where CLIP sees damage").first.is_visible()
    page.locator("summary").first.focus()
    page.keyboard.press("Enter")
    assert page.get_by_text("where CLIP sees damage").first.is_visible()
    texts = page.locator("#rows img").evaluate_all("images => images.map(image => image.alt)")
    assert len(texts) == 3 * (2 + 4 + 2) + 3 * (2 + 2 + 2)
    assert len(set(texts)) == len(texts)
    assert all(texts)


def test_published_figures_and_failures_are_marked(page: Any) -> None:
    assert "not measured here" in page.locator("table.published caption").inner_text()
    assert page.locator("table.published tbody tr").count() == 6
    assert f"{B}, Parts nut: RuntimeError: no room" in page.locator("li").all_inner_texts()


def test_page_fits_a_phone(page: Any) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.locator("figure button").first.bounding_box()["width"] >= 100
