# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Photographs with drawn-in defects: pairs of the same picture with and without, and an exact mask.

Letters: S side of a picture in pixels (256). Pictures are ``(S, S, 3)``, float32 RGB in [0, 1] while drawn and uint8 in
the end. Masks are ``(S, S)`` bool; ``host`` is where defects belong: a thing's own pixels, or the whole picture.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import scenes

from anomalib_clipsam.drawn_parts import defects
from anomalib_clipsam.drawn_parts.canvas import SIZE, photograph, rgb
from anomalib_clipsam.drawn_parts.drawing import TRAINING_CATEGORIES, defects_of, draw_part

HELD_OUT_MATERIALS = ("terrazzo", "corrugatedsteel", "carpet", "marble", "woodfloor", "plastic", "roofingtiles", "bark")
HELD_OUT_PAPERS = ("PA_BRG02_RL", "PA_FLR01_TL")
HELD_OUT_OBJECTS = 8
"""Every eighth photograph of an object is kept for validation, like these materials and papers."""

SOURCES = {"material": 0.2, "object": 0.28, "groceries": 0.05, "steel": 0.06, "shapes": 0.15, "paper": 0.08}
"""Share of each source among the pairs; the rest are drawn parts."""

DRAWN_DEFECTS = (
    *("scratch", "crack", "hole", "stain", "dent", "chip", "contamination"),
    "discoloration",
    "glue",
    "cut",
)
"""Defects of ``anomalib_clipsam.drawn_parts.defects`` that can befall any picture; ``distortion`` needs a pattern."""

SHATTERED = 0.05
"""Share of the defects that are large breaks."""

Pair = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Good picture, damaged picture and mask of the defect."""


@dataclass
class Photographs:
    """The folder of photographs, split by what is kept for validation.

    Args:
        folder (Path): Folder with ``materials``, ``objects``, ``groceries``, ``steel`` and ``paper``.
        validation (bool): Take what is kept for validation in place of the rest.
    """

    folder: Path
    validation: bool = False
    files: dict[str, list[Path]] = field(init=False)

    def __post_init__(self) -> None:
        """List the files of each source.

        Raises:
            FileNotFoundError: If there are none.
        """

        def listed(pattern: str) -> list[Path]:
            return sorted(self.folder.glob(pattern))

        materials = [
            path
            for path in listed("materials/*")
            if (path.name.rpartition("_")[0] in HELD_OUT_MATERIALS) == self.validation
        ]
        objects = [path for i, path in enumerate(listed("objects/*")) if (i % HELD_OUT_OBJECTS == 0) == self.validation]
        papers = [path for path in listed("paper/*") if (path.name in HELD_OUT_PAPERS) == self.validation]
        self.files = {
            "material": materials,
            "object": objects,
            "groceries": listed("groceries/*"),
            "steel": listed("steel/finishing_roll_printing/*"),
            "paper": [path for paper in papers for path in sorted(paper.glob("defect/*"))],
        }
        empty = [source for source, files in self.files.items() if not files]
        if empty:
            msg = f"'{self.folder}' holds no pictures of {', '.join(empty)}. Name the folder of the photographs."
            raise FileNotFoundError(msg)

    def read(self, source: str, rng: np.random.Generator) -> np.ndarray:
        """Read a random photograph of a source as a square, float32 in [0, 1]."""
        image = _read(self.files[source][int(rng.integers(len(self.files[source])))])
        if source in {"material", "steel"}:
            return _surface(image, rng, tileable=source == "material")
        side = min(image.shape[:2])
        y, x = (int(rng.integers(length - side + 1)) for length in image.shape[:2])
        return _resize(image[y : y + side, x : x + side])


def _read(path: Path) -> np.ndarray:
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB).astype(np.float32) / 255


def _resize(image: np.ndarray) -> np.ndarray:
    enlarges = image.shape[0] < SIZE
    return np.clip(cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC if enlarges else cv2.INTER_AREA), 0, 1)


def _surface(image: np.ndarray, rng: np.random.Generator, *, tileable: bool) -> np.ndarray:
    """Lay a small photograph of a surface out over the whole picture, at a random scale, turn and place."""
    if not tileable or rng.random() < 0.3:
        image = np.concatenate([image, image[:, ::-1]], 1)
        image = np.concatenate([image, image[::-1]], 0)
    image = np.tile(image, (-(-6 * 128 // image.shape[0]), -(-6 * 128 // image.shape[1]), 1))  # 768 px or more
    scale = scenes._log_uniform(rng, 1.0, 2.6)  # noqa: SLF001
    angle = rng.uniform(0, 360) if rng.random() < 0.5 else 90 * float(rng.integers(4))
    x, y = rng.uniform(200, 560, 2)
    turn = cv2.getRotationMatrix2D((x, y), angle, scale)
    turn[:, 2] += SIZE / 2 - np.array([x, y])
    surface = cv2.warpAffine(image, turn, (SIZE, SIZE), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    return np.clip(surface, 0, 1)


def draw_pair(rng: np.random.Generator, photographs: Photographs, source: str | None = None) -> Pair:
    """Draw one pair.

    Args:
        rng (np.random.Generator): Source of every choice.
        photographs (Photographs): What to draw on.
        source (str | None): A key of :data:`SOURCES`, ``"part"`` for a drawn part, or ``"thin"`` for a thin line on a
            surface; chosen by the shares if ``None``.

    Returns:
        Pair: Good picture and damaged picture, uint8, and the mask.
    """
    if source is None:
        names, shares = list(SOURCES), np.cumsum(list(SOURCES.values()))
        index = int(np.searchsorted(shares, rng.random()))
        source = names[index] if index < len(names) else "part"
    if source == "part":
        return _drawn_part(rng)
    if source == "paper" and rng.random() < 0.8:
        return _paper(rng, photographs)
    return _photograph(rng, photographs, source)


def _drawn_part(rng: np.random.Generator) -> Pair:
    category = str(rng.choice(TRAINING_CATEGORIES))
    seed = rng.integers(2**63)
    good, _ = draw_part(category, np.random.default_rng(seed))
    bad, mask = draw_part(category, np.random.default_rng(seed), str(rng.choice(defects_of(category))))
    return good, bad, mask


def _paper(rng: np.random.Generator, photographs: Photographs) -> Pair:
    """Read a paper with a real defect, and a good sheet of the same kind."""
    path = photographs.files["paper"][int(rng.integers(len(photographs.files["paper"])))]
    goods = sorted((path.parents[1] / "good").iterdir())
    mask = _read(path.parents[1] / "mask" / path.name)
    pictures = [_resize(_read(goods[int(rng.integers(len(goods)))])), _resize(_read(path))]
    return *((picture * 255 + 0.5).astype(np.uint8) for picture in pictures), _resize(mask)[..., 0] > 0.5


def _photograph(rng: np.random.Generator, photographs: Photographs, source: str) -> Pair:
    thin = source == "thin"
    if source == "shapes":
        good, ground, host = _shapes(rng, photographs)
    elif source == "paper":
        path = photographs.files["paper"][int(rng.integers(len(photographs.files["paper"])))]
        goods = sorted((path.parents[1] / "good").iterdir())
        good = _resize(_read(goods[int(rng.integers(len(goods)))]))
        ground, host = good, np.ones((SIZE, SIZE), bool)
    else:
        good = photographs.read("material" if thin else source, rng)
        ground, host = good, np.ones((SIZE, SIZE), bool)
        if source == "object":
            ground, host = _plain_ground(good)
    bad, mask = good.copy(), np.zeros((SIZE, SIZE), bool)
    for _ in range(int(rng.choice((1, 1, 1, 1, 2, 3)))):
        bad, added = add_defect(rng, bad, ground, host, photographs, thin=thin)
        mask |= added
    if rng.random() < 0.5:
        seed = rng.integers(2**63)
        good, bad = (photograph(picture, np.random.default_rng(seed)) for picture in (good, bad))
    else:
        good, bad = ((np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8) for picture in (good, bad))
    return good, bad, mask


def _plain_ground(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split a thing from the plain ground that its picture's border shows; everything is host where this fails."""
    border = np.concatenate([image[:6].reshape(-1, 3), image[:, :6].reshape(-1, 3), image[:, -6:].reshape(-1, 3)])
    color = np.median(border, 0)
    far = cv2.GaussianBlur(np.abs(image - color).max(2), (0, 0), 2) > 0.13
    host = cv2.morphologyEx(far.astype(np.uint8), cv2.MORPH_OPEN, np.ones((7, 7), np.uint8)).astype(bool)
    if not 0.06 < host.mean() < 0.8:
        host = np.ones_like(host)
    ground = np.broadcast_to(color, image.shape).astype(np.float32)
    return ground, host


def _shapes(rng: np.random.Generator, photographs: Photographs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut a thing with prints and shadows out of one photographed material and lay it on another."""

    def surface() -> np.ndarray:
        if rng.random() < 0.25:
            return np.clip(scenes._texture(rng, SIZE) / 255, 0, 1)  # noqa: SLF001
        image = photographs.read("steel" if rng.random() < 0.08 else "material", rng)
        if rng.random() < 0.5:  # calmer, as most grounds and many parts are
            image = image.mean((0, 1)) + (image - image.mean((0, 1))) * np.float32(rng.uniform(0.1, 0.8))
        return image

    ground, light = surface(), rng.uniform(0, 2 * np.pi)
    image, bodies = ground * 255, []
    for number in range(int(rng.choice((1, 1, 1, 2)))):
        alpha = scenes._shape_alpha(rng, SIZE, large=number == 0)  # noqa: SLF001
        if rng.random() < 0.5:
            reach = rng.uniform(2, 12)
            move = np.float32([[1, 0, reach * np.cos(light)], [0, 1, reach * np.sin(light)]])
            shadow = cv2.GaussianBlur(cv2.warpAffine(alpha, move, (SIZE, SIZE)), (0, 0), rng.uniform(1, 6))
            image = image * rgb(1 - rng.uniform(0.1, 0.5) * shadow)
        layer = surface() * 255 * np.float32(rng.uniform(0.5, 1.3))
        if rng.random() < 0.6:
            layer = layer + np.float32(rng.uniform(10, 70)) * rgb(scenes._relief(alpha, light, rng.uniform(1, 14)))  # noqa: SLF001
        image = image + rgb(alpha) * (layer - image)
        body = alpha > 0.5
        if rng.random() < 0.5:
            scenes._add_details(rng, image, body, light)  # noqa: SLF001
        bodies.append(body)
    host = bodies[0] if bodies[0].mean() > 0.03 else np.ones((SIZE, SIZE), bool)
    return np.clip(image / 255, 0, 1).astype(np.float32), ground, host


# Defects
def add_defect(
    rng: np.random.Generator,
    image: np.ndarray,
    ground: np.ndarray,
    host: np.ndarray,
    photographs: Photographs,
    *,
    thin: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one visible defect into a picture.

    Args:
        rng (np.random.Generator): Source of every choice.
        image (np.ndarray): Picture.
        ground (np.ndarray): What lies behind the thing; seen where a piece is broken off.
        host (np.ndarray): Where the defect belongs.
        photographs (Photographs): What foreign bodies are cut out of.
        thin (bool): Draw a thin line.

    Returns:
        tuple[np.ndarray, np.ndarray]: The changed picture and the mask; the mask is empty if nothing could be drawn.
    """
    texture = np.abs(image - cv2.GaussianBlur(image, (0, 0), 4)).mean(2)
    light = rng.uniform(0, 2 * np.pi)
    for _ in range(8):
        choice = rng.random()
        if not thin and choice > 1 - SHATTERED:
            changed, mask = _shattered(rng, image, ground, host, photographs, light)
        elif thin or choice < 0.17:
            changed, mask = _thin_line(rng, image, host)
        elif choice < 0.5:
            changed, mask = _drawn_defect(rng, image, ground, host, light)
        elif choice < 0.64:
            drawn = image * 255
            mask = scenes._add_defect(rng, drawn, host, light)  # noqa: SLF001
            changed = drawn / 255
        elif choice < 0.75:
            changed, mask = _pits(rng, image, host, light)
        elif choice < 0.84:
            changed, mask = _broken(rng, image, ground, host, light)
        elif choice < 0.93:
            changed, mask = _foreign(rng, image, host, photographs, light)
        else:
            changed, mask = _frayed(rng, image, host)
        if not 10 <= mask.sum() <= (0.3 if choice > 1 - SHATTERED else 0.16) * SIZE * SIZE:
            continue
        change = np.abs(np.clip(changed, 0, 1) - image).mean(2)[mask]
        if change.mean() > max(0.035, 0.8 * float(texture[mask].mean())):
            return np.clip(changed, 0, 1), mask
    return image, np.zeros_like(host)


def _spot(rng: np.random.Generator, host: np.ndarray) -> tuple[float, float]:
    ys, xs = np.nonzero(host)
    index = int(rng.integers(len(ys)))
    return float(xs[index]), float(ys[index])


def _drawn_defect(
    rng: np.random.Generator, image: np.ndarray, ground: np.ndarray, host: np.ndarray, light: float
) -> tuple[np.ndarray, np.ndarray]:
    """Let a defect of the drawn parts befall the picture, at a random scale."""
    solid = host.astype(np.uint8)
    inside = cv2.distanceTransform(solid, cv2.DIST_L2, 3) if not host.all() else np.full(host.shape, 99, np.float32)
    canvas = SimpleNamespace(alpha=host.astype(np.float32), light=(np.cos(light), np.sin(light)))
    scene = defects.Scene(canvas, image, image, ground, inside)
    kinds = DRAWN_DEFECTS if not host.all() else tuple(kind for kind in DRAWN_DEFECTS if kind != "chip")
    kind = str(rng.choice(kinds)) if rng.random() < 0.93 else "distortion"
    try:
        changed, alpha = getattr(defects, kind)(scene, rng)
    except ValueError:  # no room on a thing this small
        return image, np.zeros_like(host)
    soft = kind in {"stain", "discoloration", "dent", "distortion"}
    return changed, (alpha > (0.3 if soft else 0.5)) & host


def _thin_line(rng: np.random.Generator, image: np.ndarray, host: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draw hairline cracks or scratches, one to three pixels wide, here and there broken off."""
    place = _spot(rng, host)
    jagged = rng.random() < 0.55
    length = scenes._log_uniform(rng, 35, 230)  # noqa: SLF001
    alpha = np.zeros((SIZE, SIZE), np.float32)
    lines = int(rng.choice((1, 1, 1, 2, 4)))
    for _ in range(lines):
        steps = int(rng.integers(12, 40))
        bend, jag = (rng.uniform(0.05, 0.3), rng.uniform(0.2, 0.7)) if jagged else (rng.uniform(0, 0.05), 0.0)
        points = defects._curve(rng, place, length, bend, jag, steps)  # noqa: SLF001
        width = scenes._log_uniform(rng, 0.7, 3.0) * rng.uniform(0.7, 1.2, steps)  # noqa: SLF001
        alpha = np.maximum(alpha, defects._stroke(points, width))  # noqa: SLF001
        place = (place[0] + rng.uniform(-14, 14), place[1] + rng.uniform(-14, 14))
        length *= rng.uniform(0.5, 1)
    if rng.random() < 0.3:
        alpha = alpha * np.clip(2.5 * scenes._cloud(rng, SIZE, 10), 0, 1)  # noqa: SLF001
    alpha = cv2.GaussianBlur(alpha, (0, 0), rng.uniform(0.3, 0.7)) * host
    strength = scenes._log_uniform(rng, 0.15, 0.9)  # noqa: SLF001
    tone = image * (1 - strength) if rng.random() < 0.7 else image + strength * (1 - image)
    mask = cv2.GaussianBlur(alpha, (0, 0), 0.8) > 0.18
    return image + rgb(alpha) * (tone - image), mask


def _pits(rng: np.random.Generator, image: np.ndarray, host: np.ndarray, light: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw one or more dark pits, round or drawn out, some with a lit wall."""
    place = _spot(rng, host)
    alpha = np.zeros((SIZE, SIZE), np.float32)
    radius = scenes._log_uniform(rng, 1.6, 13)  # noqa: SLF001
    spread = rng.uniform(4, 40)
    for number in range(int(rng.choice((1, 1, 1, 2, 3, 6)))):
        at = place if number == 0 else tuple(value + spread * rng.normal() for value in place)
        own = max(1.2, radius * rng.uniform(0.4, 1))
        blob = defects._blob(rng, at, own, rng.uniform(0.05, 0.4), 1.4, rng.uniform(1, 1.7))  # noqa: SLF001
        alpha = np.maximum(alpha, blob)
    alpha = alpha * host
    depth = rng.uniform(0.35, 0.95)
    floor = image * (1 - depth)
    if rng.random() < 0.25:
        floor = floor + 0.25 * depth * rgb(scenes._cloud(rng, SIZE, 40))  # noqa: SLF001
    changed = image + rgb(alpha) * (floor - image)
    if rng.random() < 0.5:
        wall = scenes._relief(alpha, light, rng.uniform(0.8, 2)) * cv2.dilate(alpha, np.ones((5, 5), np.uint8))  # noqa: SLF001
        changed = changed + rng.uniform(0.05, 0.3) * rgb(wall)
    return changed, alpha > 0.45


def _broken(
    rng: np.random.Generator, image: np.ndarray, ground: np.ndarray, host: np.ndarray, light: float
) -> tuple[np.ndarray, np.ndarray]:
    """Break the surface open: rough facets inside or at the edge, or a piece that is gone."""
    solid = host.astype(np.uint8)
    edge = (solid - cv2.erode(solid, np.ones((3, 3), np.uint8), borderValue=0)).astype(bool)
    place = _spot(rng, edge if rng.random() < 0.6 and edge.any() else host)
    radius = scenes._log_uniform(rng, 5, 42)  # noqa: SLF001
    blob = defects._blob(rng, place, radius, rng.uniform(0.2, 0.6), 1.5, rng.uniform(1, 2.2))  # noqa: SLF001
    alpha = blob * host
    if rng.random() < 0.25 and not host.all():
        return image + rgb(alpha) * (ground - image), alpha > 0.5
    near = blob > 0.5
    level = image[near].mean(0) if near.any() else image.mean((0, 1))
    rough = scenes._cloud(rng, SIZE, int(rng.integers(12, 60)))  # noqa: SLF001
    relief = scenes._relief(rough, light, rng.uniform(0.6, 2))  # noqa: SLF001
    tone = level * rng.uniform(0.55, 1.4) + rng.uniform(0.1, 0.5) * rgb(relief) + 0.3 * (rgb(rough) - 0.5)
    return image + rgb(alpha) * (tone - image), alpha > 0.5


def shards(mask: np.ndarray, picked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split a mask's surroundings among some of its pixels, each to the nearest.

    Args:
        mask (np.ndarray): ``(S, S)`` bool.
        picked (np.ndarray): Numbers of two pixels or more, among those of the mask.

    Returns:
        tuple[np.ndarray, np.ndarray]: Number of the shard at each place, and how much farther the second nearest pixel
        is, 0 at the edges of shards, ``(S, S)`` each.
    """
    ys, xs = np.nonzero(mask)
    y, x = np.mgrid[:SIZE, :SIZE]
    reach = np.stack([np.hypot(x - xs[at], y - ys[at]) for at in picked])
    nearest = np.partition(reach, 1, axis=0)
    return reach.argmin(0), nearest[1] - nearest[0]


def _shattered(
    rng: np.random.Generator,
    image: np.ndarray,
    ground: np.ndarray,
    host: np.ndarray,
    photographs: Photographs,
    light: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Break a large piece out of the thing: shards, each in its own light, over what lies below."""
    solid = host.astype(np.uint8)
    edge = (solid - cv2.erode(solid, np.ones((3, 3), np.uint8), borderValue=0)).astype(bool)
    place = np.array(_spot(rng, edge if rng.random() < 0.7 and edge.any() else host))
    canvas = np.zeros((SIZE, SIZE), np.uint8)
    scenes._fill(canvas, scenes._place(rng, scenes._outline(rng), place, SIZE * scenes._log_uniform(rng, 0.1, 0.4)))  # noqa: SLF001
    alpha = canvas.astype(np.float32) / 255 * host
    mask = alpha > 0.5
    if mask.sum() < 0.02 * SIZE * SIZE or mask.sum() > 0.7 * host.sum():
        return image, np.zeros_like(host)
    below = rng.random()
    floor = ground if below < 0.35 else photographs.read("material", rng) if below < 0.55 else image
    picked = rng.integers(mask.sum(), size=int(rng.integers(2, 9)))
    shard, gap = shards(mask, picked)
    gains = np.exp(rng.normal(0, 0.45, len(picked))).astype(np.float32)
    layer = floor * rgb(gains[shard] * np.float32(rng.uniform(0.4, 1.1)))
    rim = np.exp(-(gap**2) / rng.uniform(2, 30)).astype(np.float32)
    changed = image + rgb(alpha) * (layer + rgb(rim * rng.normal(0, 0.24)) - image)
    if rng.random() < 0.7:
        changed = changed + rng.uniform(0.05, 0.28) * rgb(scenes._relief(alpha, light, rng.uniform(1, 3)) * host)  # noqa: SLF001
    return changed, mask


def _foreign(
    rng: np.random.Generator, image: np.ndarray, host: np.ndarray, photographs: Photographs, light: float
) -> tuple[np.ndarray, np.ndarray]:
    """Lay something cut out of another photograph, or of this one, on the surface."""
    place = np.array(_spot(rng, host))
    canvas = np.zeros((SIZE, SIZE), np.uint8)
    radius = scenes._log_uniform(rng, 4, 44)  # noqa: SLF001
    scenes._fill(canvas, scenes._place(rng, scenes._outline(rng), place, radius))  # noqa: SLF001
    alpha = canvas.astype(np.float32) / 255
    if rng.random() < 0.6:
        alpha = alpha * host
    if rng.random() < 0.2:
        layer = np.roll(image, tuple(rng.integers(30, SIZE - 30, 2)), (0, 1))
        layer = np.rot90(layer, int(rng.integers(4)))
    else:
        layer = photographs.read(str(rng.choice(("material", "object", "groceries", "material"))), rng)
        layer = layer * np.float32(rng.uniform(0.6, 1.2))
    changed = image
    if rng.random() < 0.4:
        move = np.float32([[1, 0, 3 * np.cos(light)], [0, 1, 3 * np.sin(light)]])
        shadow = cv2.GaussianBlur(cv2.warpAffine(alpha, move, (SIZE, SIZE)), (0, 0), 1.5)
        changed = changed * rgb(1 - rng.uniform(0.1, 0.5) * shadow)
    strength = np.float32(rng.uniform(0.5, 1))
    return changed + rgb(alpha * strength) * (layer - changed), alpha > 0.5


def _frayed(rng: np.random.Generator, image: np.ndarray, host: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draw a bunch of loose fibres."""
    place = _spot(rng, host)
    alpha = np.zeros((SIZE, SIZE), np.float32)
    spread = rng.uniform(2, 9)
    for _ in range(int(rng.integers(4, 14))):
        at = tuple(value + spread * rng.normal() for value in place)
        points = defects._curve(rng, at, rng.uniform(12, 60), rng.uniform(0.05, 0.3), 0, 14)  # noqa: SLF001
        alpha = np.maximum(alpha, defects._stroke(points, np.full(14, rng.uniform(0.8, 2.2))))  # noqa: SLF001
    level = image[alpha > 0.3].mean(0) if (alpha > 0.3).any() else image.mean((0, 1))
    tone = level * rng.uniform(0.3, 0.7) if rng.random() < 0.5 else level + rng.uniform(0.2, 0.8) * (1 - level)
    mask = cv2.morphologyEx((alpha > 0.3).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    return image + rgb(alpha) * (tone - image), mask.astype(bool)


# Camera and surroundings
def augment(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Turn, crop, recolour, relight, cover a border and blur: what is not the part's own says nothing.

    Args:
        image (np.ndarray): Picture, uint8.
        mask (np.ndarray): Its mask.
        rng (np.random.Generator): Source of every choice; the same state does the same to a picture's twin.

    Returns:
        tuple[np.ndarray, np.ndarray]: Picture, uint8, and mask, both ``(S, S)``.
    """
    turns = int(rng.integers(4))
    image, mask = np.rot90(image, turns), np.rot90(mask, turns)
    if rng.random() < 0.5:
        image, mask = image[:, ::-1], mask[:, ::-1]
    values, mask = image.astype(np.float32) / 255, mask.astype(np.float32)
    if rng.random() < 0.5:
        height, width = (int(SIZE * share) for share in rng.uniform(0.45, 1) * rng.uniform(0.8, 1.0, 2))
        y, x = int(rng.integers(SIZE - height + 1)), int(rng.integers(SIZE - width + 1))
        part = (slice(y, y + height), slice(x, x + width))
        values = cv2.resize(values[part], (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
        mask = cv2.resize(mask[part], (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.3:
        values = values[..., rng.permutation(3)]
    grey = values.mean(-1, keepdims=True)
    values = grey + (values - grey) * np.float32(0 if rng.random() < 0.25 else rng.uniform(0.3, 1.4))
    values = (values - 0.5) * np.float32(rng.uniform(0.6, 1.25)) + np.float32(0.5 + rng.uniform(-0.15, 0.15))
    if rng.random() < 0.4:
        values = values * uneven_light(rng)[..., None]
    if rng.random() < 0.25:
        cover = border(rng)
        color = rng.uniform(0, 0.3) if rng.random() < 0.6 else rng.uniform(0, 1, size=3).astype(np.float32)
        grains = 0.02 * rng.standard_normal(values.shape[:2], dtype=np.float32)[..., None]
        values = values + cover[..., None] * (color + grains - values)
        mask = mask * (cover < 0.5)
    if rng.random() < 0.25:
        values = cv2.GaussianBlur(np.ascontiguousarray(values), (0, 0), rng.uniform(0.4, 1.6))
    if rng.random() < 0.25:
        values = values + np.float32(rng.uniform(0.005, 0.04)) * rng.standard_normal(
            (*values.shape[:2], 1), dtype=np.float32
        )
    return (np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8), mask > 0.5


def uneven_light(rng: np.random.Generator) -> np.ndarray:
    """Light ``(S, S)`` float32 that falls off to one side, and to the corners as behind a lens."""
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    side = (x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))) * np.float32(rng.uniform(0, 0.35))
    return (1 + side) * (1 - np.float32(rng.uniform(0, 0.4)) * (x * x + y * y) / 2)


def border(rng: np.random.Generator) -> np.ndarray:
    """Cover ``(S, S)`` float32 in [0, 1] of one to four sides, as where a part ends or a holder begins."""
    steps = np.arange(SIZE, dtype=np.float32)
    cover = np.zeros((SIZE, SIZE), np.float32)
    softness = rng.uniform(0.5, 0.04 * SIZE)
    for turns in rng.permutation(4)[: rng.integers(1, 5)]:
        edge = SIZE * (rng.uniform(0.01, 0.15) + rng.uniform(-0.05, 0.05) * (steps / SIZE - 0.5))
        band = 1 / (1 + np.exp(np.clip((steps[:, None] - edge.astype(np.float32)) / np.float32(softness), -30, 30)))
        cover = np.maximum(cover, np.rot90(band, turns))
    return cover * np.float32(rng.uniform(0.6, 1))
