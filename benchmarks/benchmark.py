# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Seconds and peak memory of ClipSam and its stages, beside the code that a user would write by hand.

    python benchmarks/benchmark.py                              # ViT-B: the encoder, and the whole by stage
    python benchmarks/benchmark.py --subjects encoder gating --sam vit_h
    python benchmarks/benchmark.py --subjects pairs maps        # the pairs and CLIP's maps, beside anomalib's models
    python benchmarks/benchmark.py --subjects runtimes          # what was exported, beside torch
    python benchmarks/benchmark.py --subjects references        # CLIP's map alone, with good parts, in a batch
    python benchmarks/benchmark.py --growth                     # operations by size and points

Cost does not depend on the weights' values, so the networks have the published sizes and random weights, but for the
pair ``lite``, which is at hand. Every subject
lives in a process of its own and the subjects take turns, so that a busy moment of the machine meets them all. A matrix
product is timed before and after each run; a run is thrown away, and done again, where either is more than 20 % slower
than the fastest of the session (a rule that was fixed before the first run). Ratios are taken turn by turn, and the
median and the quartiles of these are shown. Operations are counted by ``torch.utils.flop_counter`` with attention
written out; their share of the peak is of what the fastest matrix product in float32 reached.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms.v2.functional import resize
from tqdm import tqdm

SLOWER = 1.2
"""A matrix product that takes so many times the fastest one's time says that the machine is busy."""
ATTEMPTS = 3
"""So often is a run tried before it is taken though the machine is busy; how often that was is printed."""
SIDE = 1536
"""Side of the matrices that are multiplied to see how fast the machine is."""
POSITIVES, NEGATIVES = 5, 6
"""Point prompts per image, as by default."""
BATCH = 200
"""Pictures of an unlabelled batch; what one of them costs is its share of the pairs."""
BANK = 16_385
"""Patch features in PatchCore's memory: a tenth of those of MVTec AD's bottles, 209 images of 28 x 28."""

Run = Callable[[], object]


# ------------------------------------------------------------------------------------------------ subjects
def build_stock_sam(architecture: str) -> torch.nn.Module:
    """segment_anything's own model."""
    from segment_anything import sam_model_registry

    return sam_model_registry[architecture]().eval()


def random_learned(kind: str) -> dict[str, torch.Tensor]:
    """Random weights of the published sizes, as the files of learned weights hold them."""
    if kind == "april_gan":
        shapes = {"weight": (768, 1024), "bias": (768,)}
        return {f"fc.{tap}.{name}": torch.randn(shape) for tap in range(4) for name, shape in shapes.items()}
    content = {f"compound_prompts_text.{i}": torch.randn(4, 768) for i in range(8)}
    for state in ("pos", "neg"):
        for name, length in (("token_prefix", 1), ("ctx", 12), ("token_suffix", 64)):
            content[f"{name}_{state}"] = torch.randn(1, 1, length, 768)
        content[f"tokenized_prompts_{state}"] = torch.arange(77).view(1, 1, 77)
    return content


def build_localizer(clip_size: int = 518, kind: str = "dense", clip: str = "ViT-L-14-336") -> torch.nn.Module:
    """A localizer, by default ``dense`` with CLIP ViT-L-14-336, random weights."""
    from anomalib_clipsam.clip import PromptEnsemble, build_clip
    from anomalib_clipsam.clip.localizers import LOCALIZERS

    localizer = LOCALIZERS[kind].build(
        PromptEnsemble(),
        clip_size,
        clip=lambda: build_clip(clip, quick_gelu=kind != "april_gan"),
        adapters=lambda: random_learned(kind),
    )
    width = localizer.clip.text_projection.shape[1]
    localizer.restore_text("object", torch.nn.functional.normalize(torch.randn(2, width), dim=-1))
    localizer.clip.transformer = torch.nn.Identity()  # the text's network is not asked again
    return localizer.eval()


def build_clip_sam(
    architecture: str, precision: str = "float32", clip_size: int = 518, **localizer: str
) -> torch.nn.Module:
    """The whole model, with random weights of the published sizes."""
    from anomalib_clipsam.method.cps import CascadedPrompts
    from anomalib_clipsam.method.fusion import Fusion
    from anomalib_clipsam.method.ppg import PointPromptGenerator
    from anomalib_clipsam.sam import build_sam
    from anomalib_clipsam.torch_model import ClipSamModel

    ppg = PointPromptGenerator(1024, min_score=0.0)  # with random weights nothing is sure: every image goes to SAM
    cps = CascadedPrompts(build_sam(architecture))
    built = build_localizer(clip_size, **localizer)
    return ClipSamModel(built, clip_size, ppg, cps, Fusion(), precision=precision).eval()


def picture() -> torch.Tensor:
    """One image, ``(1, 3, 1024, 1024)``."""
    return torch.rand(1, 3, 1024, 1024)


def stock_encoder(architecture: str) -> Run:
    """SAM's encoder as segment_anything has it."""
    encoder, image = build_stock_sam(architecture).image_encoder, picture()
    return lambda: encoder(image)


def lean_encoder(architecture: str) -> Run:
    """SAM's encoder as ``build_sam`` has it."""
    from anomalib_clipsam.sam import build_sam

    encoder, image = build_sam(architecture).image_encoder, picture()
    return lambda: encoder(image)


def lean_encoder_bf16(architecture: str) -> Run:
    """The same in bf16, as by ``precision``."""
    from anomalib_clipsam.compute.precision import encoders_in

    run = lean_encoder(architecture)

    def in_bf16() -> object:
        with encoders_in("bf16", "cpu"):
            return run()

    return in_bf16


def lean_encoder_plain_linear(architecture: str) -> Run:
    """The same with torch's own linear layers."""
    from anomalib_clipsam.compute.linear import OneDnnLinear
    from anomalib_clipsam.sam import build_sam

    encoder, image = build_sam(architecture).image_encoder, picture()
    for module in encoder.modules():
        if isinstance(module, OneDnnLinear):
            module.__class__ = torch.nn.Linear
    return lambda: encoder(image)


def lean_encoder_large_bias(architecture: str) -> Run:
    """The same with four times as much of the relative-position bias at a time."""
    from anomalib_clipsam.sam import encoder

    encoder.BIAS_BYTES["cpu"] *= 4
    return lean_encoder(architecture)


def lean_encoder_channels_last(architecture: str) -> Run:
    """The same with its convolutions and its image in the layout ``channels_last``."""
    from anomalib_clipsam.sam import build_sam

    encoder = build_sam(architecture).image_encoder.to(memory_format=torch.channels_last)
    image = picture().contiguous(memory_format=torch.channels_last)
    return lambda: encoder(image)


def lean_encoder_compiled(architecture: str) -> Run:
    """The same through ``torch.compile``."""
    from anomalib_clipsam.sam import build_sam

    encoder, image = torch.compile(build_sam(architecture).image_encoder), picture()
    return lambda: encoder(image)


def lean_encoder_threads(architecture: str, factor: float) -> Run:
    """The same with other threads; the matrix products beside it keep theirs."""
    encode, threads = lean_encoder(architecture), torch.get_num_threads()

    def run() -> None:
        torch.set_num_threads(max(1, int(factor * threads)))
        encode()
        torch.set_num_threads(threads)

    return run


def lean_encoder_half_the_threads(architecture: str) -> Run:
    """The same with half as many threads."""
    return lean_encoder_threads(architecture, 0.5)


def lean_encoder_twice_the_threads(architecture: str) -> Run:
    """The same with twice as many threads."""
    return lean_encoder_threads(architecture, 2)


def whole(architecture: str, precision: str = "float32") -> Run:
    """The whole model, on an image that SAM is asked about."""
    model, image = build_clip_sam(architecture, precision), picture()
    return lambda: model(image)


def whole_bf16(architecture: str) -> Run:
    """The same with both encoders in bf16."""
    return whole(architecture, "bf16")


def skipped(architecture: str) -> Run:
    """The whole model, on an image without an extreme region: SAM is not asked."""
    model, image = build_clip_sam(architecture), picture()
    model.ppg.min_score = 1.0
    return lambda: model(image)


def localizer_alone(architecture: str, kind: str = "dense") -> Run:
    """CLIP ViT-L-14-336 at 518 px, with the resize before it."""
    del architecture
    localizer, image = build_localizer(kind=kind), picture()
    return lambda: localizer(resize(image, [518, 518]))


def whole_crane(architecture: str) -> Run:
    """The whole pair as a user has it by default: Crane's map."""
    model, image = build_clip_sam(architecture, kind="crane"), picture()
    return lambda: model(image)


def whole_mobile(architecture: str) -> Run:
    """The pair ``mobile``: CLIP ViT-B-16 at 448 px, MobileSAM."""
    del architecture
    model, image = build_clip_sam("vit_t", clip_size=448, clip="ViT-B-16"), picture()
    return lambda: model(image)


def skipped_mobile(architecture: str) -> Run:
    """The same on an image without an extreme region."""
    del architecture
    model, image = build_clip_sam("vit_t", clip_size=448, clip="ViT-B-16"), picture()
    model.ppg.min_score = 1.0
    return lambda: model(image)


def mobile_encoder(architecture: str) -> Run:
    """MobileSAM's encoder."""
    del architecture
    return lean_encoder("vit_t")


def whole_lite(architecture: str, min_score: float = 0.0) -> Run:
    """The pair that the package carries, with its own weights, on its own size of image."""
    from anomalib_clipsam import ClipSam

    del architecture
    pipeline = ClipSam(weights="lite", class_name="object", ppg={"min_score": min_score}).eval()
    image = pipeline.pre_processor(picture())
    return lambda: pipeline.model(image)


def skipped_lite(architecture: str) -> Run:
    """The same on an image without an extreme region."""
    return whole_lite(architecture, min_score=1.0)


def localizer_judged(references: str, k_shot: int = 0) -> Run:
    """CLIP's map, joined with a reference."""
    from anomalib_clipsam.references import build_judge
    from anomalib_clipsam.torch_model import ClipSamModel

    localizer, image = build_localizer(), picture()
    judge = build_judge(localizer, references, k_shot, {})
    if k_shot:
        judge.learn(torch.rand(k_shot, 3, 518, 518), ClipSamModel(localizer, 518, judge=judge))
    return lambda: judge(*localizer.with_taps(resize(image, [518, 518])))


def judged_by_itself(architecture: str) -> Run:
    """The same, with the picture as its own reference."""
    del architecture
    return localizer_judged("self")


def judged_by_4(architecture: str) -> Run:
    """The same, with four good parts."""
    del architecture
    return localizer_judged("none", 4)


def judged_by_8(architecture: str) -> Run:
    """The same, with eight good parts."""
    del architecture
    return localizer_judged("none", 8)


def one_of_a_batch(architecture: str) -> Run:
    """What one picture of a batch costs beside CLIP: its features averaged, and half of its pairs with the others."""
    from anomalib_clipsam.references.distances.batch import MUSC_SIZES, aggregate_neighbours
    from anomalib_clipsam.references.distances.features import patches_of

    del architecture
    taps = [torch.randn(1, 1024, 37, 37) for _ in range(4)]
    other = patches_of(taps[0])[0]

    def run() -> None:
        for tap in taps:
            for size in MUSC_SIZES:
                (own,) = patches_of(aggregate_neighbours(tap, size))
                for _ in range((BATCH - 1) // 2):  # a pair is compared once, for both
                    similarity = own @ other.T
                    similarity.amax(dim=1), similarity.amax(dim=0)

    return run


def prompts_and_decoder(architecture: str) -> Run:
    """What follows the two encoders: PPG, three passes of the decoder, fusion."""
    from anomalib_clipsam.method.frame import frame_to_map

    model, anomaly_map = build_clip_sam(architecture), torch.rand(1, 518, 518)
    model.localizer = model.sam.image_encoder.blocks = None  # only the encoders' results are needed
    features = torch.randn(1, 256, 64, 64)

    def run() -> object:
        prompts = model.ppg(anomaly_map, features)
        output = model.cps(features, prompts, anomaly_map)
        logits = frame_to_map(output.logits_3.squeeze(1), (518, 518))
        return model.fusion(anomaly_map, logits, prompts.peak, output.iou)

    return run


def whole_by_hand(architecture: str) -> Run:
    """The same localizer, then segment_anything's ``SamPredictor``: ``set_image`` and three ``predict`` calls."""
    from segment_anything import SamPredictor

    localizer, image = build_localizer(), picture()
    predictor = SamPredictor(build_stock_sam(architecture))
    pixels = (image[0] * 255).byte().permute(1, 2, 0).numpy()
    labels = np.array([1] * POSITIVES + [0] * NEGATIVES)
    points = np.random.default_rng(0).uniform(0, 1023, (len(labels), 2))

    def run() -> object:
        anomaly_map, _ = localizer(resize(image, [518, 518]))
        predictor.set_image(pixels)
        prompts = {"point_coords": points, "point_labels": labels}
        _, _, logits = predictor.predict(**prompts, multimask_output=False)
        _, _, logits = predictor.predict(**prompts, mask_input=logits, multimask_output=False)
        rows, columns = np.nonzero(logits[0] > 0)
        box = 4 * np.array([columns.min(), rows.min(), columns.max(), rows.max()]) if len(rows) else None
        return anomaly_map, predictor.predict(**prompts, mask_input=logits, box=box, multimask_output=False)

    return run


def winclip(architecture: str) -> Run:
    """WinCLIP as anomalib has it, ViT-B-16-plus-240, zero-shot, two window sizes."""
    from anomalib.models.image.winclip.torch_model import WinClipModel

    del architecture
    with patch("anomalib.models.image.winclip.torch_model.PRETRAINED", None):  # random weights
        model = WinClipModel(class_name="object").eval()
    image = torch.rand(1, 3, 240, 240)
    return lambda: model(image)


def patchcore(architecture: str) -> Run:
    """PatchCore as anomalib has it, WideResNet-50 at 224 px, its default."""
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    del architecture
    model = PatchcoreModel(layers=("layer2", "layer3"), backbone="wide_resnet50_2", pre_trained=False).eval()
    model.memory_bank = torch.randn(BANK, 1536)
    image = torch.rand(1, 3, 224, 224)
    return lambda: model(image)


def anomaly_vfm(architecture: str) -> Run:
    """AnomalyVFM as anomalib has it, RADIO at 768 px, its default."""
    from anomalib.models.image.anomalyvfm.torch_model import AnomalyVFMModel

    del architecture
    module = "anomalib.models.image.anomalyvfm.torch_model"
    with (
        patch(f"{module}.hf_hub_download"),
        patch(f"{module}.load_file"),
        patch.object(AnomalyVFMModel, "load_state_dict"),  # random weights
    ):
        model = AnomalyVFMModel().eval()
    image = torch.rand(1, 3, 768, 768)
    return lambda: model(image)


def build_pipeline(architecture: str) -> torch.nn.Module:
    """The Lightning module of the whole model: what is exported, with the resize before and the thresholds after it."""
    from anomalib_clipsam import ClipSam
    from anomalib_clipsam.plugin.pre_processor import ClipSamPreProcessor

    module = ClipSam(weights="lite", class_name="object").eval()
    module.model, module.pre_processor = build_clip_sam(architecture), ClipSamPreProcessor(1024)
    return module


class RandomPictures:
    """In place of a data module: pictures to quantize on, where only the time is asked for."""

    def prepare_data(self) -> None:
        """Prepare nothing."""

    def setup(self, stage: str) -> None:
        """Set up nothing."""

    def val_dataloader(self) -> list[dict[str, torch.Tensor]]:
        """Return one batch of one picture."""
        return [{"image": picture()}]


def pipeline(architecture: str) -> Run:
    """What is exported, in torch."""
    module, image = build_pipeline(architecture), picture()
    return lambda: module(image)


def export(architecture: str) -> Path:
    """Export the whole, unless an earlier run did; give the folder."""
    root = Path(tempfile.gettempdir()) / f"clip_sam_{architecture}"
    if not (root / "weights" / "openvino" / "int8_ptq.xml").is_file():
        module = build_pipeline(architecture)
        path = module.to_onnx(root)
        with patch.object(module, "to_onnx", return_value=path):
            module.to_openvino(root)
            module.to_openvino(root, "int8_ptq", compression_type="int8_ptq", datamodule=RandomPictures())
    return root / "weights"


def onnx_runtime(architecture: str) -> Run:
    """The whole in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    path = export(architecture) / "onnx" / "model.onnx"
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    image = picture().numpy()
    return lambda: session.run(None, {"input": image})


def openvino_runtime(architecture: str, precision: str = "f32", name: str = "model") -> Run:
    """The whole in OpenVINO."""
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.compile_model(export(architecture) / "openvino" / f"{name}.xml", "CPU", settings)
    image = picture().numpy()
    return lambda: compiled(image)


def openvino_runtime_bf16(architecture: str) -> Run:
    """The same in bf16, which OpenVINO takes unless it is told otherwise, where the CPU has it."""
    return openvino_runtime(architecture, "bf16")


def openvino_runtime_int8(architecture: str) -> Run:
    """The same with the image encoders' linear layers in 8 bits."""
    return openvino_runtime(architecture, name="int8_ptq")


SKIPPED = "ClipSam, SAM is skipped"
GROUPS: dict[str, dict[str, Callable[[str], Run]]] = {
    "encoder": {
        "segment_anything's encoder": stock_encoder,
        "our encoder": lean_encoder,
        "our encoder, bf16": lean_encoder_bf16,
    },
    "whole": {
        "localizer + SamPredictor by hand": whole_by_hand,
        "ClipSam": whole,
        SKIPPED: skipped,
        "ClipSam, bf16": whole_bf16,
        "CLIP's map": localizer_alone,
        "SAM's encoder": lean_encoder,
        "PPG, CPS and fusion": prompts_and_decoder,
        "WinCLIP": winclip,
        "PatchCore": patchcore,
    },
    "pairs": {
        "ClipSam, dense": whole,
        "ClipSam, crane": whole_crane,
        "ClipSam, mobile": whole_mobile,
        "ClipSam, mobile, SAM is skipped": skipped_mobile,
        "MobileSAM's encoder": mobile_encoder,
        "ClipSam, lite": whole_lite,
        "ClipSam, lite, SAM is skipped": skipped_lite,
        "WinCLIP": winclip,
        "PatchCore": patchcore,
        "AnomalyVFM": anomaly_vfm,
    },
    "maps": {
        "dense": localizer_alone,
        "april_gan": partial(localizer_alone, kind="april_gan"),
        "anomaly_clip": partial(localizer_alone, kind="anomaly_clip"),
        "crane": partial(localizer_alone, kind="crane"),
    },
    "gating": {"ClipSam": whole, SKIPPED: skipped},
    "references": {
        "CLIP's map": localizer_alone,
        "with itself": judged_by_itself,
        "with 4 good parts": judged_by_4,
        "with 8 good parts": judged_by_8,
        f"beside it, one of a batch of {BATCH}": one_of_a_batch,
    },
    "runtimes": {
        "torch": pipeline,
        "ONNX Runtime": onnx_runtime,
        "OpenVINO": openvino_runtime,
        "OpenVINO, bf16": openvino_runtime_bf16,
        "OpenVINO, INT8_PTQ": openvino_runtime_int8,
    },
    "settings": {
        "our encoder": lean_encoder,
        "torch's linear layers": lean_encoder_plain_linear,
        "bias of 64 MB": lean_encoder_large_bias,
        "channels_last": lean_encoder_channels_last,
        "torch.compile": lean_encoder_compiled,
    },
    "threads": {
        "our encoder": lean_encoder,
        "half the threads": lean_encoder_half_the_threads,
        "twice the threads": lean_encoder_twice_the_threads,
    },
}
"""Groups of subjects that are compared; the first one of a group is what the ratio refers to. ``gating`` is the part of
``whole`` that a machine with little memory has room for with ViT-H."""


# ------------------------------------------------------------------------------------------------ one process
def peak_memory(*, reset: bool = False) -> float:
    """Peak resident memory of this process in MB since the last reset; Linux only, elsewhere NaN."""
    if platform.system() != "Linux":
        return float("nan")
    if reset:
        # Else what an earlier run freed still counts, and the next one is seen to need nothing.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def matmul_seconds() -> float:
    """Time a matrix product in float32."""
    a, b = torch.ones(SIDE, SIDE), torch.ones(SIDE, SIDE)
    begin = time.perf_counter()
    a @ b
    return time.perf_counter() - begin


def count_operations(run: Run) -> float:
    """Count the floating-point operations of matrix products and convolutions, two per multiplication."""
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):  # fused attention on a CPU is not in the counter's list
        run()
    return float(counter.get_total_flops())


def work(group: str, subject: str, architecture: str, threads: int) -> None:
    """Build a subject, then run it once for every line of the input."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    with torch.inference_mode():
        run = GROUPS[group][subject](architecture)
        # The counter takes neither autocast nor a compiled network, and is not needed for the same network twice.
        operations = (
            float("nan")
            if group == "runtimes" or subject.endswith(("bf16", "torch.compile"))
            else count_operations(run)
        )
        run()
        matmul_seconds()
        print("ready", flush=True)
        for _ in sys.stdin:
            before = min(matmul_seconds() for _ in range(3))
            resident = peak_memory(reset=True)
            begin = time.perf_counter()
            run()
            seconds = time.perf_counter() - begin
            above = peak_memory() - resident
            after = min(matmul_seconds() for _ in range(3))
            result = {
                "seconds": seconds,
                "above": above,
                "fastest": min(before, after),
                "slowest": max(before, after),
                "operations": operations,
            }
            print(json.dumps(result), flush=True)


# ------------------------------------------------------------------------------------------------ all of them
def answer(process: subprocess.Popen[str], subject: str) -> str:
    """Read a line that a subject's process prints."""
    line = process.stdout.readline()
    if not line:
        sys.exit(f"'{subject}' ended with exit code {process.wait()} (-9: the machine has too little memory).")
    return line


def measure(group: str, args: argparse.Namespace) -> None:
    """Let the subjects of a group take turns, and print their table."""
    if group == "runtimes":
        export(args.sam)
    command = [sys.executable, __file__, "--worker", group, "--sam", args.sam, "--threads", str(args.threads)]
    processes = {}
    for subject in GROUPS[group]:  # one after the other: what they need to start would not fit all at once
        process = subprocess.Popen(
            [*command, "--subject", subject], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        processes[subject] = process
        answer(process, subject)
    runs: dict[str, list[dict[str, float]]] = {subject: [] for subject in processes}
    fastest, rejected, busy = float("inf"), 0, 0
    for _ in tqdm(range(args.repeats + 1), desc=group):  # the first turn only finds out how fast the machine can be
        for subject, process in processes.items():
            for _ in range(ATTEMPTS):
                process.stdin.write("run\n")
                process.stdin.flush()
                result = json.loads(answer(process, subject))
                fastest = min(fastest, result["fastest"])
                if result["slowest"] <= SLOWER * fastest:
                    break
                rejected += 1
            else:
                rejected, busy = rejected - 1, busy + 1
            runs[subject].append(result)
    for process in processes.values():
        process.stdin.close()
        process.wait()
    runs = {subject: results[1:] for subject, results in runs.items()}
    peak = 2 * SIDE**3 / fastest
    print(
        f"\n{group}, SAM {args.sam}, {args.threads} threads, {args.repeats} turns, {rejected} runs thrown away, "
        f"{busy} taken though the machine was busy, matrix products at {peak / 1e9:.0f} GFLOP/s\n"
    )
    print_table(runs, peak)
    if SKIPPED in runs:
        print_gating(runs["ClipSam"], runs[SKIPPED])
    sys.stdout.flush()


def print_table(runs: dict[str, list[dict[str, float]]], peak: float) -> None:
    """Print what the subjects of a group took, one image each."""
    print(
        "| | seconds per image (quartiles) | images/s | times as fast (quartiles) "
        "| memory, MB | of the first | GFLOP | of peak |"
    )
    print("|---|---|---|---|---|---|---|---|")
    first = next(iter(runs.values()))
    for subject, results in runs.items():
        low, seconds, high = np.percentile([run["seconds"] for run in results], [25, 50, 75])
        ratios = [a["seconds"] / b["seconds"] for a, b in zip(first, results, strict=True)]
        slow, ratio, fast = np.percentile(ratios, [25, 50, 75])
        above = np.median([run["above"] for run in results])
        share = above / np.median([run["above"] for run in first])
        operations = results[0]["operations"]  # NaN where they were not counted
        row = [
            subject,
            f"{seconds:.2f} ({low:.2f} to {high:.2f})",
            f"{1 / seconds:.2f}",
            f"{ratio:.2f} ({slow:.2f} to {fast:.2f})",
            f"{above:,.0f}",
            f"{share:.2f}",
            f"{operations / 1e9:,.0f}",
            f"{operations / seconds / peak:.2f}",
        ]
        print("| " + " | ".join(row).replace("nan", "") + " |")


def print_gating(asked: list[dict[str, float]], skipped: list[dict[str, float]]) -> None:
    """Print what skipping SAM saves, by the share of images that have nothing extreme."""
    print("\n| images that SAM skips | times as fast (quartiles) |\n|---|---|")
    pairs = [(a["seconds"], b["seconds"]) for a, b in zip(asked, skipped, strict=True)]
    for share in (0.5, 0.9, 0.99, 1.0):
        ratios = [ask / (share * skip + (1 - share) * ask) for ask, skip in pairs]
        low, ratio, high = np.percentile(ratios, [25, 50, 75])
        print(f"| {share:.0%} | {ratio:.2f} ({low:.2f} to {high:.2f}) |")


def print_growth(architecture: str) -> None:
    """Print the operations of the stages by the size that CLIP sees and by the number of points."""
    from anomalib_clipsam.sam.decoder import decode

    with torch.inference_mode(), torch.device("meta"):  # nothing is computed
        print("| CLIP's image | GFLOP of CLIP's map |\n|---|---|")
        for size in (336, 518, 700, 1022):
            localizer = build_clip_sam(architecture, clip_size=size).localizer
            operations = count_operations(lambda: localizer(torch.empty(1, 3, size, size)))  # noqa: B023
            print(f"| {size} px | {operations / 1e9:,.0f} |")
        sam = build_clip_sam(architecture).sam
        operations = count_operations(lambda: sam.image_encoder(torch.empty(1, 3, 1024, 1024)))
        print(f"\nSAM's encoder, {architecture}: {operations / 1e9:,.0f} GFLOP\n")
        print("| points | GFLOP of a decoder pass |\n|---|---|")
        for points in (1, 9, 30, 100):
            arguments = torch.empty(1, 256, 64, 64), torch.empty(1, points, 2), torch.empty(1, points)
            operations = count_operations(lambda: decode(sam, *arguments))  # noqa: B023
            print(f"| {points} | {operations / 1e9:,.1f} |")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects", nargs="+", choices=GROUPS, default=["encoder", "whole"])
    parser.add_argument("--sam", choices=("vit_b", "vit_l", "vit_h"), default="vit_b")
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--growth", action="store_true", help="count operations by size and points, and stop")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--subject", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.worker, args.subject, args.sam, args.threads)
        return
    if args.growth:
        print_growth(args.sam)
        return
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {platform.system()}")
    for group in args.subjects:
        measure(group, args)


if __name__ == "__main__":
    main()
