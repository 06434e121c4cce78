#!/usr/bin/env bash
# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0
#
# anomalib 2.7.0: connected_components_cpu, and with it masks_to_boxes, finds nothing in a mask that covers the whole
# picture. It takes the first of OpenCV's labels for the background, which such a mask does not have. A mask that
# leaves one pixel out has its component and its box.
#
# Seen: "whole: labels [0], 0 boxes" and "all but one pixel: labels [0, 1], 1 boxes". Fails if that changes.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 anomalib==2.7.0
"$folder/venv/bin/python" - 2>"$folder/warnings" <<'PYTHON' || { tail -n 3 "$folder/warnings"; exit 1; }
import torch
from anomalib.data.utils.boxes import masks_to_boxes
from anomalib.utils.cv import connected_components_cpu

whole = torch.ones(1, 1, 4, 5)
nearly = whole.clone()
nearly[0, 0, 0, 0] = 0
seen = []
for name, mask in (("whole", whole), ("all but one pixel", nearly)):
    labels = connected_components_cpu(mask).unique().int().tolist()
    seen.append(f"{name}: labels {labels}, {len(masks_to_boxes(mask)[0][0])} boxes")
print(*seen, sep="\n")
assert seen == ["whole: labels [0], 0 boxes", "all but one pixel: labels [0, 1], 1 boxes"], seen
PYTHON
