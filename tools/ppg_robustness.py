# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""See what PPG's rule for the extreme region costs when S_a has another calibration than the one it was chosen for.

S_a is replaced by 0.3 + 0.4 S_a, S_a squared, its square root, and a coarse noisy copy. None of the first three changes
the order of the scores, so what the whole method loses is the rule's fault. Training categories, the carried weights.

    python tools/ppg_robustness.py
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import torch
from ablation import defaults_of, draw_training_sets, mean, measure
from torch.nn import functional as F  # noqa: N812

from anomalib_clipsam import ClipSam
from anomalib_clipsam.method.cps import CascadedPrompts
from anomalib_clipsam.method.frame import frame_to_map
from anomalib_clipsam.method.fusion import Fusion
from anomalib_clipsam.method.ppg import PointPromptGenerator

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from ablation import Encoded

BINS = 256


def coarsened(anomaly_map: torch.Tensor) -> torch.Tensor:
    """Bring maps ``(B, H, W)`` to ViT-L/14's grid at 518 px, add noise of deviation 0.03, and bring them back."""
    grid = F.interpolate(anomaly_map.unsqueeze(1), (37, 37), mode="area")
    noise = torch.randn(grid.shape, generator=torch.Generator().manual_seed(0))
    grid = (grid + 0.03 * noise).clamp(0, 1)
    return F.interpolate(grid, anomaly_map.shape[-2:], mode="bilinear", align_corners=True).squeeze(1)


DISTORTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "S_a": lambda s: s,
    "0.3 + 0.4 S_a": lambda s: 0.3 + 0.4 * s,
    "S_a squared": lambda s: s**2,
    "root of S_a": lambda s: s**0.5,
    "37 x 37, noise": coarsened,
}


def otsu(anomaly_map: torch.Tensor) -> torch.Tensor:
    """Return each picture's own threshold ``(B, 1, 1)`` that parts its scores into two classes of least variance."""
    edges = torch.linspace(0, 1, BINS + 1)[1:]
    values = anomaly_map.flatten(1)
    counts = torch.stack([torch.histc(picture, BINS, 0, 1) for picture in values])  # (B, BINS)
    share = counts.cumsum(1) / values.shape[1]
    part = (counts * (edges - 0.5 / BINS)).cumsum(1) / values.shape[1]
    between = (part[:, -1:] * share - part) ** 2 / (share * (1 - share)).clamp(min=1e-9)
    return edges[between.argmax(1)].view(-1, 1, 1)


def best_threshold(maps: torch.Tensor, mask: np.ndarray) -> float:
    """Return the pixel threshold of the highest F1, as a validation pass with masks finds it."""
    truth, values = torch.from_numpy(mask).flatten(), maps.flatten()
    order = values.argsort(descending=True)
    hits = truth[order].cumsum(0)
    f1 = 2 * hits / (torch.arange(1, len(values) + 1) + truth.sum())
    return float(values[order[f1.argmax()]])


def good_threshold(maps: torch.Tensor, label: np.ndarray, share: float = 0.999) -> float:
    """Return the pixel threshold that lets a share of the good parts' pixels pass, without any mask."""
    values = maps[torch.from_numpy(~label)].flatten().sort().values
    return float(values[min(int(share * len(values)), len(values) - 1)])


class Ruled(PointPromptGenerator):
    """Point prompts with another extreme region.

    Args:
        rule (Callable[[torch.Tensor], torch.Tensor]): From maps ``(B, H, W)`` to the region ``(B, H, W)`` bool.
        **arguments: Of :class:`PointPromptGenerator`.
    """

    def __init__(self, rule: Callable[[torch.Tensor], torch.Tensor], **arguments: str | float) -> None:
        super().__init__(**arguments)
        self.rule = rule

    def extreme_region(self, anomaly_map: torch.Tensor) -> torch.Tensor:
        """Find M_apa by the rule."""
        return self.rule(anomaly_map)


def rules_of(defaults: dict, maps: torch.Tensor, encoded: Encoded) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Return the rules that are compared, those with a threshold calibrated on these maps."""
    today = PointPromptGenerator(min_score=defaults["min_score"], region_ratio=defaults["region_ratio"])
    labelled, unlabelled = best_threshold(maps, encoded.mask), good_threshold(maps, encoded.label)
    ratio = defaults["region_ratio"]

    def peak(s: torch.Tensor) -> torch.Tensor:
        return s.amax(dim=(1, 2), keepdim=True)

    def spread(s: torch.Tensor) -> torch.Tensor:
        median = s.flatten(1).median(dim=1).values.view(-1, 1, 1)
        return s >= median + ratio * (peak(s) - median)

    return {
        "today: floor and ratio": today.extreme_region,
        "Otsu": lambda s: s > otsu(s),
        "ratio between median and peak": lambda s: spread(s) & (s > 0),
        "threshold of masks": lambda s: s >= labelled,
        "threshold of masks, and that ratio": lambda s: (s >= labelled) & spread(s),
        "threshold of good parts": lambda s: s >= unlabelled,
        "threshold of good parts, and that ratio": lambda s: (s >= unlabelled) & spread(s),
    }


@torch.no_grad()
def run(model: ClipSam, encoded: Encoded, maps: torch.Tensor, ppg: PointPromptGenerator, defaults: dict) -> dict:
    """Run the method with these maps and this PPG, and measure the final maps."""
    cps = CascadedPrompts(model.model.sam, defaults["multimask"], defaults["box"], defaults["passes"])
    fusion = Fusion(defaults["fusion"], defaults["fusion_weight"])
    prompts = ppg(maps, encoded.features)
    output = cps(encoded.features, prompts, maps)
    logits = output.logits_3.squeeze(1)
    final = fusion(maps, frame_to_map(logits, tuple(maps.shape[-2:])), prompts.peak, output.iou)
    return {
        **measure(final, encoded),
        "asked": float(ppg.extreme_region(maps).flatten(1).any(1).float().mean()),
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per_category", type=int, default=8, help="pictures drawn of each training category")
    args = parser.parse_args()
    model = ClipSam(weights="lite").eval()
    defaults = defaults_of(model)
    names = ("num_positives", "num_negatives", "spacing", "interval", "kernel_size", "negatives")
    arguments = {"frame_size": model.model.sam.image_encoder.img_size, **{name: defaults[name] for name in names}}
    sets = draw_training_sets(model, args.per_category)
    print("| map | rule | F1-max | AP | AUROC | shown to SAM |\n|---|---|---|---|---|---|")
    for title, distort in DISTORTIONS.items():
        rows: dict[str, list[dict]] = {}
        for encoded in sets:
            maps = distort(encoded.anomaly_map)
            rows.setdefault("(the map alone)", []).append({**measure(maps, encoded), "asked": 0.0})
            for label, rule in rules_of(defaults, maps, encoded).items():
                rows.setdefault(label, []).append(run(model, encoded, maps, Ruled(rule, **arguments), defaults))
        for label, figures in rows.items():
            values = mean(figures)
            shown = " | ".join(f"{values[name]:.3f}" for name in ("F1-max", "AP", "AUROC"))
            print(f"| {title} | {label} | {shown} | {values['asked']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
