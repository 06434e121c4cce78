#!/usr/bin/env bash
# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0
#
# Pillow 12.3.0 opens a colour PNG of 16 bits a channel as mode RGB and keeps the top byte of each value. A camera of
# 12 bits that writes its values as they are, 0 to 4095, becomes a picture whose brightest value is 15 of 255. Nothing
# is raised or warned. A grey PNG of 16 bits keeps its values (mode I;16).
#
# Seen: "RGB 15" and "I;16 4095". Fails if that changes.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pillow==12.3.0 opencv-python-headless==5.0.0.93 'numpy<3'
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys

import cv2
import numpy as np
from PIL import Image

ramp = np.linspace(0, 4095, 64, dtype=np.uint16).reshape(8, 8)
seen = []
for name, values in (("colour", np.dstack([ramp] * 3)), ("grey", ramp)):
    path = f"{sys.argv[1]}/{name}.png"
    cv2.imwrite(path, values)
    with Image.open(path) as image:
        seen.append(f"{image.mode} {np.asarray(image).max()}")
print(*seen, sep="\n")
assert seen == ["RGB 15", "I;16 4095"], seen
PYTHON
