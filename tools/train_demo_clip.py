# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Train the demo CLIP on drawn pictures, through the localizer that it is used with.

Parts of the training categories and random scenes, half of the parts with a defect. Every step asks about the part by a
few sentences drawn from the real prompt ensemble, about the category's name, another name or a made-up word, so that
the states are learnt and not the names. The never-trained categories are drawn for the report of ``--evaluate`` only.

    python tools/train_demo_clip.py --steps 2400
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
from open_clip.tokenizer import tokenize
from safetensors.torch import load_file, save_file
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from anomalib_clipsam.clip import DenseLocalizer, PromptEnsemble, build_clip
from anomalib_clipsam.demo.drawing import HELD_OUT_CATEGORIES, TRAINING_CATEGORIES, defects_of, draw_part
from anomalib_clipsam.demo.scenes import draw_scene

IMAGE_SIZE = 160
OTHER_NAMES = ("object", "part", "product", "item", "surface", "component", "tile", "sample", "thing", "workpiece")
WEIGHTS = Path(__file__).parents[1] / "anomalib_clipsam" / "demo" / "clip.safetensors"


def resize(image: np.ndarray, mask: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Resize a picture and its mask to a square."""
    image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    return image, cv2.resize(mask.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA) > 0.5


def augment(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Turn, crop, recolour and blur, so that a part's colours and place say nothing."""
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
    if rng.random() < 0.2:
        values = cv2.GaussianBlur(np.ascontiguousarray(values), (0, 0), rng.uniform(0.4, 1.2))
    return np.clip(values * 255, 0, 255).astype(np.uint8), np.ascontiguousarray(mask)


class DrawnBatches(Dataset):
    """Batches by step: the same seed and step give the same batch, so that a resumed training goes on as it was."""

    def __init__(self, seed: int, steps: range, batch_size: int, scenes: float) -> None:
        self.seed, self.steps, self.batch_size, self.scenes = seed, steps, batch_size, scenes

    def __len__(self) -> int:
        """Count the steps."""
        return len(self.steps)

    def __getitem__(self, index: int) -> dict:
        """Draw the batch of one step."""
        rng = np.random.default_rng((self.seed, self.steps[index]))
        images, masks, is_part, names = [], [], [], []
        for _ in range(self.batch_size):
            if rng.random() < self.scenes:
                scene = draw_scene(rng, IMAGE_SIZE)
                image, mask = scene.image, scene.defect_mask
                is_part.append(0.0)
            else:
                category = str(rng.choice(TRAINING_CATEGORIES))
                defect = str(rng.choice(defects_of(category))) if rng.random() < 0.6 else None
                image, mask = draw_part(category, rng, defect)
                names.append(category.replace("_", " "))
                is_part.append(1.0)
            image, mask = augment(image, mask, rng)
            image, mask = resize(image, mask, IMAGE_SIZE)
            images.append(image)
            masks.append(mask)
        names += [
            str(rng.choice(OTHER_NAMES)),
            "".join(rng.choice(list(string.ascii_lowercase), int(rng.integers(3, 9)))),
        ]
        return {
            "image": torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2),
            "mask": torch.from_numpy(np.stack(masks)),
            "is_part": torch.tensor(is_part),
            "name": str(rng.choice(names)),
            "sentence_seed": int(rng.integers(2**31)),
        }


def sample_text(clip: torch.nn.Module, name: str, seed: int, per_state: int = 6) -> torch.Tensor:
    """Encode a few sentences per state to the directions ``(2, C)``, with gradients."""
    chooser = random.Random(seed)
    directions = []
    for sentences in PromptEnsemble().sentences(name):
        embeddings = clip.encode_text(tokenize(chooser.sample(sentences, per_state)))
        directions.append(F.normalize(F.normalize(embeddings, dim=-1).mean(0), dim=-1))
    return torch.stack(directions)


def loss_of(localizer: DenseLocalizer, batch: dict) -> dict[str, torch.Tensor]:
    """Pixel cross-entropy, weighted by focus, Dice, and the cross-entropy of the global score on parts."""
    localizer.text = sample_text(localizer.clip, batch["name"], batch["sentence_seed"])
    maps, score = localizer(batch["image"].float() / 255)
    target = batch["mask"].float()
    maps = maps.clamp(1e-5, 1 - 1e-5)
    entropy = F.binary_cross_entropy(maps, target, reduction="none")
    with torch.no_grad():
        focus = (maps - target).abs() ** 1.5 * torch.where(target > 0, 4.0, 1.0)
    pixel = (entropy * focus).sum() / focus.sum().clamp(min=1) + (entropy * (1 + 3 * target)).mean()
    damaged = target.flatten(1).amax(1)
    overlap = 2 * (maps * target).flatten(1).sum(1) + 1
    dice = 1 - overlap / ((maps + target).flatten(1).sum(1) + 1)
    dice = (dice * damaged).sum() / damaged.sum().clamp(min=1)
    image = F.binary_cross_entropy(score.clamp(1e-5, 1 - 1e-5), damaged, weight=batch["is_part"] * 0.97 + 0.03)
    return {"pixel": pixel, "dice": dice, "image": image}


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
    parser.add_argument(
        "--steps", type=int, default=2400, help="training steps; the learning rate falls to zero at the last"
    )
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument("--scenes", type=float, default=0.35, help="share of random scenes among the pictures")
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
    with torch.no_grad():
        clip.logit_scale.fill_(math.log(60))  # the two texts start close together
    localizer = DenseLocalizer(clip, PromptEnsemble(), IMAGE_SIZE)
    if args.evaluate:
        clip.load_state_dict({key: value.float() for key, value in load_file(args.output).items()})
        print("training categories   ", evaluate(localizer, TRAINING_CATEGORIES))
        print("never-trained, a report", evaluate(localizer, HELD_OUT_CATEGORIES))
        return

    decayed = [p for p in clip.parameters() if p.ndim > 1]
    others = [p for p in clip.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
        lr=args.lr,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, args.steps))
    average = deepcopy(clip).requires_grad_(requires_grad=False)
    args.work.mkdir(parents=True, exist_ok=True)
    checkpoint, start = args.work / "checkpoint.pt", 0
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
        args.output.with_suffix(".tmp").replace(args.output)

    batches = DrawnBatches(args.seed, range(start, args.steps), args.batch_size, args.scenes)
    loader = DataLoader(batches, batch_size=None, num_workers=1, prefetch_factor=4)
    smooth: dict[str, float] = {}
    progress = tqdm(loader, total=args.steps, initial=start, mininterval=10, dynamic_ncols=True)
    for step, batch in enumerate(progress, start=start + 1):
        localizer.train()
        losses = loss_of(localizer, batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
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
        if step % 1000 == 0 or step == args.steps:
            averaged = DenseLocalizer(average, PromptEnsemble(), IMAGE_SIZE)
            report = {"step": step, **evaluate(averaged, TRAINING_CATEGORIES, 12)}
            print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
