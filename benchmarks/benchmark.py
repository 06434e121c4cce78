# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Seconds and peak memory of ClipSam and its stages, beside the code that a user would write by hand.

    python benchmarks/benchmark.py                            # ViT-B: the encoder, and the whole
    python benchmarks/benchmark.py --subjects encoder --sam vit_h --repeats 5

Cost does not depend on the weights' values, so the networks have the published sizes and random weights. Every subject
lives in a process of its own and the subjects take turns, so that a busy moment of the machine meets them all. A matrix
product is timed before and after each run; a run is thrown away, and done again, where either is more than 20 % slower
than the fastest of the session (a rule that was fixed before the first run). Ratios are taken turn by turn, and the
median and the quartiles of these are shown.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

SLOWER = 1.2
"""A matrix product that takes so many times the fastest one's time says that the machine is busy."""
ATTEMPTS = 6
POSITIVES, NEGATIVES = 3, 6
"""Point prompts per image, as by default."""


# ------------------------------------------------------------------------------------------------ subjects
def build_stock_sam(architecture: str) -> torch.nn.Module:
    """segment_anything's own model."""
    from segment_anything import sam_model_registry

    return sam_model_registry[architecture]()


def build_clip_sam(architecture: str) -> torch.nn.Module:
    """The whole model, with random weights of the published sizes."""
    from anomalib_clipsam.clip import DenseLocalizer, PromptEnsemble, build_clip
    from anomalib_clipsam.cps import CascadedPrompts
    from anomalib_clipsam.fusion import Fusion
    from anomalib_clipsam.ppg import PointPromptGenerator
    from anomalib_clipsam.sam import build_sam
    from anomalib_clipsam.torch_model import ClipSamModel

    localizer = DenseLocalizer(build_clip("ViT-L-14-336", quick_gelu=True), PromptEnsemble(), 518)
    localizer.restore_text("object", torch.nn.functional.normalize(torch.randn(2, 768), dim=-1))
    ppg = PointPromptGenerator(1024, min_score=0.0)  # with random weights nothing is sure: every image goes to SAM
    return ClipSamModel(localizer, 518, ppg, CascadedPrompts(build_sam(architecture)), Fusion()).eval()


def stock_encoder(architecture: str) -> Callable[[], object]:
    """SAM's encoder as segment_anything has it, one image."""
    encoder, image = build_stock_sam(architecture).image_encoder.eval(), torch.rand(1, 3, 1024, 1024)
    return lambda: encoder(image)


def lean_encoder(architecture: str) -> Callable[[], object]:
    """SAM's encoder as ``build_sam`` has it, one image."""
    from anomalib_clipsam.sam import build_sam

    encoder, image = build_sam(architecture).image_encoder, torch.rand(1, 3, 1024, 1024)
    return lambda: encoder(image)


def dense_localizer(architecture: str) -> Callable[[], object]:
    """CLIP ViT-L-14-336 at 518 px, one image."""
    model, image = build_clip_sam(architecture), torch.rand(1, 3, 1024, 1024)
    return lambda: model.localize(image)


def whole(architecture: str) -> Callable[[], object]:
    """The whole model, one image, which SAM is asked about."""
    model, image = build_clip_sam(architecture), torch.rand(1, 3, 1024, 1024)
    return lambda: model(image)


def whole_by_hand(architecture: str) -> Callable[[], object]:
    """The same localizer, then segment_anything's ``SamPredictor``: ``set_image`` and three ``predict`` calls."""
    from segment_anything import SamPredictor

    model, image = build_clip_sam(architecture), torch.rand(1, 3, 1024, 1024)
    predictor = SamPredictor(build_stock_sam(architecture).eval())
    pixels = (image[0] * 255).byte().permute(1, 2, 0).numpy()
    labels = np.array([1] * POSITIVES + [0] * NEGATIVES)
    points = np.random.default_rng(0).uniform(0, 1023, (len(labels), 2))

    def run() -> object:
        anomaly_map, _ = model.localize(image)
        predictor.set_image(pixels)
        prompts = {"point_coords": points, "point_labels": labels}
        _, _, logits = predictor.predict(**prompts, multimask_output=False)
        _, _, logits = predictor.predict(**prompts, mask_input=logits, multimask_output=False)
        rows, columns = np.nonzero(logits[0] > 0)
        box = 4 * np.array([columns.min(), rows.min(), columns.max(), rows.max()]) if len(rows) else None
        return anomaly_map, predictor.predict(**prompts, mask_input=logits, box=box, multimask_output=False)

    return run


def gated(architecture: str) -> Callable[[], object]:
    """The whole model, ten images of which one has an extreme region, one after the other."""
    model, image = build_clip_sam(architecture), torch.rand(1, 3, 1024, 1024)

    def run() -> None:
        for index in range(10):
            model.ppg.min_score = 0.0 if index == 0 else 1.0
            model(image)

    return run


def ungated(architecture: str) -> Callable[[], object]:
    """The whole model, ten images that SAM is all asked about, one after the other."""
    run_one = whole(architecture)
    return lambda: [run_one() for _ in range(10)]


GROUPS: dict[str, dict[str, Callable[[str], Callable[[], object]]]] = {
    "encoder": {"segment_anything's encoder": stock_encoder, "our encoder": lean_encoder},
    "whole": {"localizer + SamPredictor by hand": whole_by_hand, "ClipSam": whole},
    "clip": {"localizer (dense, 518 px)": dense_localizer, "ClipSam": whole},
    "gating": {"SAM asked about 10 of 10": ungated, "SAM asked about 1 of 10": gated},
}
"""Groups of subjects that are compared; the first one of a group is what the ratio refers to."""


# ------------------------------------------------------------------------------------------------ one process
def peak_memory(*, reset: bool = False) -> float:
    """Peak resident memory of this process in MB since the last reset; Linux only, elsewhere NaN."""
    if platform.system() != "Linux":
        return float("nan")
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def matmul_seconds() -> float:
    """Time a matrix product of 2 x 1536^3 operations."""
    a, b = torch.ones(1536, 1536), torch.ones(1536, 1536)
    begin = time.perf_counter()
    a @ b
    return time.perf_counter() - begin


def work(group: str, subject: str, architecture: str, threads: int) -> None:
    """Build a subject, then run it once for every line of the input."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    with torch.inference_mode():
        run = GROUPS[group][subject](architecture)
        run()
        weights = peak_memory(reset=True)
        matmul_seconds()
        for _ in sys.stdin:
            before = min(matmul_seconds() for _ in range(3))
            resident = peak_memory(reset=True)
            begin = time.perf_counter()
            run()
            seconds = time.perf_counter() - begin
            peak = peak_memory()
            probe = max(before, min(matmul_seconds() for _ in range(3)))
            result = {"seconds": seconds, "peak": peak, "above": peak - resident, "probe": probe, "built": weights}
            print(json.dumps(result), flush=True)


# ------------------------------------------------------------------------------------------------ all of them
def measure(group: str, args: argparse.Namespace) -> None:
    """Let the subjects of a group take turns, and print their table."""
    command = [sys.executable, __file__, "--worker", group, "--sam", args.sam, "--threads", str(args.threads)]
    processes = {
        subject: subprocess.Popen(
            [*command, "--subject", subject], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for subject in GROUPS[group]
    }
    runs: dict[str, list[dict[str, float]]] = {subject: [] for subject in processes}
    fastest, rejected = float("inf"), 0
    for _ in tqdm(range(args.repeats + 1), desc=group):  # the first turn only finds out how fast the machine can be
        for subject, process in processes.items():
            for _ in range(ATTEMPTS):
                process.stdin.write("run\n")
                process.stdin.flush()
                result = json.loads(process.stdout.readline())
                fastest = min(fastest, result["probe"])
                if result["probe"] <= SLOWER * fastest:
                    break
                rejected += 1
            runs[subject].append(result)
    for process in processes.values():
        process.stdin.close()
        process.wait()
    first = next(iter(runs.values()))[1:]
    print(f"\n{group}, {args.sam}, {args.threads} threads, {args.repeats} turns, {rejected} runs thrown away")
    print("| | seconds (quartiles) | times as fast (quartiles) | memory above the weights, MB | of the first |")
    print("|---|---|---|---|---|")
    for subject, results in runs.items():
        seconds = np.percentile([run["seconds"] for run in results[1:]], [25, 50, 75])
        ratios = [a["seconds"] / b["seconds"] for a, b in zip(first, results[1:], strict=True)]
        ratio = np.percentile(ratios, [25, 50, 75])
        above = np.median([run["above"] for run in results[1:]])
        share = above / np.median([run["above"] for run in first])
        print(
            f"| {subject} | {seconds[1]:.2f} ({seconds[0]:.2f} to {seconds[2]:.2f}) | "
            f"{ratio[1]:.2f} ({ratio[0]:.2f} to {ratio[2]:.2f}) | {above:,.0f} | {share:.2f} |"
        )
    sys.stdout.flush()


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", nargs="+", choices=GROUPS, default=["encoder", "whole"])
    parser.add_argument("--sam", choices=("vit_b", "vit_l", "vit_h"), default="vit_b")
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--subject", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker, args.subject, args.sam, args.threads)
        return
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {platform.system()}")
    for group in args.subjects:
        measure(group, args)


if __name__ == "__main__":
    main()
