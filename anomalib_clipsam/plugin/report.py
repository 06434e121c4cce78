# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""What a pass says: once, what is the same in every pass, and at its end what was found and what it rests on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback

from anomalib_clipsam.errors.errors import printable
from anomalib_clipsam.references.judge import UNFITTED

if TYPE_CHECKING:
    from anomalib.data import ImageBatch
    from lightning import LightningModule, Trainer

    from anomalib_clipsam.method.stages import ClipSamStages
    from anomalib_clipsam.references.judge import Judge

logger = logging.getLogger(__name__)

GOOD_PARTS, BY_HAND = "--model.k_shot 4 --model.few_shot_source FOLDER", "--model.image_threshold"
"""What anomalib's command line is given for good parts, and for a threshold."""


class Report:
    """What is to be said of a pass: counts of its pictures, and lines for its end.

    Args:
        logger (logging.Logger): Where lines go that are logged at once.

    Attributes:
        closing_lines (list[tuple[int, str]]): Level and text of the lines for the end of the pass.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self.logger = logger
        self.closing_lines: list[tuple[int, str]] = []
        self._logged: dict[str, str] = {}
        self._counts: torch.Tensor | None = None

    def log_once(self, about: str, text: str) -> None:
        """Log what is the same in pass after pass when it changes only.

        Args:
            about (str): What it is about.
            text (str): The line.
        """
        if self._logged.get(about) != text:
            self._logged[about] = text
            self.logger.info(text)

    def count(self, stages: ClipSamStages) -> None:
        """Count pictures: all, those that SAM has seen, those that were compared, those unlike all references.

        Args:
            stages (ClipSamStages): What was found about them.
        """
        # tensors all along: a GPU is not waited for
        counts = torch.zeros(4, dtype=torch.long, device=stages.score.device)
        if stages.refined is not None:
            counts[0], counts[1] = len(stages.score), stages.refined.sum()
        if stages.unlike is not None:
            counts[2], counts[3] = len(stages.score), stages.unlike.sum()
        self._counts = counts if self._counts is None else self._counts + counts

    def close(self, trainer: Trainer, device: torch.device) -> None:
        """Describe how many pictures SAM skipped, warn of pictures of another part, and count anew.

        Args:
            trainer (Trainer): Trainer of the pass, which adds up what each process has counted.
            device (torch.device): The model's.
        """
        counts, self._counts = self._counts, None
        counts = torch.zeros(4, dtype=torch.long) if counts is None else counts
        total = trainer.strategy.reduce(counts.to(device), reduce_op="sum")
        seen, refined, judged, unlike = total.tolist()
        if judged and unlike > judged / 2:
            line = (
                f"{unlike} of {judged} pictures are unlike their references nearly everywhere. Are these of the same "
                "part, seen in the same way?"
            )
            self.closing_lines.append((logging.WARNING, line))
        skipped = seen - refined
        if skipped:
            share = f"{skipped} of {seen} pictures ({100 * skipped / seen:.0f} %)"
            line = f"SAM skipped {share}: CLIP finds nothing suspicious in them."
            self.closing_lines.append((logging.INFO, line))


def explain_threshold(
    post_processor: Any, judge: Judge | None, reference_option: str, threshold_option: str
) -> str | None:
    """Explain what the threshold rests on where neither labels nor the user have set it, and what moves it.

    Args:
        post_processor (Any): The model's post-processor, or ``None``.
        judge (Judge | None): Who judges beside the text.
        reference_option (str): Option that gives good parts.
        threshold_option (str): Option that sets a threshold.

    Returns:
        str | None: Two sentences; ``None`` where nothing need be said.
    """
    if not getattr(post_processor, "threshold_is_open", False):
        return None
    if judge is None:
        return UNFITTED.format(reference_option, threshold_option)
    return judge.explain(reference_option, threshold_option)


class PassSummary(Callback):
    """Report what a test or predict pass found, in one line, once, and before it what else is to be said of a pass.

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
        """Report it, below all that the pass has printed."""
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
