# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Train the small SAM that the package carries, on drawn pictures only.

    python tools/train_demo_sam.py --steps 3000
    python tools/train_demo_sam.py --encoder-from CLIP.safetensors --localizer CLIP.safetensors --parts-share 0.6
    python tools/train_demo_sam.py --evaluate

It is trained as SAM's paper does it, on the very cascade that ClipSam runs: points, then points with the own earlier
logits, then points with box and logits. Targets are defects and whole shapes, so that one click is ambiguous and
negative points matter. With ``--localizer``, some clicks are those that PPG makes of the demo CLIP's maps, so that SAM
learns to live with how these miss. A run that was stopped goes on from its last checkpoint: what step i sees depends
on the seed and i alone. ``--start`` begins from finished weights instead; with ``--encoder-from``, the encoder begins
as the image tower of a trained demo CLIP, which has seen far more pictures than there is time for here.

Letters: B images, P prompt sets of an image, N = B P, K points, M = 4 mask tokens, S side of the picture, s of the
logits.

Reference:
    Kirillov et al., "Segment Anything", https://arxiv.org/abs/2304.02643 (section "Training algorithm")
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import signal
import time
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F  # noqa: N812
from tqdm import tqdm

from anomalib_clipsam.clip import DenseLocalizer, Localizer, PromptEnsemble, build_clip
from anomalib_clipsam.clip.localizers.base import CLIP_MEAN, CLIP_STD
from anomalib_clipsam.demo.scenes import draw_scene
from anomalib_clipsam.ppg import PointPromptGenerator
from anomalib_clipsam.sam.build import build_sam
from anomalib_clipsam.sam.decoder import decode

SIZE = 192
LOGITS = SIZE // 2
PATCH = 8
MAX_POINTS = 5
ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "anomalib_clipsam" / "demo"


# ---------------------------------------------------------------------------------------------------- pictures
@dataclass(frozen=True)
class Picture:
    """A drawn picture with what can be asked for in it: ``(S, S, 3)`` uint8 and ``(S, S)`` bool masks."""

    image: np.ndarray
    defect_mask: np.ndarray
    shape_masks: tuple[np.ndarray, ...]


def has_drawn_parts() -> bool:
    """Whether the drawn parts are there (the scenes alone are enough to train)."""
    return importlib.util.find_spec("anomalib_clipsam.demo.drawing") is not None


def scene_picture(rng: np.random.Generator) -> Picture:
    """Draw a random scene that has something to ask for."""
    while True:
        scene = draw_scene(rng, SIZE)
        if scene.defect_mask.any() or scene.shape_masks:
            return Picture(scene.image, scene.defect_mask, scene.shape_masks)


def part_picture(rng: np.random.Generator, categories: tuple[str, ...], *, augment: bool) -> Picture:
    """Draw a part with a defect, turned, moved and scaled at random if ``augment``."""
    from anomalib_clipsam.demo.drawing import defects_of, draw_part_layers

    category = categories[int(rng.integers(len(categories)))]
    defects = tuple(defects_of(category))
    while True:
        part = draw_part_layers(category, rng, defects[int(rng.integers(len(defects)))])
        image, layers = part.image, [part.defect_mask, part.part_mask]
        side = image.shape[0]
        scale, angle, move = SIZE / side, 0.0, np.zeros(2)
        if augment:
            scale *= float(np.exp(rng.uniform(np.log(0.85), np.log(1.7))))
            angle, move = rng.uniform(0, 360), rng.uniform(-0.15, 0.15, 2) * SIZE
            if rng.random() < 0.5:
                image, layers = image[:, ::-1], [layer[:, ::-1] for layer in layers]
        turn = cv2.getRotationMatrix2D((side / 2, side / 2), angle, scale)
        turn[:, 2] += SIZE / 2 - side / 2 + move
        if scale < 0.9:
            image = cv2.GaussianBlur(image, (0, 0), 0.4 / scale)
        image = cv2.warpAffine(np.ascontiguousarray(image), turn, (SIZE, SIZE), borderMode=cv2.BORDER_REFLECT)
        border = {"borderMode": cv2.BORDER_REFLECT}
        defect, body = (
            cv2.warpAffine(np.ascontiguousarray(layer, dtype=np.float32), turn, (SIZE, SIZE), **border) > 0.5
            for layer in layers
        )
        if augment and rng.random() < 0.6:
            gain, bend = rng.uniform(0.7, 1.25, 3 if rng.random() < 0.4 else 1), np.exp(rng.uniform(-0.4, 0.4))
            image = (np.clip((image / 255.0) ** bend * gain, 0, 1) * 255).astype(np.uint8)
            if rng.random() < 0.2:
                image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        if defect.sum() >= 12:
            whole = body | defect
            return Picture(image, defect, (whole,) if 200 < whole.sum() < 0.97 * SIZE * SIZE else ())


# ---------------------------------------------------------------------------------------------------- prompts
def components(mask: np.ndarray) -> np.ndarray:
    """Number the pieces of a mask, ``(S, S)`` int from 1; pieces that nearly touch are one."""
    joined = cv2.dilate(mask.astype(np.uint8), np.ones((7, 7), np.uint8))
    return cv2.connectedComponents(joined, connectivity=8)[1] * mask


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


def draw_prompts(rng: np.random.Generator, picture: Picture) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Choose a target and draw clicks for it.

    Args:
        rng (np.random.Generator): Source of every choice.
        picture (Picture): What to ask for.

    Returns:
        tuple[np.ndarray, np.ndarray, np.ndarray]: Target ``(S, S)`` bool; points ``(2 MAX_POINTS, 2)``, x then y;
        labels ``(2 MAX_POINTS,)`` in {1, 0, -1}.
    """
    about_defect = picture.defect_mask.any() and (not picture.shape_masks or rng.random() < 0.66)
    number = int(np.searchsorted(np.cumsum((0.25, 0.18, 0.25, 0.16)), rng.random())) + 1
    if about_defect:
        pieces = components(picture.defect_mask)
        source = picture.defect_mask
        if pieces.max() > 1 and rng.random() < 0.5:
            flat = pieces[source]
            source = pieces == flat[int(rng.integers(len(flat)))]
    else:
        source = picture.shape_masks[int(rng.integers(len(picture.shape_masks)))]
    inside = source
    if rng.random() < 0.35:  # near the middle, as the peak of a smooth map is
        depth = cv2.distanceTransform(np.pad(source, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
        inside = depth >= rng.uniform(0.4, 0.95) * depth.max()
    positives = draw_points(rng, inside, number)
    if about_defect:
        x, y = positives.astype(int).T
        target = np.isin(pieces, np.unique(pieces[y, x])) & picture.defect_mask
    else:
        target = source
    if rng.random() < 0.35:  # a coarse map misses by some pixels
        shifted = positives + rng.normal(0, rng.uniform(1, 5), positives.shape)
        keep = rng.random(number) < 0.5
        keep[int(rng.integers(number))] = True
        positives = np.where(keep[:, None], positives, shifted)

    negatives = []
    wanted = 0 if rng.random() < 0.25 else int(rng.integers(1, MAX_POINTS + 1))
    if wanted:
        hosts = [mask for mask in picture.shape_masks if (mask & target).any()] if about_defect else []
        ring = ring_of(target, int(rng.integers(1, 4)), int(rng.integers(6, 24)))
        on_host = ring & hosts[0] if hosts else ring
        others = hosts[0] & ~target if hosts else ~target
        for _ in range(wanted):
            area = (ring, on_host, others, ~target)[int(np.searchsorted((0.35, 0.7, 0.88, 1.0), rng.random()))]
            if area.any():
                negatives.append(draw_points(rng, area, 1)[0])
    coords = np.zeros((2 * MAX_POINTS, 2), np.float32)
    labels = np.full(2 * MAX_POINTS, -1, np.int64)
    coords[:number], labels[:number] = np.clip(positives, 0, SIZE - 1), 1
    for index, point in enumerate(negatives):
        coords[number + index], labels[number + index] = point, 0
    return target, coords, labels


def regions_of(picture: Picture) -> np.ndarray:
    """Number of the region that fills a patch, ``(S / PATCH) ** 2`` int; -1 for patches with an edge in them."""
    label = np.zeros((SIZE, SIZE), np.int64)
    for index, mask in enumerate(picture.shape_masks):
        label[mask] = index + 1
    cells = label.reshape(SIZE // PATCH, PATCH, SIZE // PATCH, PATCH)
    lowest, highest = cells.min((1, 3)), cells.max((1, 3))
    region = np.where(lowest == highest, lowest, -1)
    share = picture.defect_mask.reshape(cells.shape).mean((1, 3))
    region[share > 0] = -1
    region[share > 0.5] = 100
    return region.ravel()


@dataclass
class Batch:
    """What one step sees.

    Args:
        images (torch.Tensor): ``(B, 3, S, S)``, grey levels.
        coords (torch.Tensor): ``(N, K, 2)``, x then y.
        labels (torch.Tensor): ``(N, K)``.
        targets (torch.Tensor): ``(N, s, s)`` in [0, 1], the share of each cell that the target covers.
        boxes (torch.Tensor): ``(N, 4)``, true box, jittered.
        regions (torch.Tensor): ``(B, h w)``.
        pieces (torch.Tensor): ``(B, S, S)``, number of the defect's piece at each pixel; 0 where there is none.
    """

    images: torch.Tensor
    coords: torch.Tensor
    labels: torch.Tensor
    targets: torch.Tensor
    boxes: torch.Tensor
    regions: torch.Tensor
    pieces: torch.Tensor


def draw_batch(seed: int, step: int, batch_size: int, prompts: int, parts_share: float) -> Batch:
    """Draw everything that one step sees; the same arguments give the same batch."""
    images, coords, labels, targets, boxes, regions, pieces = [], [], [], [], [], [], []
    categories: tuple[str, ...] = ()
    if parts_share > 0:
        from anomalib_clipsam.demo.drawing import TRAINING_CATEGORIES

        categories = tuple(TRAINING_CATEGORIES)
    for index in range(batch_size):
        rng = np.random.default_rng((seed, step, index))
        from_part = rng.random() < parts_share
        picture = part_picture(rng, categories, augment=True) if from_part else scene_picture(rng)
        images.append(torch.from_numpy(np.ascontiguousarray(picture.image)).permute(2, 0, 1))
        regions.append(torch.from_numpy(regions_of(picture)))
        pieces.append(torch.from_numpy(components(picture.defect_mask)))
        for _ in range(prompts):
            target, points, kinds = draw_prompts(rng, picture)
            coords.append(torch.from_numpy(points))
            labels.append(torch.from_numpy(kinds))
            small, box = small_and_box(target, rng)
            targets.append(small)
            boxes.append(box)
    return Batch(
        images=torch.stack(images).float(),
        coords=torch.stack(coords),
        labels=torch.stack(labels),
        targets=torch.stack(targets),
        boxes=torch.stack(boxes),
        regions=torch.stack(regions),
        pieces=torch.stack(pieces),
    )


def small_and_box(target: np.ndarray, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Shrink a target ``(S, S)`` to the logits' size ``(s, s)``, and put a jittered box ``(4,)`` around it."""
    small = cv2.resize(target.astype(np.float32), (LOGITS, LOGITS), interpolation=cv2.INTER_AREA)
    rows, columns = np.flatnonzero(target.any(1)), np.flatnonzero(target.any(0))
    box = np.array([columns[0], rows[0], columns[-1], rows[-1]], np.float32)
    extent = np.array([box[2] - box[0], box[3] - box[1]] * 2) + 1
    jitter = np.clip(rng.normal(0, 0.1, 4) * extent, -20, 20)
    return torch.from_numpy(small), torch.from_numpy(np.clip(box + jitter, 0, SIZE - 1).astype(np.float32))


@torch.no_grad()
def use_ppg(batch: Batch, features: torch.Tensor, localizer: Localizer, rng: np.random.Generator) -> float:
    """Put PPG's points in the place of the second half of each picture's prompts, where they meet a defect.

    Args:
        batch (Batch): Changed in place. The target becomes the pieces of the defect that the positive points meet.
        features (torch.Tensor): SAM's features ``(B, C, h, w)``.
        localizer (Localizer): Gives the maps.
        rng (np.random.Generator): Source of PPG's settings.

    Returns:
        float: Share of these prompts whose points met a defect.
    """
    maps, _ = localizer(batch.images / 255)
    prompts = len(batch.coords) // len(batch.images)
    met = 0
    for number in range(prompts // 2, prompts):
        generator = PointPromptGenerator(
            SIZE,
            min_score=0.3,
            region_ratio=float(rng.choice([0.5, 0.7, 0.9])),
            num_positives=int(rng.choice([1, 3, MAX_POINTS])),
            num_negatives=int(rng.choice([0, 3, MAX_POINTS])),
            interval=float(rng.choice([25, 50, 100])),
            kernel_size=int(rng.choice([25, 51, 101])),
        )
        points = generator(maps, features.float())
        for index, pieces in enumerate(batch.pieces.numpy()):
            # a coarse map misses by some pixels
            near = cv2.dilate(pieces.astype(np.float32), np.ones((7, 7), np.uint8))
            x, y = points.coords[index][points.labels[index] == 1].round().long().T.numpy()
            target = np.isin(pieces, np.setdiff1d(near[y, x], [0]))
            if not target.any():
                continue
            met += 1
            row, count = index * prompts + number, points.coords.shape[1]
            batch.coords[row], batch.labels[row] = 0, -1
            batch.coords[row, :count], batch.labels[row, :count] = points.coords[index], points.labels[index]
            batch.targets[row], batch.boxes[row] = small_and_box(target, rng)
    return met / (len(batch.images) * (prompts - prompts // 2))


# ---------------------------------------------------------------------------------------------------- losses
def mask_losses(logits: torch.Tensor, targets: torch.Tensor, balance: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and true IoU of every mask.

    Args:
        logits (torch.Tensor): ``(N, M, s, s)``.
        targets (torch.Tensor): ``(N, s, s)`` in [0, 1].
        balance (float): A target pixel weighs (background / target area) ** balance in the cross entropy. At 0 the
            smallest targets count so little that a fresh network answers with empty masks for a long time.

    Returns:
        tuple[torch.Tensor, torch.Tensor]: Cross entropy plus dice loss ``(N, M)``; IoU at logit 0 ``(N, M)``.
    """
    flat = logits.flatten(2)
    truth = targets.flatten(1).unsqueeze(1)  # (N, 1, s s)
    share = truth.mean(-1, keepdim=True).clamp(1e-3, 0.5)
    weight = truth * ((1 - share) / share) ** balance
    entropy = torch.einsum("nmp,nkp->nm", F.softplus(flat), 1 - truth + weight)
    entropy = (entropy - torch.einsum("nmp,nkp->nm", flat, weight)) / flat.shape[-1]
    probability = flat.sigmoid()
    overlap = torch.einsum("nmp,nkp->nm", probability, truth)
    dice = 1 - (2 * overlap + 1) / (probability.sum(-1) + truth.sum(-1) + 1)
    with torch.no_grad():
        found, real = (flat > 0).float(), (truth > 0.5).float()
        both = torch.einsum("nmp,nkp->nm", found, real)
        iou = both / (found.sum(-1) + real.sum(-1) - both).clamp(min=1)
    return 5 * entropy + dice, iou


def pass_loss(
    logits: torch.Tensor, predicted: torch.Tensor, targets: torch.Tensor, balance: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of one pass: token 0 always, the best of the other three, and the predicted IoU of all; IoU of token 0."""
    losses, iou = mask_losses(logits, targets, balance)
    mask = losses[:, 0] + losses[:, 1:].min(dim=1).values
    return mask.mean() + F.mse_loss(predicted, iou), iou[:, 0].mean()


def feature_loss(features: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    """Patches of one region should look alike to the encoder, patches of different ones not.

    PPG picks negative points by the cosine similarity of these features, and SAM's decoder finds edges more easily in
    them.
    """
    flat = F.normalize(features.flatten(2), dim=1)  # (B, C, h w)
    logits = 8 * torch.einsum("bcp,bcq->bpq", flat, flat) - 4
    valid = (regions >= 0).unsqueeze(2) & (regions >= 0).unsqueeze(1)
    same = regions.unsqueeze(2) == regions.unsqueeze(1)
    loss = logits.new_zeros(())
    for chosen, sign in ((valid & same, -1), (valid & ~same, 1)):
        weight = chosen.float()
        loss = loss + (F.softplus(sign * logits) * weight).sum() / weight.sum().clamp(min=1)
    # the few patches of a defect against their surroundings, or they drown in the rest
    defect = regions == 100
    weight = (defect.unsqueeze(2) & valid & ~same).float()
    return loss + (F.softplus(logits) * weight).sum() / weight.sum().clamp(min=1)


def boxes_of(logits: torch.Tensor, fallback: torch.Tensor) -> torch.Tensor:
    """Boxes ``(N, 4)`` around ``(N, 1, s, s)`` logits over 0, in pixels of the picture; ``fallback`` where empty."""
    mask = F.interpolate(logits, scale_factor=SIZE / logits.shape[-1], mode="bilinear", align_corners=False)[:, 0] > 0
    columns, rows = mask.any(1), mask.any(2)
    index = torch.arange(SIZE)
    box = torch.stack(
        [
            torch.where(columns, index, SIZE).amin(1),
            torch.where(rows, index, SIZE).amin(1),
            torch.where(columns, index, -1).amax(1),
            torch.where(rows, index, -1).amax(1),
        ],
        dim=1,
    ).float()
    return torch.where(mask.any(-1).any(-1)[:, None], box, fallback)


def chosen_mask(logits: torch.Tensor, predicted: torch.Tensor, multimask: torch.Tensor) -> torch.Tensor:
    """The mask that goes on ``(N, 1, s, s)``: token 0, or the token of highest predicted IoU where ``multimask``."""
    token = torch.where(multimask, predicted[:, 1:].argmax(1) + 1, 0)
    return logits[torch.arange(len(token)), token].unsqueeze(1).detach()


def batch_loss(
    sam,  # noqa: ANN001
    head: nn.Module,
    batch: Batch,
    generator: torch.Generator,
    *,
    passes: int = 3,
    balance: float = 0.0,
    localizer: Localizer | None = None,
    bfloat16: bool = False,
) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss of the cascade's first ``passes`` on a batch, with the figures to show."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        features = sam.image_encoder((batch.images - sam.pixel_mean) / sam.pixel_std)
    features = features.float()
    rng = np.random.default_rng(generator.initial_seed())
    met = 0.0 if localizer is None else use_ppg(batch, features, localizer, rng)
    # a random number of padding points: what they mean is learnt with the rest
    used = min(int((batch.labels != -1).sum(1).max()) + int(rng.integers(0, 3)), 2 * MAX_POINTS)
    coords, labels = batch.coords[:, :used], batch.labels[:, :used]
    number = len(batch.targets)
    repeated = features.repeat_interleave(number // len(features), dim=0)
    alike = feature_loss(features, batch.regions)
    # the defect at once from the features: it teaches the encoder faster than the decoder's masks do
    defect = F.avg_pool2d((batch.pieces > 0).float(), SIZE // LOGITS)  # (B, s, s)
    direct, _ = mask_losses(F.pixel_shuffle(head(features), LOGITS * PATCH // SIZE), defect, balance)
    loss = 0.3 * alike + direct.mean()
    figures = {"alike": alike.item(), "direct": direct.mean().item(), "met": met}
    mask, boxes = None, None
    for index in range(passes):
        if index == 2:
            drawn = torch.rand(number, 1, generator=generator) < 0.25
            boxes = torch.where(drawn, batch.boxes, boxes_of(mask, batch.boxes))
        logits, predicted = decode(sam, repeated, coords, labels, boxes, mask)
        part, iou = pass_loss(logits, predicted, batch.targets, balance)
        loss = loss + part
        figures |= {f"loss{index + 1}": part.item(), f"iou{index + 1}": iou.item()}
        multimask = torch.rand(number, generator=generator) < 0.5
        mask = chosen_mask(logits, predicted, multimask)
    return loss, figures


# ---------------------------------------------------------------------------------------------------- evaluation
@torch.inference_mode()
def cascade_iou(sam, pictures: list[Picture], targets: list[np.ndarray], inside: int, outside: int, *, multimask: bool):  # noqa: ANN001, ANN201
    """Mean IoU ``(3,)`` of the three passes with clicks drawn from the ground truth."""
    rng = np.random.default_rng(7)
    ious = []
    for start in range(0, len(pictures), 16):
        chunk, truth = pictures[start : start + 16], targets[start : start + 16]
        images = torch.stack([torch.from_numpy(np.ascontiguousarray(p.image)).permute(2, 0, 1) for p in chunk]).float()
        features = sam.image_encoder((images - sam.pixel_mean) / sam.pixel_std)
        points = []
        for target in truth:
            ring = ring_of(target, 2, 12)
            points.append(np.concatenate([draw_points(rng, target, inside), draw_points(rng, ring, outside)]))
        coords = torch.from_numpy(np.stack(points))
        labels = torch.tensor([1] * inside + [0] * outside).expand(len(chunk), -1)
        real = torch.from_numpy(np.stack(truth))
        mask, boxes, passes = None, None, []
        for index in range(3):
            if index == 2:
                boxes = boxes_of(mask, torch.tensor([0.0, 0, SIZE - 1, SIZE - 1]).expand(len(chunk), 4))
            logits, predicted = decode(sam, features, coords, labels, boxes, mask)
            mask = chosen_mask(logits, predicted, torch.full((len(chunk),), multimask))
            found = F.interpolate(mask, (SIZE, SIZE), mode="bilinear", align_corners=False)[:, 0] > 0
            union = (found | real).sum((1, 2)).clamp(min=1)
            passes.append((found & real).sum((1, 2)) / union)
        ious.append(torch.stack(passes, 1))
    return torch.cat(ious).mean(0).numpy()


def held_back(source: str, number: int) -> tuple[list[Picture], list[np.ndarray]]:
    """Fixed pictures that no training step sees, with the mask to ask for in each."""
    pictures, targets = [], []
    index = 0
    while len(pictures) < number:
        rng = np.random.default_rng((987_654_321, index))
        index += 1
        if source.startswith("scenes"):
            picture = scene_picture(rng)
            options = picture.shape_masks if source == "scenes, shapes" else (picture.defect_mask,)
        else:
            from anomalib_clipsam.demo.drawing import HELD_OUT_CATEGORIES, TRAINING_CATEGORIES

            categories = tuple(HELD_OUT_CATEGORIES if source == "held-out parts" else TRAINING_CATEGORIES)
            picture = part_picture(rng, (categories[index % len(categories)],), augment=False)
            options = (picture.defect_mask,)
        options = [mask for mask in options if mask.any() and ring_of(mask, 2, 12).any()]
        if options:
            pictures.append(picture)
            targets.append(options[0])
    return pictures, targets


def evaluate(sam, number: int) -> None:  # noqa: ANN001
    """Print the mean IoU of each pass for several kinds of pictures and numbers of clicks."""
    sources = ["scenes, defects", "scenes, shapes"]
    if has_drawn_parts():
        sources += ["training parts", "held-out parts"]
    print(f"mean IoU of passes 1, 2, 3 at {SIZE} px, {number} pictures each; clicks from the ground truth")
    print(f"{'pictures':18s} {'clicks in/out':14s} {'single mask':>20s} {'multimask':>20s}")
    for source in sources:
        pictures, targets = held_back(source, number)
        for inside, outside in ((3, 3), (3, 0), (1, 3), (1, 0)):
            rows = [cascade_iou(sam, pictures, targets, inside, outside, multimask=multi) for multi in (False, True)]
            text = "  ".join(f"{row[0]:6.3f} {row[1]:6.3f} {row[2]:6.3f}" for row in rows)
            print(f"{source:18s} {inside} / {outside}          {text}", flush=True)


# ---------------------------------------------------------------------------------------------------- training
def save_atomically(state: dict, path: Path) -> None:
    """Write a checkpoint so that a stop in the middle leaves the earlier one whole."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def export(sam, path: Path) -> None:  # noqa: ANN001
    """Write the weights in half precision, with segment_anything's keys."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file({name: value.half().contiguous() for name, value in sam.state_dict().items()}, temporary)
    temporary.chmod(0o644)  # safetensors makes it readable to its owner only
    temporary.replace(path)


@torch.no_grad()
def set_start_values(sam) -> None:  # noqa: ANN001
    """Make the fresh decoder look where the points are.

    With independent random projections it segments whatever stands out and needs hours to discover what a point means.
    If queries and keys of the attention between tokens and image start out alike and large, their product is the
    similarity of the two positions from the first step on, and a larger output lets the points be seen among the
    image's own content.
    """
    positions = sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix  # (2, C / 2)
    scales = torch.linspace(0, 1, positions.shape[1])[torch.randperm(positions.shape[1])]
    positions *= 0.7 * (4 / 0.7) ** scales  # from coarse to fine, so that small defects can be told apart
    positions.copy_(positions.half().float())  # it is never trained: train with what half precision will keep
    transformer = sam.mask_decoder.transformer
    attentions = [transformer.final_attn_token_to_image]
    for layer in transformer.layers:
        attentions += [layer.cross_attn_token_to_image, layer.cross_attn_image_to_token]
    for attention in attentions:
        attention.q_proj.weight *= 4
        attention.k_proj.weight.copy_(attention.q_proj.weight)
    for layer in transformer.layers:
        layer.cross_attn_image_to_token.out_proj.weight *= 4


def load_localizer(path: Path) -> DenseLocalizer:
    """The localizer of a trained demo CLIP, asked about a "part"."""
    clip = build_clip("demo", quick_gelu=False)
    clip.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    localizer = DenseLocalizer(clip, PromptEnsemble(), clip.visual.image_size[0]).requires_grad_(False)
    localizer.set_class_name("part")
    return localizer


@torch.no_grad()
def copy_encoder(sam, visual: nn.Module, seed: int) -> None:  # noqa: ANN001
    """Give SAM's encoder the weights of CLIP's image tower.

    Two things have no place in it and are made up for: CLIP's own normalisation of the image goes into the first
    layer; so does ``ln_pre``, with the mean deviation of the tokens of some pictures in the place of each token's own.
    What is left of the difference, the class token and the windows is for the training to mend.
    """
    encoder = sam.image_encoder
    images = draw_batch(seed, 0, 8, 1, 0.5).images / 255  # (8, 3, S, S)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    weight = visual.conv1.weight  # (D, 3, p, p)
    grid = SIZE // PATCH
    position = visual.positional_embedding[1:].T.unflatten(1, tuple(visual.grid_size)).unsqueeze(0)
    position = F.interpolate(position, (grid, grid), mode="bicubic", align_corners=False)  # (1, D, h, w)
    tokens = F.conv2d((images - mean) / std, weight, stride=PATCH) + position
    scale = (visual.ln_pre.weight / tokens.std(dim=1).mean()).view(-1, 1, 1)
    own_mean, own_std = sam.pixel_mean / 255, sam.pixel_std / 255
    shift = (weight * ((own_mean - mean) / std)).sum((1, 2, 3)).view(-1, 1, 1)
    weight = weight * (own_std / std)
    centred = [value - value.mean(axis, keepdim=True) for value, axis in ((weight, 0), (shift, 0), (position[0], 0))]
    encoder.patch_embed.proj.weight.copy_(centred[0] * scale.unsqueeze(-1))
    encoder.patch_embed.proj.bias.copy_((centred[1] * scale).flatten() + visual.ln_pre.bias)
    encoder.pos_embed.copy_((centred[2] * scale).permute(1, 2, 0).unsqueeze(0))
    for ours, theirs in zip(encoder.blocks, visual.transformer.resblocks, strict=True):
        for mine, its in (
            (ours.norm1, theirs.ln_1),
            (ours.norm2, theirs.ln_2),
            (ours.attn.proj, theirs.attn.out_proj),
            (ours.mlp.lin1, theirs.mlp.c_fc),
            (ours.mlp.lin2, theirs.mlp.c_proj),
        ):
            mine.load_state_dict(its.state_dict())
        ours.attn.qkv.weight.copy_(theirs.attn.in_proj_weight)
        ours.attn.qkv.bias.copy_(theirs.attn.in_proj_bias)


def learning_rate(progress: float, warmup: float, peak: float) -> float:
    """Linear warm-up, then a cosine to zero; ``progress`` and ``warmup`` are shares of the run."""
    if progress < warmup:
        return peak * max(progress, 1e-4) / warmup
    return peak * 0.5 * (1 + cos(pi * min(1.0, (progress - warmup) / (1 - warmup))))


def train(args: argparse.Namespace) -> None:
    """Train, or go on with a training that was stopped."""
    torch.manual_seed(args.seed)
    sam = build_sam("demo").train()
    set_start_values(sam)
    if args.start:
        start = {name: value.float() for name, value in load_file(args.start).items()}
        own = sam.state_dict()  # an encoder of another size begins anew
        sam.load_state_dict({n: v for n, v in start.items() if n in own and v.shape == own[n].shape}, strict=False)
    if args.encoder_from:
        copy_encoder(sam, load_localizer(args.encoder_from).clip.visual, args.seed)
    localizer = load_localizer(args.localizer) if args.localizer else None
    head = nn.Conv2d(sam.mask_decoder.transformer_dim, (LOGITS * PATCH // SIZE) ** 2, 1)
    average = copy.deepcopy(sam).eval().requires_grad_(False)
    trained = [*sam.parameters(), *head.parameters()]
    decayed = [p for p in trained if p.ndim >= 2 and p.shape[0] > 1]
    others = [p for p in trained if not (p.ndim >= 2 and p.shape[0] > 1)]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
        lr=args.lr,
        betas=(0.9, 0.99),
    )
    args.work_dir.mkdir(parents=True, exist_ok=True)
    path = args.work_dir / "sam.pt"
    step, spent = 0, 0.0
    if path.exists() and not args.restart:
        state = torch.load(path, weights_only=True)
        sam.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        head.load_state_dict(state["head"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent = state["step"], state["seconds"]
        print(f"goes on at step {step} after {spent / 60:.1f} minutes", flush=True)
    parts_share = args.parts_share if has_drawn_parts() else 0.0
    print(f"drawn parts: {parts_share:.0%} of the pictures", flush=True)

    stopped = False

    def stop(*_: object) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)

    def save() -> None:
        state = {"model": sam.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
        state["head"] = head.state_dict()
        save_atomically({**state, "step": step, "seconds": spent}, path)
        export(average, args.output)

    monitor = held_back("scenes, defects", 48)
    begin = last_save = time.monotonic()
    spent_before = spent
    shown: dict[str, float] = {}
    bar = tqdm(total=args.steps, initial=step, mininterval=15, dynamic_ncols=True)
    while not stopped:
        progress = max(step / args.steps, spent / (60 * args.minutes))
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(progress, args.warmup, args.lr)
        batch = draw_batch(args.seed, step, args.batch_size, args.prompts, parts_share)
        # the first pass alone teaches the encoder as much as all three, at two thirds of the cost
        early = max(0.0, 1 - progress / args.early) if args.early else 0.0
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        passes = 1 if step % (4 if early > 0 else 2) else 3
        loss, figures = batch_loss(
            sam,
            head,
            batch,
            generator,
            passes=passes,
            balance=min(0.5, early),
            localizer=localizer,
            bfloat16=args.bfloat16,
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        step += 1
        decay = min(0.997, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(sam.parameters()), 1 - decay)
        shown |= {k: v + 0.97 * (shown.get(k, v) - v) for k, v in figures.items()}
        bar.set_postfix({k: f"{v:.3f}" for k, v in shown.items()}, refresh=False)
        bar.update()
        spent = spent_before + time.monotonic() - begin
        if step % args.monitor_every == 0:
            ious = cascade_iou(average, *monitor, 3, 3, multimask=False)
            single = cascade_iou(average, *monitor, 1, 0, multimask=False)
            text = f"step {step}: held-back scenes, IoU with 3/3 clicks {ious.round(3)}, with 1/0 {single.round(3)}"
            tqdm.write(f"{text}, shown { ({k: round(v, 3) for k, v in shown.items()}) }", nolock=True)
        if time.monotonic() - last_save > 120:
            save()
            last_save = time.monotonic()
    bar.close()
    save()
    outcome = "stopped" if stopped else "done"
    print(f"{outcome} at step {step} after {spent / 60:.1f} minutes: {args.output}", flush=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=DEMO / "sam.safetensors")
    parser.add_argument("--work-dir", type=Path, default=ROOT / ".demo_training", help="checkpoint of the training")
    parser.add_argument("--steps", type=int, default=3000, help="length of the training; the learning rate follows it")
    parser.add_argument(
        "--minutes",
        type=float,
        default=float("inf"),
        help="at most so long; the learning rate follows whichever of --steps and --minutes is nearer to its end",
    )
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--prompts", type=int, default=4, help="prompt sets of each image")
    parser.add_argument("--parts-share", type=float, default=0.3, help="share of drawn parts among the pictures")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--warmup", type=float, default=0.03, help="share of the run")
    parser.add_argument(
        "--early",
        type=float,
        default=0.35,
        help="share of the run with three passes every fourth instead of every second step",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--monitor-every", type=int, default=200, help="steps between two looks at held-back scenes")
    parser.add_argument("--start", type=Path, help="finished weights to begin from")
    parser.add_argument("--encoder-from", type=Path, help="weights of a demo CLIP that the encoder begins as")
    parser.add_argument("--localizer", type=Path, help="weights of a demo CLIP whose maps give half of the prompts")
    parser.add_argument("--bfloat16", action="store_true", help="run the encoder in bfloat16")
    parser.add_argument("--restart", action="store_true", help="ignore the checkpoint")
    parser.add_argument("--evaluate", action="store_true", help="print the figures of --output instead of training")
    parser.add_argument("--pictures", type=int, default=96, help="pictures of each kind for --evaluate")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(1)
    if args.evaluate:
        sam = build_sam("demo")
        sam.load_state_dict({name: value.float() for name, value in load_file(args.output).items()})
        evaluate(sam, args.pictures)
    else:
        train(args)


if __name__ == "__main__":
    main()
