# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""How far exported files differ: `python measure_exports.py model.pt model.onnx model.xml int8.xml model.xml:bf16`.

Files are compared with the first one: on the pictures below the folders that `--pictures` names, else on drawn parts of
the categories that the demo weights were never trained on, whose masks give an F1-max too. OpenVINO computes in
float32, unless another precision is named after the file. Files of torch need TRUST_REMOTE_CODE=1, as by anomalib.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from anomalib.data.utils import get_image_filenames, read_image
from anomalib.deploy import TorchInferencer
from torchmetrics.functional.classification import binary_precision_recall_curve
from tqdm import tqdm

from anomalib_clipsam import DrawnParts
from anomalib_clipsam.drawn_parts.drawing import HELD_OUT_CATEGORIES

STEP = 3
"""Every third drawn part is taken."""
OUTPUTS = ["pred_score", "pred_label", "anomaly_map", "pred_mask"]

Answer = list[np.ndarray]
Picture = tuple[str, Path, Path | None]
"""Category, and the paths of image and mask."""


def load(name: str) -> Callable[[np.ndarray], Answer]:
    """Return a function from images to the outputs."""
    path, _, precision = name.partition(":")
    if path.endswith(".pt"):
        model = TorchInferencer(path, device="cpu").model

        def run_torch(images: np.ndarray) -> Answer:
            answer = model(torch.from_numpy(images))._asdict()
            return [answer[name].numpy() for name in OUTPUTS]

        return run_torch
    if path.endswith(".onnx"):
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda images: session.run(OUTPUTS, {"input": images})
    import openvino

    compiled = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": precision or "f32"})

    def run_openvino(images: np.ndarray) -> Answer:
        answer = compiled(images)
        return [answer[name] for name in OUTPUTS]

    return run_openvino


def drawn_parts() -> list[Picture]:
    """List the drawn parts; a good one has no mask."""
    listed = []
    for category in HELD_OUT_CATEGORIES:
        data = DrawnParts(category=category)
        data.prepare_data()
        data.setup()
        listed += [
            (category, sample.image_path, sample.mask_path if sample.label_index else None)
            for sample in data.test_data.samples[::STEP].itertuples()
        ]
    return listed


def f1_max(maps: Sequence[np.ndarray], mask_paths: Sequence[Path | None]) -> float:
    """Best F1 of the pixels of a category."""
    masks = [torch.zeros(1, 1, 1) if path is None else read_image(path, as_tensor=True)[:1] for path in mask_paths]
    size = maps[0].shape[-2:]
    masks = [torch.nn.functional.interpolate(mask[None], size, mode="nearest-exact").ravel() > 0 for mask in masks]
    scores = torch.from_numpy(np.concatenate(maps).ravel())
    precision, recall, _ = binary_precision_recall_curve(scores, torch.cat(masks).int(), thresholds=1001)
    f1 = 2 * precision * recall / (precision + recall)
    return f1.nan_to_num().max().item()  # NaN where no pixel is over the threshold


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("files", nargs="+")
parser.add_argument("--pictures", type=Path, nargs="+")
arguments = parser.parse_args()
if arguments.pictures:
    pictures = [("", path, None) for folder in arguments.pictures for path in get_image_filenames(folder)]
else:
    pictures = drawn_parts()
reference = None
for name in arguments.files:
    run, answers, seconds = load(name), [], []
    for _, path, _ in tqdm(pictures, desc=name, disable=None):
        image = read_image(path, as_tensor=True).unsqueeze(0).numpy()
        start = time.perf_counter()
        answers.append(run(image))
        seconds.append(time.perf_counter() - start)
    reference = reference or answers
    pairs = list(zip(answers, reference, strict=True))
    scores, maps = ([np.abs(answer[index] - other[index]).max() for answer, other in pairs] for index in (0, 2))
    masks = [(answer[3], other[3]) for answer, other in pairs if answer[3].any() or other[3].any()]
    overlaps = np.array([(mask & other).sum() / (mask | other).sum() for mask, other in masks])
    labels = sum(bool(answer[1][0]) != bool(other[1][0]) for answer, other in pairs)
    print(
        f"{name} beside {arguments.files[0]}, over {len(pairs)} pictures: scores differ by at most {max(scores):.1e}, "
        f"maps by {np.median(maps):.1e} (median), {max(maps):.1e} (most), {labels} other labels; {len(masks)} with a "
        f"mask, whose IoU is {np.median(overlaps):.3f} (median), {overlaps.min():.3f} (least), "
        f"{np.mean(overlaps > 0.99):.0%} over 0.99; {np.median(seconds):.3f} s a picture",
        flush=True,
    )
    if not arguments.pictures:
        f1 = []
        for category in HELD_OUT_CATEGORIES:
            rows = [
                (answer[2], picture[2])
                for answer, picture in zip(answers, pictures, strict=True)
                if picture[0] == category
            ]
            f1.append(f1_max(*zip(*rows, strict=True)))
        print(f"    pixel F1-max, mean over {len(f1)} categories: {np.mean(f1):.4f}", flush=True)
