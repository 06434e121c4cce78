# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Measure weights of the "lite" CLIP on what is kept for validation: drawn defects, and real ones by kind.

The map of the text alone, without SAM, at the size that the model has in use. Several folders of weights give a row of
each, and ``--mean`` the mean of their weights beside them.

    python tools/measure_lite.py --photographs PHOTOGRAPHS anomalib_clipsam/weights/carried .demo_training/lite_clip
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch
from photo_pairs import Photographs
from real_defects import KINDS, RealDefects
from safetensors.torch import load_file, save_file
from train_lite_clip import evaluate, validation_sets

from anomalib_clipsam.clip import PromptEnsemble
from anomalib_clipsam.clip.build import build_clip
from anomalib_clipsam.clip.localizers import PyramidLocalizer

IMAGE_SIZE, PAIRS, PICTURES = 320, 32, 40
FILES = ("lite_clip.safetensors", "lite_adapters.safetensors")
Sets = dict[str, tuple[np.ndarray, np.ndarray]]


def enlarge(images: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bring pictures ``(n, S, S, 3)`` and masks ``(n, S, S)`` to the model's size."""
    size = (IMAGE_SIZE, IMAGE_SIZE)
    return (
        np.stack([cv2.resize(image, size, interpolation=cv2.INTER_LINEAR) for image in images]),
        np.stack([cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0 for mask in masks]),
    )


def drawn_sets(folder: Path) -> Sets:
    """Draw the five validation sets, their first pairs."""
    sets = validation_sets(Photographs(folder, validation=True))
    return {name: enlarge(images[: 2 * PAIRS], masks[: 2 * PAIRS]) for name, (images, masks) in sets.items()}


def real_sets(folder: Path) -> Sets:
    """Read the real defects that are kept for validation, by kind, and the good pictures of the same kind."""
    real, sets = RealDefects(folder, validation=True), {}
    size = (IMAGE_SIZE, IMAGE_SIZE)
    for kind in KINDS:
        defective = real.defective[kind]
        picked = [defective[i] for i in np.linspace(0, len(defective) - 1, min(PICTURES, len(defective))).astype(int)]
        read = [marked.read() for marked in [*picked, *real.good[kind]]]
        images = [cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image, _ in read]
        masks = [cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0 for _, mask in read]
        sets[kind] = np.stack(images), np.stack(masks)
    return sets


def mean_of(folders: list[Path], share: float, output: Path) -> Path:
    """Write the mean of the weights of two folders, the second at a share."""
    output.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        first, second = (load_file(folder / name) for folder in folders)
        joined = {
            key: torch.lerp(value.float(), second[key].float(), share).half() if value.is_floating_point() else value
            for key, value in first.items()
        }
        save_file(joined, output / name)
        (output / name).chmod(0o644)  # safetensors makes it readable to its owner only
    return output


def load(folder: Path) -> PyramidLocalizer:
    """Build the localizer of a folder's weights."""
    clip = build_clip("lite", quick_gelu=False)
    clip.load_state_dict({key: value.float() for key, value in load_file(folder / FILES[0]).items()})
    learned = {key: value.float() for key, value in load_file(folder / FILES[1]).items()}
    localizer = PyramidLocalizer.build(PromptEnsemble(), IMAGE_SIZE, lambda: clip, lambda: learned)
    localizer.text = localizer.text_of("object")
    return localizer.eval()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="folders of weights")
    parser.add_argument("--photographs", type=Path, required=True, help="folder of the photographs")
    parser.add_argument("--mean", type=float, help="measure the mean of two folders too, the second at this share")
    parser.add_argument("--output", type=Path, default=Path(".demo_training/mean"), help="folder of that mean")
    args = parser.parse_args()
    folders = [*args.folders]
    if args.mean is not None:
        folders.append(mean_of(args.folders[:2], args.mean, args.output))
    groups = {"drawn": drawn_sets(args.photographs), "real": real_sets(args.photographs / "real")}
    for title, sets in groups.items():
        print(f"\n| {title}: F1-max / AP / image AUROC | {' | '.join(sets)} | mean |\n|{'---|' * (len(sets) + 2)}")
        for folder in folders:
            rows = [[row["f1"], row["ap"], row["image"]] for row in evaluate(load(folder), sets).values()]
            cells = [*rows, np.nanmean(rows, axis=0)]
            print(f"| {folder} | {' | '.join(' / '.join(f'{x:.3f}' for x in cell) for cell in cells)} |", flush=True)


if __name__ == "__main__":
    main()
