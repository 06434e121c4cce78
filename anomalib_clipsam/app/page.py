# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The page of ``anomalib-clipsam app``, made with Gradio and served by uvicorn on this machine.

Gradio's own launcher is not used: it asks its server for itself, through a proxy where one is set, and can open a
tunnel. Nothing here reaches for the network: no telemetry, no fonts from elsewhere, no history of runs in the browser.

What is kept: an upload, in a temporary folder, until an hour has passed or the server ends; what the networks said of
the last picture of a page, in memory, for as long.
"""

from __future__ import annotations

import base64
import os
import signal
import socket
from contextlib import contextmanager, suppress
from html import escape
from io import BytesIO
from ipaddress import ip_address
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from anomalib_clipsam.app.inspection import LONGEST_NAME, MOST_BYTES, MOST_PIXELS, Inspector, Look, decide, tidy
from anomalib_clipsam.drawing.verdict import written
from anomalib_clipsam.drawn_parts.drawing import draw_part
from anomalib_clipsam.errors.errors import UserOSError
from anomalib_clipsam.predictions.run import MOST_GOOD_PARTS
from anomalib_clipsam.references.bounds import FALSE_ALARMS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi import FastAPI

INSTALL = "The page needs Gradio. Run: pip install 'anomalib_clipsam[app]'"
KEPT = 3600
"""Seconds that uploads and answers are kept."""

CSS = """
.gradio-container { width: 100% !important; max-width: 1240px !important; margin: 0 auto !important; }
#head h1 { font-size: 1.5rem; font-weight: 650; margin: 0; }
#head p, #foot p { margin: .25rem 0 0; max-width: 46rem; opacity: .75; }
#foot p { font-size: .85rem; }
.html-container { padding: 0 !important; }
.cs-verdict { border-left: 6px solid rgb(136 136 136); padding: .2rem 0 .2rem .9rem; }
.cs-verdict.good { border-color: rgb(0 158 115); }
.cs-verdict.defective { border-color: rgb(213 94 0); }
.cs-verdict strong { display: block; font-size: 1.6rem; line-height: 1.25; font-weight: 650; }
.cs-verdict span { font-variant-numeric: tabular-nums; }
.cs-verdict p { margin: .3rem 0 0; opacity: .75; }
.cs-panels { display: grid; gap: 1rem; grid-template-columns: repeat(2, 1fr); }
.cs-panels.small { grid-template-columns: repeat(3, 1fr); }
.cs-panels figure { margin: 0; }
.cs-panels img { width: 100%; height: auto; display: block; border-radius: 3px; }
.cs-panels figcaption { font-size: .85rem; line-height: 1.35; padding-top: .35rem; }
.cs-panels figcaption b { display: block; font-weight: 600; }
.cs-panels figcaption span { opacity: .75; }
.cs-steps { font-size: 1.1rem; font-weight: 650; margin: .6rem 0; }
@media (max-width: 640px) {
  .cs-panels { grid-template-columns: 1fr; }
  .cs-panels.small { grid-template-columns: repeat(2, 1fr); gap: .8rem .6rem; }
}
"""
STEPS = {
    "crops": "Orange: the most suspicious places. Yellow: what SAM was shown of the picture.",
    "CLIP map": "Where CLIP sees damage rather than a flawless part.",
    "Text and good parts": "Where CLIP sees damage, or something that no good part has.",
    "Extreme region": "Orange: the most suspicious place. Blue: the ring around it.",
    "positive": "Plus: SAM is told that this is the defect. Minus: that this is not.",
    "Mask 1": "What SAM outlines from the points.",
    "Mask 2": "From the points and its first mask.",
    "Mask 3": "From the points, the second mask and the yellow box around it.",
}
"""A word of a panel's title -> what it shows."""
EMPTY = '<div class="cs-verdict"><strong>No picture yet</strong><span>Drop one, or use a drawn part.</span></div>'


def build_page(inspector: Inspector) -> Any:
    """Build the page.

    Args:
        inspector (Inspector): The model.

    Returns:
        gradio.Blocks: The page.

    Raises:
        ImportError: If Gradio is not installed.
    """
    gr = _gradio()
    with gr.Blocks(title="ClipSam", analytics_enabled=False, delete_cache=(KEPT // 10, KEPT)) as page:
        gr.HTML(
            "<h1>ClipSam</h1><p>Drop the picture of a part. ClipSam says whether the part is defective, and outlines "
            "where.</p>",
            elem_id="head",
        )
        looked = gr.State(time_to_live=KEPT)
        with gr.Row():
            with gr.Column(scale=4, min_width=300):
                picture, example, good, name = _add_inputs(gr, inspector)
            with gr.Column(scale=7, min_width=300):
                verdict = gr.HTML(EMPTY, elem_id="verdict")
                with gr.Row():
                    image_threshold = _add_threshold(gr, "score", "Above it: defective.")
                    pixel_threshold = _add_threshold(gr, "outline", "Higher outlines less.")
                answer = gr.HTML("", elem_id="answer")
                steps = gr.HTML("", elem_id="steps")
        _add_foot(gr, inspector)
        look, rename, move = _handlers(gr, inspector)
        thresholds = [image_threshold, pixel_threshold]
        asked, shown = [picture, good, name, *thresholds], [looked, verdict, answer, steps]
        gr.on(
            [picture.change, good.change, name.submit],
            look,
            asked,
            shown,
            trigger_mode="always_last",
            show_progress_on=verdict,
            api_name="look",
        )
        name.blur(rename, [looked, *asked], shown, show_progress_on=verdict, api_visibility="private")
        gr.on(
            [image_threshold.input, pixel_threshold.input],
            move,
            [looked, *thresholds],
            [verdict, answer],
            trigger_mode="always_last",
            show_progress="hidden",
            api_name="move",
        )
        example.click(draw_example, None, [picture, name], api_visibility="private")
    # What its launcher says. Without it, Gradio reads whatever file of this machine it is asked for.
    page.has_launched = True
    return page


def _add_inputs(gr: Any, inspector: Inspector) -> tuple[Any, Any, Any, Any]:
    """Add what a visitor gives: a picture or a drawn one, good parts, the part's name."""
    picture = gr.Image(
        label="Picture",
        format="png",
        sources=["upload"],
        placeholder="Drop a picture here\nor click to choose one",
        height=260,
        buttons=[],
    )
    # Gradio's own opens the file, and says what PIL says. A subclass would have Gradio write a `.pyi` file.
    picture.preprocess = lambda payload: payload and payload.path
    example = gr.Button("Use a drawn part", size="sm")
    good = gr.File(
        label="Good parts (optional)",
        file_count="multiple",
        file_types=["image"],
        height=170,
        visible=not inspector.in_tiles,
    )
    name = gr.Textbox(
        label="Name of the part (optional)",
        placeholder="such as leather or metal nut",
        max_length=LONGEST_NAME,
        visible=inspector.uses_class_name,
    )
    return picture, example, good, name


def _add_threshold(gr: Any, of: str, info: str) -> Any:
    """Add the slider of a threshold."""
    return gr.Slider(0, 1, 0.5, step=0.01, label=f"Threshold of the {of}", info=info, min_width=220)


def _add_foot(gr: Any, inspector: Inspector) -> None:
    """Add what the thresholds rest on, and what becomes of files."""
    gr.HTML(
        "<p>Without good parts, 0.5 is not fitted to your part, and good ones may lie above it. With good parts, "
        f"0.5 is set for {100 * inspector.false_alarms:.3g} % false alarms. Up to {MOST_GOOD_PARTS} are compared, "
        "each with the others too.</p>"
        f"<p>Files may have {MOST_BYTES // 2**20} MB and {MOST_PIXELS // 10**6} megapixels. They stay on the "
        "machine that runs this page, and are deleted after an hour, or when it ends.</p>",
        elem_id="foot",
    )


def _handlers(gr: Any, inspector: Inspector) -> tuple[Any, Any, Any]:
    """Make what is done when a picture comes, when its name changes, and when a threshold moves."""

    def look(path: str | None, parts: list[str] | None, class_name: str, image: float, pixel: float) -> tuple:
        if path is None:
            return None, EMPTY, "", ""
        try:
            seen = inspector.look(path, parts or (), class_name)
        except (OSError, ValueError) as error:
            return None, show_refusal(error), "", ""
        return seen, *show_decision(seen, image, pixel), show_steps(seen)

    def rename(seen: Look | None, *asked: Any) -> tuple:
        same = seen is None or seen.class_name == tidy(asked[2])
        return (gr.skip(),) * 4 if same else look(*asked)

    def move(seen: Look | None, image: float, pixel: float) -> Any:
        return (gr.skip(), gr.skip()) if seen is None else show_decision(seen, image, pixel)

    return look, rename, move


def draw_example() -> tuple[Image.Image, str]:
    """Draw a part with a defect.

    Returns:
        tuple[Image.Image, str]: The picture, and the name of the part.
    """
    picture, _ = draw_part("leather", np.random.default_rng(105), "dent")
    return Image.fromarray(picture), "leather"


def show_decision(look: Look, image_threshold: float, pixel_threshold: float) -> tuple[str, str]:
    """Write what thresholds make of a picture.

    Args:
        look (Look): What the networks said.
        image_threshold (float): See :func:`~anomalib_clipsam.app.inspection.decide`.
        pixel_threshold (float): See there.

    Returns:
        tuple[str, str]: HTML of the verdict, and of outline and map.
    """
    decision = decide(look, image_threshold, pixel_threshold)
    score, threshold = written(decision.score, image_threshold)
    if decision.defective:
        kind, word, side = "defective", "Defective", "above"
        count = "1 region" if decision.regions == 1 else f"{decision.regions} regions"
        where = f"{count} outlined, {100 * decision.share:.1f} % of the picture."
        if not decision.regions:
            where = "Nothing is outlined."
    else:
        kind, word, side, where = "good", "Good", "not above", "Nothing is outlined."
    notes = "".join(f"<p>{escape(note)}</p>" for note in look.notes)
    verdict = (
        f'<div class="cs-verdict {kind}" role="status"><strong>{word}</strong>'
        f"<span>Score {score}, {side} the threshold {threshold}. {where}</span>{notes}</div>"
    )
    figures = _figure("Outline", "The picture, with what was found.", decision.outlined)
    figures += _figure("Final map", "The redder, the more suspicious.", decision.map)
    return verdict, f'<div class="cs-panels">{figures}</div>'


def show_steps(look: Look) -> str:
    """Write how the method came to its answer.

    Args:
        look (Look): What the networks said.

    Returns:
        str: HTML.
    """
    said = {title: next(text for word, text in STEPS.items() if word in title) for title in look.steps}
    figures = "".join(_figure(title, said[title], panel) for title, panel in look.steps.items())
    return f'<h2 class="cs-steps">How it came to this</h2><div class="cs-panels small">{figures}</div>'


def show_refusal(error: Exception) -> str:
    """Write why a picture was not looked at."""
    return f'<div class="cs-verdict" role="alert"><strong>Not checked</strong><span>{escape(str(error))}</span></div>'


def _figure(title: str, text: str, picture: Image.Image) -> str:
    """Write a picture into the page itself, so that no file of it is left anywhere."""
    data = BytesIO()
    picture.save(data, "WEBP", quality=85)
    source = f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"
    return (
        f'<figure><img src="{source}" alt="{escape(title)}" width="{picture.width}" height="{picture.height}">'
        f"<figcaption><b>{escape(title)}</b><span>{escape(text)}</span></figcaption></figure>"
    )


def build_server(inspector: Inspector) -> FastAPI:
    """Build what uvicorn serves.

    Args:
        inspector (Inspector): The model.

    Returns:
        FastAPI: The page at ``/``. Files of more than :data:`~anomalib_clipsam.app.inspection.MOST_BYTES` are refused
        while they come in.

    Raises:
        ImportError: If Gradio is not installed.
    """
    gr = _gradio()
    from fastapi import FastAPI

    sans = ["system-ui", "sans-serif"]
    theme = gr.themes.Base(
        primary_hue="blue", neutral_hue="gray", radius_size="sm", font=sans, font_mono=["ui-monospace", "monospace"]
    ).set(block_info_text_color="*neutral_500")
    return gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        build_page(inspector),
        path="/",
        max_file_size=MOST_BYTES,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        theme=theme,
        css=CSS,
    )


def _gradio() -> Any:
    """Import Gradio, and keep it from calling home."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read while it is imported
    try:
        import gradio
    except ImportError as error:
        raise ImportError(INSTALL) from error
    return gradio


@contextmanager
def uploads() -> Iterator[str]:
    """Keep Gradio's files in a folder of our own, which is deleted at the end.

    Yields:
        str: The folder.
    """
    before = os.environ.get("GRADIO_TEMP_DIR")
    with TemporaryDirectory(prefix="anomalib_clipsam_app_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield folder
        finally:
            os.environ.pop("GRADIO_TEMP_DIR")
            if before is not None:
                os.environ["GRADIO_TEMP_DIR"] = before


def listen(host: str, port: int) -> socket.socket:
    """Take an address, before any network is loaded.

    Args:
        host (str): Name or address.
        port (int): Port; 0 for any that is free.

    Returns:
        socket.socket: It listens there.

    Raises:
        OSError: If it is taken, or not of this machine.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        reason = str(getattr(error, "strerror", None) or error).partition(" (")[0]  # the address is named already
        msg = f"Cannot listen on {host}, port {port} ({reason}). Choose another `--port`, or leave `--host` out."
        raise UserOSError(msg) from error


def serve(
    weights: str, host: str, port: int, tiles: int | str | None = None, false_alarms: float = FALSE_ALARMS
) -> None:
    """Serve the page until Ctrl+C.

    Args:
        weights (str): As ``weights`` of ClipSam.
        host (str): Name or address to listen on.
        port (int): Port.
        tiles (int | str | None): As ``tiles`` of ClipSam. Defaults to ``None``.
        false_alarms (float): As ``false_alarms`` of ClipSam. Defaults to
            :data:`~anomalib_clipsam.references.bounds.FALSE_ALARMS`.

    Raises:
        ImportError: If Gradio is not installed.
        OSError: If the address is taken.
        ValueError: If there are no such weights or tiles.
    """
    with uploads(), listen(host, port) as address:
        _gradio()  # which makes its folder when it is imported
        import uvicorn

        server = build_server(Inspector(weights, tiles, false_alarms))
        shown = f"[{host}]" if ":" in host else host
        print(f"Open http://{shown}:{address.getsockname()[1]} in a browser. Ctrl+C ends the server.", flush=True)
        if not ip_address(address.getsockname()[0]).is_loopback:
            print("Everybody who reaches this address can use the page: it asks for no password.", flush=True)
        # uvicorn raises the signal that ended it once more: both must come back here, so that the folder is deleted
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(uvicorn.Config(server, log_level="warning", timeout_graceful_shutdown=1)).run(
                sockets=[address]
            )
