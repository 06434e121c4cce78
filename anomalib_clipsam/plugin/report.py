# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The last lines of a pass: what made its threshold, how many pictures are defective, and where they are drawn."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback

from anomalib_clipsam.errors.errors import printable

if TYPE_CHECKING:
    from anomalib.data import ImageBatch
    from lightning import LightningModule, Trainer

logger = logging.getLogger(__name__)

GOOD_PARTS, BY_HAND = "--model.k_shot 4 --model.few_shot_source FOLDER", "--model.image_threshold"
"""What anomalib's command line is given for good parts, and for a threshold."""


class PassSummary(Callback):
    """Say what a test or predict pass found, in one line, once, and before it what else is to be said of a pass.

    The line is printed where there is a progress bar, and logged where there is none. What the model has in its
    ``closing_lines`` is logged here, since a log line would break the progress bar before.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(3, dtype=torch.long)  # pictures, those with a verdict, defective ones

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        del trainer, pl_module
        self.counts = torch.zeros(3, dtype=torch.long)

    on_predict_start = on_test_start

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: ImageBatch,
        batch: ImageBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the pictures of a batch, once the post-processor is done with them."""
        del trainer, pl_module, outputs, batch_idx, dataloader_idx
        labels = batch.pred_label
        judged, defective = (0, 0) if labels is None else (labels.numel(), int(labels.sum()))
        self.counts += torch.tensor([len(batch.image), judged, defective])

    on_predict_batch_end = on_test_batch_end

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the counts of all processes up, while they can still talk to one another."""
        self.counts = trainer.strategy.reduce(self.counts.to(pl_module.device), reduce_op="sum").cpu()

    on_predict_end = on_test_end

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Say it, below all that the pass has printed."""
        lines = getattr(pl_module, "closing_lines", [])
        for level, line in lines if trainer.is_global_zero else ():
            logger.log(level, line)
        lines.clear()
        if stage not in ("test", "predict") or not trainer.is_global_zero or not self.counts[0]:
            return
        visualizer = getattr(pl_module, "visualizer", None)
        if getattr(visualizer, "sums_up", False):
            return
        origin = pl_module.explain_threshold(GOOD_PARTS, BY_HAND) if hasattr(pl_module, "explain_threshold") else None
        if origin is not None:
            logger.info(origin)
        line = summarize(self.counts.tolist(), find_pictures(trainer, visualizer))
        if trainer.progress_bar_callback is None:
            logger.info(line)
        else:
            print(line, flush=True)


def summarize(counts: list[int], folder: Path | None) -> str:
    """Put counts into a line.

    Args:
        counts (list[int]): Numbers of pictures, of those with a verdict, and of defective ones.
        folder (Path | None): Where they are drawn; ``None`` where they are not.

    Returns:
        str: Such as ``"12 pictures: 3 defective, 9 good. They are drawn in results/images"``.
    """
    pictures, judged, defective = counts
    line = f"{pictures} picture{'s' * (pictures != 1)}"
    if judged:
        line += f": {defective} defective, {judged - defective} good"
    return line if folder is None else f"{line}. Drawn in {printable(folder)}"


def find_pictures(trainer: Trainer, visualizer: Any) -> Path | None:
    """Find the folder that a visualizer writes to.

    Args:
        trainer (Trainer): Trainer of the pass.
        visualizer (Any): The visualizer, or ``None``.

    Returns:
        Path | None: The folder, from the working directory where it is below that; ``None`` if there is none.
    """
    if not hasattr(visualizer, "output_dir"):
        return None
    # resolved: the next run moves the link `latest`
    folder = Path(visualizer.output_dir or Path(trainer.default_root_dir) / "images").resolve()
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
