# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Measure the "lite" SAM on real defects that are kept for validation, prompted as in use: PPG on the model's own maps.

By kind: mean IoU of the third pass with the truth, share of the masks under a third of the true area and of those over
three times it, and pixel F1-max of the map alone and after the fusion. Only damaged pictures count for the masks; a
picture that SAM skips has an empty mask.

    python tools/measure_masks.py --photographs PHOTOGRAPHS --sam lite_sam.safetensors other_sam.safetensors
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from ablation import defaults_of, encode, measure, predict, segment
from measure_lite import FILES, real_sets
from safetensors.torch import load_file
from train_lite_clip import CARRIED

from anomalib_clipsam import ClipSam
from anomalib_clipsam.clip.localizers.pyramid import REFERENCE_PREFIX


def use_weights(model: ClipSam, clip: Path, sam: Path) -> None:
    """Load the weights of a folder of CLIP's files and of a file of SAM's."""
    localizer = model.model.localizer
    localizer.clip.load_state_dict(load_file(clip / FILES[0]))
    learned = load_file(clip / FILES[1])
    localizer.pyramid.load_state_dict({k: v for k, v in learned.items() if not k.startswith(REFERENCE_PREFIX)})
    model.model.sam.load_state_dict(load_file(sam))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=Path, required=True, help="folder of the photographs")
    parser.add_argument("--clip", type=Path, default=CARRIED, help="folder of CLIP's weights")
    parser.add_argument("--sam", type=Path, nargs="+", default=[CARRIED / "lite_sam.safetensors"])
    args = parser.parse_args()
    sets = real_sets(args.photographs / "real")
    for sam in args.sam:
        model = ClipSam(weights="lite").eval()
        use_weights(model, args.clip, sam)
        print(
            f"\n{sam}\n\n| | mean IoU | under a third | over three times | F1-max map | F1-max fused |\n|{'---|' * 6}"
        )
        rows = []
        for kind, (images, masks) in sets.items():
            encoded = encode(model, list(images), list(masks), "object")
            logits, peaks, _ = segment(model, encoded, defaults_of(model))
            found = (logits.numpy() > 0) & (peaks.numpy() > 0).reshape(-1, 1, 1)
            damaged = encoded.label
            found, real = found[damaged], encoded.mask[damaged]
            both, union = (found & real).sum((1, 2)), (found | real).sum((1, 2))
            ratio = found.sum((1, 2)) / real.sum((1, 2)).clip(1)
            fused = measure(predict(model, encoded, defaults_of(model)), encoded)["F1-max"]
            alone = measure(encoded.anomaly_map, encoded)["F1-max"]
            rows.append([(both / union.clip(1)).mean(), (ratio < 1 / 3).mean(), (ratio > 3).mean(), alone, fused])
            print(f"| {kind} | {' | '.join(f'{value:.3f}' for value in rows[-1])} |", flush=True)
        print(f"| mean | {' | '.join(f'{value:.3f}' for value in np.mean(rows, axis=0))} |", flush=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
