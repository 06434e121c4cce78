# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Run an exported ClipSam with ONNX Runtime, without torch: `python onnx_runtime.py model.onnx part.png overlay.png`.

Needs `pip install numpy onnxruntime pillow`. The picture may have any size.
"""

import sys

import numpy as np
import onnxruntime
from PIL import Image

if len(sys.argv) != 4:
    sys.exit(__doc__)
model_path, picture_path, overlay_path = sys.argv[1:]
session = onnxruntime.InferenceSession(model_path, providers=["CPUExecutionProvider"])
names = [output.name for output in session.get_outputs()]

picture = Image.open(picture_path).convert("RGB")
pixels = np.asarray(picture, dtype=np.float32) / 255  # (height, width, 3)
answer = dict(zip(names, session.run(None, {"input": pixels.transpose(2, 0, 1)[None]}), strict=True))

metadata = session.get_modelmeta().custom_metadata_map
label = "defective" if answer["pred_label"][0] else "good"
area = round(answer["pred_mask"].mean() * picture.width * picture.height)  # in pixels of the picture
print(f"{metadata['class_name']}: {label}, score {answer['pred_score'][0]:.4f}, mask {area} pixels")

mask = Image.fromarray(answer["pred_mask"][0].astype(np.uint8) * 128).resize(picture.size)
Image.composite(Image.new("RGB", picture.size, "red"), picture, mask).save(overlay_path)
