# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Draw large pictures with small defects, and measure what tiles bring on them.

Pictures are 1024 to 3000 px on their longer side: textures, parts laid out on a ground, and strips. Half of them are
good; the others have one to three defects of 10 to 40 px. Textures and parts are drawn; with ``--photographs``, some
surfaces are photographs that are kept for validation. Choices are made on training categories and photographs.

    python tools/large_pictures.py choose --photographs FOLDER  # side, overlap, share of the whole, image score
    python tools/large_pictures.py report --photographs FOLDER  # without tiles and with them, CLIP alone and whole
    python tools/large_pictures.py report --never_trained
    python tools/large_pictures.py references --photographs FOLDER  # text alone, and with good parts
    python tools/large_pictures.py cost --sizes 3000 2000 12000 9000  # time and memory
    python tools/large_pictures.py example --to docs/large.png
    python tools/large_pictures.py real --mvtec FOLDER/bottle --magnetic_tile FOLDER
"""

from __future__ import annotations

import argparse
import time
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import photo_pairs
import torch
from ablation import read_category, read_tiles
from PIL import Image, ImageDraw
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from anomalib_clipsam import ClipSam
from anomalib_clipsam.drawing.panels import BOX, WHITE, heat, outline, sheet
from anomalib_clipsam.drawn_parts import canvas, defects, drawing, textures
from anomalib_clipsam.drawn_parts.canvas import SIZE, rgb
from anomalib_clipsam.drawn_parts.drawing import HELD_OUT_CATEGORIES, TRAINING_CATEGORIES
from anomalib_clipsam.references import Combination
from anomalib_clipsam.references.judge import Answer

if TYPE_CHECKING:
    from collections.abc import Iterator

NOT_LARGE = "tread_plate"
"""A texture that is drawn for pictures of 256 px only."""
DEFECTS = (photo_pairs._thin_line, photo_pairs._pits, photo_pairs._broken, photo_pairs._drawn_defect)  # noqa: SLF001
EXTENT = (10, 40)
"""Longer side of a defect's box, in pixels."""
BINS = 4096


@dataclass(frozen=True)
class Large:
    """A picture ``(height, width, 3)``, uint8, and the mask of its defects."""

    image: np.ndarray
    mask: np.ndarray


@contextmanager
def canvas_of(size: int) -> Iterator[None]:
    """Let the categories draw on a square of another size: they measure in pixels, so that textures repeat."""
    modules = [module for module in (canvas, textures, defects, drawing) if hasattr(module, "SIZE")]
    before = [(module, dict(vars(module))) for module in modules]
    rows, columns = (grid.astype(np.float32) for grid in np.mgrid[0:size, 0:size])
    for module in modules:
        module.SIZE = size
        if hasattr(module, "_ROWS"):
            module._ROWS, module._COLUMNS = rows, columns  # noqa: SLF001
    yield
    for module, names in before:
        vars(module).update(names)


def draw_layers(category: str, rng: np.random.Generator, size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Draw a good part without its ground: RGB in [0, 1] ``(size, size, 3)``, and its cover ``(size, size)``."""
    with canvas_of(size):
        scene = defects.Scene.of(drawing._PARTS[category][0](rng))  # noqa: SLF001
        return np.clip(scene.lit, 0, 1).astype(np.float32), scene.canvas.alpha


def is_texture(category: str) -> bool:
    """Report whether a category fills its pictures."""
    return bool((draw_layers(category, np.random.default_rng(0))[1] > 0.5).all())


def lay_out(photographs: photo_pairs.Photographs, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Cover a picture with a photographed material; its photographs are made to be laid side by side."""
    files = photographs.files["material"]
    image = photo_pairs._read(files[int(rng.integers(len(files)))])  # noqa: SLF001
    scale = rng.uniform(1, 2.4)
    times = [int(length / scale / side) + 2 for length, side in zip(size, image.shape[:2], strict=True)]
    image = np.tile(image, (*times, 1))
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    return image[: size[0], : size[1]]


def draw_tray(
    category: str, rng: np.random.Generator, size: tuple[int, int], style: np.random.Generator | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Lay parts of a category out on a plain ground, which ``style`` says: picture, and where the parts are."""
    style = style or rng
    cell = int(style.integers(230, 420))
    ground = style.uniform(0.25, 0.8) + 0.06 * style.standard_normal(3)
    image = np.ones((*size, 3), np.float32) * ground.astype(np.float32)
    host = np.zeros(size, np.float32)
    for top in range(0, size[0] - cell // 2, cell):
        for left in range(0, size[1] - cell // 2, cell):
            part, alpha = (cv2.resize(layer, (cell, cell)) for layer in draw_layers(category, rng))
            at = (slice(top, top + cell), slice(left, left + cell))
            height, width = host[at].shape
            part, alpha = part[:height, :width], alpha[:height, :width]
            image[at] += rgb(alpha) * (part - image[at])
            host[at] = alpha
    return image, host > 0.5


def befall(image: np.ndarray, host: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Let a small defect befall a picture: drawn on an enlarged patch, as the tools draw them, and brought back."""
    places = np.argwhere(host)
    while True:
        kind = DEFECTS[int(rng.choice(4, p=(0.3, 0.2, 0.15, 0.35)))]
        extent, seed = np.exp(rng.uniform(*np.log(EXTENT))), int(rng.integers(2**63))
        centre = places[int(rng.integers(len(places)))]
        patch = 128
        for _ in range(2):
            top, left = (
                int(min(max(0, middle - patch // 2), whole - patch))
                for middle, whole in zip(centre, host.shape, strict=True)
            )
            at = (slice(top, top + patch), slice(left, left + patch))
            enlarged = cv2.resize(image[at], (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
            whole = np.ones((SIZE, SIZE), bool)
            arguments = (enlarged, enlarged, whole) if kind in DEFECTS[2:] else (enlarged, whole)
            if kind is DEFECTS[0]:
                changed, mask = kind(np.random.default_rng(seed), *arguments)
            else:
                changed, mask = kind(np.random.default_rng(seed), *arguments, 0.7)
            if not mask.any():
                break
            rows, columns = np.nonzero(mask)
            drawn = max(np.ptp(rows), np.ptp(columns)) + 1
            patch = int(np.clip(round(SIZE * extent / drawn), 24, min(SIZE, *host.shape)))
        if not mask.any() or enlarged is None:
            continue
        size = image[at].shape[:2][::-1]
        change = cv2.resize(np.clip(changed, 0, 1) - enlarged, size, interpolation=cv2.INTER_AREA)
        small = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.4
        rows, columns = np.nonzero(small & host[at])
        if not len(rows) or not EXTENT[0] <= max(np.ptp(rows), np.ptp(columns)) + 1 <= EXTENT[1]:
            continue
        near = image[at]
        texture = np.abs(near - cv2.GaussianBlur(near, (0, 0), 3)).mean(2)[small].mean()
        if np.abs(change).mean(2)[small].mean() < max(0.06, 1.2 * texture):
            continue
        result, mask = image.copy(), np.zeros_like(host)
        result[at] += change * host[at][..., None]
        mask[at] = small & host[at]
        return result, mask


def finish(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Light a picture unevenly, and add the camera's noise."""
    light = cv2.resize(
        rng.uniform(0.88, 1.08, (3, 3)).astype(np.float32), image.shape[1::-1], interpolation=cv2.INTER_CUBIC
    )
    noise = np.float32(rng.uniform(0.003, 0.012)) * rng.standard_normal(image.shape[:2], dtype=np.float32)
    return (np.clip(image * light[..., None] + noise[..., None], 0, 1) * 255 + 0.5).astype(np.uint8)


def draw_large(
    kind: str,
    category: str,
    rng: np.random.Generator,
    photographs: photo_pairs.Photographs | None,
    longest: int,
    *,
    damaged: bool,
) -> Large:
    """Draw a picture: ``kind`` is ``"surface"``, ``"strip"``, ``"tray"``, ``"object"`` or ``"photograph"``."""
    longer = int(rng.integers(1024, longest + 1))
    shorter = int(longer / rng.uniform(1, 1.5))
    if kind == "strip" or (kind == "photograph" and rng.random() < 0.3):
        longer, shorter = int(rng.integers(1260, max(longest, 1260) + 1)), int(rng.integers(300, 600))
    size = (longer, shorter) if rng.random() < 0.3 else (shorter, longer)
    host = np.ones(size, bool)
    if kind == "object":  # a part that fills the picture, and a defect as usual
        kinds = [name for name in drawing.defects_of(category) if name != "chip"]
        image, mask = drawing.draw_part(category, rng, str(rng.choice(kinds)) if damaged else None)
        image = cv2.resize(image, (longer, longer), interpolation=cv2.INTER_CUBIC)
        return Large(image, cv2.resize(mask.astype(np.uint8), (longer, longer), interpolation=cv2.INTER_LINEAR) > 0)
    if kind == "tray":
        image, host = draw_tray(category, rng, size)
    elif kind == "photograph":
        image = lay_out(photographs, rng, size)
    else:
        image = draw_layers(category, rng, longer)[0][: size[0], : size[1]]
    image, mask = np.clip(image, 0, 1), np.zeros(size, bool)
    for _ in range(int(rng.integers(1, 4)) if damaged else 0):
        image, added = befall(image, host, rng)
        mask |= added
    return Large(finish(image, rng), mask)


@dataclass(frozen=True)
class Product:
    """Good parts of a product to compare with, and pictures of it to test, half of them good."""

    good: list[torch.Tensor]
    pictures: list[Large]


def draw_product(
    kind: str, category: str, seed: tuple[int, ...], photographs: photo_pairs.Photographs | None, longest: int
) -> Product:
    """Draw four good parts and four pictures of one product.

    They are places of one surface that do not overlap, or trays of the same kind. A photographed surface repeats its
    photograph: each place of it is turned by up to 3 degrees and scaled by up to 5 %.
    """
    rng, cells, drawn = np.random.default_rng(seed), 3, []
    longer = int(rng.integers(1100, longest + 1))
    size = (int(rng.integers(300, 600)) if kind == "strip" else int(longer / rng.uniform(1, 1.5)), longer)
    if kind == "photograph":
        canvas = lay_out(photographs, rng, (cells * longer, cells * longer))
    elif kind != "tray":
        canvas = draw_layers(category, rng, cells * longer)[0]
    for number in range(8):
        host = np.ones(size, bool)
        if kind == "tray":
            image, host = draw_tray(category, rng, size, np.random.default_rng((*seed, 1)))
        else:
            top, left = (longer * place for place in divmod(number, cells))
            image = canvas[top : top + longer, left : left + longer]
            if kind == "photograph":
                turn = cv2.getRotationMatrix2D((longer / 2, longer / 2), rng.uniform(-3, 3), rng.uniform(0.95, 1.05))
                image = cv2.warpAffine(
                    image, turn, (longer, longer), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT
                )
            image = image[: size[0]]
        image, mask = np.clip(image, 0, 1), np.zeros(size, bool)
        for _ in range(int(rng.integers(1, 4)) if number % 2 and number > 3 else 0):
            image, added = befall(image, host, rng)
            mask |= added
        drawn.append(Large(finish(image, rng), mask))
    return Product([tensor(part.image)[0] for part in drawn[:4]], drawn[4:])


@torch.no_grad()
def compare_references(kinds: list[str], products: int, folder: Path | None, longest: int, k_shot: int) -> None:
    """Print what good parts bring beside the text, with tiles, by the share of the text in map and score."""
    surfaces = [category for category in TRAINING_CATEGORIES if is_texture(category) and category != NOT_LARGE]
    objects = [category for category in TRAINING_CATEGORIES if category not in (*surfaces, NOT_LARGE)]
    photographs = None if folder is None else photo_pairs.Photographs(folder, validation=True)
    model = ClipSam(weights="lite", class_name="object", refine=False, tiles="auto", k_shot=k_shot).eval()
    own = model.model.judge.combination
    joins = {"text alone": Combination(1.0, 1.0), "as without tiles": Combination()}
    joins |= {f"text share {share}": Combination(share, share) for share in (0.5, 0.7, 0.85)}
    joins |= {f"as it is ({own.text_share} in the map, {own.text_score_share} in the score)": own}
    print(f"| {k_shot} good parts | F1-max | image AUROC | good above the threshold | defective |")
    print("|---|---|---|---|---|")
    for kind in kinds:
        found = {name: (Curve(), [], []) for name in joins}
        for number in tqdm(range(products), desc=kind, leave=False):
            categories = objects if kind == "tray" else surfaces
            category = categories[number % len(categories)]
            product = draw_product(kind, category, (29, zlib.crc32(kind.encode()), number), photographs, longest)
            model.set_references(product.good[:k_shot])
            judge, inner = model.model.judge, model.model
            for picture in product.pictures:
                image = tensor(picture.image)
                looks = [
                    (text, score, judge.calibration(judge.reference(taps, tuple(text.shape[-2:]))))
                    for text, score, taps in inner.views(image)
                ]
                for name, join in joins.items():
                    anomaly_map, score, _ = inner.join(image, (Answer(*join(*looked)) for looked in looks))
                    curve, scores, called = found[name]
                    curve.add(anomaly_map[0].numpy(), picture.mask)
                    scores.append(float(score))
                    called.append(scores[-1] > (judge.thresholds.image if join is own else 0.5))
        label = np.arange(4 * products) % 2 == 1
        for name, (curve, scores, called) in found.items():
            shares = [np.mean(np.array(called)[label == damaged]) for damaged in (False, True)]
            print(row(f"{kind}, {name}", [curve.f1_max(), roc_auc_score(label, scores), *shares]), flush=True)


def draw_groups(
    per_group: int, folder: Path | None, longest: int, only: list[str] | None, *, held_out: bool
) -> dict[str, list[Large]]:
    """Draw the groups of pictures."""
    categories = HELD_OUT_CATEGORIES if held_out else TRAINING_CATEGORIES
    surfaces = [category for category in categories if is_texture(category) and category != NOT_LARGE]
    objects = [category for category in categories if category not in (*surfaces, NOT_LARGE)]
    kinds = {"surface": surfaces, "strip": surfaces, "tray": objects, "object": objects}
    photographs = None
    if folder is not None and not held_out:
        photographs = photo_pairs.Photographs(folder, validation=True)
        kinds["photograph"] = ["photograph"]
    groups = {}
    for kind, names in kinds.items():
        if kind not in (only or kinds):
            continue
        rng = np.random.default_rng((25, zlib.crc32(kind.encode()), held_out))
        groups[kind] = [
            draw_large(kind, names[(i // 2) % len(names)], rng, photographs, longest, damaged=i % 2 == 1)
            for i in tqdm(range(per_group), desc=f"draw {kind}", leave=False)
        ]
    return groups


def tensor(image: np.ndarray) -> torch.Tensor:
    """Turn a picture into what the model takes."""
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None] / 255


class Curve:
    """Pixel F1-max of maps in [0, 1], from histograms: pictures of millions of pixels are not kept."""

    def __init__(self) -> None:
        self.counts = np.zeros((2, BINS))

    def add(self, anomaly_map: np.ndarray, mask: np.ndarray) -> None:
        """Add a picture's map, of any size."""
        values = cv2.resize(anomaly_map.astype(np.float32), mask.shape[::-1], interpolation=cv2.INTER_LINEAR)
        place = (np.clip(values, 0, 1) * (BINS - 1)).astype(np.int32)
        for row, pixels in zip(self.counts, (place[~mask], place[mask]), strict=True):
            row += np.bincount(pixels.ravel(), minlength=BINS)

    def f1_max(self) -> float:
        """Return it."""
        false, true = (row[::-1].cumsum() for row in self.counts)
        return float((2 * true / np.maximum(true + false + self.counts[1].sum(), 1)).max())


def row(label: str, figures: list[float]) -> str:
    """Write a row of a Markdown table."""
    return f"| {label} | {' | '.join(f'{value:.3f}' for value in figures)} |"


@dataclass(frozen=True)
class Looks:
    """What CLIP said of a picture: maps ``(H, W)``, scores of the tiles ``(N,)`` and of the whole."""

    tiles: np.ndarray
    scores: np.ndarray
    whole: np.ndarray
    score: float


@torch.no_grad()
def look(model: ClipSam, picture: Large) -> Looks:
    """Look at tiles and whole, whatever the picture's size."""
    inner, image = model.model, tensor(picture.image)
    inner.set_class_name("object")
    whole, score, _ = inner.view_whole(image)
    tiles, scores, _ = inner.blend(image, (Answer(*looked[:2]) for looked in inner.views(image)))
    return Looks(tiles[0].numpy(), scores.numpy(), whole[0].numpy(), float(score))


def odds(values: np.ndarray | float) -> np.ndarray:
    """Turn probabilities into odds."""
    values = np.clip(values, 1e-5, 1 - 1e-5)
    return values / (1 - values)


JOINS = {
    "tiles alone": lambda looks: looks.tiles,
    **{
        f"share of the whole {share}": lambda looks, share=share: (1 - share) * looks.tiles + share * looks.whole
        for share in (0.1, 0.2, 0.3, 0.5)
    },
    **{
        f"log-odds, share of the whole {share}": lambda looks, share=share: (
            1 / (1 + odds(looks.tiles) ** (share - 1) * odds(looks.whole) ** -share)
        )
        for share in (0.2, 0.3, 0.5)
    },
    **{
        f"{weight} of the whole added": lambda looks, weight=weight: np.minimum(looks.tiles + weight * looks.whole, 1)
        for weight in (0.2, 0.4, 0.6)
    },
    "whole alone": lambda looks: looks.whole,
}
"""Name -> map of tiles and whole."""
SCORES = {
    "highest tile": lambda looks, _: looks.scores.max(),
    "mean of whole and highest tile": lambda looks, _: (looks.score + looks.scores.max()) / 2,
    "mean odds of the tiles": lambda looks, _: 1 - 1 / (1 + odds(looks.scores).mean()),
    "mean of whole and mean odds": lambda looks, _: (looks.score + 1 - 1 / (1 + odds(looks.scores).mean())) / 2,
    "maximum of the joined map": lambda _, joined: joined.max(),
    "mean of highest tile and that maximum": lambda looks, joined: (looks.scores.max() + joined.max()) / 2,
    "mean of whole, highest tile and that maximum": lambda looks, joined: (
        (looks.score + looks.scores.max() + joined.max()) / 3
    ),
    "mean of whole and that maximum": lambda looks, joined: (looks.score + joined.max()) / 2,
    "whole alone": lambda looks, _: looks.score,
}
"""Name -> image score."""


def choose(groups: dict[str, list[Large]], sides: list[int], overlaps: list[float]) -> None:
    """Print F1-max by side, overlap and join, and image AUROC and the share called defective at 0.5 by score."""
    pictures = [picture for group in groups.values() for picture in group]
    label = np.array([picture.mask.any() for picture in pictures])
    for side in sides:
        for overlap in overlaps:
            model = ClipSam(weights="lite", refine=False, tiles=side, tile_overlap=overlap).eval()
            looks = [look(model, picture) for picture in tqdm(pictures, desc=f"{side} px, {overlap}", leave=False)]
            count = np.mean([len(one.scores) for one in looks])
            print(f"\n### {side} px, overlap {overlap}: {count:.0f} tiles a picture\n")
            print(f"| F1-max | {' | '.join(groups)} | mean |\n|---|{'---|' * (len(groups) + 1)}")
            for name, join in JOINS.items():
                figures, start = [], 0
                for group in groups.values():
                    curve = Curve()
                    for picture, one in zip(group, looks[start : start + len(group)], strict=True):
                        curve.add(join(one), picture.mask)
                    start += len(group)
                    figures.append(curve.f1_max())
                print(row(name, [*figures, float(np.mean(figures))]), flush=True)
            print("\n| image score | AUROC | good above 0.5 | defective above 0.5 |\n|---|---|---|---|")
            for name, score in SCORES.items():
                values = np.array([score(one, JOINS["0.4 of the whole added"](one)) for one in looks])
                figures = [roc_auc_score(label, values), (values[~label] > 0.5).mean(), (values[label] > 0.5).mean()]
                print(row(name, figures), flush=True)


@torch.no_grad()
def measure(model: ClipSam, pictures: list[Large], class_name: str) -> list[float]:
    """Return F1-max of CLIP's map and of the whole method, image AUROC, and the shares of good and defective > 0.5."""
    clip, whole, scores = Curve(), Curve(), []
    model.model.set_class_name(class_name)
    for picture in tqdm(pictures, leave=False):
        image = tensor(picture.image)
        stages = model.model.stages(image if model.in_tiles else model.pre_processor(image).clamp(0, 1))
        clip.add(stages.anomaly_map[0].numpy(), picture.mask)
        whole.add(stages.fused_map[0].numpy(), picture.mask)
        scores.append(float(stages.score))
    label, values = np.array([picture.mask.any() for picture in pictures]), np.array(scores)
    defective = [float((values[label == kind] > 0.5).mean()) for kind in (False, True)]
    return [clip.f1_max(), whole.f1_max(), roc_auc_score(label, values), *defective]


def report(groups: dict[str, list[Large]], names: dict[str, str] | None = None) -> None:
    """Print what the method gives without tiles and with them, and the means over groups."""
    print("| | CLIP alone, F1-max | whole, F1-max | image AUROC | good above 0.5 | defective above 0.5 |")
    print("|---|---|---|---|---|---|")
    rows = {None: [], "auto": []}
    models = {tiles: ClipSam(weights="lite", tiles=tiles).eval() for tiles in rows}
    for name, pictures in groups.items():
        for tiles, model in models.items():
            rows[tiles].append(measure(model, pictures, (names or {}).get(name, "object")))
            print(row(f"{name}, {len(pictures)} pictures, tiles {tiles}", rows[tiles][-1]), flush=True)
    for tiles, figures in rows.items():
        print(row(f"mean, tiles {tiles}", np.mean(figures, axis=0)))


def read_real(mvtec: list[Path], magnetic_tile: Path | None) -> dict[str, list[Large]]:
    """Read real pictures at their own size."""
    groups = {folder.name: read_category(folder) for folder in mvtec}
    groups = {name: list(map(Large, part.images, part.masks)) for name, part in groups.items()}
    if magnetic_tile is not None:
        groups["magnetic tile"] = [Large(*pair) for pair in zip(*read_tiles(magnetic_tile), strict=True)]
    return groups


@torch.no_grad()
def draw_example(to: Path) -> None:
    """Draw a large never-trained surface, and what is found of its defects without tiles and with them."""
    rng, size, zoom, side = np.random.default_rng(6), (1200, 2400), 160, 230
    image, masks = draw_layers("leather", rng, size[1])[0][: size[0]], []
    for _ in range(3):
        image, mask = befall(image, np.ones(size, bool), rng)
        masks.append(mask)
    drawn = finish(image, rng)
    answers = []
    for tiles in (None, "auto"):
        model = ClipSam(weights="lite", class_name="leather", tiles=tiles).eval()
        answer = model(tensor(drawn))
        print(f"tiles {tiles}: score {float(answer.pred_score):.2f}, mask {float(answer.pred_mask.float().mean()):.5f}")
        answers.append((_enlarged(answer.anomaly_map, size), _enlarged(answer.pred_mask.float(), size)))
    (squeezed, _), (tiled, found) = answers
    picture, panels = Image.fromarray(drawn), {}
    marked = picture.copy()
    for number, mask in enumerate(masks, 1):
        rows, columns = (int(places.mean()) - zoom // 2 for places in np.nonzero(mask))
        top, left = (min(max(0, first), most - zoom) for first, most in zip((rows, columns), size, strict=True))
        at, corners = (slice(top, top + zoom), slice(left, left + zoom)), (left, top, left + zoom, top + zoom)
        ImageDraw.Draw(marked).rectangle(corners, outline=BOX, width=8)
        crop = picture.crop(corners).resize((side, side), Image.Resampling.BICUBIC)
        panels |= {
            f"{number}: 160 px of it": crop,
            f"{number}: map, without tiles": heat(crop, squeezed[at]),
            f"{number}: map, in tiles": heat(crop, tiled[at]),
            f"{number}: outline, in tiles": outline(crop, found[at], WHITE),
        }
    below = sheet(panels, 4)
    width = below.width - 28
    marked = marked.resize((width, width // 2), Image.Resampling.LANCZOS)
    whole = sheet({f"{size[1]} x {size[0]} px, three defects": marked}, 1)
    made = Image.new("RGB", (below.width, whole.height + below.height), WHITE)
    made.paste(whole, (0, 0))
    made.paste(below, (0, whole.height))
    made.quantize(256, Image.Quantize.FASTOCTREE).save(to, optimize=True)


def _enlarged(values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bring a map ``(1, H, W)`` to a picture's size."""
    return torch.nn.functional.interpolate(values[None], size, mode="bilinear")[0, 0]


def peak_memory(*, reset: bool = False) -> float:
    """Return the most memory that the process held since the last reset, in MB (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def cost(sizes: list[int], tiles: str | int, tile_batch: int, k_shot: int) -> None:
    """Print CPU time and memory for pictures of these widths and heights, compared with good parts of the first."""
    model = ClipSam(weights="lite", tiles=tiles, tile_batch=tile_batch, k_shot=k_shot).eval()
    print(f"{torch.get_num_threads()} threads, {tile_batch} tiles at once\n")
    if k_shot:
        parts = [
            tensor(finish(draw_layers("carpet", rng, max(sizes[:2]))[0], rng))[0]
            for rng in map(np.random.default_rng, range(1, k_shot + 1))
        ]
        start = time.process_time()
        model.set_references([part[:, : sizes[1], : sizes[0]] for part in parts])
        print(f"{time.process_time() - start:.1f} CPU seconds for {k_shot} good parts\n")
    model(torch.rand(1, 3, 400, 600))  # what the first picture costs more
    print("| pixels | tiles | CPU seconds | MB of the picture | MB beside it and the networks |\n|---|---|---|---|---|")
    surface = draw_layers("carpet", np.random.default_rng(0), 1024)[0]
    for width, height in zip(sizes[::2], sizes[1::2], strict=True):
        image = tensor(np.tile((surface * 255).astype(np.uint8), (height // 1024 + 1, width // 1024 + 1, 1)))
        image = image[..., :height, :width].contiguous()
        before, start = peak_memory(reset=True), time.process_time()
        model(image)
        seconds = time.process_time() - start
        print(f"| {width} x {height} | {len(model.model.grid(image))} | {seconds:.1f} | ", end="")
        print(f"{image.nbytes / 2**20:.0f} | {peak_memory() - before:.0f} |", flush=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("choose", "report", "references", "real", "cost", "example"))
    parser.add_argument("--photographs", type=Path, help="folder of the photographs; without it, drawn pictures alone")
    parser.add_argument("--per_group", type=int, default=6, help="pictures, or products, of each kind")
    parser.add_argument("--kinds", nargs="+", help="kinds of pictures; all that can be drawn if not given")
    parser.add_argument("--longest", type=int, default=3000, help="longest side of a picture, in pixels")
    parser.add_argument("--never_trained", action="store_true", help="report: categories that were never trained on")
    parser.add_argument("--k_shot", type=int, default=0, help="references, cost: good parts; of each product 4 at most")
    parser.add_argument("--sides", type=int, nargs="+", default=[192, 256, 384], help="choose: sides of tiles")
    parser.add_argument("--overlaps", type=float, nargs="+", default=[0.25], help="choose: overlaps")
    parser.add_argument("--mvtec", type=Path, nargs="*", default=[], help="real: categories as MVTec AD has them")
    parser.add_argument("--magnetic_tile", type=Path, help="real: folder of the magnetic tiles")
    parser.add_argument("--sizes", type=int, nargs="+", default=[3000, 2000], help="cost: width, height, width ...")
    parser.add_argument("--to", type=Path, default=Path("docs/large.png"), help="example: file to write")
    parser.add_argument("--tile_batch", type=int, default=4, help="cost: tiles at once")
    parser.add_argument("--tiles", default="auto", help="cost: side of tiles, or auto")
    args = parser.parse_args()
    if args.command == "example":
        draw_example(args.to)
        return
    if args.command == "cost":
        cost(args.sizes, int(args.tiles) if args.tiles.isdigit() else args.tiles, args.tile_batch, args.k_shot)
        return
    if args.command == "references":
        kinds = args.kinds or ["surface", "strip", "tray", *(["photograph"] if args.photographs else [])]
        compare_references(kinds, args.per_group, args.photographs, args.longest, args.k_shot or 4)
        return
    if args.command == "real":
        groups = read_real(args.mvtec, args.magnetic_tile)
        report(groups, {name: name for name in groups})
        return
    held_out = args.never_trained and args.command == "report"
    groups = draw_groups(args.per_group, args.photographs, args.longest, args.kinds, held_out=held_out)
    if args.command == "choose":
        choose(groups, args.sides, args.overlaps)
    else:
        report(groups)


if __name__ == "__main__":
    main()
