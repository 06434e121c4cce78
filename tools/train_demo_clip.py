# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Train the demo CLIP on drawn pictures, through the localizer that it is used with.

The text tower learns first, alone, to tell the states of the real prompt ensemble apart, about a category's name,
another name or a made-up word, so that the states are learnt and not the names; it stays as it is then. The image tower
learns from parts of the training categories, most of them with a defect, and from random scenes: first from crops,
which are cheap and whose defects are large, then from whole pictures. The never-trained categories are drawn for the
report of ``--evaluate`` only. Whole pictures come in pairs, the same part under the same light with and without its
defect. A run that was stopped goes on from its last checkpoint; ``--start`` begins from finished weights instead.

    python tools/train_demo_clip.py --steps 1950
    python tools/train_demo_clip.py --start anomalib_clipsam/demo/clip.safetensors --crop_steps 0 --steps 4500
    python tools/train_demo_clip.py --evaluate
"""

from __future__ import annotations

import argparse
import json
import math
import random
import string
import zlib
from copy import deepcopy
from pathlib import Path

import cv2
import numpy as np
import torch
from open_clip.pos_embed import get_2d_sincos_pos_embed
from open_clip.tokenizer import tokenize
from safetensors.torch import load_file, save_file
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from anomalib_clipsam.clip import DenseLocalizer, PromptEnsemble, build_clip
from anomalib_clipsam.clip.localizers.base import CLIP_MEAN, CLIP_STD
from anomalib_clipsam.demo.drawing import HELD_OUT_CATEGORIES, TRAINING_CATEGORIES, defects_of, draw_part
from anomalib_clipsam.demo.scenes import draw_scene

IMAGE_SIZE = 160
CROP_SIZE, CROP_BATCH, PAIRS, SCENES = 80, 24, 3, 2
"""Side and number of the crops of a step; pairs of parts and random scenes of a step on whole pictures."""
SCENE_SHARE = 0.3
"""Share of random scenes among the pictures that are cropped."""
OTHER_NAMES = ("object", "part", "product", "item", "surface", "component", "tile", "sample", "thing", "workpiece")
WEIGHTS = Path(__file__).parents[1] / "anomalib_clipsam" / "demo" / "clip.safetensors"


def resize(image: np.ndarray, mask: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Resize a picture and its mask to a square."""
    image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    return image, cv2.resize(mask.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA) > 0.5


def augment(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Turn, crop, recolour, relight, cover a border and blur: what is not the part's own says nothing."""
    turns = int(rng.integers(4))
    image, mask = np.rot90(image, turns), np.rot90(mask, turns)
    if rng.random() < 0.5:
        image, mask = image[:, ::-1], mask[:, ::-1]
    if rng.random() < 0.4:
        side = image.shape[0]
        crop = int(side * rng.uniform(0.55, 0.95))
        y, x = rng.integers(side - crop, size=2)
        image, mask = image[y : y + crop, x : x + crop], mask[y : y + crop, x : x + crop]
    values = image.astype(np.float32) / 255
    if rng.random() < 0.3:
        values = values[..., rng.permutation(3)]
    grey = values.mean(-1, keepdims=True)
    values = grey + (values - grey) * (0 if rng.random() < 0.2 else rng.uniform(0.3, 1.4))
    values = (values - 0.5) * rng.uniform(0.7, 1.25) + 0.5 + rng.uniform(-0.12, 0.12)
    if rng.random() < 0.4:
        values = values * uneven_light(rng, values.shape[0])[..., None]
    if rng.random() < 0.35:
        cover = border(rng, values.shape[0])
        color = rng.uniform(0, 0.3) if rng.random() < 0.6 else rng.uniform(0, 1, size=3)
        grains = 0.02 * rng.standard_normal(values.shape[:2], dtype=np.float32)[..., None]
        values = values + cover[..., None] * (color + grains - values)
        mask = mask & (cover < 0.5)
    if rng.random() < 0.2:
        values = cv2.GaussianBlur(np.ascontiguousarray(values), (0, 0), rng.uniform(0.4, 1.2))
    return np.clip(values * 255, 0, 255).astype(np.uint8), np.ascontiguousarray(mask)


def uneven_light(rng: np.random.Generator, size: int) -> np.ndarray:
    """Light ``(size, size)`` float32 that falls off to one side, and to the corners as behind a lens."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    angle = rng.uniform(0, 2 * math.pi)
    side = (x * math.cos(angle) + y * math.sin(angle)) * rng.uniform(0, 0.35)
    return (1 + side) * (1 - rng.uniform(0, 0.4) * (x * x + y * y) / 2)


def border(rng: np.random.Generator, size: int) -> np.ndarray:
    """Cover ``(size, size)`` float32 in [0, 1] of one to four sides, as where a part ends or a holder begins."""
    steps = np.arange(size, dtype=np.float32)
    cover = np.zeros((size, size), np.float32)
    softness = rng.uniform(0.5, 0.04 * size)
    for turns in rng.permutation(4)[: rng.integers(1, 5)]:
        edge = size * (rng.uniform(0.01, 0.15) + rng.uniform(-0.05, 0.05) * (steps / size - 0.5))
        band = 1 / (1 + np.exp(np.clip((steps[:, None] - edge) / softness, -30, 30)))
        cover = np.maximum(cover, np.rot90(band, turns))
    return cover * rng.uniform(0.6, 1)


class DrawnBatches(Dataset):
    """Batches by step: the same seed and step give the same batch, so that a resumed training goes on as it was."""

    def __init__(self, seed: int, steps: range, crop_steps: int) -> None:
        self.seed, self.steps, self.crop_steps = seed, steps, crop_steps

    def __len__(self) -> int:
        """Count the steps."""
        return len(self.steps)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Draw the batch of one step: images ``(B, 3, S, S)`` uint8 and masks ``(B, S, S)`` bool."""
        cv2.setNumThreads(1)
        step = self.steps[index]
        rng = np.random.default_rng((self.seed, step))
        pictures = self._draw_for_crops(rng) if step < self.crop_steps else self._draw_pairs(rng)
        images, masks = zip(*pictures, strict=True)
        return {
            "image": torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2),
            "mask": torch.from_numpy(np.stack(masks)),
            "sentence_seed": torch.tensor(int(rng.integers(2**31))),
        }

    @staticmethod
    def _draw_for_crops(rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
        """Draw pictures and cut three crops of each, two of them around the defect."""
        crops = []
        for _ in range(CROP_BATCH // 3):
            if rng.random() < SCENE_SHARE:
                scene = draw_scene(rng, IMAGE_SIZE)
                image, mask = scene.image, scene.defect_mask
            else:
                category = str(rng.choice(TRAINING_CATEGORIES))
                defect = str(rng.choice(defects_of(category))) if rng.random() < 0.75 else None
                image, mask = draw_part(category, rng, defect)
            image, mask = resize(*augment(image, mask, rng), IMAGE_SIZE)
            for number in range(3):
                part = crop(mask, rng, near_defect=number < 2)
                crops.append((image[part], mask[part]))
        return crops

    @staticmethod
    def _draw_pairs(rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
        """Draw parts with a defect, each followed by its flawless twin, and scenes."""
        pictures = []
        for _ in range(PAIRS):
            category = str(rng.choice(TRAINING_CATEGORIES))
            part_seed, augment_seed = rng.integers(2**63, size=2)
            for defect in (str(rng.choice(defects_of(category))), None):
                drawn = draw_part(category, np.random.default_rng(part_seed), defect)
                pictures.append(augment(*drawn, np.random.default_rng(augment_seed)))
        for _ in range(SCENES):
            scene = draw_scene(rng, IMAGE_SIZE)
            pictures.append(augment(scene.image, scene.defect_mask, rng))
        return [resize(image, mask, IMAGE_SIZE) for image, mask in pictures]


def crop(mask: np.ndarray, rng: np.random.Generator, *, near_defect: bool) -> tuple[slice, slice]:
    """Choose a crop, around a pixel of the defect if asked for and if there is one."""
    corner = rng.integers(0, IMAGE_SIZE - CROP_SIZE + 1, size=2)
    if near_defect and mask.any():
        pixels = np.argwhere(mask)
        corner = pixels[rng.integers(len(pixels))] - rng.integers(8, CROP_SIZE - 8, size=2)
        corner = np.clip(corner, 0, IMAGE_SIZE - CROP_SIZE)
    return tuple(slice(int(start), int(start) + CROP_SIZE) for start in corner)


@torch.no_grad()
def set_start_values(visual: torch.nn.Module, seed: int) -> None:
    """Begin where a small ViT learns fast; from open_clip's own start values this one had learnt nothing after minutes.

    Patches are whitened by their own statistics, positions are sines, and the attentions begin near the identity, its
    negative for values: a token then begins by comparing itself with its like (Trockman and Kolter, "Mimetic
    Initialization of Self-Attention Layers", https://arxiv.org/abs/2305.09828).
    """
    generator = torch.Generator().manual_seed(seed)
    batches = DrawnBatches(seed + 1, range(5), crop_steps=0)
    images = torch.cat([batches[i]["image"] for i in range(5)]).float() / 255
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    width, _, patch, _ = visual.conv1.weight.shape
    patches = F.unfold((images - mean) / std, patch, stride=patch).transpose(1, 2).flatten(0, 1)
    patches = patches - patches.mean(0)
    power, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    power, vectors = power.flip(0)[:width], vectors.flip(1)[:, :width]
    visual.conv1.weight.copy_((vectors / (power + 3e-3 * power.mean()).sqrt()).T.reshape(visual.conv1.weight.shape))
    position = get_2d_sincos_pos_embed(width, visual.grid_size[0], cls_token=True)
    visual.positional_embedding.copy_(torch.from_numpy(position).float() / 2)
    identity = torch.eye(width)

    def noise() -> torch.Tensor:
        return torch.randn(width, width, generator=generator) / width**0.5

    for block in visual.transformer.resblocks:
        attention = block.attn
        size = width // attention.num_heads
        for head in range(attention.num_heads):
            left, values, right = torch.linalg.svd(0.7 * identity + 0.7 * noise())
            root = values[:size].sqrt().unsqueeze(1)
            for offset, part in ((0, left.T[:size]), (width, right[:size])):
                attention.in_proj_weight[offset + head * size : offset + (head + 1) * size] = root * part
        left, values, right = torch.linalg.svd(0.4 * noise() - 0.4 * identity)
        attention.in_proj_weight[2 * width :] = values.sqrt().unsqueeze(1) * right
        attention.out_proj.weight.copy_(left * values.sqrt())


def train_text(clip: torch.nn.Module, seed: int, steps: int = 400) -> None:
    """Teach the text tower to tell the states apart, whatever the name, by two fixed directions at a right angle.

    Left to the image loss alone, the two texts fall together while the image tower sees nothing yet, and hold it up.
    """
    generator, chooser = torch.Generator().manual_seed(seed), random.Random(seed)
    targets = torch.linalg.qr(torch.randn(clip.text_projection.shape[1], 2, generator=generator))[0].T  # (2, C)
    names = [*OTHER_NAMES, *(category.replace("_", " ") for category in TRAINING_CATEGORIES)]
    tower = [p for name, p in clip.named_parameters() if not name.startswith("visual.")]
    optimizer = torch.optim.AdamW(tower, lr=2e-3, weight_decay=0.01)
    progress = tqdm(range(steps), desc="text", mininterval=10)
    for step in progress:
        name = chooser.choice(names)
        if chooser.random() < 0.5:
            name = "".join(chooser.choices(string.ascii_lowercase, k=chooser.randint(3, 8)))
        loss = torch.zeros(())
        for sentences, target in zip(PromptEnsemble().sentences(name), targets, strict=True):
            embeddings = clip.encode_text(tokenize(chooser.sample(sentences, 8)))
            loss = loss + 1 - (F.normalize(embeddings, dim=-1) @ target).mean()
        optimizer.param_groups[0]["lr"] = 2e-3 * rate(step, steps, 40)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tower, 1.0)
        optimizer.step()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    for parameter in tower:
        parameter.requires_grad_(requires_grad=False)
    clip.logit_scale.requires_grad_(requires_grad=True)


@torch.no_grad()
def sample_text(clip: torch.nn.Module, name: str, seed: int, per_state: int = 6) -> torch.Tensor:
    """Encode a few sentences per state to the directions ``(2, C)``."""
    chooser = random.Random(seed)
    directions = []
    for sentences in PromptEnsemble().sentences(name):
        embeddings = clip.encode_text(tokenize(chooser.sample(sentences, per_state)))
        directions.append(F.normalize(F.normalize(embeddings, dim=-1).mean(0), dim=-1))
    return torch.stack(directions)


def loss_of(localizer: DenseLocalizer, batch: dict[str, torch.Tensor], *, cropped: bool) -> dict[str, torch.Tensor]:
    """Cross-entropy of the pixels, Dice of the damaged pictures, and cross-entropy of the image score's parts.

    These are the global score and, in the place of the map's maximum, the mean of its 32 highest pixels, but on crops.
    """
    name = OTHER_NAMES[batch["sentence_seed"].item() % len(OTHER_NAMES)]
    localizer.text = sample_text(localizer.clip, name, batch["sentence_seed"].item())
    maps, score = localizer(batch["image"].float() / 255)
    target = batch["mask"].float()
    maps, score = maps.clamp(1e-4, 1 - 1e-4), score.clamp(1e-4, 1 - 1e-4)
    damaged = target.flatten(1).amax(1)
    share = target.mean().clamp(0.01, 0.99)
    weight = torch.where(target > 0, 0.5 / share, 0.5 / (1 - share)) if cropped else 1 + 4 * target
    overlap = 2 * (maps * target).flatten(1).sum(1) + 1
    dice = (1 - overlap / ((maps + target).flatten(1).sum(1) + 1)) * damaged
    image_loss = F.binary_cross_entropy(score, damaged)
    if not cropped:
        image_loss = image_loss + F.binary_cross_entropy(maps.flatten(1).topk(32).values.mean(1), damaged)
    return {
        "pixel": F.binary_cross_entropy(maps, target, weight=weight),
        "dice": 0.3 * dice.sum() / damaged.sum().clamp(min=1),
        "image": (0.2 if cropped else 0.8) * image_loss,
    }


def run_in_bfloat16(module: torch.nn.Module) -> None:
    """Let a module compute in bfloat16, with its parameters and what it returns to the residual stream in float32."""
    forward = module.forward

    def autocast_forward(*args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return forward(*args, **kwargs)

    module.forward = autocast_forward


def rate(step: int, steps: int, warmup: int = 150) -> float:
    """Share of the learning rate at a step: a linear rise, then a cosine down to a hundredth."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.01 + 0.99 * (1 + math.cos(math.pi * min(1, (step - warmup) / (steps - warmup)))) / 2


def draw_evaluation_set(categories: tuple[str, ...], per_category: int) -> dict[str, list[tuple]]:
    """Draw a fixed set: a third good images, the rest with defects in turn."""
    sets = {}
    for category in categories:
        rng = np.random.default_rng((7, zlib.crc32(category.encode())))
        kinds = defects_of(category)
        items = [draw_part(category, rng, None if i % 3 == 0 else kinds[i % len(kinds)]) for i in range(per_category)]
        sets[category] = [resize(image, mask, IMAGE_SIZE) for image, mask in items]
    return sets


@torch.no_grad()
def evaluate(localizer: DenseLocalizer, categories: tuple[str, ...], per_category: int = 24) -> dict[str, float]:
    """Pixel AUROC, AP and F1-max and image AUROC, each the mean over categories."""
    localizer.eval()
    rows = []
    for category, items in draw_evaluation_set(categories, per_category).items():
        localizer.class_name, localizer._text_of = None, {}  # noqa: SLF001  # the text tower has changed since
        localizer.set_class_name(category.replace("_", " "))
        maps, scores = localizer(torch.from_numpy(np.stack([image for image, _ in items])).permute(0, 3, 1, 2) / 255)
        scores = (scores + maps.flatten(1).amax(1)) / 2
        masks = np.stack([mask for _, mask in items])
        truth, values = masks[:, ::2, ::2].ravel(), maps[:, ::2, ::2].numpy().ravel()
        precision, recall, _ = precision_recall_curve(truth, values)
        rows.append(
            (
                roc_auc_score(truth, values),
                average_precision_score(truth, values),
                (2 * precision * recall / (precision + recall + 1e-9)).max(),
                roc_auc_score(masks.any((1, 2)), scores.numpy()),
            )
        )
    means = np.mean(rows, axis=0)
    return dict(zip(("pixel_auroc", "pixel_ap", "pixel_f1max", "image_auroc"), means.round(4).tolist(), strict=True))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crop_steps", type=int, default=1200, help="training steps on crops")
    parser.add_argument("--steps", type=int, default=1950, help="all steps; the learning rate falls to the last")
    parser.add_argument("--start", type=Path, help="finished weights to begin from")
    parser.add_argument("--bfloat16", action="store_true", help="run the blocks in bfloat16")
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--work", type=Path, default=Path(".demo_training/clip"), help="folder of the checkpoint and log"
    )
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    parser.add_argument("--evaluate", action="store_true", help="measure the weights at --output and stop")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    clip = build_clip("demo", quick_gelu=False)
    localizer = DenseLocalizer(clip, PromptEnsemble(), IMAGE_SIZE)
    if args.evaluate:
        clip.load_state_dict({key: value.float() for key, value in load_file(args.output).items()})
        print("training categories   ", evaluate(localizer, TRAINING_CATEGORIES))
        print("never-trained, a report", evaluate(localizer, HELD_OUT_CATEGORIES))
        return

    args.work.mkdir(parents=True, exist_ok=True)
    checkpoint, start = args.work / "checkpoint.pt", 0
    if args.start:
        clip.load_state_dict({key: value.float() for key, value in load_file(args.start).items()})
        for name, parameter in clip.named_parameters():
            parameter.requires_grad_(name.startswith("visual.") or name == "logit_scale")
    elif not checkpoint.is_file():
        train_text(clip, args.seed)
        set_start_values(clip.visual, args.seed)
    trained = [*clip.visual.parameters(), clip.logit_scale]
    decayed = [p for p in trained if p.ndim > 1]
    others = [p for p in trained if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
        lr=args.lr,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, args.steps))
    average = deepcopy(clip).requires_grad_(requires_grad=False)
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        clip.load_state_dict(state["clip"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        start = schedule.last_epoch = state["step"]  # the rate follows the step alone
        print(f"resumed at step {start}")

    def save(step: int) -> None:
        state = {
            "clip": clip.state_dict(),
            "average": average.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": step,
        }
        torch.save(state, checkpoint.with_suffix(".tmp"))
        checkpoint.with_suffix(".tmp").replace(checkpoint)
        half = {key: value.half().contiguous() for key, value in average.state_dict().items()}
        save_file(half, args.output.with_suffix(".tmp"))
        args.output.with_suffix(".tmp").chmod(0o644)  # safetensors makes it readable to its owner only
        args.output.with_suffix(".tmp").replace(args.output)

    if args.bfloat16:  # after the copy was made: it is evaluated as it will be used
        for block in clip.visual.transformer.resblocks:
            run_in_bfloat16(block)
    batches = DrawnBatches(args.seed, range(start, args.steps), args.crop_steps)
    crop_localizer = DenseLocalizer(clip, PromptEnsemble(), CROP_SIZE)
    clip.train()
    loader = DataLoader(batches, batch_size=None, num_workers=1, prefetch_factor=4)
    smooth: dict[str, float] = {}
    progress = tqdm(loader, total=args.steps, initial=start, mininterval=10, dynamic_ncols=True)
    for step, batch in enumerate(progress, start=start + 1):
        cropped = step <= args.crop_steps
        losses = loss_of(crop_localizer if cropped else localizer, batch, cropped=cropped)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(max=4.6052)  # 100, as CLIP does
            momentum = min(0.998, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(average.parameters()), list(clip.parameters()), 1 - momentum)
        for key, value in losses.items():
            smooth[key] = 0.98 * smooth.get(key, value.item()) + 0.02 * value.item()
        progress.set_postfix({key: f"{value:.3f}" for key, value in smooth.items()}, refresh=False)
        if step % 250 == 0 or step == args.steps:
            save(step)
        if step % 400 == 0 or step == args.steps:
            averaged = DenseLocalizer(average, PromptEnsemble(), IMAGE_SIZE)
            report = {"step": step, **evaluate(averaged, TRAINING_CATEGORIES[::2], 9)}
            print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
