# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Predictions as a table: a line per image, with or without labels.

Example:
    >>> # anomalib-clipsam predictions my_pictures --to predictions.csv
"""

from __future__ import annotations

import csv
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from anomalib.data.utils import get_image_filenames
from anomalib.data.utils.boxes import masks_to_boxes
from anomalib.engine import Engine
from anomalib.visualization import Visualizer
from PIL import Image

if TYPE_CHECKING:
    from anomalib.data import ImageBatch, ImageItem
    from anomalib.models import AnomalibModule
    from lightning import LightningModule, Trainer

COLUMNS = ("file", "score", "label", "mask_area", "boxes")
MOST_GOOD_PARTS = 8
"""Most good parts of a folder that pictures are compared with: more cost time and memory, and bring little."""


class PredictionTable(Visualizer):
    r"""Write a CSV file: file, score, label, mask area and boxes of each image.

    It is a visualizer, because anomalib calls those after the post-processor. It works with every model of anomalib.
    ``mask_area`` is in pixels of the file; ``boxes`` has ``x0 y0 x1 y1`` of each connected part of the mask in these
    pixels, separated by ``"; "``. Where an image has no file, or its file is gone by then, both are in pixels of the
    image as the model got it. What a model does not predict is left empty. The table is UTF-8; bytes of a file's name
    that are not are written as ``\udcff``. Of several processes, each adds the lines of its images.

    Args:
        path (str | Path): The CSV file; an old one is replaced.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the file, once, before any process adds to it."""
        del pl_module
        if trainer.is_global_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._write("wb", [COLUMNS])
        trainer.strategy.barrier()

    on_test_start = on_predict_start

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: ImageBatch,
        batch: ImageBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the lines of a batch at once: a stopped run leaves those that are done."""
        del trainer, pl_module, outputs, batch_idx, dataloader_idx
        self._write("ab", [describe(item) for item in batch])

    on_test_batch_end = on_predict_batch_end

    def _write(self, mode: str, lines: list[tuple[str, ...]]) -> None:
        text = StringIO(newline="")
        csv.writer(text).writerows(lines)
        with self.path.open(mode, buffering=0) as file:  # in one piece, so that no other process writes in between
            # A file's name may be no UTF-8: that must neither stop a pass nor make a table that cannot be read.
            file.write(text.getvalue().encode(errors="backslashreplace"))


def describe(item: ImageItem) -> tuple[str, ...]:
    """Describe the prediction for an image.

    Args:
        item (ImageItem): The image's file and post-processed prediction.

    Returns:
        tuple[str, ...]: A text for each of :data:`COLUMNS`.
    """
    score = "" if item.pred_score is None else f"{float(item.pred_score):.4f}"
    label = "" if item.pred_label is None else "defective" if bool(item.pred_label) else "good"
    path = "" if item.image_path is None else str(item.image_path)
    if item.pred_mask is None:
        return path, score, label, "", ""
    width, height = _size(item)
    mask = item.pred_mask.squeeze().cpu()  # (H, W)
    x, y = width / mask.shape[1], height / mask.shape[0]
    (boxes,), _ = masks_to_boxes(mask.unsqueeze(0))  # first and last pixel
    corners = [(x0 * x, y0 * y, (x1 + 1) * x, (y1 + 1) * y) for x0, y0, x1, y1 in boxes.tolist()]
    written = "; ".join(" ".join(str(round(value)) for value in box) for box in corners)
    return path, score, label, str(round(int(mask.sum()) * x * y)), written


def _size(item: ImageItem) -> tuple[int, int]:
    """Give width and height of the image's file, else of the image as the model got it."""
    if item.image_path is not None:
        try:
            with Image.open(item.image_path) as image:
                return image.size
        except OSError:  # gone since it was scored
            pass
    height, width = item.image.shape[-2:]
    return width, height


def count_good_parts(folder: Path) -> int:
    """Say how many good parts of a folder pictures are compared with.

    Args:
        folder (Path): The folder.

    Returns:
        int: All of its pictures, up to :data:`MOST_GOOD_PARTS`.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it has no picture.
    """
    if not folder.exists():
        msg = f"'{folder}' does not exist. Give a folder of good parts."
        raise FileNotFoundError(msg)
    return min(MOST_GOOD_PARTS, len(get_image_filenames(folder)))


def write_predictions(model: AnomalibModule, folder: Path, table: Path, checkpoint: Path | None = None) -> None:
    """Score the pictures of a folder, and write a table.

    Args:
        model (AnomalibModule): The model; its visualizer is replaced by the table.
        folder (Path): A picture, or a folder of pictures.
        table (Path): CSV file to write.
        checkpoint (Path | None): Checkpoint with calibrated thresholds. Defaults to ``None``, the model's own.

    Raises:
        OSError: If a file cannot be read or written.
        ValueError: If no picture can be scored.
    """
    model.visualizer = PredictionTable(table)
    with TemporaryDirectory() as workspace:
        engine = Engine(default_root_dir=workspace, logger=False, devices=1)
        engine.predict(model, data_path=folder, ckpt_path=checkpoint, return_predictions=False)
