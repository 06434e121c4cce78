# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Maps, masks and points over pictures, and sheets of such panels.

Letters: H W map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from anomalib.visualization.image.functional import visualize_anomaly_map, visualize_mask
from PIL import ExifTags, Image, ImageDraw, ImageFont, ImageOps
from torch.nn import functional as F  # noqa: N812
from torchvision.transforms.v2.functional import to_pil_image

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

POSITIVE, NEGATIVE, RING, BOX = (0, 158, 115), (213, 94, 0), (86, 180, 233), (240, 228, 66)
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
"""Colours, from Okabe and Ito's palette, which the colour-blind can tell apart; signs tell the points apart as well."""
TRUTH, FOUND = WHITE, NEGATIVE
"""Outlines of the true mask and of the predicted one."""
INK, GREY = (32, 33, 36), (95, 99, 104)
FAINT, THRESHOLD, OPACITY = 0.25, 0.5, 0.65
"""A map is invisible up to the first value, and as opaque as the last from the second on."""
WIDE = 256
"""Longer side of a panel, in pixels, from which on outlines are two pixels wide."""
SPECK = 3e-4
"""Share of a panel below which a part of a mask is outlined thinly, as holes are."""
SIDEWAYS = (5, 6, 7, 8)
"""Orientations of EXIF that swap width and height."""
MARGIN, GAP = 14, 8
HEADING, CAPTION = 18, 13
"""Sizes of letters, in pixels."""


def fit(picture: Image.Image, size: int) -> Image.Image:
    """Resize a picture to a longer side, in its own proportions.

    Args:
        picture (Image.Image): The picture.
        size (int): Longer side, in pixels.

    Returns:
        Image.Image: A new picture.
    """
    longer = max(picture.size)
    return picture.resize([max(1, round(side * size / longer)) for side in picture.size], Image.Resampling.BICUBIC)


def heat(picture: Image.Image, anomaly_map: torch.Tensor, threshold: float | None = None) -> Image.Image:
    """Lay a map over a picture, as colours that fade out where the map is low: what is good stays as it is.

    Args:
        picture (Image.Image): The picture.
        anomaly_map (torch.Tensor): ``(H, W)`` in [0, 1], of any size.
        threshold (float | None): Value from which on colours are those of a defect, as the outline has it. Defaults to
            ``None``, 0.5.

    Returns:
        Image.Image: A new picture.
    """
    values = _resized(anomaly_map.nan_to_num(), picture).clamp(0, 1)
    if threshold is not None and 0 < threshold < 1:  # the threshold becomes 0.5
        above = 0.5 + (values - threshold) / (1 - threshold) / 2
        values = torch.where(values < threshold, values / threshold / 2, above)
    opacity = ((values - FAINT) / (THRESHOLD - FAINT)).clamp(0, 1) * OPACITY
    return Image.composite(visualize_anomaly_map(values), picture, to_pil_image(opacity))


def fill(picture: Image.Image, mask: torch.Tensor, color: tuple[int, int, int]) -> Image.Image:
    """Colour a mask in.

    Args:
        picture (Image.Image): The picture.
        mask (torch.Tensor): ``(H, W)`` of 0 and 1, of any size.
        color (tuple[int, int, int]): RGB.

    Returns:
        Image.Image: A new picture.
    """
    filled = visualize_mask(_resized(mask, picture) > 0.5, mode="fill", color=color, alpha=0.55)
    return Image.alpha_composite(picture.convert("RGBA"), filled).convert("RGB")


def outline(picture: Image.Image, mask: torch.Tensor, color: tuple[int, int, int]) -> Image.Image:
    """Draw the outline of a mask, with a rim that shows it on parts of its own colour too, see :func:`fill`.

    All of the mask's borders are drawn. Those of holes and specks are thin, lest they look like the finding.
    """
    inside = (_resized(mask, picture) > 0.5).numpy().astype(np.uint8)
    drawn = picture.convert("RGBA")
    large = torch.from_numpy(_without_details(inside))
    wide = int(max(picture.size) >= WIDE)
    for steps, shade in ((wide + 1, BLACK if color == WHITE else WHITE), (wide, color), (0, color)):
        grown = F.max_pool2d(large[None].float(), 2 * steps + 1, stride=1, padding=steps)[0] > 0
        drawn = Image.alpha_composite(drawn, visualize_mask(grown, mode="contour", color=shade))
    details = visualize_mask(torch.from_numpy(inside) != large, mode="contour", color=color)
    return Image.alpha_composite(drawn, details).convert("RGB")


def _without_details(inside: np.ndarray) -> np.ndarray:
    """Fill the holes of a mask ``(H, W)`` of 0 and 1, and leave out its specks."""
    outer, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = cv2.drawContours(np.zeros_like(inside), outer, -1, 1, cv2.FILLED)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(filled, connectivity=8)
    return filled * (stats[:, cv2.CC_STAT_AREA] >= SPECK * inside.size)[labels].astype(np.uint8)


def orientation_of(path: str | Path | None) -> int:
    """Return the orientation that a photograph's EXIF data names: 1 for as it is stored, also where none is named.

    anomalib reads pixels as they are stored, and so do scores, masks and boxes here. Only what people look at is
    turned.

    Args:
        path (str | Path | None): The file; ``None``, or one that is gone, has none.

    Returns:
        int: From 1 to 8.
    """
    try:
        with Image.open(path) as image:
            return image.getexif().get(ExifTags.Base.Orientation, 1)
    except (OSError, AttributeError):  # no file any more, or no path
        return 1


def upright(picture: Image.Image, orientation: int) -> Image.Image:
    """Turn a picture as a viewer of photographs would.

    Args:
        picture (Image.Image): The picture, as it is stored.
        orientation (int): See :func:`orientation_of`.

    Returns:
        Image.Image: A new picture.
    """
    turned = picture.copy()
    turned.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(turned)


def mark(picture: Image.Image, points: Sequence[tuple[float, float, int]], sideways: bool = False) -> Image.Image:
    """Draw points: a disc with a plus for a positive one, with a minus for a negative one.

    Args:
        picture (Image.Image): The picture.
        points (Sequence[tuple[float, float, int]]): x, y in pixels; 1 for a positive, 0 for a negative, -1 for no
            point.
        sideways (bool): Whether the picture will be turned by 90 degrees, and the minus with it. Defaults to ``False``.

    Returns:
        Image.Image: A new picture.
    """
    marked, radius = picture.copy(), max(5, max(picture.size) // 40)
    draw = ImageDraw.Draw(marked)
    for x, y, label in points:
        if label not in (0, 1):
            continue
        disc = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(disc, fill=POSITIVE if label else NEGATIVE, outline=WHITE)
        across = (x - radius / 2, y, x + radius / 2, y)
        down = (x, y - radius / 2, x, y + radius / 2)
        for line in (across, down) if label else (down if sideways else across,):
            draw.line(line, fill=WHITE, width=2)
    return marked


def sheet(
    panels: Mapping[str, Image.Image],
    columns: int,
    heading: str = "",
    color: tuple[int, int, int] | None = None,
    detail: str = "",
) -> Image.Image:
    """Put panels on a white sheet: a line above them, a caption below each, nothing over them.

    Args:
        panels (Mapping[str, Image.Image]): Caption -> panel, all of one size.
        columns (int): Most panels in a row.
        heading (str): What the line above begins with. Defaults to none: no line.
        color (tuple[int, int, int] | None): RGB of a dot before it. Defaults to ``None``, no dot.
        detail (str): What follows it in grey. Defaults to none.

    Returns:
        Image.Image: The sheet.
    """
    large, small = ImageFont.load_default(HEADING), ImageFont.load_default(CAPTION)
    line = HEADING + 10 if heading else 0
    dot = 0 if color is None else HEADING
    detail_at = MARGIN + dot + large.getlength(heading) + HEADING
    width, height = next(iter(panels.values())).size
    cell = round(max(width, *(small.getlength(caption) for caption in panels))), height + CAPTION + 2 * GAP
    rows, across = -(-len(panels) // columns), min(columns, len(panels))
    wide = max(across * (cell[0] + GAP) - GAP, detail_at + small.getlength(detail) - MARGIN if heading else 0)
    made = Image.new("RGB", (2 * MARGIN + round(wide), MARGIN + line + rows * cell[1] + MARGIN - GAP), WHITE)
    draw = ImageDraw.Draw(made)
    if heading:
        middle = MARGIN + HEADING / 2
        if color is not None:
            disc = Image.new("L", (96, 96))  # drawn large and made small, for a smooth rim
            ImageDraw.Draw(disc).ellipse((0, 0, 95, 95), fill=255)
            made.paste(Image.new("RGB", (12, 12), color), (MARGIN, round(middle) - 6), disc.resize((12, 12)))
        draw.text((MARGIN + dot, middle), heading, INK, large, anchor="lm")
        draw.text((detail_at, middle), detail, GREY, small, anchor="lm")
    for index, (caption, panel) in enumerate(panels.items()):
        x, y = MARGIN + index % columns * (cell[0] + GAP), MARGIN + line + index // columns * cell[1]
        made.paste(panel, (x, y))
        draw.text((x, y + height + GAP / 2), caption, GREY, small)
    return made


def _resized(values: torch.Tensor, picture: Image.Image) -> torch.Tensor:
    """Bring ``(H, W)`` to the size of a picture."""
    size = (picture.height, picture.width)
    return F.interpolate(values[None, None].float().cpu(), size, mode="bilinear", align_corners=False)[0, 0]
