# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Choose PPG's, CPS's and the fusion's defaults on training categories, and report on never-trained ones.

The choice is a coordinate search: one argument after the other takes the option with the highest mean of pixel F1-max
and pixel AP, with the arguments before it at their choice and those after it at their start. CLIP's maps and SAM's
features are computed once per image. The report runs the final defaults, and the method with a part left out, on the
never-trained categories of ``DrawnParts``, and on a folder of magnetic tiles if one is given. Nothing is chosen on
these.

    python tools/ablation.py choose
    python tools/ablation.py gate         # images that SAM skips by the floor of the map
    python tools/ablation.py precision    # the error of bf16
    python tools/ablation.py report --magnetic_tile FOLDER
    python tools/ablation.py references --mvtec FOLDER/bottle --magnetic_tile FOLDER    # text, and text with references
"""

from __future__ import annotations

import argparse
import zlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score
from tqdm import tqdm

from anomalib_clipsam import ClipSam
from anomalib_clipsam.drawn_parts.datamodule import DrawnParts
from anomalib_clipsam.drawn_parts.drawing import HELD_OUT_CATEGORIES, TRAINING_CATEGORIES, defects_of, draw_part
from anomalib_clipsam.method.cps import CascadedPrompts
from anomalib_clipsam.method.frame import frame_to_map
from anomalib_clipsam.method.fusion import Fusion
from anomalib_clipsam.method.ppg import PointPromptGenerator

OPTIONS = {
    "min_score": (0.3, 0.4, 0.5, 0.6),
    "region_ratio": (0.5, 0.7, 0.9),
    "num_positives": (1, 3, 5),
    "interval": (25.0, 50.0, 100.0, 400.0),
    "num_negatives": (0, 3, 6),
    "kernel_size": (25, 51, 101),
    "negatives": ("least_similar", "most_similar"),
    "spacing": ("distance", "rank"),
    "multimask": (False, True),
    "box": ("mask", "component"),
    "fusion": ("cautious", "weighted", "gate", "mask"),
    "fusion_weight": (0.3, 0.5, 0.7, 0.9),
    "passes": (1, 2, 3),
}
START = {
    "min_score": 0.5,
    "region_ratio": 0.6,
    "fusion": "weighted",
    "fusion_weight": 0.5,
    "num_positives": 3,
    "interval": 50.0,
    "num_negatives": 3,
    "kernel_size": 51,
    "negatives": "least_similar",
    "spacing": "distance",
    "multimask": False,
    "box": "mask",
    "passes": 3,
}
THIN = ("good", "scratch", "crack", "cut")
"""Kinds of thin defects, and what they are told from."""
NOT_CHOSEN = {"passes"}  # the paper's cascade has three; the others are shown


@dataclass(frozen=True)
class Encoded:
    """One category: maps and masks ``(B, H, W)``, scores and labels ``(B,)``, features ``(B, C, h, w)``."""

    anomaly_map: torch.Tensor
    score: torch.Tensor
    features: torch.Tensor
    mask: np.ndarray
    label: np.ndarray


def defaults_of(model: ClipSam) -> dict:
    """Read off what PPG, CPS and the fusion are set to, by the names of :data:`START`."""
    ppg, cps, fusion = model.model.ppg, model.model.cps, model.model.fusion
    values = {**vars(ppg), **vars(cps), "fusion": fusion.mode, "fusion_weight": fusion.weight}
    return {name: values[name] for name in START}


@torch.no_grad()
def encode(
    model: ClipSam,
    images: list[np.ndarray],
    masks: list[np.ndarray],
    class_name: str,
    features: torch.Tensor | None = None,
) -> Encoded:
    """Run CLIP and SAM's encoder on RGB images ``(height, width, 3)`` of any size; SAM's features may be known."""
    model.model.set_class_name(class_name)
    squeezed = [model.pre_processor(torch.from_numpy(image.copy()).permute(2, 0, 1)[None] / 255) for image in images]
    chunks = torch.cat(squeezed).clamp(0, 1).split(8)
    if model.compares_batch:
        model.model.judge.begin(len(images))
        for step in model.model.judge.steps(model.model).values():
            for chunk in chunks:
                step(chunk)
        model.model.judge.judge()
    localized = [model.model.localize(chunk)[1] for chunk in chunks]
    anomaly_map, score = (torch.cat(values) for values in zip(*(answer[:2] for answer in localized), strict=True))
    size = tuple(anomaly_map.shape[:-3:-1])
    mask = np.stack([cv2.resize(m.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0 for m in masks])
    label = np.array([m.any() for m in masks])
    if features is None:
        features = torch.cat([model.model.encode(chunk) for chunk in chunks])
    return Encoded(anomaly_map, score, features, mask, label)


@torch.no_grad()
def segment(model: ClipSam, encoded: Encoded, arguments: dict) -> tuple[torch.Tensor, ...]:
    """Run PPG and CPS with these arguments, to L_3 at the map's size ``(B, H, W)``, peaks and IoUs ``(B,)``."""
    names = ("min_score", "region_ratio", "num_positives", "num_negatives", "spacing", "interval", "kernel_size")
    sam = model.model.sam
    ppg = PointPromptGenerator(
        sam.image_encoder.img_size, negatives=arguments["negatives"], **{name: arguments[name] for name in names}
    )
    cps = CascadedPrompts(sam, arguments["multimask"], arguments["box"], arguments["passes"])
    size = (encoded.anomaly_map.shape[-2], encoded.anomaly_map.shape[-1])
    logits, peaks, ious = [], [], []
    for anomaly_map, features in zip(encoded.anomaly_map.split(16), encoded.features.split(16), strict=True):
        prompts = ppg(anomaly_map, features)
        output = cps(features, prompts, anomaly_map)
        logits.append(frame_to_map(output.logits_3.squeeze(1), size))
        peaks.append(prompts.peak)
        ious.append(output.iou)
    return torch.cat(logits), torch.cat(peaks), torch.cat(ious)


def predict(model: ClipSam, encoded: Encoded, arguments: dict) -> torch.Tensor:
    """Run PPG, CPS and the fusion with these arguments, to final maps ``(B, H, W)``."""
    return Fusion(arguments["fusion"], arguments["fusion_weight"])(
        encoded.anomaly_map, *segment(model, encoded, arguments)
    )


def measure(maps: torch.Tensor, encoded: Encoded) -> dict[str, float]:
    """Pixel F1-max, AP and AUROC of the maps, and image AUROC of the scores, in one category."""
    truth, values = encoded.mask.ravel(), maps.numpy().ravel()
    precision, recall, _ = precision_recall_curve(truth, values)
    return {
        "F1-max": float((2 * precision * recall / np.maximum(precision + recall, 1e-9)).max()),
        "AP": float(average_precision_score(truth, values)),
        "AUROC": float(roc_auc_score(truth, values)),
        "image AUROC": float(roc_auc_score(encoded.label, encoded.score.numpy()))
        if len(set(encoded.label)) > 1
        else np.nan,
    }


def mean(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each figure over categories."""
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def row(label: str, figures: dict[str, float], mark: str = "") -> str:
    """Write a row of a Markdown table."""
    return f"| {label} | {' | '.join(f'{value:.3f}' for value in figures.values())} | {mark} |"


HEADER = "| | F1-max | AP | AUROC | image AUROC | |\n|---|---|---|---|---|---|"


def draw_training_sets(model: ClipSam, per_category: int) -> list[Encoded]:
    """Draw and encode parts of every training category, a quarter of them good."""
    sets = []
    for category in tqdm(TRAINING_CATEGORIES, desc="encode"):
        rng = np.random.default_rng((11, zlib.crc32(category.encode())))
        kinds = defects_of(category)
        drawn = [draw_part(category, rng, None if i % 4 == 0 else kinds[i % len(kinds)]) for i in range(per_category)]
        sets.append(encode(model, *zip(*drawn, strict=True), category.replace("_", " ")))
    return sets


def choose(model: ClipSam, per_category: int) -> None:
    """Print a table per argument, and the choice."""
    sets = draw_training_sets(model, per_category)
    segmented, known = {}, {}

    def figures(arguments: dict) -> dict[str, float]:
        prompting = tuple(value for name, value in arguments.items() if not name.startswith("fusion"))
        if prompting not in segmented:
            segmented.clear()
            segmented[prompting] = [segment(model, encoded, arguments) for encoded in sets]
        key = tuple(arguments.values())
        if key not in known:
            fusion = Fusion(arguments["fusion"], arguments["fusion_weight"])
            maps = [fusion(e.anomaly_map, *s) for e, s in zip(sets, segmented[prompting], strict=True)]
            known[key] = mean([measure(m, encoded) for m, encoded in zip(maps, sets, strict=True)])
        return known[key]

    print(f"{len(TRAINING_CATEGORIES)} training categories, {per_category} pictures each\n\n{HEADER}")
    print(row("CLIP map alone", mean([measure(encoded.anomaly_map, encoded) for encoded in sets])), flush=True)
    chosen = dict(START)
    for name, options in OPTIONS.items():
        if name == "fusion_weight" and chosen["fusion"] not in {"cautious", "weighted"}:
            continue
        results = {option: figures({**chosen, name: option}) for option in tqdm(options, desc=name, leave=False)}
        if name not in NOT_CHOSEN:
            chosen[name] = max(options, key=lambda option: results[option]["F1-max"] + results[option]["AP"])
        for option in options:
            print(row(f"`{name}={option}`", results[option], "chosen" if option == chosen[name] else ""), flush=True)
    print("\nchosen:", chosen)


def gate(model: ClipSam, per_category: int) -> None:
    """Print how many parts SAM skips by the floor ``min_score``, and what that costs."""
    sets = draw_training_sets(model, per_category)
    defaults = defaults_of(model)
    label = np.concatenate([encoded.label for encoded in sets])
    print("| `min_score` | good parts skipped | defective parts skipped | F1-max | AP |\n|---|---|---|---|---|")
    for floor in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        arguments = {**defaults, "min_score": floor}
        skipped = np.concatenate([(e.anomaly_map.flatten(1).amax(1) < floor).numpy() for e in sets])
        figures = mean([measure(predict(model, encoded, arguments), encoded) for encoded in sets])
        print(
            f"| {floor} | {skipped[~label].mean():.2f} | {skipped[label].mean():.2f} | {figures['F1-max']:.3f} | "
            f"{figures['AP']:.3f} |",
            flush=True,
        )


def compare_precisions(model: ClipSam, per_category: int) -> None:
    """Print how far the answers in bf16 are from those in float32."""
    defaults = defaults_of(model)
    sets, maps, figures = {}, {}, {}
    for precision in ("float32", "bf16"):
        model.model.precision = precision
        sets[precision] = draw_training_sets(model, per_category)
        maps[precision] = [predict(model, encoded, defaults) for encoded in sets[precision]]
        pairs = zip(maps[precision], sets[precision], strict=True)
        figures[precision] = mean([measure(final, encoded) for final, encoded in pairs])
    print(HEADER)
    for precision, values in figures.items():
        print(row(precision, values))
    exact, rounded = (torch.cat([encoded.anomaly_map for encoded in sets[p]]) for p in sets)
    final, other = (torch.cat(maps[p]) for p in sets)
    scores = torch.cat([e.score for e in sets["float32"]]) - torch.cat([e.score for e in sets["bf16"]])
    for name, error in (("CLIP map", exact - rounded), ("final map", final - other), ("image score", scores)):
        print(f"{name}: mean difference {error.abs().mean():.1e}, largest {error.abs().max():.1e}")


def read_tiles(folder: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Read the magnetic tiles: all images as one class, with their masks > 0."""
    images, masks = [], []
    for path in sorted(folder.glob("*/*.jpg")):
        image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        mask_path = folder / "masks" / path.parent.name / f"{path.stem}.png"
        mask = (
            cv2.imread(str(mask_path), cv2.IMREAD_GRAYSCALE)
            if mask_path.is_file()
            else np.zeros(image.shape[:2], np.uint8)
        )
        images.append(image)
        masks.append(mask > 0)
    return images, masks


def read_drawn(
    category: str, root: Path, kinds: tuple[str, ...] | None = None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Read the test pictures of a category of ``DrawnParts``, of some kinds alone; draw them first if need be."""
    data = DrawnParts(root=root, category=category)
    data.prepare_data()
    data.setup()
    items = [item for item in data.test_data if kinds is None or Path(item.image_path).parent.name in kinds]
    images = [(item.image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8) for item in items]
    return images, [item.gt_mask.squeeze().numpy().astype(bool) for item in items]


def report(model: ClipSam, root: Path, tiles: Path | None) -> None:
    """Print the final defaults, and the method with parts left out, on what was never trained on."""
    defaults = defaults_of(model)
    variants = {
        "whole (the defaults)": {},
        "without PPG's negatives": {"num_negatives": 0},
        "most similar negatives": {"negatives": "most_similar"},
        "one pass": {"passes": 1},
        "two passes": {"passes": 2},
        "one positive point": {"num_positives": 1},
    }
    groups = {
        "never-trained categories, mean": [(c.replace("_", " "), *read_drawn(c, root)) for c in HELD_OUT_CATEGORIES],
        "their good parts and those with a thin defect (scratch, crack, cut), mean": [
            (c.replace("_", " "), *read_drawn(c, root, THIN)) for c in HELD_OUT_CATEGORIES
        ],
    }
    if tiles is not None:
        groups["magnetic tiles"] = [("magnetic tile", *read_tiles(tiles))]
    print(f"defaults: {defaults}")
    for title, parts in groups.items():
        sets = {
            name: encode(model, images, masks, name) for name, images, masks in tqdm(parts, desc=title, leave=False)
        }
        print(f"\n### {title}, {sum(len(e.label) for e in sets.values())} pictures\n\n{HEADER}")
        print(row("CLIP map alone", mean([measure(e.anomaly_map, e) for e in sets.values()])))
        for label, changed in variants.items():
            results = {n: measure(predict(model, e, {**defaults, **changed}), e) for n, e in sets.items()}
            print(row(label, mean(list(results.values()))), flush=True)
            if not changed and len(results) > 1:
                for name, encoded in sets.items():
                    print(row(f"— {name}: CLIP map alone", measure(encoded.anomaly_map, encoded)))
                    print(row(f"— {name}: whole", results[name]))


@dataclass(frozen=True)
class Part:
    """A kind of part: name, test pictures with masks, and good parts for references, RGB ``(height, width, 3)``."""

    name: str
    images: list[np.ndarray]
    masks: list[np.ndarray]
    good: list[np.ndarray]


def read_category(folder: Path) -> Part:
    """Read a category in the layout of MVTec AD: ``train/good``, ``test/*`` and ``ground_truth/*/*_mask.png``."""
    images, masks = [], []
    for path in sorted(folder.glob("test/*/*.png")):
        images.append(read_rgb(path))
        mask_path = folder / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
        mask = cv2.imread(str(mask_path), cv2.IMREAD_GRAYSCALE) if mask_path.is_file() else None
        masks.append(np.zeros(images[-1].shape[:2], bool) if mask is None else mask > 0)
    return Part(folder.name, images, masks, [read_rgb(path) for path in sorted(folder.glob("train/good/*.png"))[:8]])


def read_rgb(path: Path) -> np.ndarray:
    """Read a picture as RGB ``(height, width, 3)``."""
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def drawn_part(category: str, root: Path) -> Part:
    """Read the test pictures of a category of ``DrawnParts``, and draw eight more good parts."""
    rng = np.random.default_rng((12, zlib.crc32(category.encode())))
    return Part(
        category.replace("_", " "), *read_drawn(category, root), [draw_part(category, rng)[0] for _ in range(8)]
    )


def tiles_part(folder: Path) -> Part:
    """Read the magnetic tiles: the first eight good ones are references, and are not tested."""
    images, masks = read_tiles(folder)
    good = [index for index, mask in enumerate(masks) if not mask.any()][:8]
    tested = [index for index in range(len(images)) if index not in good]
    picked = ([values[index] for index in tested] for values in (images, masks))
    return Part("magnetic tile", *picked, [images[index] for index in good])


def compare_references(weights: str, root: Path | None, mvtec: list[Path], tiles: Path | None) -> None:
    """Print text alone, the picture itself, good parts and the batch, without SAM and with it."""
    groups = {}
    if root is not None:
        groups["never-trained drawn categories, mean"] = [drawn_part(c, root) for c in HELD_OUT_CATEGORIES]
    groups |= {folder.name: [read_category(folder)] for folder in mvtec}
    if tiles is not None:
        groups["magnetic tiles"] = [tiles_part(tiles)]
    kinds = {kind: {"references": kind} for kind in ("none", "self")}
    kinds |= {f"{k} good": {"references": "none", "k_shot": k} for k in (1, 2, 4, 8)}
    kinds["batch"] = {"references": "batch"}
    for title, parts in groups.items():
        print(f"\n### {title}, {sum(len(part.images) for part in parts)} pictures\n\n{HEADER}")
        features: dict[str, torch.Tensor] = {}
        for label, arguments in kinds.items():
            model = ClipSam(weights=weights, **arguments).eval()
            defaults, figures = defaults_of(model), {"without SAM": [], "with SAM": []}
            for part in tqdm(parts, desc=label, leave=False):
                model.model.set_class_name(part.name)
                if model.k_shot:
                    good = [torch.from_numpy(image.copy()).permute(2, 0, 1)[None] / 255 for image in part.good]
                    model.set_references(
                        torch.cat([model.pre_processor(image) for image in good[: arguments["k_shot"]]])
                    )
                encoded = encode(model, part.images, part.masks, part.name, features.get(part.name))
                features[part.name] = encoded.features
                figures["without SAM"].append(measure(encoded.anomaly_map, encoded))
                figures["with SAM"].append(measure(predict(model, encoded, defaults), encoded))
            for sam, rows in figures.items():
                print(row(f"{label}, {sam}", mean(rows)), flush=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("choose", "gate", "precision", "report", "references"))
    parser.add_argument("--per_category", type=int, default=8, help="pictures drawn of each training category")
    parser.add_argument("--root", type=Path, default=Path("datasets/DrawnParts"), help="report: folder of DrawnParts")
    parser.add_argument("--magnetic_tile", type=Path, help="report, references: folder of the magnetic tiles")
    parser.add_argument("--mvtec", type=Path, nargs="*", default=[], help="references: categories as MVTec AD has them")
    parser.add_argument("--weights", default="lite", help="references: the pair of weights")
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.command == "references":
        compare_references(args.weights, args.root, args.mvtec, args.magnetic_tile)
        return
    model = ClipSam(weights="lite").eval()
    if args.command == "choose":
        choose(model, args.per_category)
    elif args.command == "gate":
        gate(model, args.per_category)
    elif args.command == "precision":
        compare_precisions(model, args.per_category)
    else:
        report(model, args.root, args.magnetic_tile)


if __name__ == "__main__":
    main()
