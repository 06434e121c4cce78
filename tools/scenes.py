# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Endless random scenes: what the demo SAM learns to segment from.

A scene is a textured background, zero to three textured shapes (which may carry holes, prints and smaller shapes) and
zero to three defects, each with an exact mask. Nothing in it is meant to look like a real thing: the variety of
textures, outlines, contrasts and lights keeps a small SAM from learning the parts by heart, so that it follows the
points.

Letters: S side of the picture in pixels, n points of an outline. Fields are ``(S, S)``, pictures ``(S, S, 3)`` in grey
levels 0..255 as float32 until the very end, alphas ``(S, S)`` in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import cos, sin

import cv2
import numpy as np

MIN_DEFECT_AREA = 20
"""Smallest defect that is kept, in pixels of a 192 px scene."""

MIN_SHAPE_AREA = 120
"""Smallest visible shape that is listed, in pixels of a 192 px scene."""

_FIXED_POINT_BITS = 4


@dataclass(frozen=True)
class Scene:
    """One drawn scene with exact masks.

    Args:
        image (np.ndarray): RGB picture, ``(S, S, 3)`` uint8.
        defect_mask (np.ndarray): Union of all defects, ``(S, S)`` bool; empty for a scene without one.
        shape_masks (tuple[np.ndarray, ...]): One ``(S, S)`` bool mask per visible shape, with what is printed on it and
            with its defects; a chip broken off its edge is not part of it.
    """

    image: np.ndarray
    defect_mask: np.ndarray
    shape_masks: tuple[np.ndarray, ...]


def draw_scene(rng: np.random.Generator, size: int = 192) -> Scene:
    """Draw one random scene.

    Args:
        rng (np.random.Generator): Source of every choice: the same state gives the same scene.
        size (int): Side of the square picture in pixels.

    Returns:
        Scene: Picture and masks.
    """
    image = _texture(rng, size)
    shapes: list[np.ndarray] = []
    light = rng.uniform(0, 2 * np.pi)
    for _ in range(_pick(rng, (0, 1, 2, 3), (0.2, 0.48, 0.18, 0.14))):
        image, visible = _add_shape(rng, image, light, large=not shapes)
        shapes = [mask & ~visible for mask in shapes] + [visible]
        if rng.random() < 0.4:
            for child in _add_details(rng, image, visible, light):
                shapes.append(child)
    body = shapes[0] if shapes else np.ones((size, size), bool)

    defect_mask = np.zeros((size, size), bool)
    for _ in range(_pick(rng, (0, 1, 2, 3), (0.06, 0.7, 0.16, 0.08))):
        host = body if rng.random() < 0.7 or not shapes else shapes[int(rng.integers(len(shapes)))]
        if rng.random() < 0.1 or host.sum() < 0.04 * host.size:
            host = np.ones_like(host)
        chip = bool(shapes) and rng.random() < 0.12
        added = _add_chip(rng, image, shapes[0], light) if chip else _add_defect(rng, image, host, light)
        if added.sum() < MIN_DEFECT_AREA * (size / 192) ** 2:
            continue
        defect_mask |= added
        if chip:
            shapes[0] = shapes[0] & ~added
    minimum = MIN_SHAPE_AREA * (size / 192) ** 2
    return Scene(
        image=_finish(rng, image),
        defect_mask=defect_mask,
        shape_masks=tuple(mask for mask in shapes if mask.sum() >= minimum),
    )


# ---------------------------------------------------------------------- random numbers
def _pick(rng: np.random.Generator, values: tuple, weights: tuple[float, ...] | None = None):  # noqa: ANN202
    """Choose one of ``values``; faster than ``Generator.choice`` for a handful of them."""
    if weights is None:
        return values[int(rng.integers(len(values)))]
    return values[int(np.searchsorted(np.cumsum(weights), rng.random() * sum(weights), side="right"))]


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


# ---------------------------------------------------------------------- fields and
# textures
@lru_cache(maxsize=4)
def _axes(size: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:size, :size].astype(np.float32)
    return x, y


def _unit(field: np.ndarray) -> np.ndarray:
    """Stretch a field to [0, 1]."""
    low, high = float(field.min()), float(field.max())
    return (field - low) * (1 / (high - low)) if high - low > 1e-6 else np.zeros_like(field)


def _noise(rng: np.random.Generator, size: int, rows: int, columns: int) -> np.ndarray:
    """Smooth noise: a random grid of ``rows`` by ``columns`` values stretched over the picture."""
    grid = rng.random((rows, columns), dtype=np.float32)
    return cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)


def _cloud(rng: np.random.Generator, size: int, start: int | None = None) -> np.ndarray:
    """Noise of several scales in [0, 1], from soft clouds to rough stone."""
    cells = int(rng.integers(2, 24)) if start is None else start
    fall = rng.uniform(0.35, 0.95)
    field, weight = np.zeros((size, size), np.float32), 1.0
    for _ in range(5):
        field += weight * _noise(rng, size, cells, cells)
        cells, weight = 2 * cells, weight * fall
        if cells > size:
            break
    return _unit(field)


def _wave(phase: np.ndarray, sharpness: float, duty: float) -> np.ndarray:
    """Periodic wave in [0, 1]: a sine for sharpness 1, nearly a square wave for 8."""
    return np.clip((np.sin(phase) - duty) * sharpness * 0.5 + 0.5, 0, 1)


def _pattern(rng: np.random.Generator, size: int) -> np.ndarray:
    """One of many scalar patterns in [0, 1], ``(S, S)`` float32."""
    kinds = (
        *("flat", "cloud", "cloud", "grain", "brushed", "stripes", "grid", "dots", "checker", "weave"),
        *("rings", "wood", "cells", "speckle", "patches", "gradient", "bricks"),
    )
    kind = _pick(rng, kinds)
    if kind == "flat":
        return np.zeros((size, size), np.float32)
    if kind == "cloud":
        return _cloud(rng, size)
    if kind == "grain":
        grain = rng.random((size, size), dtype=np.float32)
        return _unit(cv2.GaussianBlur(grain, (0, 0), _log_uniform(rng, 0.5, 3)))
    if kind == "patches":
        levels = int(rng.integers(2, 6))
        return np.floor(_cloud(rng, size, int(rng.integers(5, 32))) * levels * 0.999) / max(levels - 1, 1)
    if kind == "cells":
        seeds = np.ones((size, size), np.uint8)
        points = rng.integers(0, size, (int(_log_uniform(rng, 12, 400)), 2))
        seeds[points[:, 0], points[:, 1]] = 0
        return _unit(cv2.distanceTransform(seeds, cv2.DIST_L2, 3))
    if kind == "speckle":
        grain = cv2.GaussianBlur(rng.random((size, size), dtype=np.float32), (0, 0), _log_uniform(rng, 0.6, 2))
        spread = float(grain.std()) + 1e-6
        return np.clip((grain - float(grain.mean())) * (2 / spread) - rng.uniform(2, 4.6), 0, 1)

    x, y = _axes(size)
    angle = _pick(rng, (0.0, np.pi / 4, np.pi / 2, rng.uniform(0, np.pi), rng.uniform(0, np.pi)))
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u, v = c * x + s * y, c * y - s * x
    if kind == "brushed":
        columns = int(rng.integers(2, 8))
        field = cv2.resize(rng.random((size, columns), dtype=np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
        turn = cv2.getRotationMatrix2D((size / 2, size / 2), float(np.degrees(angle)), 1.0)
        return _unit(cv2.warpAffine(field, turn, (size, size), borderMode=cv2.BORDER_REFLECT))
    if kind == "gradient":
        return _unit(u + rng.uniform(0, 1.5) * size * _noise(rng, size, 3, 3))
    period = _log_uniform(rng, 5, 56)
    sharpness, duty = _log_uniform(rng, 1, 9), rng.uniform(-0.8, 0.8)
    if rng.random() < 0.5:
        cells = int(rng.integers(3, 12))
        bend = period * _log_uniform(rng, 0.1, 3)
        u, v = u + bend * _noise(rng, size, cells, cells), v + bend * _noise(rng, size, cells, cells)
    scale = np.float32(2 * np.pi / period)
    if kind == "stripes":
        return _wave(u * scale, sharpness, duty)
    if kind == "rings":
        left, top = rng.uniform(-0.2, 1.2) * size, rng.uniform(-0.2, 1.2) * size
        return _wave(np.hypot(u - left, v - top) * scale, sharpness, duty)
    if kind == "wood":
        cells = int(rng.integers(2, 5))
        return _wave((u + _log_uniform(rng, 8, 60) * _noise(rng, size, cells, 4 * cells)) * scale, sharpness, duty)
    first = scale * u
    second = scale * v * _log_uniform(rng, 0.5, 2)
    if kind == "grid":
        return np.maximum(_wave(first, sharpness, abs(duty)), _wave(second, sharpness, abs(duty)))
    if kind == "dots":
        return _wave(np.arcsin(np.sin(first) * np.sin(second)), sharpness, duty * 0.6)
    if kind == "checker":
        return np.clip(np.sin(first) * np.sin(second) * sharpness * 2 + 0.5, 0, 1)
    if kind == "bricks":
        row = np.floor(first / (2 * np.pi))
        return np.maximum(_wave(first, 6, 0.8), _wave(second * 0.5 + np.pi * (row % 2), 6, 0.9))
    over = np.sin(first * 0.5) * np.sin(second * 0.5) > 0  # weave
    return np.where(over, _wave(first, sharpness, duty), _wave(second, sharpness, duty))


def _colour(rng: np.random.Generator) -> np.ndarray:
    """A colour, grey levels ``(3,)``; industrial pictures are mostly dull."""
    spread = _pick(rng, (0.0, 8.0, 25.0, 60.0), (0.3, 0.35, 0.2, 0.15))
    return np.clip(rng.uniform(15, 240) + spread * rng.standard_normal(3), 5, 250).astype(np.float32)


def _texture(rng: np.random.Generator, size: int, like: np.ndarray | None = None) -> np.ndarray:
    """A textured surface ``(S, S, 3)``.

    Args:
        rng (np.random.Generator): Source of every choice.
        size (int): Side in pixels.
        like (np.ndarray | None): Colour ``(3,)`` to stay near to, for surfaces that differ in their structure only.

    Returns:
        np.ndarray: Grey levels as float32.
    """
    base = _colour(rng) if like is None else np.clip(like + 10 * rng.standard_normal(3).astype(np.float32), 5, 250)
    other = _colour(rng) if rng.random() < 0.35 else base * np.float32(_pick(rng, (0.0, 1.6)))
    pull = _log_uniform(rng, 0.06, 0.95)
    field = _pattern(rng, size)
    if rng.random() < 0.35:
        field = field * _pattern(rng, size)
    if rng.random() < 0.5:
        weight = np.float32(_log_uniform(rng, 0.05, 0.7))
        field = (1 - weight) * field + weight * _cloud(rng, size)
    slopes = pull * (other - base)
    planes = [field * float(slope) + float(level) for slope, level in zip(slopes, base, strict=True)]
    return cv2.merge(planes)  # three times faster than a broadcast over the last axis


# ---------------------------------------------------------------------- outlines and
# alphas
def _outline(rng: np.random.Generator) -> np.ndarray:
    """A closed outline ``(n, 2)`` within the unit circle."""
    kind = _pick(
        rng,
        (
            "ellipse",
            "ellipse",
            "polygon",
            "box",
            "rounded",
            "rounded",
            "gear",
            "star",
            "blob",
            "blob",
            "bar",
            "profile",
        ),
    )
    angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    radius = np.ones_like(angle)
    if kind == "polygon":
        corners = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 8))))
        if rng.random() < 0.5:
            corners = np.linspace(0, 2 * np.pi, int(rng.integers(3, 9)), endpoint=False)
        return np.stack([np.cos(corners), np.sin(corners)], 1)
    if kind == "profile":  # L, T, U, cross: unions of boxes on a small raster, traced by hand
        a = rng.uniform(0.2, 0.6)
        profiles = (
            ((-1, -1), (a - 0.6, -1), (a - 0.6, 1 - a), (1, 1 - a), (1, 1), (-1, 1)),
            ((-1, -1), (1, -1), (1, a - 1), (a / 2, a - 1), (a / 2, 1), (-a / 2, 1), (-a / 2, a - 1), (-1, a - 1)),
            ((-1, -1), (a - 1, -1), (a - 1, 1 - a), (1 - a, 1 - a), (1 - a, -1), (1, -1), (1, 1), (-1, 1)),
            (
                *((-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a)),
                *((a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)),
            ),
        )
        return 0.75 * np.array(_pick(rng, profiles), dtype=np.float64)
    if kind in {"box", "bar", "rounded"}:
        power = 40.0 if kind == "box" else _log_uniform(rng, 3, 12)
        radius = (np.abs(np.cos(angle)) ** power + np.abs(np.sin(angle)) ** power) ** (-1 / power) * 0.8
    elif kind == "gear":
        radius = 1 - rng.uniform(0.08, 0.3) * (np.sin(angle * int(rng.integers(5, 14))) > 0)
    elif kind == "star":
        radius = 1 - rng.uniform(0.1, 0.5) * (0.5 + 0.5 * np.sin(angle * int(rng.integers(3, 9))))
    elif kind == "blob":
        for order in range(2, 7):
            radius = radius + rng.normal(0, 0.35 / order) * np.sin(order * angle + rng.uniform(0, 2 * np.pi))
        radius = np.clip(radius, 0.25, None)
        radius = radius / radius.max()
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
    return points * (1, rng.uniform(0.12, 0.35)) if kind == "bar" else points


def _place(rng: np.random.Generator, points: np.ndarray, centre: np.ndarray, radius: float) -> np.ndarray:
    """Stretch, turn and move an outline; returns pixels ``(n, 2)``."""
    stretch = np.array([1.0, rng.uniform(0.45, 1.0)])
    turn = _pick(rng, (0.0, np.pi / 2, rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi)))
    c, s = np.cos(turn), np.sin(turn)
    return (points * stretch * radius) @ np.array([[c, s], [-s, c]]) + centre


def _fill(canvas: np.ndarray, points: np.ndarray, value: int = 255) -> None:
    fixed = np.round(points * (1 << _FIXED_POINT_BITS)).astype(np.int32)
    cv2.fillPoly(canvas, [fixed], value, cv2.LINE_AA, _FIXED_POINT_BITS)


def _line(canvas: np.ndarray, points: np.ndarray, width: int) -> None:
    fixed = np.round(points * (1 << _FIXED_POINT_BITS)).astype(np.int32)
    cv2.polylines(
        canvas, [fixed], isClosed=False, color=255, thickness=width, lineType=cv2.LINE_AA, shift=_FIXED_POINT_BITS
    )


def _alpha(canvas: np.ndarray) -> np.ndarray:
    return canvas.astype(np.float32) * np.float32(1 / 255)


def _shape_alpha(rng: np.random.Generator, size: int, *, large: bool) -> np.ndarray:
    canvas = np.zeros((size, size), np.uint8)
    if large and rng.random() < 0.75:
        centre, radius = size * rng.uniform(0.42, 0.58, 2), size * rng.uniform(0.28, 0.55)
    else:
        centre, radius = size * rng.uniform(0.1, 0.9, 2), size * _log_uniform(rng, 0.08, 0.4)
    if rng.random() < 0.12:
        x, y = _axes(size)
        fall = np.hypot(x - float(centre[0]), y - float(centre[1])) / (1.4 * radius)
        field = _cloud(rng, size, int(rng.integers(3, 8))) - 0.7 * fall
        return np.clip((field - 0.15) * 12, 0, 1)
    if rng.random() < 0.12:  # rows of small things: letters, pills, screws
        rows, columns = int(rng.integers(1, 5)), int(rng.integers(2, 6))
        small, text = _outline(rng), rng.random() < 0.4
        step = 1.7 * radius / max(rows, columns)
        for row in range(rows):
            for column in range(columns):
                at = centre + step * np.array([column - (columns - 1) / 2, row - (rows - 1) / 2])
                if text:
                    letter = chr(int(rng.integers(65, 91)))
                    spot = (int(at[0]), int(at[1]))
                    cv2.putText(
                        canvas,
                        letter,
                        spot,
                        int(rng.integers(0, 8)),
                        step / 25,
                        255,
                        max(2, int(step / 8)),
                        cv2.LINE_AA,
                    )
                else:
                    _fill(canvas, small * step * 0.4 + at)
        return _alpha(canvas)
    points = _place(rng, _outline(rng), centre, radius)
    _fill(canvas, points)
    if rng.random() < 0.22:  # a ring
        middle = points.mean(0)
        _fill(canvas, (points - middle) * rng.uniform(0.25, 0.8) + middle, 0)
    elif rng.random() < 0.2:  # drilled
        for _ in range(int(rng.integers(1, 6))):
            spot = centre + rng.uniform(-0.6, 0.6, 2) * radius
            hole = _outline(rng) if rng.random() < 0.3 else _circle()
            _fill(canvas, hole * radius * rng.uniform(0.06, 0.18) + spot, 0)
    return _alpha(canvas)


@lru_cache(maxsize=1)
def _circle() -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle)], 1)


# ---------------------------------------------------------------------- what a scene is
# put together from
def _three(field: np.ndarray) -> np.ndarray:
    return cv2.merge([field.astype(np.float32, copy=False)] * 3)


def _blend(image: np.ndarray, layer: np.ndarray, alpha: np.ndarray) -> None:
    image += (layer - image) * _three(alpha)


def _relief(alpha: np.ndarray, light: float, sigma: float) -> np.ndarray:
    """Brightness of a surface whose height is the blurred ``alpha``, lit from ``light``, in [-1, 1]."""
    height = cv2.GaussianBlur(alpha, (0, 0), sigma)
    shade = cos(light) * cv2.Sobel(height, cv2.CV_32F, 1, 0) + sin(light) * cv2.Sobel(height, cv2.CV_32F, 0, 1)
    return shade * np.float32(1 / (np.abs(shade).max() + 1e-6))


def _add_shape(
    rng: np.random.Generator, image: np.ndarray, light: float, *, large: bool
) -> tuple[np.ndarray, np.ndarray]:
    size = image.shape[0]
    alpha = _shape_alpha(rng, size, large=large)
    if rng.random() < 0.4:  # the shadow it throws
        reach = size * rng.uniform(0.01, 0.05)
        move = np.float32([[1, 0, reach * cos(light)], [0, 1, reach * sin(light)]])
        shadow = cv2.GaussianBlur(cv2.warpAffine(alpha, move, (size, size)), (0, 0), rng.uniform(1, 5))
        image *= _three(1 - rng.uniform(0.1, 0.55) * shadow)
    like = image[alpha > 0.5].mean(0) if rng.random() < 0.12 and (alpha > 0.5).any() else None
    layer = _texture(rng, size, like)
    if rng.random() < 0.5:
        layer += np.float32(rng.uniform(10, 60)) * _three(_relief(alpha, light, _log_uniform(rng, 1, 12)))
    if rng.random() < 0.25:  # a body that is round: brighter in the middle
        depth = cv2.GaussianBlur(alpha, (0, 0), size * rng.uniform(0.05, 0.15))
        layer *= _three(rng.uniform(0.4, 0.9) + rng.uniform(0.2, 0.6) * depth)
    _blend(image, layer, alpha)
    return image, alpha > 0.5


def _add_details(rng: np.random.Generator, image: np.ndarray, host: np.ndarray, light: float) -> list[np.ndarray]:
    """Things that belong on a shape: prints, caps, screws. They are shapes, not defects."""
    size, children = image.shape[0], []
    ys, xs = np.nonzero(host)
    if len(ys) < 400:
        return children
    for _ in range(int(rng.integers(1, 3))):
        canvas = np.zeros((size, size), np.uint8)
        at = int(rng.integers(len(ys)))
        centre = np.array([xs[at], ys[at]], np.float64)
        if rng.random() < 0.4:
            centre = np.array([xs.mean(), ys.mean()])
        radius = np.sqrt(len(ys)) * rng.uniform(0.08, 0.4)
        _fill(canvas, _place(rng, _outline(rng), centre, radius))
        alpha = _alpha(canvas) * host
        _blend(image, _texture(rng, size), alpha * np.float32(rng.uniform(0.4, 1)))
        if rng.random() < 0.4:
            image += np.float32(rng.uniform(10, 50)) * _relief(alpha, light, rng.uniform(1, 4))[..., None]
        children.append(alpha > 0.5)
    return children


def _defect_alpha(rng: np.random.Generator, size: int, centre: np.ndarray) -> np.ndarray:
    """Where a defect is: blobs, strokes, cracks, scratches, fibres, pits."""
    canvas = np.zeros((size, size), np.uint8)
    kind = _pick(
        rng,
        ("outline", "cloud", "line", "crack", "curve", "scratches", "pits", "round"),
        (0.3, 0.14, 0.1, 0.13, 0.1, 0.08, 0.06, 0.12),
    )
    if kind == "round":
        _fill(canvas, _place(rng, _circle(), centre, size * _log_uniform(rng, 0.022, 0.17)))
    elif kind == "outline":
        _fill(canvas, _place(rng, _outline(rng), centre, size * _log_uniform(rng, 0.035, 0.3)))
    elif kind == "cloud":
        x, y = _axes(size)
        angle, narrow = rng.uniform(0, np.pi), rng.uniform(1, 3)
        c, s = cos(angle), sin(angle)
        x, y = x - float(centre[0]), y - float(centre[1])
        u, v = c * x + s * y, c * y - s * x
        radius = size * _log_uniform(rng, 0.07, 0.34)
        field = (
            1
            - np.hypot(u, narrow * v) / radius
            + rng.uniform(0.4, 1.2) * (_cloud(rng, size, int(rng.integers(8, 32))) - 0.5)
        )
        return np.clip((field - 0.3) * 10 + 0.5, 0, 1)
    elif kind == "pits":
        spread = size * rng.uniform(0.03, 0.12)
        for _ in range(int(rng.integers(3, 12))):
            _fill(canvas, _circle() * rng.uniform(1.6, 4.5) * size / 192 + centre + spread * rng.standard_normal(2))
    else:
        length = size * _log_uniform(rng, 0.1, 0.6)
        width = max(3, round(size / 192 * _pick(rng, (3, 3, 4, 5, 7, 9))))
        angle = rng.uniform(0, 2 * np.pi)
        along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
        step = np.linspace(-0.5, 0.5, 13)[:, None] * length
        if kind == "line":
            _line(canvas, centre + step[[0, -1]] * along, width)
        elif kind == "curve":
            bow = (
                rng.uniform(-0.5, 0.5) * length * np.cos(step / length * np.pi * rng.uniform(1, 3) + rng.uniform(0, 3))
            )
            _line(canvas, centre + step * along + (bow - bow.mean()) * across, width)
        elif kind == "crack":
            walk = np.cumsum(rng.normal(0, length / 22, 13))[:, None]
            path = centre + step * along + (walk - walk.mean()) * across
            _line(canvas, path, width)
            if rng.random() < 0.4:
                branch = (
                    path[int(rng.integers(3, 10))]
                    + np.cumsum(rng.normal(0, length / 18, (6, 2)), 0)
                    + np.linspace(0, length / 3, 6)[:, None] * (across * _pick(rng, (-1, 1)))
                )
                _line(canvas, branch, max(3, width - 1))
        else:
            for offset in np.arange(int(rng.integers(2, 5))) * rng.uniform(4, 10) * size / 192:
                shift, share = rng.uniform(-0.25, 0.25) * length, rng.uniform(0.5, 1)
                _line(
                    canvas, centre + (step[[0, -1]] * share + shift) * along + offset * across, 3 * max(1, size // 192)
                )
    return _alpha(canvas)


def _add_defect(rng: np.random.Generator, image: np.ndarray, host: np.ndarray, light: float) -> np.ndarray:
    """Draw one defect on ``host`` into ``image`` and return its mask."""
    size = image.shape[0]
    ys, xs = np.nonzero(host)
    if len(ys) == 0:
        return np.zeros_like(host)
    at = int(rng.integers(len(ys)))
    alpha = _defect_alpha(rng, size, np.array([xs[at], ys[at]], np.float64))
    if rng.random() < 0.75:
        alpha = alpha * host
    mask = alpha > 0.5
    if mask.sum() < MIN_DEFECT_AREA * (size / 192) ** 2:
        return np.zeros_like(host)
    before = image[mask].copy()
    colour = before.mean(0)
    kind = _pick(
        rng,
        ("texture", "paint", "dark", "bright", "tint", "hole", "dent", "stain", "structure", "moved", "smear"),
        (0.18, 0.12, 0.17, 0.13, 0.08, 0.08, 0.07, 0.07, 0.05, 0.06, 0.04),
    )
    strength = np.float32(_log_uniform(rng, 0.25, 1))
    if kind == "texture":
        _blend(image, _texture(rng, size), alpha * strength)
    elif kind == "paint":
        _blend(image, _colour(rng), alpha * strength)
    elif kind == "dark":
        image *= (1 - rng.uniform(0.25, 0.9) * alpha)[..., None]
    elif kind == "bright":
        _blend(image, np.float32(rng.uniform(200, 255)), alpha * np.float32(rng.uniform(0.2, 0.9)))
    elif kind == "tint":
        image += (alpha * np.float32(rng.uniform(20, 70)))[..., None] * rng.standard_normal(3).astype(np.float32)
    elif kind == "hole":
        _blend(image, np.float32(rng.uniform(0, 50)), alpha)
        image += np.float32(rng.uniform(0, 60)) * (_relief(alpha, light, 1.0) * alpha)[..., None]
    elif kind == "dent":
        extent = np.sqrt(mask.sum())
        sigma = float(np.clip(extent * rng.uniform(0.08, 0.2), 0.8, 6))
        shade = _relief(alpha, light + _pick(rng, (0.0, np.pi)), sigma)
        image += np.float32(rng.uniform(35, 110)) * shade[..., None]
        mask = cv2.GaussianBlur(alpha, (0, 0), sigma) > 0.3
        return mask
    elif kind == "stain":
        sigma = float(np.clip(np.sqrt(mask.sum()) * 0.08, 0.6, 3))
        soft = cv2.GaussianBlur(alpha, (0, 0), sigma) * (0.6 + 0.4 * _cloud(rng, size))
        _blend(image, _colour(rng), soft * np.float32(rng.uniform(0.3, 0.8)))
    elif kind == "structure":
        _blend(image, _texture(rng, size, colour), alpha)
    elif kind == "moved":  # the surface itself, out of register
        dx, dy = (int(d) for d in rng.integers(12, size - 12, 2))
        _blend(image, np.roll(image, (dy, dx), (0, 1)), alpha)
    else:
        _blend(image, cv2.GaussianBlur(image, (0, 0), rng.uniform(2, 6)), alpha)
        image += np.float32(rng.uniform(-12, 12)) * alpha[..., None]
    change = image[mask] - before
    floor = rng.uniform(9, 20)
    if float(np.abs(change).mean()) < floor:  # never a defect that nobody could see
        sign = 1 if colour.mean() < 128 else -1
        image += np.float32(sign * floor * 1.3) * alpha[..., None]
    if rng.random() < 0.15:  # a raised or sunken rim
        image += np.float32(rng.uniform(10, 45)) * _relief(alpha, light, 1.0)[..., None]
    return mask


def _add_chip(rng: np.random.Generator, image: np.ndarray, shape: np.ndarray, light: float) -> np.ndarray:
    """Break a piece off the edge of ``shape``: the surroundings show through."""
    size = image.shape[0]
    solid = shape.astype(np.uint8)
    edge = solid - cv2.erode(solid, np.ones((3, 3), np.uint8))
    ys, xs = np.nonzero(edge)
    if len(ys) == 0 or shape.all():
        return np.zeros_like(shape)
    at = int(rng.integers(len(ys)))
    canvas = np.zeros((size, size), np.uint8)
    _fill(
        canvas, _place(rng, _outline(rng), np.array([xs[at], ys[at]], np.float64), size * _log_uniform(rng, 0.04, 0.16))
    )
    alpha = _alpha(canvas) * shape
    mask = alpha > 0.5
    outside = cv2.dilate(solid, np.ones((9, 9), np.uint8)).astype(bool) & ~shape
    if not outside.any() or not mask.any():
        return np.zeros_like(shape)
    far = image[outside].mean(0)
    layer = (
        _texture(rng, size) if rng.random() < 0.4 else far + 6 * rng.standard_normal((size, size, 1), dtype=np.float32)
    )
    if float(np.abs(far - image[mask].mean(0)).mean()) < 15:
        layer = layer + np.float32(_pick(rng, (-35, 35)))
    _blend(image, layer, alpha)
    if rng.random() < 0.6:
        image += np.float32(rng.uniform(10, 50)) * (_relief(alpha, light, 1.2) * shape)[..., None]
    return mask


def _finish(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Light, camera and rounding: the picture ``(S, S, 3)`` uint8."""
    size = image.shape[0]
    if rng.random() < 0.5:
        x, y = _axes(size)
        angle = rng.uniform(0, 2 * np.pi)
        if rng.random() < 0.6:
            ramp = (cos(angle) * (x - size / 2) + sin(angle) * (y - size / 2)) / size
        else:
            ramp = 0.5 - np.hypot(x - rng.uniform(0, size), y - rng.uniform(0, size)) / size
        image = image * _three(1 + rng.uniform(0.1, 0.7) * ramp)
    if rng.random() < 0.5:
        image = cv2.GaussianBlur(image, (0, 0), _log_uniform(rng, 0.4, 1.3))
    if rng.random() < 0.55:
        noise = rng.standard_normal((size, size, _pick(rng, (1, 3))), dtype=np.float32) * np.float32(
            _log_uniform(rng, 1, 10)
        )
        image = image + (_three(noise[..., 0]) if noise.shape[2] == 1 else noise)
    if rng.random() < 0.3:
        image = _three(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
    image = np.clip(image * np.float32(1 / 255), 0, 1)
    if rng.random() < 0.5:
        image = cv2.pow(image, _log_uniform(rng, 0.6, 1.6))
    image = (image * 255 + 0.5).astype(np.uint8)
    if rng.random() < 0.12:
        packed = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(50, 95))])[1]
        image = cv2.imdecode(packed, cv2.IMREAD_COLOR)
    return image
