# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""What a smaller export costs: `python measure_exports.py model.onnx model.xml int8.xml model.xml:bf16`.

Files are compared with the first one on drawn parts of the categories that the demo weights were never trained on.
OpenVINO computes in float32, unless another precision is named after the file.
"""

import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from anomalib.data.utils import read_image
from torchmetrics.functional.classification import binary_precision_recall_curve

from anomalib_clipsam import DrawnParts
from anomalib_clipsam.demo.drawing import HELD_OUT_CATEGORIES

STEP = 3
"""Every third picture is taken."""
OUTPUTS = ["pred_label", "anomaly_map", "pred_mask"]


def load(name: str) -> Callable[[np.ndarray], list[np.ndarray]]:
    """Give a function from images to the outputs."""
    path, _, precision = name.partition(":")
    if path.endswith(".onnx"):
        import onnxruntime

        onnxruntime.set_default_logger_severity(3)  # errors only
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda images: session.run(OUTPUTS, {"input": images})
    import openvino

    compiled = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": precision or "f32"})

    def run(images: np.ndarray) -> list[np.ndarray]:
        answer = compiled(images)
        return [answer[name] for name in OUTPUTS]

    return run


def f1_max(maps: list[np.ndarray], masks: list[np.ndarray]) -> float:
    """Best F1 of the pixels of a category."""
    maps, masks = (torch.from_numpy(np.concatenate(parts).ravel()) for parts in (maps, masks))
    precision, recall, _ = binary_precision_recall_curve(maps, masks.int(), thresholds=1001)
    f1 = 2 * precision * recall / (precision + recall)
    return f1.nan_to_num().max().item()  # NaN where no pixel is over the threshold


reference = None
for name in sys.argv[1:]:
    run, answers, seconds, scores = load(name), [], [], []
    for category in HELD_OUT_CATEGORIES:
        data = DrawnParts(category=category)
        data.prepare_data()
        data.setup()
        maps, masks = [], []
        for sample in data.test_data.samples[::STEP].itertuples():
            image = read_image(sample.image_path, as_tensor=True).unsqueeze(0).numpy()
            start = time.perf_counter()
            answers.append(run(image))
            seconds.append(time.perf_counter() - start)
            maps.append(answers[-1][1])
            mask = read_image(sample.mask_path, as_tensor=True)[:1] if sample.label_index else torch.zeros(1, 1, 1)
            size = maps[-1].shape[-2:]
            masks.append((torch.nn.functional.interpolate(mask[None], size, mode="nearest-exact")[0] > 0).numpy())
        scores.append(f1_max(maps, masks))
    reference = reference or answers
    pairs = list(zip(answers, reference, strict=True))
    moved = [np.abs(answer[1] - other[1]).max() for answer, other in pairs]
    overlaps = [
        (answer[2] & other[2]).sum() / max(1, (answer[2] | other[2]).sum()) for answer, other in pairs if other[2].any()
    ]
    labels = sum(bool(answer[0][0]) != bool(other[0][0]) for answer, other in pairs)
    print(
        f"{name}: F1-max {np.mean(scores):.4f}; beside {sys.argv[1]}, over {len(pairs)} pictures: maps differ by "
        f"{np.median(moved):.1e} (median), {max(moved):.1e} (most), IoU of masks {np.median(overlaps):.3f} (median), "
        f"{np.mean(np.array(overlaps) > 0.99):.0%} over 0.99, {labels} other labels; "
        f"{np.median(seconds):.3f} s a picture",
        flush=True,
    )
