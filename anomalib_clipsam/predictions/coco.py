# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Predictions as a COCO data set, which annotation tools and ``pycocotools`` read. Masks are pycocotools' own RLE."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from anomalib_clipsam.errors.errors import UserImportError
from anomalib_clipsam.predictions.describe import parts_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def to_coco(pictures: Mapping[Path, Mapping[str, Any]], folder: Path) -> dict[str, Any]:
    """Make a COCO data set of predictions: an annotation per region of a mask, all of the one category "defect".

    Args:
        pictures (Mapping[Path, Mapping[str, Any]]): A picture as seen from its folder -> its line of
            ``predictions.jsonl``.
        folder (Path): The folder that these lines name masks in.

    Returns:
        dict[str, Any]: The data set. Boxes are x, y, width, height in pixels.

    Raises:
        ImportError: If pycocotools is missing.
    """
    try:
        from pycocotools.mask import encode
    except ImportError as error:
        msg = (
            "coco.json was not written, as pycocotools is missing. Run: pip install 'anomalib_clipsam[coco]', and then "
            "the same command again, which makes that file only."
        )
        raise UserImportError(msg) from error

    images, annotations = [], []
    for number, (picture, entry) in enumerate(pictures.items(), start=1):
        width, height = entry["width"], entry["height"]
        images.append({"id": number, "file_name": picture.as_posix(), "width": width, "height": height})
        if entry["mask"] is None:
            continue
        with Image.open(folder / entry["mask"]) as image:
            mask = np.asarray(image)
        for region, ((x0, y0, x1, y1), inside) in zip(entry["regions"], parts_of(mask), strict=True):
            alone = np.zeros((height, width), np.uint8, order="F")
            alone[y0:y1, x0:x1] = inside
            rle = encode(alone)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": region["area"],
                    "iscrowd": 0,
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                    "score": region["score"],
                }
            )
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "defect"}]}
