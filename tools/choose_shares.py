# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Choose how much the text says beside references, and SAM beside the map, on photographs that may be trained on.

Two kinds of parts, none of which the carried weights were trained on: a photograph, shifted, turned and lit a little
differently for every picture, half of them with a drawn-in defect; and paper with its real defects. The map of the text
and that of the reference are joined at several shares, without SAM. The text has learnt from such defects, so the
smallest share that is nearly as good as the best one is the one to take. Then the fusion's weight, with SAM, on the
parts made of photographs.

    python tools/choose_shares.py --photographs PHOTOGRAPHS
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch
from ablation import Part, defaults_of, encode, measure, read_rgb, segment
from photo_pairs import HELD_OUT_PAPERS, Photographs, _plain_ground, add_defect
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score
from torch import nn
from tqdm import tqdm

from anomalib_clipsam import ClipSam
from anomalib_clipsam.method.fusion import Fusion
from anomalib_clipsam.references.calibration import passing_threshold
from anomalib_clipsam.references.combination import Combination
from anomalib_clipsam.references.distances.features import peak_score

GOOD, TESTED = 4, 12
"""Good parts that are references, and pictures of a photograph that are tested."""
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
KINDS = {"4 good parts": {"k_shot": GOOD}, "batch": {"references": "batch"}}


class Recorder(nn.Module):
    """Stands in for the combination of text and reference, and keeps what it is given."""

    def __init__(self, combination: nn.Module) -> None:
        super().__init__()
        self.combination = combination
        self.seen: list[tuple[torch.Tensor, ...]] = []

    def forward(self, *given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep text map, text score and reference map; answer as the combination does."""
        self.seen.append(given)
        return self.combination(*given)


def shake(picture: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Move, turn and light a picture ``(S, S, 3)`` in [0, 1] a little, as from part to part; give it as uint8."""
    side = len(picture)
    move = cv2.getRotationMatrix2D((side / 2, side / 2), 2 * rng.normal(), 1 + 0.02 * rng.normal())
    move[:, 2] += 4 * rng.normal(size=2)
    moved = cv2.warpAffine(picture, move, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    moved = moved * (1 + 0.08 * rng.normal()) + 0.02 * rng.normal() + 0.01 * rng.standard_normal(moved.shape)
    mask = cv2.warpAffine(mask.astype(np.uint8), move, (side, side), flags=cv2.INTER_NEAREST) > 0
    return (np.clip(moved, 0, 1) * 255 + 0.5).astype(np.uint8), mask


def photographed_part(photographs: Photographs, number: int) -> Part:
    """Make a part of a photograph: of an object or, every second one, of a material."""
    rng = np.random.default_rng((77, number))
    picture = photographs.read("object" if number % 2 else "material", rng)
    none = np.zeros(picture.shape[:2], bool)
    ground, host = _plain_ground(picture) if number % 2 else (picture, ~none)
    good = [shake(picture, none, rng)[0] for _ in range(GOOD)]
    drawn = [
        add_defect(rng, picture, ground, host, photographs) if index % 2 else (picture, none) for index in range(TESTED)
    ]
    images, masks = zip(*(shake(*pair, rng) for pair in drawn), strict=True)
    return Part("object", list(images), list(masks), good)


def paper_part(folder: Path) -> Part:
    """Read a kind of paper: 8 good sheets as references, and up to 40 good and 40 defective ones to test."""
    good, defective = (sorted((folder / kind).iterdir()) for kind in ("good", "defect"))
    tested = [*good[8:48], *defective[:40]]
    images = [read_rgb(path) for path in tested]
    masks = [
        read_rgb(folder / "mask" / path.name)[..., 0] > 127
        if path.parent.name == "defect"
        else np.zeros(image.shape[:2], bool)
        for path, image in zip(tested, images, strict=True)
    ]
    return Part("paper", images, masks, [read_rgb(path) for path in good[:GOOD]])


def prepare(model: ClipSam, images: list[np.ndarray]) -> torch.Tensor:
    """Return RGB images as the model takes them, ``(B, 3, S, S)`` in [0, 1]."""
    whole = (torch.from_numpy(image.copy()).permute(2, 0, 1)[None] / 255 for image in images)
    return torch.cat([model.pre_processor(image).clamp(0, 1) for image in whole])


def build(part: Part, arguments: dict, *, refine: bool) -> ClipSam:
    """Build the model for a part, with its good parts where these are asked for."""
    model = ClipSam(weights="lite", refine=refine, **arguments).eval()
    model.model.set_class_name(part.name)
    if model.k_shot:
        model.set_references(prepare(model, part.good))
    return model


@torch.no_grad()
def record(part: Part, arguments: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, np.ndarray]:
    """Return text maps ``(B, H, W)``, text scores ``(B,)``, reference maps ``(B, H, W)`` and masks ``(B, H, W)``."""
    model = build(part, arguments, refine=False)
    judge = model.model.judge
    recorder = judge.combination = Recorder(judge.combination)
    model.model.localize(prepare(model, part.images))  # as one batch
    text_map, text_score, reference_map = recorder.seen[-1]
    size = tuple(text_map.shape[:-3:-1])
    masks = [cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0 for mask in part.masks]
    return text_map, text_score, reference_map, np.stack(masks)


def measure_share(share: float, recorded: tuple) -> tuple[float, float, float]:
    """Return pixel F1-max, pixel AP and image AUROC at a share of the text in map and score."""
    text_map, text_score, reference_map, masks = recorded
    values, truth = torch.lerp(reference_map, text_map, share)[:, ::2, ::2].numpy().ravel(), masks[:, ::2, ::2].ravel()
    precision, recall, _ = precision_recall_curve(truth, values)
    score = torch.lerp(peak_score(reference_map), text_score, share)
    return (
        (2 * precision * recall / np.maximum(precision + recall, 1e-9)).max(),
        average_precision_score(truth, values),
        roc_auc_score(masks.any((1, 2)), score.numpy()),
    )


def measure_thresholds(part: Part) -> dict[str, tuple[float, float, float]]:
    """Return shares of defective and good pictures called defective, and their pixel F1, by thresholds of a batch."""
    text_map, text_score, reference_map, masks = record(part, KINDS["batch"])
    combination = Combination()
    maps, scores = combination(text_map, text_score, reference_map)
    truth, peaks = masks.any((1, 2)), maps.flatten(1).amax(dim=1)
    figures = {}
    for name, image, pixel in (
        ("0.5", 0.5, 0.5),
        ("what 90 % do not exceed", passing_threshold(scores, 0.9), passing_threshold(peaks, 0.9)),
    ):
        found = (scores > image).numpy()
        shown = (maps > pixel).numpy() & found[:, None, None]
        f1 = 2 * (shown & masks).sum() / max(1, shown.sum() + masks.sum())
        figures[name] = tuple(float(v) for v in (found[truth].sum() / max(1, truth.sum()), found[~truth].mean(), f1))
    return figures


def compare_thresholds(parts: list[Part]) -> None:
    """Print what thresholds of a batch find where half of the pictures are defective, one is, and none is."""
    rows: dict[str, list[str]] = {}
    for defective in (None, 1, 0):
        figures: dict[str, list[tuple[float, float, float]]] = {}
        for part in tqdm(parts, leave=False):
            good = [index for index, mask in enumerate(part.masks) if not mask.any()]
            bad = [index for index, mask in enumerate(part.masks) if mask.any()]
            tested = [*good, *bad[:defective]]
            more = [] if defective is None else part.good
            images = [*(part.images[index] for index in tested), *more]
            masks = [*(part.masks[index] for index in tested), *(part.masks[good[0]] for _ in more)]
            for name, found in measure_thresholds(Part(part.name, images, masks, [])).items():
                figures.setdefault(name, []).append(found)
        for name, found in figures.items():
            rows.setdefault(name, []).append(" / ".join(f"{value:.2f}" for value in np.mean(found, axis=0)))
    print("Thresholds of a batch; defective found / good called defective / pixel F1\n")
    print("| | half defective | one | none |\n|---|---|---|---|")
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |")


def measure_weights(parts: list[Part], arguments: dict) -> dict[float, np.ndarray]:
    """Return mean pixel F1-max and AP of the final map at each of the fusion's weights; 0 is the map alone."""
    figures = {weight: [] for weight in WEIGHTS}
    for part in tqdm(parts, leave=False):
        model = build(part, arguments, refine=True)
        encoded = encode(model, part.images, part.masks, part.name)
        segmented = segment(model, encoded, defaults_of(model))
        for weight, rows in figures.items():
            found = measure(Fusion("cautious", weight)(encoded.anomaly_map, *segmented), encoded)
            rows.append((found["F1-max"], found["AP"]))
    return {weight: np.mean(rows, axis=0) for weight, rows in figures.items()}


def write_row(label: float, figures: list[np.ndarray]) -> str:
    """Write a row of a Markdown table."""
    return f"| {label} | {' | '.join(' / '.join(f'{value:.3f}' for value in cell) for cell in figures)} |"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, required=True, help="folder of the photographs")
    parser.add_argument("--parts", type=int, default=14, help="parts that are made of photographs")
    parser.add_argument("--thresholds", action="store_true", help="compare thresholds of a batch instead")
    args = parser.parse_args()
    kept = Photographs(args.photographs, validation=True)
    if args.thresholds:
        compare_thresholds([photographed_part(kept, number) for number in range(args.parts)])
        return
    sets = {
        "photographs": [photographed_part(kept, number) for number in range(args.parts)],
        "paper": [paper_part(args.photographs / "paper" / name) for name in HELD_OUT_PAPERS],
    }
    columns = {
        f"{name}, {kind}": [record(part, arguments) for part in tqdm(parts, desc=f"{name}, {kind}", leave=False)]
        for name, parts in sets.items()
        for kind, arguments in KINDS.items()
    }
    print("Share of the text; F1-max / AP / image AUROC\n")
    print(f"| share | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for share in SHARES:
        print(write_row(share, [np.mean([measure_share(share, part) for part in c], axis=0) for c in columns.values()]))
    print("\nWeight of the mask in the cautious fusion; F1-max / AP\n")
    print("| weight | photographs, text alone | photographs, 4 good parts |\n|---|---|---|", flush=True)
    columns = [measure_weights(sets["photographs"], arguments) for arguments in ({}, {"k_shot": GOOD})]
    for weight in WEIGHTS:
        print(write_row(weight, [column[weight] for column in columns]))


if __name__ == "__main__":
    main()
