# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The page of a comparison, read as text and used in a browser."""

from __future__ import annotations

import json
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
    for name in ("image", "truth", "result", "stage"):
        Image.new("RGB", (32, 20), "red").save(folder / f"{name}.webp")
    entries = [
        {
            "path": f"{category}/{kind}/{name}",
            "defective": defective,
            "score": score if clip_sam else 1 - score,
            "decision": (score if clip_sam else 1 - score) > 0.5,
            "overlap": 0.25 if defective else None,
            "pictures": {part: f"{part}.webp" for part in ("image", "truth", "result")},
            "stages": {"CLIP map": "stage.webp", "Mask 1: points": "stage.webp"} if clip_sam else {},
        }
        for kind, name, defective, score in IMAGES
    ]
    (folder / INDEX).write_text(json.dumps(entries), encoding="utf-8")


def test_page_holds_all_and_needs_no_network(page_path: Path) -> None:
    text = page_path.read_text(encoding="utf-8")
    text = text.replace("http://www.w3.org/2000/svg", "")  # a name, which nothing fetches
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


def column(page: Any, index: int, table: int = 0) -> list[str]:
    return page.locator("table").nth(table).locator(f"tbody td:nth-child({index})").all_inner_texts()


def titles(page: Any, of: str = "#rows") -> list[str]:
    return [title.replace(" ", "") for title in page.locator(f"{of} article h3").all_inner_texts()]


def test_means_come_first_as_tiles_bars_and_a_table(page: Any) -> None:
    assert page.locator("#lede").inner_text().startswith("2 models on Parts (key, nut; 6 pictures).")
    tiles = page.locator(".tile").all_inner_texts()
    assert [tile.split("\n")[0] for tile in tiles] == [
        "Best pixel F1-max",
        "Best pixel AUPRO",
        "Best image AUROC",
        "Fastest",
    ]
    assert tiles[0].split("\n")[1:] == ["25.0 %", A]
    assert column(page, 1) == [A, B]
    assert column(page, 3) == ["25.0", "-"]  # a model that failed on a category has no mean
    assert page.locator("section h2, .tile, .chart, table").first.inner_text() == "Parts"


def test_bars_show_a_metric_by_model_and_category(page: Any) -> None:
    charts = page.locator(".chart")
    assert charts.locator("figcaption").all_inner_texts() == ["mean", "key", "nut"]
    assert charts.nth(1).locator("text").all_text_contents() == [A, "25.0", B, "10.0"]
    widths = "bars => bars.map(bar => bar.getBoundingClientRect().width)"
    lengths = charts.nth(1).locator("rect.length").evaluate_all(widths)
    track = charts.nth(1).locator("rect.track").first.bounding_box()["width"]
    assert [length / track for length in lengths] == pytest.approx([0.25, 0.1], abs=1e-3)
    assert charts.nth(1).locator("g.best text").first.text_content() == A
    assert charts.nth(2).locator("svg[role=img]").get_attribute("aria-label") == f"nut: {A} 25.0, {B} -"
    page.locator(".charts").locator("xpath=preceding-sibling::div[1]").locator("select").select_option("image AP, %")
    assert charts.nth(1).locator("text").all_text_contents() == [A, "25.0", B, "10.0"]


def test_table_sorts_by_a_heading_with_mouse_and_keyboard(page: Any) -> None:
    assert column(page, 3, 1) == ["25.0", "10.0", "25.0", "-"]
    header = page.locator("table").nth(1).locator("th").nth(2)
    header.locator("button").click()
    assert header.get_attribute("aria-sort") == "descending"
    assert column(page, 3, 1) == ["25.0", "25.0", "10.0", "-"]
    header.locator("button").focus()
    page.keyboard.press("Enter")
    assert header.get_attribute("aria-sort") == "ascending"
    assert column(page, 3, 1) == ["10.0", "25.0", "25.0", "-"]
    page.locator("table").nth(1).locator("th button").nth(1).click()
    assert column(page, 2, 1) == [B] * 2 + [A] * 2
    assert page.locator("table [aria-sort]").count() == 1


def test_best_cases_stand_beside_the_worst_of_the_chosen_model(page: Any) -> None:
    # Of A: misses by 0.4 in good 0.png and in crack 2.png, right by 0.2 in crack 1.png; B says the opposite.
    assert titles(page, "#best") == ["nut/crack/1.png", "key/crack/1.png", "nut/crack/2.png"]
    assert titles(page, "#worst") == ["key/good/0.png", "nut/good/0.png", "key/crack/2.png"]
    boxes = [page.locator(f"#{name}").bounding_box() for name in ("best", "worst")]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    page.select_option("#model", B)
    assert titles(page, "#best") == ["key/crack/2.png"]
    assert titles(page, "#worst") == ["key/crack/1.png"]  # B failed on nuts


def test_images_are_filtered_and_ordered_by_the_worst_misses(page: Any) -> None:
    assert titles(page)[:3] == ["key/good/0.png", "key/crack/1.png", "key/crack/2.png"]
    page.select_option("#order", A)
    page.select_option("#kind", "crack")
    assert titles(page) == ["key/crack/2.png", "nut/crack/2.png", "key/crack/1.png", "nut/crack/1.png"]
    page.select_option("#order", B)
    page.select_option("#category", "key")
    assert titles(page) == ["key/crack/1.png", "key/crack/2.png"]
    assert page.locator("#count").inner_text() == "2 of 6 pictures"


def test_misses_and_false_alarms_are_said_in_words(page: Any) -> None:
    said = [page.locator("#rows article").nth(index).locator("figcaption.wrong") for index in (0, 1)]
    assert said[0].all_inner_texts() == [f"{A}\n0.90 defective (false alarm)"]
    assert said[1].all_inner_texts() == [f"{B}\n0.30 good (missed), IoU 0.25"]


def test_picture_is_enlarged_smoothly_turned_over_and_closed_by_keyboard(page: Any) -> None:
    button = page.locator("#rows figure button").first
    button.focus()
    page.keyboard.press("Enter")
    assert page.locator("dialog").is_visible()
    enlarged = page.locator("#zoom-image")
    assert enlarged.bounding_box()["width"] > 400
    assert enlarged.evaluate("image => getComputedStyle(image).imageRendering") == "auto"  # not pixelated
    assert page.locator("#zoom-text").inner_text().startswith("Photograph: Parts, key, good, 0.png")
    page.keyboard.press("ArrowRight")
    assert page.locator("#zoom-text").inner_text().startswith("True mask")
    page.keyboard.press("ArrowLeft")
    page.locator("#previous").click()
    page.locator("#next").click()
    assert page.locator("#zoom-text").inner_text().startswith("Photograph: Parts, key, good, 0.png")
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()
    assert page.evaluate("document.activeElement.closest('figure') !== null")


def test_story_opens_and_every_picture_has_an_alternative_text(page: Any) -> None:
    assert not page.get_by_text("where CLIP sees damage").first.is_visible()
    page.locator("#rows summary").first.focus()
    page.keyboard.press("Enter")
    assert page.get_by_text("where CLIP sees damage").first.is_visible()
    texts = page.locator("#rows img").evaluate_all("images => images.map(image => image.alt)")
    assert len(texts) == 3 * (2 + 2 + 2) + 3 * (2 + 1 + 2)
    assert len(set(texts)) == len(texts)
    assert all(texts)


def test_published_figures_and_failures_are_marked(page: Any) -> None:
    assert "not measured here" in page.locator("table.published caption").inner_text()
    assert page.locator("table.published tbody tr").count() == 6
    assert f"{B}, Parts nut: RuntimeError: no room" in page.locator("li").all_inner_texts()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_nothing_lies_outside_of_a_phone_or_a_desktop(browser: Any, page_path: Path, width: int, scheme: str) -> None:
    tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    tab.set_content(page_path.read_text(encoding="utf-8"))
    tab.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
    outside = """width => [...document.querySelectorAll("header *, main *")]
        .filter(one => !one.closest(".figures thead"))  // out of sight on a phone
        .filter(one => one.getBoundingClientRect().right > width || one.getBoundingClientRect().left < 0)
        .map(one => one.tagName + " " + one.className)"""
    assert tab.evaluate(outside, width) == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.locator("select").count() == 5
    figure = tab.locator("table.figures").first.locator("td.best").first
    assert figure.is_visible()
    assert figure.bounding_box()["x"] + figure.bounding_box()["width"] <= width
    assert tab.locator("#rows figure button").first.bounding_box()["width"] >= 100
    colors = [
        tab.evaluate(f"getComputedStyle(document.{one}).{name}")
        for one, name in (("body", "color"), ("body", "backgroundColor"))
    ]
    ink, paper = (int(re.search(r"\d+", color).group()) for color in colors)
    assert (ink < 60 and paper > 200) if scheme == "light" else (ink > 200 and paper < 60)
    tab.close()
