# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Run an exported ClipSam with OpenVINO, without torch: `python openvino_runtime.py model.xml part.png overlay.png`.

Needs `pip install numpy openvino pillow`. The picture may have any size.
"""

import sys

import numpy as np
import openvino
from PIL import Image

if len(sys.argv) != 4:
    sys.exit(__doc__)
model_path, picture_path, overlay_path = sys.argv[1:]
model = openvino.Core().read_model(model_path)
# Left to itself, OpenVINO computes in bf16 where the CPU has it, and the answers differ.
compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

picture = Image.open(picture_path).convert("RGB")
pixels = np.asarray(picture, dtype=np.float32) / 255  # (height, width, 3)
answer = compiled(pixels.transpose(2, 0, 1)[None])

class_name = model.get_rt_info(["model_info", "class_name"]).astype(str)
label = "defective" if answer["pred_label"][0] else "good"
area = round(answer["pred_mask"].mean() * picture.width * picture.height)  # in pixels of the picture
print(f"{class_name}: {label}, score {answer['pred_score'][0]:.4f}, mask {area} pixels")

mask = Image.fromarray(answer["pred_mask"][0].astype(np.uint8) * 128).resize(picture.size)
Image.composite(Image.new("RGB", picture.size, "red"), picture, mask).save(overlay_path)
