# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Draw the README's picture: what the carried pair makes of one picture of each never-trained category.

A row is the first test picture of its kind, whatever it looks like. Thresholds are 0.5, as without labels.

    python tools/draw_example.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from anomalib.data import ImageItem
from anomalib.visualization.image.functional import create_image_grid

from anomalib_clipsam import ClipSam
from anomalib_clipsam.drawing.panels import sheet
from anomalib_clipsam.drawing.stages import draw_item
from anomalib_clipsam.drawn_parts.datamodule import DrawnParts

ROWS = {"leather": "scratch", "mosaic": "crack", "capsule": "hole", "connector": "good", "key": "stain"}
"""Category and kind of the picture."""


@torch.no_grad()
def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("datasets/DrawnParts"), help="folder of DrawnParts")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "docs" / "example.png")
    parser.add_argument("--size", type=int, default=190, help="side of a panel, in pixels")
    args = parser.parse_args()
    model, rows = ClipSam(weights="lite").eval(), []
    for category, kind in ROWS.items():
        data = DrawnParts(root=args.root, category=category)
        data.prepare_data()
        data.setup()
        item = next(item for item in data.test_data if Path(item.image_path).parent.name == kind)
        model.model.set_class_name(category)
        image = item.image[None]
        found = model(image)
        decided = ImageItem(
            image=item.image,
            image_path=item.image_path,
            gt_mask=item.gt_mask,
            pred_score=found.pred_score[0],
            pred_label=found.pred_label[0],
            pred_mask=found.pred_mask[0],
        )
        drawn = draw_item(model.model, model.pre_processor(image), decided, args.size)
        titles = ("Image and true mask", "CLIP map", "positive", "Mask 3", "Result")
        rows.append(sheet({name: panel for name, panel in drawn.items() if any(title in name for title in titles)}, 5))
    create_image_grid(rows, nrow=1).save(args.output)


if __name__ == "__main__":
    main()
