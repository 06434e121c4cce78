# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The canvas a part is drawn on: shapes as signed distances, paint, relief, light, shadow and camera.

Colours are RGB in ``[0, 1]``. ``(u, v)`` is the part's own frame, centred on the part, one unit long where the part is
drawn at its nominal size; a signed distance is negative inside its shape and is given in those units.
"""

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

SIZE = 256
"""Height and width of a picture in pixels."""

EVERYWHERE = (slice(None), slice(None))
_ROWS, _COLUMNS = (grid.astype(np.float32) for grid in np.mgrid[0:SIZE, 0:SIZE])

Window = tuple[slice, slice]
Color = tuple[float, float, float] | np.ndarray


# Shapes: signed distances
def disk(u: np.ndarray, v: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance of a disk around the origin."""
    return np.sqrt(u * u + v * v) - radius


def box(u: np.ndarray, v: np.ndarray, half_width: float, half_height: float, corner: float = 0.0) -> np.ndarray:
    """Signed distance of a box around the origin, its corners rounded by the radius ``corner``."""
    across = np.abs(u) - (half_width - corner)
    down = np.abs(v) - (half_height - corner)
    outside = np.sqrt(np.square(np.maximum(across, 0)) + np.square(np.maximum(down, 0)))
    return outside + np.minimum(np.maximum(across, down), 0) - corner


# Noise and colour
def clouds(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Smooth noise of about unit variance, ``cells`` random values along each side."""
    grid = rng.standard_normal((cells, cells), dtype=np.float32)
    return cv2.resize(grid, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)


def grain(rng: np.random.Generator, sigma: float = 0.0) -> np.ndarray:
    """White noise blurred by ``sigma`` pixels and brought back to unit variance."""
    noise = rng.standard_normal((SIZE, SIZE), dtype=np.float32)
    if sigma <= 0:
        return noise
    noise = cv2.GaussianBlur(noise, (0, 0), sigma)
    return noise / noise.std()


def hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """Colour of a hue (in turns), saturation and value as RGB."""
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value), np.float32)


def rgb(values: np.ndarray, color: Color | None = None) -> np.ndarray:
    """``values`` of shape ``(H, W)`` times ``color`` (white), shape ``(H, W, 3)``.

    numpy is slow to broadcast along a last axis of three.
    """
    values = np.asarray(values, np.float32)
    return cv2.merge((values,) * 3 if color is None else [values * np.float32(part) for part in color])


def pick(rng: np.random.Generator, choices: tuple | list) -> object:
    """One of ``choices``, each as likely as the others."""
    return choices[int(rng.integers(len(choices)))]


def metal(rng: np.random.Generator) -> np.ndarray:
    """Colour of a metal: steel, dark steel, brass, copper or gold-plated."""
    tints = ((0.60, 0.05, 0.72), (0.60, 0.06, 0.50), (0.12, 0.42, 0.74), (0.06, 0.48, 0.70), (0.13, 0.15, 0.68))
    hue, saturation, value = pick(rng, tints)
    return hsv(hue + rng.uniform(-0.02, 0.02), saturation * rng.uniform(0.6, 1.2), value * rng.uniform(0.85, 1.12))


@dataclass(frozen=True)
class Piece:
    """A piece that may be missing: where it lies, and what is seen where it is not."""

    window: Window
    cover: np.ndarray
    color: np.ndarray
    alpha: np.ndarray
    height: np.ndarray


class Canvas:
    """What a category draws on.

    Args:
        rng (np.random.Generator): Source of the pose, the light and the background.
        zoom (tuple[float, float]): Range of the part's size; 1 is its nominal size.
        turn (float): Largest rotation in radians, either way.
        shift (float): Largest displacement of the part's centre in pixels, along each axis.
        full (bool): Whether the part fills the picture (a texture).

    Attributes:
        u, v: The part's frame at each pixel, shape ``(256, 256)``.
        color: Colour of the part, shape ``(256, 256, 3)``.
        alpha: Silhouette of the part in ``[0, 1]``, shape ``(256, 256)``.
        height: Relief in pixels, shape ``(256, 256)``; its slope is what the light shows.
        gloss: How strongly slopes towards the light shine.
        pieces: The pieces that may be missing.
        unprinted: Colour before the first print, or None where nothing is printed.
        ink: How much ink lies at each pixel; ``ink_color`` is its colour.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        zoom: tuple[float, float] = (0.85, 1.08),
        turn: float = np.pi,
        shift: float = 9.0,
        *,
        full: bool = False,
    ) -> None:
        self.scale = float(rng.uniform(*zoom))
        self.angle = float(rng.uniform(-turn, turn))
        centre = (SIZE - 1) / 2 + rng.uniform(-shift, shift, 2)
        self.centre = (float(centre[0]), float(centre[1]))
        cos, sin = np.cos(self.angle) / self.scale, np.sin(self.angle) / self.scale
        x, y = _COLUMNS - np.float32(centre[0]), _ROWS - np.float32(centre[1])
        self.u = (x * cos + y * sin).astype(np.float32)
        self.v = (y * cos - x * sin).astype(np.float32)
        light = float(rng.uniform(0, 2 * np.pi))
        self.light = (float(np.cos(light)), float(np.sin(light)))
        self.gloss = 0.2
        self.depth = 1.0
        self.color = np.zeros((SIZE, SIZE, 3), np.float32)
        self.alpha = np.full((SIZE, SIZE), 1.0 if full else 0.0, np.float32)
        self.height = np.zeros((SIZE, SIZE), np.float32)
        self.background = self.color if full else _background(rng)
        self.shadow = 0.0 if full else float(rng.uniform(0.25, 0.6))
        self.pieces: list[Piece] = []
        self.unprinted: np.ndarray | None = None
        self.ink = np.zeros((SIZE, SIZE), np.float32)
        self.ink_color = np.zeros((SIZE, SIZE, 3), np.float32)

    def near(self, u: float, v: float, radius: float) -> Window:
        """Window of the pixels less than ``radius`` units from a point of the part's frame."""
        cos, sin = np.cos(self.angle) * self.scale, np.sin(self.angle) * self.scale
        x, y = self.centre[0] + u * cos - v * sin, self.centre[1] + u * sin + v * cos
        reach = radius * self.scale + 2
        rows = slice(max(0, int(y - reach)), max(0, min(SIZE, int(y + reach) + 2)))
        return rows, slice(max(0, int(x - reach)), max(0, min(SIZE, int(x + reach) + 2)))

    def cover(self, distance: np.ndarray, soft: float = 1.0) -> np.ndarray:
        """How much of each pixel a shape covers; its edge is ``soft`` pixels wide."""
        return np.clip(0.5 - distance * (self.scale / soft), 0, 1)

    def body(self, cover: np.ndarray, color: Color, window: Window = EVERYWHERE) -> None:
        """Lay a piece of the part over what is there; the silhouette grows by it."""
        below = self.alpha[window]
        alpha = cover + below * (1 - cover)
        self.alpha[window] = alpha
        self.paint(cover / np.maximum(alpha, 1e-4), color, window)

    def paint(self, cover: np.ndarray, color: Color, window: Window = EVERYWHERE) -> None:
        """Paint over the part, inside its silhouette."""
        _blend(self.color[window], cover, color)

    def tint(self, factor: np.ndarray, window: Window = EVERYWHERE) -> None:
        """Multiply the colour, and that of the print."""
        factor = rgb(factor)
        self.color[window] *= factor
        if self.unprinted is not None:
            self.unprinted[window] *= factor
            self.ink_color[window] *= factor

    def shine(self, amount: np.ndarray) -> None:
        """Add white light."""
        amount = rgb(amount)
        self.color += amount
        if self.unprinted is not None:
            self.unprinted += amount
            self.ink_color += amount

    def bevel(self, distance: np.ndarray, width: float, rise: float = 1.0, window: Window = EVERYWHERE) -> None:
        """Raise a shape with a rounded edge ``width`` units wide; a negative ``rise`` sinks it."""
        t = np.clip(-distance / width, 0, 1)
        self.height[window] += t * (2 - t) * (0.5 * rise * width * self.scale)

    def removable(self, cover: np.ndarray, window: Window = EVERYWHERE) -> None:
        """Report that what is drawn from now on inside ``cover`` is a piece that may be missing."""
        if cover.size and float(cover.max()) > 0.9:
            state = (self.color[window].copy(), self.alpha[window].copy(), self.height[window].copy())
            self.pieces.append(Piece(window, cover, *state))

    def print(self, cover: np.ndarray, color: Color) -> None:
        """Print on the part; printing comes last."""
        if self.unprinted is None:
            self.unprinted = self.color.copy()
        self.paint(cover, color)
        _blend(self.ink_color, cover, color)
        self.ink = np.maximum(self.ink, cover)

    def stamp(self, draw: Callable[[np.ndarray], None]) -> np.ndarray:
        """Cover of what ``draw`` draws into an upright 512 x 512 picture, two of its pixels to a unit."""
        sheet = np.zeros((2 * SIZE, 2 * SIZE), np.uint8)
        draw(sheet)
        cos, sin = np.cos(self.angle) / self.scale * 2, np.sin(self.angle) / self.scale * 2
        x, y = self.centre
        inverse = np.array([[cos, sin, SIZE - cos * x - sin * y], [-sin, cos, SIZE + sin * x - cos * y]], np.float32)
        sheet = cv2.blur(sheet, (2, 2))
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(sheet, inverse, (SIZE, SIZE), flags=flags).astype(np.float32) / 255

    def along(self, noise: np.ndarray) -> np.ndarray:
        """Turn upright noise into the part's frame."""
        matrix = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), -np.degrees(self.angle), 1.0)
        return cv2.warpAffine(noise, matrix, (SIZE, SIZE), borderMode=cv2.BORDER_REFLECT_101)

    def brush(self, rng: np.random.Generator, length: int) -> np.ndarray:
        """Noise drawn out along ``u`` over ``length`` pixels, of unit variance: brushed metal, fibres."""
        noise = cv2.blur(rng.standard_normal((SIZE, SIZE), dtype=np.float32), (length, 1))
        return self.along(noise / noise.std())

    def lit(self) -> np.ndarray:
        """The part under its light, on its background, shape ``(256, 256, 3)``."""
        slope = cv2.Sobel(self.height, cv2.CV_32F, 1, 0, scale=0.125 * self.light[0] * self.depth)
        slope += cv2.Sobel(self.height, cv2.CV_32F, 0, 1, scale=0.125 * self.light[1] * self.depth)
        # The light comes from `light`: ground that rises away from it (falls towards it) faces it.
        facing = np.clip(-slope, -1, 1)
        shine = self.gloss * np.square(np.maximum(facing - 0.15, 0))
        return self.color * rgb(1 + 0.55 * facing) + rgb(shine)

    def shaded_background(self) -> np.ndarray:
        """The background with the part's soft shadow on it."""
        if self.shadow == 0.0:
            return self.background
        x, y = self.light
        matrix = np.array([[0.5, 0, -2.0 * x], [0, 0.5, -2.0 * y]], np.float32)
        small = cv2.warpAffine(self.alpha, matrix, (SIZE // 2, SIZE // 2), flags=cv2.INTER_AREA)
        soft = cv2.resize(cv2.GaussianBlur(small, (0, 0), 3.5), (SIZE, SIZE))
        return self.background * rgb(1 - self.shadow * soft)


def photograph(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a camera makes of a scene: uneven light, vignette, slight blur, noise.

    Args:
        image (np.ndarray): Scene, float in ``[0, 1]``, shape ``(256, 256, 3)``.
        rng (np.random.Generator): Source of the camera's faults. They do not depend on the scene.

    Returns:
        np.ndarray: Picture, uint8, shape ``(256, 256, 3)``.
    """
    direction = rng.uniform(0, 2 * np.pi)
    slope = rng.uniform(0, 0.16)
    x, y = (_COLUMNS - SIZE / 2) / (SIZE / 2), (_ROWS - SIZE / 2) / (SIZE / 2)
    light = 1 + slope * (np.float32(np.cos(direction)) * x + np.float32(np.sin(direction)) * y)
    light -= np.float32(rng.uniform(0, 0.12)) * (x * x + y * y)
    white = rng.uniform(0.97, 1.03, 3) * rng.uniform(0.88, 1.08)
    image = image * rgb(light, white)
    sigma = rng.uniform(0.2, 0.65)
    noise = grain(rng) * np.float32(rng.uniform(0.004, 0.014))
    image = cv2.GaussianBlur(image, (3, 3), sigma) + rgb(noise)
    return cv2.convertScaleAbs(np.maximum(image, 0), alpha=255)


def _background(rng: np.random.Generator) -> np.ndarray:
    """A table, tray or belt: nearly plain, with a slight texture."""
    kind = int(rng.integers(4))
    value = float(pick(rng, ((0.08, 0.2), (0.3, 0.5), (0.55, 0.75), (0.8, 0.95)))[0] + rng.uniform(0, 0.13))
    color = hsv(rng.uniform(), float(pick(rng, (0.03, 0.08, 0.3))) * rng.uniform(0.3, 1), value)
    shade = 1 + 0.03 * clouds(rng, 5)
    if kind == 1:
        shade += 0.03 * grain(rng, 0.8)
    elif kind == 2:
        shade += 0.025 * cv2.blur(grain(rng), (25, 1)) * 5
    return rgb(shade, color)


def _blend(below: np.ndarray, cover: np.ndarray, color: Color) -> None:
    """Lay ``color`` over ``below`` in place."""
    color = np.asarray(color, np.float32)
    below *= rgb(1 - cover)
    below += rgb(cover, color) if color.ndim == 1 else rgb(cover) * color
