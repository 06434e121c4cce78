# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Choose how verdicts and outlines are decided, on photographs that may be trained on.

A set has 12 good pictures to draw references from, 16 good and 16 defective ones to test: photographs made into parts
by small moves, with drawn-in defects, and real defects on real surfaces and papers, split by source picture. Networks
run once per picture; rules are tried on what they said, with many draws of good parts.

    python tools/verdicts_ablation.py cache --photographs PHOTOGRAPHS --cache CACHE
    python tools/verdicts_ablation.py text --cache CACHE      # how the text counts: F1-max of the map, image AUROC
    python tools/verdicts_ablation.py pixels --cache CACHE    # pixel threshold and halo: F1 of the outlines
    python tools/verdicts_ablation.py images --cache CACHE    # image threshold: missed and false alarms
    python tools/verdicts_ablation.py sam --cache CACHE       # fusion: F1-max and F1 at the threshold
"""

from __future__ import annotations

import argparse
import csv
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from ablation import read_rgb
from choose_shares import shake
from photo_pairs import HELD_OUT_PAPERS, Photographs, _plain_ground, add_defect
from torch.nn import functional as F  # noqa: N812
from torchvision.transforms.v2.functional import gaussian_blur
from tqdm import tqdm

from anomalib_clipsam import ClipSam
from anomalib_clipsam.method.frame import frame_to_map
from anomalib_clipsam.method.fusion import Fusion
from anomalib_clipsam.references.bounds import image_level, pixel_level, recentre, suppress_halo
from anomalib_clipsam.references.distances.features import join_taps, patches_of, peak_score

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

POOL, TESTED, DRAWS = 12, 16, 4
PHOTOGRAPHS = 14
REAL = ("asphalt_crack_sut", "coffee_leaf", "deep_pcb", "fabric_tears_stains", "road_potholes", "weld_surface")
SIDE = 128
"""Side of the maps that rules are tried on, in pixels."""


@dataclass(frozen=True)
class Pictures:
    """Good pictures to draw references from, good and defective ones to test, and the latter's masks."""

    pool: list[np.ndarray]
    good: list[np.ndarray]
    bad: list[np.ndarray]
    masks: list[np.ndarray]


def from_photograph(kept: Photographs, number: int) -> Pictures:
    """Make a part of a photograph: of an object or, every second one, of a material."""
    rng = np.random.default_rng((91, number))
    picture = kept.read("object" if number % 2 else "material", rng)
    none = np.zeros(picture.shape[:2], bool)
    ground, host = _plain_ground(picture) if number % 2 else (picture, ~none)
    pool, good = ([shake(picture, none, rng)[0] for _ in range(count)] for count in (POOL, TESTED))
    damaged = [add_defect(rng, picture, ground, host, kept) for _ in range(TESTED)]
    bad, masks = zip(*(shake(*pair, rng) for pair in damaged), strict=True)
    return Pictures(pool, good, list(bad), list(masks))


def from_folder(folder: Path, source_of: Callable[[Path], str]) -> Pictures:
    """Read pictures of a folder with ``good``, ``defect`` and ``mask``: one of each source."""
    rng = np.random.default_rng(zlib.crc32(folder.name.encode()))

    def pick(kind: str) -> list[Path]:
        files = sorted((folder / kind).iterdir())
        sources = {source_of(files[place]): files[place] for place in rng.permutation(len(files))}
        return list(sources.values())

    good, bad = [read_rgb(path) for path in pick("good")], pick("defect")[:TESTED]
    masks = [next(iter((folder / "mask").glob(f"{path.stem.replace('_D_', '_*_')}.*"))) for path in bad]
    read = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 127 for path in masks]
    return Pictures(good[:POOL], good[POOL : POOL + TESTED], [read_rgb(path) for path in bad], read)


def all_sets(folder: Path) -> Iterator[tuple[str, Callable[[], Pictures]]]:
    """Name the sets, and how each is made."""
    kept = Photographs(folder, validation=True)
    for number in range(PHOTOGRAPHS):
        yield f"photo{number:02d}", lambda number=number: from_photograph(kept, number)
    with (folder / "real" / "MANIFEST.csv").open() as file:
        sources = {row["file"]: row["path"] for row in csv.DictReader(file)}
    for name in REAL:
        source_of = lambda path: sources.get(path.relative_to(folder / "real").as_posix(), path.name)  # noqa: E731
        yield f"real_{name}", lambda name=name, source_of=source_of: from_folder(folder / "real" / name, source_of)
    for name in HELD_OUT_PAPERS:
        yield f"paper_{name}", lambda name=name: from_folder(folder / "paper" / name, lambda path: path.name)


@torch.no_grad()
def cache(folder: Path, to: Path) -> None:
    """Run the networks, and keep what they say of each picture."""
    model = ClipSam(weights="lite", references="self").eval()
    to.mkdir(parents=True, exist_ok=True)
    for name, make in tqdm(list(all_sets(folder))):
        if (to / f"{name}.npz").exists():
            continue
        pictures, kept = make(), {}
        for group in ("pool", "good", "bad"):
            whole = [torch.from_numpy(p.copy()).permute(2, 0, 1)[None] / 255 for p in getattr(pictures, group)]
            shown = torch.cat([model.pre_processor(picture) for picture in whole]).clamp(0, 1)
            views = [model.model.view(chunk) for chunk in shown.split(8)]
            patches = [patches_of(join_taps(tuple(tap.float() for tap in view.taps))[0]) for view in views]
            kept[f"{group}_text"] = torch.cat([view.map for view in views]).half().numpy()
            kept[f"{group}_score"] = torch.cat([view.score for view in views]).numpy()
            kept[f"{group}_sam"] = torch.cat([model.model.encode(chunk) for chunk in shown.split(8)]).half().numpy()
            kept[group] = torch.cat(patches)
        pool = kept["pool"]
        for group in ("pool", "good", "bad"):  # of each patch, the most similar one of each good part
            near = [[(one @ part.T).amax(dim=1) for part in pool] for one in kept.pop(group)]
            kept[f"{group}_near"] = torch.stack([torch.stack(parts) for parts in near]).half().numpy()
        size = kept["bad_text"].shape[:-3:-1]
        kept["mask"] = np.stack(
            [cv2.resize(m.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0 for m in pictures.masks]
        )
        np.savez(to / f"{name}.npz", **kept)


def to_map(similarity: np.ndarray, side: int) -> torch.Tensor:
    """Bring similarities ``(N, 1600)`` to smoothed maps of distances ``(N, side, side)``."""
    grid = (1 - torch.from_numpy(similarity.astype(np.float32))).view(-1, 1, 40, 40)
    maps = F.interpolate(grid, (side, side), mode="bilinear", align_corners=False)
    sigma = 3.0 * side / 256
    return gaussian_blur(maps, 2 * [2 * round(4 * sigma) + 1], 2 * [sigma]).squeeze(1)


@dataclass(frozen=True)
class Drawn:
    """What was said of the tested pictures ``(32, H, W)`` and of the good parts, each judged by the others."""

    reference: torch.Tensor
    text: torch.Tensor
    score: torch.Tensor
    mask: torch.Tensor
    own_reference: torch.Tensor
    own_text: torch.Tensor
    own_score: torch.Tensor
    features: torch.Tensor


def draw(file: Path, parts: int, seed: int, side: int = SIDE) -> Drawn:
    """Draw good parts of a set, and compare with them."""
    kept = np.load(file)
    chosen = np.sort(np.random.default_rng(seed).permutation(POOL)[:parts])
    own = [kept["pool_near"][part, [other for other in chosen if other != part]].max(0) for part in chosen]
    tested = np.concatenate([kept[f"{group}_near"][:, chosen].max(1) for group in ("good", "bad")])
    distance, own_distance = to_map(tested, side), to_map(np.stack(own), side)
    limit = own_distance.amax()

    def small(maps: np.ndarray) -> torch.Tensor:
        return F.interpolate(torch.from_numpy(maps.astype(np.float32))[:, None], (side, side), mode="area")[:, 0]

    mask = torch.from_numpy(kept["mask"])[:, :: 256 // side, :: 256 // side]
    return Drawn(
        distance / (distance + limit),
        small(np.concatenate([kept["good_text"], kept["bad_text"]])),
        torch.from_numpy(np.concatenate([kept["good_score"], kept["bad_score"]])),
        torch.cat([torch.zeros(len(kept["good_text"]), side, side, dtype=torch.bool), mask]),
        own_distance / (own_distance + limit),
        small(kept["pool_text"][chosen]),
        torch.from_numpy(kept["pool_score"][chosen]),
        torch.from_numpy(np.concatenate([kept["good_sam"], kept["bad_sam"]]).astype(np.float32)),
    )


def f1_max(maps: torch.Tensor, mask: torch.Tensor) -> float:
    """Pixel F1 at the best threshold."""
    places = (maps.clamp(0, 1) * 4095).long().flatten()
    right, wrong = (
        torch.bincount(places[mask.flatten() == one], minlength=4096).flip(0).cumsum(0) for one in (True, False)
    )
    return float((2 * right / (right + wrong + right[-1])).max())


def f1(outlines: torch.Tensor, drawn: Drawn) -> float:
    """Pixel F1 of outlines, of which those of good pictures do not count: another threshold decides about these."""
    outlines = outlines & drawn.mask.flatten(1).any(dim=1).view(-1, 1, 1)
    return float(2 * (outlines & drawn.mask).sum() / (outlines.sum() + drawn.mask.sum()))


def auroc(scores: torch.Tensor, drawn: Drawn) -> float:
    """Image AUROC."""
    truth = drawn.mask.flatten(1).any(dim=1)
    bad, good = scores[truth][:, None], scores[~truth]
    return float((bad > good).float().mean() + (bad == good).float().mean() / 2)


def joined(drawn: Drawn, share: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    """Join map and text as ClipSam does: of the tested pictures, and of the good parts."""
    level = max(pixel_level([drawn.own_text]), 0.1)
    pairs = ((drawn.reference, drawn.text), (drawn.own_reference, drawn.own_text))
    tested, own = (torch.lerp(map_, recentre(text, level), share) for map_, text in pairs)
    return tested, own


def try_text(drawn: Drawn) -> dict[str, tuple[float, ...]]:
    """How the text counts in map and score."""
    level, highest = max(pixel_level([drawn.own_text]), 0.1), float(drawn.own_score.amax().clamp(0.1, 0.99))
    score, found = peak_score(drawn.reference), {}
    for share in (0.0, 0.1, 0.2, 0.3, 0.5):
        forms = {
            "as it is": (drawn.text, drawn.score),
            "excess": (
                (drawn.text - level).clamp(min=0) / (1 - level),
                (drawn.score - highest).clamp(min=0) / (1 - highest),
            ),
            "log-odds": (recentre(drawn.text, level), recentre(drawn.score, highest)),
        }
        for name, (text, text_score) in forms.items():
            joined_map, joined_score = torch.lerp(drawn.reference, text, share), torch.lerp(score, text_score, share)
            found[f"{name}, {share}"] = (f1_max(joined_map, drawn.mask), auroc(joined_score, drawn))
    return found


def try_pixels(drawn: Drawn) -> dict[str, tuple[float, ...]]:
    """Pixel threshold and halo: F1 of outlines, and F1-max."""
    (tested, own), found = joined(drawn), {}
    for share in (0.98, 0.99, 0.995, 0.998, 1.0):
        centred = recentre(tested, pixel_level([own], share))
        for halo in (0.0, 0.2, 0.3, 0.4, 0.5):
            maps = suppress_halo(centred, halo)
            found[f"{100 * share:g} %, halo {halo}"] = (f1(maps > 0.5, drawn), f1_max(maps, drawn.mask))
    return found


def try_images(drawn: Drawn) -> dict[str, tuple[float, ...]]:
    """Image threshold: missed, false alarms, balanced accuracy; for 'best' that of the best threshold, three times."""

    def score(maps: torch.Tensor, text: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return torch.lerp(peak_score(maps), recentre(text, float(level.amax().clamp(0.1, 0.99))), 0.2)

    tested = score(drawn.reference, drawn.score, drawn.own_score)
    places = range(len(drawn.own_score))
    others = [drawn.own_score[[other for other in places if other != place]] for place in places]
    own = torch.cat([score(drawn.own_reference[p : p + 1], drawn.own_score[p : p + 1], others[p]) for p in places])
    truth = drawn.mask.flatten(1).any(dim=1)

    def verdicts(level: float) -> tuple[float, float, float]:
        missed, alarms = (float(values.float().mean()) for values in (tested[truth] <= level, tested[~truth] > level))
        return missed, alarms, 1 - (missed + alarms) / 2

    found = {"the highest good part": verdicts(float(own.amax()))}
    found |= {f"false alarms {wish}": verdicts(image_level(own, wish)) for wish in (0.05, 0.1, 0.15, 0.2)}
    found["best"] = 3 * (max(verdicts(float(level))[2] for level in tested),)
    return found


@torch.no_grad()
def try_sam(drawn: Drawn, model: ClipSam) -> dict[str, tuple[float, ...]]:
    """Fusion: F1-max and F1 at the threshold. Maps must have SAM's side of 256 px."""
    tested, own = joined(drawn)
    maps, answers = suppress_halo(recentre(tested, pixel_level([own])), 0.3), []
    for some, features in zip(maps.split(16), drawn.features.split(16), strict=True):
        prompts = model.model.ppg(some, features)
        cascade = model.model.cps(features, prompts, some)
        answers.append((frame_to_map(cascade.logits_3.squeeze(1), (256, 256)), prompts.peak, cascade.iou))
    answer = [torch.cat(values) for values in zip(*answers, strict=True)]
    found = {"the map": maps}
    found |= {f"{m} {w}": Fusion(m, w)(maps, *answer) for m in ("agreement", "cautious") for w in (0.1, 0.2, 0.3, 0.5)}
    return {name: (f1_max(fused, drawn.mask), f1(fused > 0.5, drawn)) for name, fused in found.items()}


def report(folder: Path, rule: Callable[[Drawn], dict[str, tuple[float, ...]]], draws: int, side: int) -> None:
    """Print the means over sets, and the worst difference of the first figure from the first row."""
    for parts in (4, 8):
        found: dict[str, dict[str, list[tuple[float, ...]]]] = {}
        for file in tqdm(sorted(folder.glob("*.npz")), leave=False):
            for seed in range(draws):
                for name, figures in rule(draw(file, parts, seed, side)).items():
                    found.setdefault(name, {}).setdefault(file.stem, []).append(figures)
        means = {name: {s: np.mean(rows, axis=0) for s, rows in sets.items()} for name, sets in found.items()}
        first = next(iter(means.values()))
        print(
            f"\n{parts} good parts, {len(first)} sets\n\n| | photographs | real | all | worst |\n|---|---|---|---|---|"
        )
        for name, sets in means.items():
            groups = [
                [v for s, v in sets.items() if s.startswith("photo") in wanted]
                for wanted in ((True,), (False,), (True, False))
            ]
            cells = [" / ".join(f"{value:.3f}" for value in np.mean(group, axis=0)) for group in groups if group]
            worst = min(sets[s][0] - first[s][0] for s in sets)
            print(f"| {name} | {' | '.join(cells)} | {worst:+.3f} |", flush=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("cache", "text", "pixels", "images", "sam"))
    parser.add_argument("--photographs", type=Path, help="cache: folder of the photographs")
    parser.add_argument("--cache", type=Path, required=True, help="folder of what the networks said")
    parser.add_argument("--draws", type=int, default=DRAWS, help="draws of good parts of each set")
    args = parser.parse_args()
    if args.command == "cache":
        cache(args.photographs, args.cache)
    elif args.command == "sam":
        model = ClipSam(weights="lite").eval()
        report(args.cache, lambda drawn: try_sam(drawn, model), args.draws, 256)
    else:
        report(
            args.cache, {"text": try_text, "pixels": try_pixels, "images": try_images}[args.command], args.draws, SIDE
        )


if __name__ == "__main__":
    main()
