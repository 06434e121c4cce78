# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The defects: each changes a drawn part and says by how much it changed each pixel.

A defect takes a :class:`Scene` and a random generator and gives ``(image, alpha)``: the changed picture, float of shape
``(256, 256, 3)``, and how far each pixel is changed, in ``[0, 1]``, of shape ``(256, 256)``. Where ``alpha`` is 0 the
picture is as it was.
"""

from copy import copy
from dataclasses import dataclass

import cv2
import numpy as np

from anomalib_clipsam.drawn_parts.canvas import SIZE, Canvas, grain, hsv, pick, rgb

Change = tuple[np.ndarray, np.ndarray]
_ROWS, _COLUMNS = (axis.astype(np.float32) for axis in np.mgrid[0:SIZE, 0:SIZE])


@dataclass(frozen=True)
class Scene:
    """A part before anything happens to it.

    Attributes:
        canvas: The canvas the part was drawn on.
        image: The part on its background, shape ``(256, 256, 3)``.
        lit: The part alone under its light, shape ``(256, 256, 3)``.
        ground: The background with the part's shadow, shape ``(256, 256, 3)``.
        inside: Distance of each pixel to the part's edge in pixels, 0 outside it, shape ``(256, 256)``.
    """

    canvas: Canvas
    image: np.ndarray
    lit: np.ndarray
    ground: np.ndarray
    inside: np.ndarray

    @classmethod
    def of(cls, canvas: Canvas) -> "Scene":
        """The scene that shows a canvas."""
        lit, ground = canvas.lit(), canvas.shaded_background()
        solid = (canvas.alpha > 0.5).astype(np.uint8)
        inside = cv2.distanceTransform(solid, cv2.DIST_L2, 3)
        return cls(canvas, ground + rgb(canvas.alpha) * (lit - ground), lit, ground, inside)

    def place(self, rng: np.random.Generator, room: float) -> tuple[float, float]:
        """A pixel (x, y) of the part with ``room`` pixels around it, or as much as the part has, not at the margin."""
        border = 22
        inside = self.inside[border:-border, border:-border]
        choices = np.flatnonzero(inside >= min(room, 0.7 * float(inside.max())))
        index = int(choices[rng.integers(len(choices))])
        return float(index % inside.shape[1] + border), float(index // inside.shape[1] + border)

    def mix(self, alpha: np.ndarray, color: np.ndarray) -> Change:
        """Lay ``color`` over the part; ``alpha`` is cut to the part."""
        alpha = alpha * self.canvas.alpha
        return self.image + rgb(alpha) * (color - self.image), alpha

    def shifted(self, alpha: np.ndarray, distance: float) -> np.ndarray:
        """``alpha`` moved away from the light."""
        x, y = self.canvas.light
        matrix = np.array([[1, 0, distance * x], [0, 1, distance * y]], np.float32)
        return cv2.warpAffine(alpha, matrix, (SIZE, SIZE))


def _blob(
    rng: np.random.Generator, place: tuple[float, float], radius: float, rough: float, soft: float, stretch: float = 1.0
) -> np.ndarray:
    """Cover of a blob: ``rough`` is how far its outline strays, ``soft`` the width of its edge in pixels."""
    turn = rng.uniform(0, np.pi)
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    x, y = _COLUMNS - np.float32(place[0]), _ROWS - np.float32(place[1])
    x, y = (x * cos + y * sin) / np.float32(stretch), (y * cos - x * sin) * np.float32(stretch)
    angles = np.linspace(0, 2 * np.pi, 129)
    outline = np.ones_like(angles)
    for wave in range(2, 9):
        outline += 1.7 * rough * rng.normal() / wave**1.5 * np.cos(wave * angles + rng.uniform(0, 2 * np.pi))
    outline = (radius * np.maximum(outline, 0.45)).astype(np.float32)
    angle = cv2.phase(x, y)
    edge = outline[(angle * (128 / (2 * np.pi))).astype(np.int32) % 128]
    return np.clip(0.5 + (edge - cv2.magnitude(x, y)) / soft, 0, 1)


def _curve(
    rng: np.random.Generator, place: tuple[float, float], length: float, bend: float, jag: float, steps: int
) -> np.ndarray:
    """A curve through ``place``: points (x, y), shape ``(steps, 2)``."""
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, bend, steps)) + rng.normal(0, jag, steps)
    points = np.cumsum(np.stack((np.cos(heading), np.sin(heading)), 1), 0) * (length / steps)
    return points - points[steps // 2] + place


def _stroke(points: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Cover of a line through ``points`` of the given ``widths``, one for each point."""
    sheet = np.zeros((2 * SIZE, 2 * SIZE), np.uint8)
    corners = np.round(points * 2 + 0.5).astype(np.int32)
    for start, end, width in zip(corners[:-1], corners[1:], widths[1:], strict=True):
        cv2.line(sheet, tuple(int(c) for c in start), tuple(int(c) for c in end), 255, max(1, round(2 * width)))
    return cv2.resize(sheet, (SIZE, SIZE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def scratch(scene: Scene, rng: np.random.Generator) -> Change:
    """One to three bright or dark grooves."""
    alpha = np.zeros((SIZE, SIZE), np.float32)
    place = scene.place(rng, 14)
    for _ in range(int(pick(rng, (1, 1, 2, 3)))):
        points = _curve(rng, place, rng.uniform(45, 120), 0.03, 0, 16)
        width = rng.uniform(4.0, 5.6) * (0.8 + 0.35 * np.sin(np.linspace(0.3, np.pi - 0.3, 16)))
        alpha = np.maximum(alpha, _stroke(points, width))
        place = (place[0] + rng.uniform(-16, 16), place[1] + rng.uniform(-16, 16))
    strength = rng.uniform(0.2, 0.6)
    dark = scene.lit * (1 - strength)
    bright = scene.lit + strength * (1 - scene.lit)
    away = rgb(scene.shifted(alpha, 2))
    tone = dark + (1 - away) * (bright - dark) if rng.uniform() < 0.5 else bright + (1 - away) * (dark - bright)
    return scene.mix(alpha, tone)


def crack(scene: Scene, rng: np.random.Generator) -> Change:
    """A dark jagged line, often branching."""
    place = scene.place(rng, 12)
    points = _curve(rng, place, rng.uniform(60, 130), 0.12, 0.5, 14)
    widths = rng.uniform(3.8, 5.5) * np.linspace(1.15, 0.8, 14)
    alpha = _stroke(points, widths)
    for _ in range(int(rng.integers(0, 3))):
        start = points[int(rng.integers(3, 11))]
        branch = _curve(rng, (0.0, 0.0), rng.uniform(20, 50), 0.12, 0.45, 7)
        alpha = np.maximum(alpha, _stroke(branch - branch[0] + start, np.linspace(4.2, 3.2, 7)))
    tone = scene.lit * (1 - rng.uniform(0.45, 0.85))
    lip = alpha * (1 - scene.shifted(alpha, -1.5))
    return scene.mix(alpha, tone + rgb(lip * rng.uniform(0, 0.5)) * (scene.lit - tone))


def hole(scene: Scene, rng: np.random.Generator) -> Change:
    """A dark pit with a lit wall."""
    radius = rng.uniform(8.5, 19)
    alpha = _blob(rng, scene.place(rng, radius + 3), radius, 0.22, 1.2, rng.uniform(0.8, 1.25))
    floor = hsv(rng.uniform(), 0.15, rng.uniform(0.02, 0.14)) + 0.12 * scene.lit
    wall = alpha * (1 - scene.shifted(alpha, -0.3 * radius))
    tone = floor + rgb(0.7 * wall) * (scene.lit * 1.1 - floor)
    return scene.mix(alpha, tone * rgb(1 - 0.35 * alpha * (1 - scene.shifted(alpha, 0.3 * radius))))


def stain(scene: Scene, rng: np.random.Generator) -> Change:
    """Something spilt: the colour beneath shows through."""
    radius = rng.uniform(14, 34)
    place = scene.place(rng, radius * 0.7)
    alpha = _blob(rng, place, radius, 0.45, rng.uniform(3, 10), rng.uniform(0.75, 1.3))
    if rng.uniform() < 0.4:
        x, y = place[0] + rng.uniform(-30, 30), place[1] + rng.uniform(-30, 30)
        alpha = np.maximum(alpha, _blob(rng, (x, y), radius * rng.uniform(0.3, 0.5), 0.3, 4))
    kinds = (
        (0.08, 0.65, 0.5),
        (0.06, 0.5, 0.25),
        (0.62, 0.6, 0.4),
        (0.0, 0.6, 0.5),
        (0.13, 0.5, 0.75),
        (0.3, 0.4, 0.35),
    )
    hue, saturation, value = pick(rng, kinds)
    color = hsv(hue + rng.uniform(-0.03, 0.03), saturation, value)
    strength = rng.uniform(0.3, 0.8)
    rim = 1 + rng.uniform(0, 0.6) * (4 * alpha * (1 - alpha))
    wet = scene.lit * color * 1.15 + 0.12 * color
    tone = scene.lit + rgb(np.clip(strength * rim, 0, 1)) * (wet - scene.lit)
    return scene.mix(alpha, tone)


def dent(scene: Scene, rng: np.random.Generator) -> Change:
    """A knock: the surface is pushed in and takes the light otherwise."""
    radius = rng.uniform(12, 26)
    shape = _blob(rng, scene.place(rng, radius), radius, 0.15, radius * 0.9, rng.uniform(0.75, 1.3))
    x, y = scene.canvas.light
    steep = radius * rng.uniform(0.35, 0.75)
    slope = cv2.Sobel(shape, cv2.CV_32F, 1, 0, scale=steep / 8 * x)
    slope += cv2.Sobel(shape, cv2.CV_32F, 0, 1, scale=steep / 8 * y)
    facing = np.clip(slope, -0.9, 0.9)
    shine = rng.uniform(0.1, 0.4) * np.square(np.maximum(facing, 0))
    bowl = 0.8 * facing - rng.uniform(0.14, 0.26) * shape
    tone = scene.lit * rgb(np.maximum(1 + bowl, 0.15)) + rgb(shine)
    alpha = np.clip(shape * 2.2, 0, 1)
    return scene.mix(alpha, tone)


def chip(scene: Scene, rng: np.random.Generator) -> Change:
    """A piece broken off the edge: the ground, or the broken material, is seen."""
    edge = np.flatnonzero((scene.inside > 0) & (scene.inside < 2))
    index = int(edge[rng.integers(len(edge))])
    radius = rng.uniform(13, 25)
    alpha = _blob(rng, (float(index % SIZE), float(index // SIZE)), radius, 0.5, 1.2, rng.uniform(0.75, 1.3))
    if rng.uniform() < 0.65:
        tone = scene.ground
        wall = alpha * (1 - scene.shifted(alpha, rng.uniform(2, 4)))
        tone = tone + rgb(0.75 * wall) * (scene.lit * 0.6 - tone)
    else:
        facets = grain(rng, 2.5)
        tone = scene.lit.mean() * 0.3 + scene.lit * 0.55
        tone = tone * rgb(pick(rng, (0.5, 1.35)) * (1 + 0.2 * facets))
    return scene.mix(alpha, tone)


def missing_part(scene: Scene, rng: np.random.Generator) -> Change:
    """One of the pieces the part is made of is not there."""
    canvas = scene.canvas
    piece = pick(rng, canvas.pieces)
    bare = copy(canvas)
    bare.color, bare.alpha, bare.height = canvas.color.copy(), canvas.alpha.copy(), canvas.height.copy()
    window, cover = piece.window, piece.cover
    bare.color[window] += rgb(cover) * (piece.color - bare.color[window])
    bare.alpha[window] += cover * (piece.alpha - bare.alpha[window])
    bare.height[window] += cover * (piece.height - bare.height[window])
    alpha = np.zeros((SIZE, SIZE), np.float32)
    alpha[window] = cover
    lit = bare.lit()
    image = scene.ground + rgb(bare.alpha) * (lit - scene.ground)
    near = cv2.dilate(alpha, np.ones((3, 3), np.uint8))
    return scene.image + rgb(np.minimum(near * 2, 1)) * (image - scene.image), alpha


def misprint(scene: Scene, rng: np.random.Generator) -> Change:
    """Print that is missing, shifted or smeared within a patch."""
    canvas = scene.canvas
    printed = np.flatnonzero((canvas.ink > 0.6) & (scene.inside > 4))
    index = int(printed[rng.integers(len(printed))])
    place = (float(index % SIZE), float(index // SIZE))
    region = _blob(rng, place, rng.uniform(18, 36), 0.25, 1.5, rng.uniform(0.6, 1.6))
    kind = pick(rng, ("absent", "shifted", "smeared"))
    turn, far = rng.uniform(0, 2 * np.pi), rng.uniform(6, 11)
    if kind == "absent":
        ink = canvas.ink * 0
    elif kind == "shifted":
        matrix = np.array([[1, 0, far * np.cos(turn)], [0, 1, far * np.sin(turn)]], np.float32)
        ink = cv2.warpAffine(canvas.ink, matrix, (SIZE, SIZE))
    else:
        kernel = np.zeros((25, 25), np.float32)
        x, y = round(12 * np.cos(turn)), round(12 * np.sin(turn))
        cv2.line(kernel, (12, 12), (12 + x, 12 + y), 1, 1)
        ink = np.minimum(cv2.filter2D(canvas.ink, -1, kernel / kernel.sum()) * 1.6, 1)
    x, y = round(place[0]), round(place[1])
    color = canvas.ink_color[y, x]
    fresh = canvas.unprinted + rgb(ink) * (color - canvas.unprinted)
    bare = copy(canvas)
    bare.color = canvas.color + rgb(region) * (fresh - canvas.color)
    alpha = region * canvas.alpha
    image = scene.ground + rgb(canvas.alpha) * (bare.lit() - scene.ground)
    changed = np.clip(np.abs(image - scene.image).mean(2) * 12, 0, 1)
    changed = cv2.morphologyEx(changed, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    return scene.image + rgb(alpha > 0) * (image - scene.image), np.minimum(changed, np.ceil(alpha))


def contamination(scene: Scene, rng: np.random.Generator) -> Change:
    """A foreign fibre, or a few foreign grains."""
    place = scene.place(rng, 14)
    color = hsv(rng.uniform(), float(pick(rng, (0.1, 0.5, 0.8))), float(pick(rng, (0.1, 0.45, 0.75, 0.93))))
    if rng.uniform() < 0.5:
        points = _curve(rng, place, rng.uniform(60, 150), 0.22, 0, 30)
        alpha = _stroke(points, np.full(30, rng.uniform(3.8, 5)))
        light = 0.75 + 0.5 * (1 - scene.shifted(alpha, 2))
    else:
        alpha = np.zeros((SIZE, SIZE), np.float32)
        for _ in range(int(rng.integers(1, 6))):
            spot = (place[0] + rng.normal(0, 15), place[1] + rng.normal(0, 15))
            alpha = np.maximum(alpha, _blob(rng, spot, rng.uniform(5, 10), 0.35, 1.2, rng.uniform(0.8, 1.25)))
        light = 0.8 + 0.35 * (1 - scene.shifted(alpha, 3)) + 0.06 * grain(rng, 1.0)
    return scene.mix(alpha, np.clip(color * rgb(light), 0, 1))


def discoloration(scene: Scene, rng: np.random.Generator) -> Change:
    """A soft area of another tint: burnt, bleached, tarnished."""
    radius = rng.uniform(22, 42)
    alpha = _blob(rng, scene.place(rng, radius * 0.6), radius, 0.35, rng.uniform(10, 22), rng.uniform(0.7, 1.4))
    grey = scene.lit.mean(2, keepdims=True)
    if rng.uniform() < 0.7:
        color = hsv(rng.uniform(), rng.uniform(0.35, 0.75), 1.0)
        tone = grey * color / color.mean() * rng.uniform(0.75, 1.05)
    else:
        tone = 0.5 * grey + 0.5 * scene.lit
        tone = tone + (1 - tone) * 0.45 if grey[alpha > 0.5].mean() < 0.6 else tone * 0.6
    strength = rng.uniform(0.45, 0.95)
    return scene.mix(alpha, scene.lit + strength * (tone - scene.lit))


def glue(scene: Scene, rng: np.random.Generator) -> Change:
    """A drop or trail of dried glue: nearly clear, raised, shining."""
    if rng.uniform() < 0.5:
        radius = rng.uniform(11, 22)
        alpha = _blob(rng, scene.place(rng, radius), radius, 0.3, 2.0, rng.uniform(0.7, 1.4))
    else:
        points = _curve(rng, scene.place(rng, 14), rng.uniform(40, 90), 0.15, 0, 16)
        alpha = _stroke(points, rng.uniform(7, 12) * (0.8 + 0.2 * np.sin(np.arange(16) * 0.9)))
    dome = cv2.GaussianBlur(alpha, (0, 0), 3.5)
    x, y = scene.canvas.light
    slope = cv2.Sobel(dome, cv2.CV_32F, 1, 0, scale=0.9 * x) + cv2.Sobel(dome, cv2.CV_32F, 0, 1, scale=0.9 * y)
    facing = np.clip(-slope, -1, 1)
    color = hsv(rng.uniform(0.08, 0.15), rng.uniform(0.05, 0.5), rng.uniform(0.75, 0.95))
    tone = scene.lit + rng.uniform(0.22, 0.5) * (color - scene.lit)
    tone = tone * rgb(1 + 0.45 * facing) + rgb(np.square(np.maximum(facing - 0.25, 0)))
    return scene.mix(alpha, tone)


def cut(scene: Scene, rng: np.random.Generator) -> Change:
    """An open slit with lifted lips."""
    points = _curve(rng, scene.place(rng, 16), rng.uniform(35, 80), 0.05, 0.05, 14)
    swell = np.sin(np.linspace(0.25, np.pi - 0.25, 14))
    alpha = _stroke(points, rng.uniform(8, 12) * swell)
    gap = _stroke(points, rng.uniform(4, 6) * swell)
    lips = scene.lit + rng.uniform(0.2, 0.45) * (1 - scene.lit)
    tone = lips + rgb(gap) * (0.12 * scene.lit + 0.03 - lips)
    return scene.mix(alpha, tone)


def distortion(scene: Scene, rng: np.random.Generator) -> Change:
    """The pattern is pulled aside or twisted."""
    radius = rng.uniform(20, 34)
    x, y = scene.place(rng, radius)
    across, down = _COLUMNS - np.float32(x), _ROWS - np.float32(y)
    near = np.square(np.maximum(1 - (across * across + down * down) / np.float32(radius * radius), 0))
    if rng.uniform() < 0.5:
        turn = near * np.float32(pick(rng, (-1, 1)) * rng.uniform(0.8, 1.6))
        cos, sin = np.cos(turn) - 1, np.sin(turn)
        move_x, move_y = across * cos - down * sin, across * sin + down * cos
    else:
        heading, far = rng.uniform(0, 2 * np.pi), rng.uniform(8, 15)
        move_x, move_y = near * np.float32(far * np.cos(heading)), near * np.float32(far * np.sin(heading))
    image = cv2.remap(scene.image, _COLUMNS + move_x, _ROWS + move_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    alpha = np.clip(cv2.magnitude(move_x, move_y) / 3.5, 0, 1)
    alpha = np.where(near > 0, np.maximum(alpha, np.clip(near * 1.2, 0, 1)), 0)
    return image, alpha
