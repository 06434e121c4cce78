# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Small pictures of some test images, kept for the report: what each model found, and SAM's stages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalib.visualization import Visualizer
from PIL import Image
from torch.nn import functional as F  # noqa: N812

from anomalib_clipsam.drawing.panels import TRUTH, WHITE, fit, heat, orientation_of, outline, upright
from anomalib_clipsam.drawing.stages import draw_stages, has_stages

if TYPE_CHECKING:
    import torch
    from anomalib.data import ImageBatch
    from lightning import LightningModule, Trainer

INDEX = "index.json"
SIZE, QUALITY = 384, 75
"""Longer side of a picture, in pixels, and how much of it WebP keeps."""


class ReportPictures(Visualizer):
    """Draw the chosen images of a test pass, once the post-processor is done with them.

    Args:
        folder (Path): Folder of the pair; what is in it is replaced.
        chosen (set[str]): Files of the images.
        truth (Any): Gives the true mask ``(H, W)`` for a file, or ``None``.
    """

    def __init__(self, folder: Path, chosen: set[str], truth: Any) -> None:
        super().__init__()
        self.folder = folder
        self.chosen = chosen
        self.truth = truth
        self.entries: list[dict[str, Any]] = []

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with an empty folder."""
        del trainer, pl_module
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: ImageBatch,
        batch: ImageBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the chosen images of a batch."""
        del trainer, outputs, batch_idx, dataloader_idx
        for index, item in enumerate(batch):
            path = str(item.image_path)
            if path not in self.chosen:
                continue
            picture = fit(Image.open(path).convert("RGB"), SIZE)
            mask = self.truth(path)
            drawn = {"image": picture}
            if mask is not None:
                drawn["truth"] = outline(picture, mask, TRUTH)
            result = picture if item.anomaly_map is None else heat(picture, item.anomaly_map.squeeze())
            if item.pred_mask is not None:
                result = outline(result, item.pred_mask.squeeze(), WHITE)
            drawn["result"] = result
            orientation = orientation_of(path)
            drawn = {name: upright(panel, orientation) for name, panel in drawn.items()}
            stages = {}
            if has_stages(pl_module):
                panels = draw_stages(pl_module, batch.image[index : index + 1], item, SIZE)
                between = list(panels.items())[1:-1]  # the picture and the result are there already
                stages = dict(between) if len(between) > 1 else {}  # and so is a map that nothing follows
            self.entries.append(
                {
                    "path": path,
                    "defective": bool(item.gt_label),
                    "score": float(item.pred_score),
                    "decision": None if item.pred_label is None else bool(item.pred_label),
                    "overlap": _overlap(item.pred_mask, mask),
                    "pictures": {name: self._save(drawn_one) for name, drawn_one in drawn.items()},
                    "stages": {title: self._save(panel) for title, panel in stages.items()},
                }
            )

    def _save(self, picture: Image.Image) -> str:
        name = f"{len(list(self.folder.iterdir())):04}.webp"
        picture.save(self.folder / name, quality=QUALITY)
        return name

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the index of the pictures."""
        del trainer, pl_module
        (self.folder / INDEX).write_text(json.dumps(self.entries), encoding="utf-8")


def _overlap(found: torch.Tensor | None, truth: torch.Tensor | None) -> float | None:
    """Return the intersection over the union of two masks ``(H, W)`` of any size; ``None`` if one is missing."""
    if found is None or truth is None or not truth.any():
        return None
    size = tuple(truth.shape[-2:])
    found = (
        F.interpolate(found.reshape(1, 1, *found.shape[-2:]).float().cpu(), size, mode="nearest-exact").squeeze() > 0
    )
    truth = truth.squeeze() > 0
    return float((found & truth).sum() / (found | truth).sum())
