# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Draw a part, good or with a defect, and say which pixels the defect changed.

Example:
    >>> import numpy as np
    >>> image, mask = draw_part("washer", np.random.default_rng(0), defect="scratch")
    >>> image.shape, image.dtype, mask.shape, mask.dtype
    ((256, 256, 3), dtype('uint8'), (256, 256), dtype('bool'))
"""

from dataclasses import dataclass

import numpy as np

from anomalib_clipsam.drawn_parts import defects, objects, textures
from anomalib_clipsam.drawn_parts.canvas import SIZE, photograph
from anomalib_clipsam.drawn_parts.defects import Scene
from anomalib_clipsam.errors.errors import UserValueError

DRAWING_VERSION = 1
"""Grows by one whenever the same generator would give another picture."""

_SURFACE = ("scratch", "stain", "contamination", "discoloration", "glue")
_PARTS = {
    # Training, textures
    "brushed_metal": (textures.brushed_metal, (*_SURFACE, "dent", "hole")),
    "weave": (textures.weave, ("stain", "contamination", "discoloration", "glue", "hole", "cut", "distortion")),
    "wood": (textures.wood, (*_SURFACE, "crack", "hole", "dent")),
    "carpet": (textures.carpet, ("stain", "contamination", "discoloration", "glue", "hole", "cut")),
    "perforated": (textures.perforated, (*_SURFACE, "dent", "distortion")),
    "printed_grid": (
        textures.printed_grid,
        ("scratch", "stain", "contamination", "discoloration", "misprint", "distortion"),
    ),
    "tread_plate": (textures.tread_plate, (*_SURFACE, "dent", "hole", "missing_part")),
    # Training, objects
    "washer": (objects.washer, (*_SURFACE, "dent", "crack", "chip")),
    "gear": (objects.gear, (*_SURFACE, "crack", "chip", "missing_part")),
    "screw": (objects.screw, (*_SURFACE, "chip")),
    "bottle": (objects.bottle, (*_SURFACE, "crack", "chip")),
    "pcb": (objects.pcb, (*_SURFACE, "crack", "chip", "misprint", "missing_part")),
    "label": (objects.label, ("scratch", "stain", "contamination", "discoloration", "cut", "hole", "chip", "misprint")),
    "biscuit": (objects.biscuit, ("crack", "hole", "stain", "contamination", "discoloration", "chip")),
    "battery": (objects.battery, (*_SURFACE, "dent", "misprint")),
    "lens": (objects.lens, (*_SURFACE, "crack", "chip", "misprint")),
    "zipper": (objects.zipper, ("stain", "contamination", "discoloration", "glue", "cut", "hole", "missing_part")),
    "ring": (objects.ring, (*_SURFACE, "crack", "hole", "chip", "misprint")),
    "button": (objects.button, (*_SURFACE, "crack", "chip")),
    "cap": (objects.cap, (*_SURFACE, "dent", "crack", "hole")),
    # Held out
    "leather": (textures.leather, (*_SURFACE, "hole", "cut", "dent")),
    "mosaic": (textures.mosaic, (*_SURFACE, "crack", "hole", "missing_part")),
    "capsule": (objects.capsule, (*_SURFACE, "crack", "dent", "hole", "misprint")),
    "connector": (objects.connector, (*_SURFACE, "crack", "chip", "missing_part")),
    "key": (objects.key, (*_SURFACE, "dent", "chip")),
}

CATEGORIES: tuple[str, ...] = tuple(_PARTS)
"""Every category."""

HELD_OUT_CATEGORIES: tuple[str, ...] = ("leather", "mosaic", "capsule", "connector", "key")
"""Categories that no weight of this package was trained on; they measure how well training carries over."""

TRAINING_CATEGORIES: tuple[str, ...] = tuple(name for name in CATEGORIES if name not in HELD_OUT_CATEGORIES)
"""Categories to train on."""

DEFECTS: tuple[str, ...] = (
    "scratch",
    "crack",
    "hole",
    "stain",
    "dent",
    "chip",
    "missing_part",
    "misprint",
    "contamination",
    "discoloration",
    "glue",
    "cut",
    "distortion",
)
"""Every kind of defect."""

_THRESHOLD = {"stain": 0.3, "discoloration": 0.3, "dent": 0.3, "distortion": 0.3, "misprint": 0.35}
_AREA = (0.003 * SIZE * SIZE, 0.065 * SIZE * SIZE)
_ATTEMPTS = 20


@dataclass(frozen=True)
class DrawnPart:
    """A drawn picture.

    Attributes:
        image: RGB, uint8, shape ``(256, 256, 3)``.
        defect_mask: The pixels the defect changed, bool, shape ``(256, 256)``; all False on a good part.
        part_mask: The silhouette of the part as it should be, bool, shape ``(256, 256)``; all True for a texture.
    """

    image: np.ndarray
    defect_mask: np.ndarray
    part_mask: np.ndarray


def defects_of(category: str) -> tuple[str, ...]:
    """Kinds of defect that can befall a part.

    Args:
        category (str): One of ``CATEGORIES``.

    Returns:
        tuple[str, ...]: Names from ``DEFECTS``.

    Raises:
        ValueError: If there is no such category.
    """
    _check_category(category)
    return _PARTS[category][1]


def draw_part(category: str, rng: np.random.Generator, defect: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Draw one picture of a part.

    Args:
        category (str): One of ``CATEGORIES``.
        rng (np.random.Generator): Source of everything that varies. The same state gives the same part under the same
            light with and without a defect.
        defect (str | None): One of ``defects_of(category)``, or None for a good part. Defaults to ``None``.

    Returns:
        tuple[np.ndarray, np.ndarray]: Picture, RGB uint8 of shape ``(256, 256, 3)``, and mask of the pixels the defect
            changed, bool of shape ``(256, 256)``.

    Raises:
        ValueError: If there is no such category, or the defect cannot befall it.
    """
    part = draw_part_layers(category, rng, defect)
    return part.image, part.defect_mask


def draw_part_layers(category: str, rng: np.random.Generator, defect: str | None = None) -> DrawnPart:
    """Draw one picture of a part, with its silhouette.

    Args:
        category (str): One of ``CATEGORIES``.
        rng (np.random.Generator): As in :func:`draw_part`.
        defect (str | None): As in :func:`draw_part`. Defaults to ``None``.

    Returns:
        DrawnPart: Picture and masks.

    Raises:
        ValueError: If there is no such category, or the defect cannot befall it.
    """
    kinds = defects_of(category)
    if defect is not None and defect not in kinds:
        msg = f"A {category} has no defect '{defect}'. Choose one of: {', '.join(kinds)}."
        raise UserValueError(msg)
    # Three generators: a defect must not move the part, the light or the noise.
    of_part, of_defect, of_camera = (np.random.default_rng(seed) for seed in rng.integers(2**63, size=3))
    canvas = _PARTS[category][0](of_part)
    scene = Scene.of(canvas)
    part_mask = canvas.alpha > 0.5
    image, mask = scene.image, np.zeros((SIZE, SIZE), bool)
    if defect is not None:
        image, mask = _befall(scene, defect, of_defect)
    return DrawnPart(photograph(image, of_camera), mask, part_mask)


def _befall(scene: Scene, defect: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The scene with a defect that can be seen, and its mask: the first of several attempts, else the best."""
    best = None
    for _ in range(_ATTEMPTS):
        image, alpha = getattr(defects, defect)(scene, rng)
        mask = (alpha > _THRESHOLD.get(defect, 0.5)) & (scene.canvas.alpha > 0.5)
        area = int(mask.sum())
        if area == 0:
            continue
        change = np.abs(np.clip(image, 0, 1) - np.clip(scene.image, 0, 1))[mask].mean(1)
        seen = min(float(change.mean()) / 0.06, float((change > 0.03).mean()) / 0.65)
        fits = min(area / _AREA[0], _AREA[1] / area, 1.0)
        if best is None or seen * fits > best[0]:
            best = (min(seen, 1.0) * fits, image, mask)
        if seen >= 1 and fits >= 1:
            break
    if best is None:
        msg = f"None of {_ATTEMPTS} attempts at a '{defect}' met the part. Draw again with another generator."
        raise RuntimeError(msg)
    return best[1], best[2]


def _check_category(category: str) -> None:
    if category not in _PARTS:
        msg = f"There is no category '{category}'. Choose one of: {', '.join(CATEGORIES)}."
        raise UserValueError(msg)
