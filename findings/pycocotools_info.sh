#!/usr/bin/env bash
# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0
#
# pycocotools 2.0.11: a COCO file with images, annotations and categories alone, which it reads and searches, ends in
# a KeyError when its own info() is asked for: it needs an entry "info" that nothing else needs.
#
# Seen: "1 annotation" and "KeyError: 'info'". Fails if that changes.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pycocotools==2.0.11
"$folder/venv/bin/python" - "$folder/coco.json" <<'PYTHON'
import json
import sys

from pycocotools.coco import COCO

box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}
content = {
    "images": [{"id": 1, "width": 8, "height": 8, "file_name": "a.png"}],
    "annotations": [box],
    "categories": [{"id": 1, "name": "defect"}],
}
with open(sys.argv[1], "w", encoding="utf-8") as file:
    json.dump(content, file)
coco = COCO(sys.argv[1])
print(len(coco.getAnnIds()), "annotation")
try:
    coco.info()
except KeyError as error:
    print("KeyError:", error)
    assert str(error) == "'info'"
else:
    raise SystemExit("info() works now")
PYTHON
