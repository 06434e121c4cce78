# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Passes that calibrate nothing: no validation pictures, or both thresholds set by hand.

anomalib's Engine validates a zero-shot model before it tests it or predicts with it, and without validation pictures
that ends in an error of the data module's.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from anomalib.data import AnomalibDataModule
from lightning.pytorch import Callback

from anomalib_clipsam.plugin.post_processor import ClipSamPostProcessor

if TYPE_CHECKING:
    from lightning import LightningModule, Trainer

logger = logging.getLogger(__name__)

CALIBRATING = ("validate", "fit")
"""Passes that validate, by Lightning's names."""


class SkipCalibration(Callback):
    """Skip a calibration that is not needed or not possible, and say so.

    The data module gives no validation pictures for the time of the pass, and Lightning skips what has none.
    """

    def __init__(self) -> None:
        self.datamodule: AnomalibDataModule | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look at what the pass would calibrate.

        Args:
            trainer (Trainer): Trainer that is about to run the pass.
            pl_module (LightningModule): The model.
            stage (str): The pass, by Lightning's name.
        """
        datamodule = getattr(trainer, "datamodule", None)
        if stage not in CALIBRATING or not isinstance(datamodule, AnomalibDataModule):
            return
        reason = find_reason(datamodule, pl_module)
        if reason is not None:
            logger.info("Calibration is skipped: %s.", reason)
            self.datamodule = datamodule
            datamodule.val_dataloader = _no_pictures

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Return the data module its validation pictures back."""
        del trainer, pl_module, stage
        self.restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Return the data module its validation pictures back."""
        del trainer, pl_module, exception
        self.restore()

    def restore(self) -> None:
        """Return the data module its validation pictures back."""
        if self.datamodule is not None:
            vars(self.datamodule).pop("val_dataloader", None)
            self.datamodule = None


def find_reason(datamodule: AnomalibDataModule, model: LightningModule) -> str | None:
    """Explain why nothing is calibrated.

    Args:
        datamodule (AnomalibDataModule): The pass's data module, set up.
        model (LightningModule): The model.

    Returns:
        str | None: What ends a sentence; ``None`` where there is something to calibrate, and to calibrate on.
    """
    own_loader = type(datamodule).val_dataloader is not AnomalibDataModule.val_dataloader
    if not own_loader and not hasattr(datamodule, "val_data"):
        return (
            "the data module has no validation pictures (val_split_mode none). Thresholds are those set by hand, of a "
            "checkpoint, of good parts or of the batch, else 0.5"
        )
    post_processor = getattr(model, "post_processor", None)
    measured = getattr(getattr(model, "evaluator", None), "val_metrics", ())  # these want the pictures
    if isinstance(post_processor, ClipSamPostProcessor) and not post_processor.needs_calibration and not measured:
        return "both thresholds are set by hand"
    return None


def _no_pictures() -> list:
    return []
