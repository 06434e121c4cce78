# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Predictions as a table: a line per image, with or without labels.

Example:
    >>> # anomalib-clipsam predictions my_pictures --to predictions.csv
"""

from __future__ import annotations

import csv
from collections import Counter
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from anomalib.visualization import Visualizer

from anomalib_clipsam.predictions.describe import count_pictures, describe

if TYPE_CHECKING:
    from anomalib.data import ImageBatch, ImageItem
    from lightning import LightningModule, Trainer

COLUMNS = ("file", "score", "label", "reason", "mask_area", "boxes")


class PredictionTable(Visualizer):
    r"""Write a CSV file: file, score, label, reason, mask area and boxes of each image.

    It is a visualizer, because anomalib calls those after the post-processor. It works with every model of anomalib.
    ``mask_area`` is in pixels of the file; ``boxes`` has ``x0 y0 x1 y1`` of each connected part of the mask in these
    pixels, separated by ``"; "``. Where an image has no file, or its file is gone by then, both are in pixels of the
    image as the model got it. What a model does not predict is left empty. The table is UTF-8; bytes of a file's name
    that are not are written as ``\udcff``. Of several processes, each adds the lines of its images.

    Args:
        path (str | Path): The CSV file; an old one is replaced.

    Attributes:
        sums_up (bool): Whether its owner says what :meth:`finish` gives, so that a pass needs no line at its end.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self.sums_up = False
        self.labels: Counter[str] = Counter()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the file, once, before any process adds to it."""
        del pl_module
        self.labels.clear()
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
        lines = [to_line(item) for item in batch]
        self.labels.update(line[COLUMNS.index("label")] for line in lines)
        self._write("ab", lines)

    on_test_batch_end = on_predict_batch_end

    def finish(self) -> str:
        """Report what this process has written.

        Returns:
            str: How many pictures, how many of them defective, and where the table is.
        """
        found = f"{self.labels['defective']:,} defective, {self.labels['good']:,} good"
        return f"{count_pictures(self.labels.total())}: {found}. In {self.path}."

    def _write(self, mode: str, lines: list[tuple[str, ...]]) -> None:
        text = StringIO(newline="")
        csv.writer(text).writerows(lines)
        with self.path.open(mode, buffering=0) as file:  # in one piece, so that no other process writes in between
            # A file's name may be no UTF-8: that must neither stop a pass nor make a table that cannot be read.
            file.write(text.getvalue().encode(errors="backslashreplace"))


def to_line(item: ImageItem) -> tuple[str, ...]:
    """Put the prediction for an image into a line.

    Args:
        item (ImageItem): The image's file and post-processed prediction.

    Returns:
        tuple[str, ...]: A text for each of :data:`COLUMNS`.
    """
    found = describe(item)
    return (
        found.file,
        "" if found.score is None else f"{found.score:.4f}",
        found.label or "",
        found.reason or "",
        "" if found.mask_area is None else str(found.mask_area),
        "; ".join(" ".join(map(str, region.box)) for region in found.regions),
    )
