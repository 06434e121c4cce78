# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Seconds, peak memory and size of an export at the published sizes, with random weights, and how far it is from torch.

    python benchmarks/export.py --sam vit_b --type onnx
    python benchmarks/export.py --sam vit_b --type openvino --compression FP16 --pictures 7

The peak is that of the process, with torch and the model in it.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import torch
from anomalib.deploy import CompressionType
from benchmark import build_pipeline

OUTPUTS = ("pred_score", "pred_label", "anomaly_map", "pred_mask")

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--sam", choices=("vit_b", "vit_l", "vit_h"), default="vit_b")
parser.add_argument("--type", choices=("onnx", "openvino"), default="onnx")
parser.add_argument("--compression", choices=("FP16", "INT8"), help="for OpenVINO")
parser.add_argument("--pictures", type=int, default=1, help="how many to compare on, of sizes from 700 x 900 up")
parser.add_argument("--root", type=Path, help="where the files stay; by default they are deleted")
arguments = parser.parse_args()

torch.manual_seed(0)
module = build_pipeline(arguments.sam)
images = [torch.rand(1, 3, 700 + 60 * index, 900 + 90 * index) for index in range(arguments.pictures)]
with torch.no_grad():
    expected = [module(image) for image in images]

with tempfile.TemporaryDirectory() as scratch:
    root = arguments.root or Path(scratch)
    start = time.perf_counter()
    if arguments.type == "onnx":
        path = module.to_onnx(root)
    else:
        compression = CompressionType[arguments.compression] if arguments.compression else None
        path = module.to_openvino(root, compression_type=compression)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
    sizes = ", ".join(f"{file.name} {file.stat().st_size / 1e6:,.0f} MB" for file in sorted(path.parent.iterdir()))
    print(f"{arguments.sam}, {path.name}: {seconds:.0f} s, at most {peak:.1f} GiB; {sizes}", flush=True)
    del module
    if arguments.type == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        answers = [dict(zip(OUTPUTS, session.run(OUTPUTS, {"input": image.numpy()}), strict=True)) for image in images]
    else:
        import openvino

        compiled = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        answers = [{name: result[name] for name in OUTPUTS} for result in (compiled(image.numpy()) for image in images)]

for answer, other in zip(answers, expected, strict=True):
    differ = {name: abs(answer[name].astype("float32") - getattr(other, name).float().numpy()) for name in OUTPUTS}
    print(
        f"On a random picture beside torch: scores differ by {differ['pred_score'].max():.1e}, labels by "
        f"{differ['pred_label'].max():.0f}, maps by at most {differ['anomaly_map'].max():.1e}, masks in "
        f"{differ['pred_mask'].mean():.3%} of the pixels, of which {other.pred_mask.float().mean():.0%} are set"
    )
