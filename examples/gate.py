# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Show SAM only what CLIP finds suspicious: `python gate.py model_localizer.onnx model_refiner.onnx *.png`.

The two files are written by `ClipSam(...).to_parts("exported")`. Needs `pip install numpy onnxruntime pillow`.
"""

import sys

import numpy as np
import onnxruntime
from PIL import Image

if len(sys.argv) < 4:
    sys.exit(__doc__)
localizer, refiner = (onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]) for path in sys.argv[1:3])
asked = 0
for path in sys.argv[3:]:
    pixels = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) / 255  # (height, width, 3)
    image = pixels.transpose(2, 0, 1)[None]
    names = ["pred_score", "pred_label", "clip_map", "suspicious", "pred_mask"]
    score, label, clip_map, suspicious, mask = localizer.run(names, {"input": image})
    # As it is, the answers are those of the whole model: a picture that is called good has an empty mask.
    if suspicious[0] and label[0]:
        (mask,) = refiner.run(["pred_mask"], {"input": image, "clip_map": clip_map})
        asked += 1
    area = round(mask.mean() * pixels.shape[0] * pixels.shape[1])  # in pixels of the picture
    print(f"{path}: {'defective' if label[0] else 'good'}, score {score[0]:.4f}, mask {area} pixels")
print(f"SAM ran on {asked} of {len(sys.argv) - 3} pictures")
