# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Photographs of real defects with masks: pairs to train on, and pictures of each kind that are kept for validation.

A picture belongs to the photograph that it was cut from, and all that was cut from one photograph is kept or trained on
together. Whole kinds can be left out as well, to see what is learnt about kinds that were never shown.

Letters: S side of a picture in pixels (256). Pictures are ``(S, S, 3)``, uint8 RGB; masks are ``(S, S)`` bool.
"""

from __future__ import annotations

import csv
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import scenes

from anomalib_clipsam.drawn_parts.canvas import SIZE, rgb

KINDS = {
    "leaf": ("coffee_leaf",),
    "pothole": ("road_potholes",),
    "crack": ("asphalt_crack_sut", "concrete_crack_ozgenel"),
    "board": ("deep_pcb",),
    "stain": ("fabric_stains_factory",),
    "fabric": ("fabric_tears_stains",),
    "weld": ("weld_surface",),
    "pore": ("lpbf_pores",),
}
"""Kinds of real defects, and the sets of each. The last three rest on the word of those who uploaded them."""

SHARES = {
    "leaf": 0.2,
    "pothole": 0.14,
    "crack": 0.2,
    "board": 0.08,
    "stain": 0.05,
    "fabric": 0.13,
    "weld": 0.11,
    "pore": 0.09,
}
"""Share of each kind among the real pairs; of those that are not left out."""

HELD_OUT_PHOTOGRAPHS = 5
"""One photograph in so many is kept for validation."""

UNMARKED = ("pothole",)
"""Kinds whose damaged pictures have defects without a mask: no piece of them is taken for good."""

TRANSPLANTED = 0.4
"""Share of the real defects that are laid on another photograph."""


@dataclass(frozen=True)
class Marked:
    """A picture of a kind, and its mask; ``None`` for a good one."""

    image: Path
    mask: Path | None

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Read picture ``(height, width, 3)``, RGB uint8, and mask ``(height, width)`` bool."""
        image = cv2.cvtColor(cv2.imread(str(self.image)), cv2.COLOR_BGR2RGB)
        if self.mask is None:
            return image, np.zeros(image.shape[:2], bool)
        return image, cv2.imread(str(self.mask), cv2.IMREAD_GRAYSCALE) > 127


@dataclass
class RealDefects:
    """The folder of real defects, split by what is kept for validation.

    Args:
        folder (Path): Folder with the sets and their ``MANIFEST.csv``.
        validation (bool): Take what is kept for validation in place of the rest.
        left_out (tuple[str, ...]): Keys of :data:`KINDS` not to train on; validation has all of them.
    """

    folder: Path
    validation: bool = False
    left_out: tuple[str, ...] = ()
    defective: dict[str, list[Marked]] = field(init=False)
    good: dict[str, list[Marked]] = field(init=False)

    def __post_init__(self) -> None:
        """List the pictures of each kind.

        Raises:
            FileNotFoundError: If there are none.
        """
        kinds = {name: kind for kind, sets in KINDS.items() for name in sets if kind not in self.left_out}
        self.defective = {kind: [] for kind in dict.fromkeys(kinds.values())}
        self.good = {kind: [] for kind in self.defective}
        manifest = self.folder / "MANIFEST.csv"
        if not manifest.is_file():
            msg = f"'{manifest}' is not there. Name the folder of the photographs; it holds 'real/MANIFEST.csv'."
            raise FileNotFoundError(msg)
        with manifest.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                kind = kinds.get(row["set"])
                if kind is None or is_kept(row["path"]) != self.validation:
                    continue
                image = self.folder / row["file"]
                marked = image.parent.name == "defect"
                mask = image.parents[1] / "mask" / f"{image.stem}.png" if marked else None
                (self.defective if marked else self.good)[kind].append(Marked(image, mask))

    def draw_pair(self, rng: np.random.Generator, canvas: np.ndarray | None = None) -> tuple[np.ndarray, ...]:
        """Draw a pair: a real defect at a random scale, and a good picture of the same material.

        Args:
            rng (np.random.Generator): Source of every choice.
            canvas (np.ndarray | None): Good picture to lay the defect on, float32 RGB in [0, 1]; the defect stays on
                its own material if ``None``.

        Returns:
            tuple[np.ndarray, np.ndarray, np.ndarray]: Good picture and damaged picture, uint8, and the mask.
        """
        shares = np.array([SHARES[kind] for kind in self.defective])
        kind = list(self.defective)[int(rng.choice(len(shares), p=shares / shares.sum()))]
        image, mask = self._pick(rng, self.defective[kind])
        if canvas is not None:
            return transplant(rng, image, mask, canvas)
        return self._good(rng, kind), *crop_defect(rng, image, mask)

    def _good(self, rng: np.random.Generator, kind: str) -> np.ndarray:
        """A good picture of the material, or a piece of a damaged one that the defect does not reach."""
        goods = self.good[kind]
        own = kind not in UNMARKED and (not goods or rng.random() < 0.4)
        for _ in range(20):
            image, mask = self._pick(rng, self.defective[kind] if own else goods)
            short = min(mask.shape)
            side = int(scenes._log_uniform(rng, 64 if own else 0.4 * short, short))  # noqa: SLF001
            y, x = (int(rng.integers(length - side + 1)) for length in mask.shape)
            near = slice(max(0, y - 8), y + side + 8), slice(max(0, x - 8), x + side + 8)
            if not mask[near].any():
                return resize(image[y : y + side, x : x + side])
            own = own and bool(not goods or rng.random() < 0.7)
        return np.full((SIZE, SIZE, 3), int(rng.integers(40, 216)), np.uint8)

    @staticmethod
    def _pick(rng: np.random.Generator, pictures: list[Marked]) -> tuple[np.ndarray, np.ndarray]:
        return pictures[int(rng.integers(len(pictures)))].read()


def is_kept(path: str) -> bool:
    """Tell whether a photograph is kept for validation; variants that an export made of it share its name."""
    return zlib.crc32(path.partition(".rf.")[0].encode()) % HELD_OUT_PHOTOGRAPHS == 0


def resize(image: np.ndarray) -> np.ndarray:
    """Bring a picture or mask to ``(S, S)``."""
    enlarges = min(image.shape[:2]) < SIZE
    return cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC if enlarges else cv2.INTER_AREA)


def extent_of(mask: np.ndarray, y: int, x: int) -> tuple[int, int, int, int]:
    """Left, top, width and height of the piece of a mask that a place belongs to."""
    _, pieces, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    return tuple(int(value) for value in stats[pieces[y, x], :4])


def crop_defect(rng: np.random.Generator, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut a square around a defect, from a little larger than the defect to the whole picture.

    Args:
        rng (np.random.Generator): Source of every choice.
        image (np.ndarray): Picture ``(height, width, 3)``.
        mask (np.ndarray): Its mask ``(height, width)``, not empty.

    Returns:
        tuple[np.ndarray, np.ndarray]: Picture and mask, ``(S, S)``.
    """
    height, width = mask.shape
    if rng.random() < 0.2:  # the whole, squeezed to a square as the model does it
        return resize(image), resize(mask.astype(np.float32)) > 0.5
    places = np.flatnonzero(mask)
    y, x = divmod(int(places[rng.integers(len(places))]), width)
    *_, across, down = extent_of(mask, y, x)
    short = min(height, width)
    least = min(short, max(72, 1.4 * max(across, down)))
    side = int(scenes._log_uniform(rng, least, short))  # noqa: SLF001
    top = int(np.clip(y - rng.uniform(0.1, 0.9) * side, 0, height - side))
    left = int(np.clip(x - rng.uniform(0.1, 0.9) * side, 0, width - side))
    part = slice(top, top + side), slice(left, left + side)
    return resize(image[part]), resize(mask[part].astype(np.float32)) > 0.5


def transplant(
    rng: np.random.Generator, image: np.ndarray, mask: np.ndarray, canvas: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lay a real defect on another picture: its own colours, or how it differs from what surrounds it.

    Args:
        rng (np.random.Generator): Source of every choice.
        image (np.ndarray): Picture with the defect ``(height, width, 3)``.
        mask (np.ndarray): The defect ``(height, width)``, not empty.
        canvas (np.ndarray): Good picture ``(S, S, 3)``, float32 in [0, 1].

    Returns:
        tuple[np.ndarray, np.ndarray, np.ndarray]: Good picture and damaged picture, uint8, and the mask; the mask is
        empty where the defect is too faint there.
    """
    places = np.flatnonzero(mask)
    y, x = divmod(int(places[rng.integers(len(places))]), mask.shape[1])
    left, top, across, down = extent_of(mask, y, x)
    margin = 6
    part = (
        slice(max(0, top - margin), top + down + margin),
        slice(max(0, left - margin), left + across + margin),
    )
    piece, alpha = image[part].astype(np.float32) / 255, mask[part].astype(np.float32)
    around = piece[alpha < 0.5].mean(0) if (alpha < 0.5).any() else piece.mean((0, 1))
    scale = scenes._log_uniform(rng, 10, 150) / max(across, down)  # noqa: SLF001
    turn = cv2.getRotationMatrix2D((piece.shape[1] / 2, piece.shape[0] / 2), rng.uniform(0, 360), scale)
    turn[:, 2] += rng.uniform(0.1, 0.9, 2) * SIZE - np.array([piece.shape[1] / 2, piece.shape[0] / 2])
    if scale < 1:
        piece, alpha = (cv2.GaussianBlur(values, (0, 0), 0.4 / scale) for values in (piece, alpha))
    piece = cv2.warpAffine(piece, turn, (SIZE, SIZE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    alpha = cv2.warpAffine(alpha, turn, (SIZE, SIZE), flags=cv2.INTER_LINEAR)
    truth = alpha > 0.5
    soft = np.clip(cv2.GaussianBlur(alpha, (0, 0), rng.uniform(0.7, 2)) * 1.6, 0, 1)
    if rng.random() < 0.7:
        layer = canvas + np.float32(rng.uniform(0.6, 1.4)) * (piece - around.astype(np.float32))
    else:
        layer = piece
    damaged = np.clip(canvas + rgb(soft) * (layer - canvas), 0, 1)
    texture = np.abs(canvas - cv2.GaussianBlur(canvas, (0, 0), 4)).mean(2)
    faint = not truth.any() or np.abs(damaged - canvas).mean(2)[truth].mean() < max(0.03, 0.8 * texture[truth].mean())
    good = (canvas * 255 + 0.5).astype(np.uint8)
    if faint or truth.sum() < 10:
        return good, good, np.zeros_like(truth)
    return good, (damaged * 255 + 0.5).astype(np.uint8), truth
