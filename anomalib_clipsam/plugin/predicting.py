# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Predictions for the batches of a pass: by the name of each part, and not twice for the same picture."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from anomalib.data import InferenceBatch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from anomalib_clipsam.errors.errors import NotFiniteError, printable
from anomalib_clipsam.plugin.kept_predictions import PredictionStore
from anomalib_clipsam.plugin.part_names import asking_about
from anomalib_clipsam.references.judge import reasons

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence

    from anomalib.data import Batch
    from lightning import Trainer

    from anomalib_clipsam.plugin.part_names import PartNames
    from anomalib_clipsam.plugin.report import Report
    from anomalib_clipsam.torch_model import ClipSamModel

logger = logging.getLogger(__name__)

MUCH_MEMORY = 2 * 10**9
"""Bytes of kept predictions above which a warning is logged."""


class Predictor:
    """Predict batches, and remember a validation pass's predictions for the test pass of the same run.

    Args:
        names (PartNames): Names each picture's part.
        report (Report): Counts the pictures.
        reuse (bool): Whether to remember.
    """

    def __init__(self, names: PartNames, report: Report, reuse: bool) -> None:
        self.names = names
        self.report = report
        self.store = PredictionStore() if reuse else None

    def predict(self, model: ClipSamModel, batch: Batch) -> Batch:
        """Predict a batch.

        Args:
            model (ClipSamModel): The model.
            batch (Batch): Input batch.

        Returns:
            Batch: The batch with predictions.
        """
        return _answer(model, batch, self._predictions(model, batch))

    def validate(self, model: ClipSamModel, batch: Batch) -> Batch:
        """Predict a batch, and keep the predictions. See :meth:`predict`."""
        predictions = self._predictions(model, batch)
        if self.store is not None:
            self.store.put(_keys(model, batch), predictions)
        return _answer(model, batch, predictions)

    def test(self, model: ClipSamModel, batch: Batch) -> Batch:
        """Predict a batch, or reuse what was kept for the same images. See :meth:`predict`."""
        known = None
        if self.store is not None and self.store.kept:
            known = self.store.get(_keys(model, batch), batch.image.device)
        return _answer(model, batch, self._predictions(model, batch) if known is None else known)

    def forget(self) -> None:
        """Forget what was kept."""
        if self.store is not None:
            self.store.clear()

    def _predictions(self, model: ClipSamModel, batch: Batch) -> InferenceBatch:
        """Predict a batch, asking about each picture by its own name where pictures have their own."""
        paths = batch.image_path or [None] * len(batch.image)
        names = [self.names.of(model, path) for path in paths]
        parts = []
        for name in dict.fromkeys(names):
            index = [place for place, other in enumerate(names) if other == name]
            with asking_about(model, name), naming_files([paths[place] for place in index]):
                stages = model(batch.image[index] if len(index) < len(names) else batch.image, every_stage=True)
            self.report.count(stages)
            parts.append((index, stages.predictions))
        if len(parts) == 1:
            return parts[0][1]
        order = torch.tensor([place for index, _ in parts for place in index]).argsort()
        fields = zip(*(predictions for _, predictions in parts), strict=True)
        return InferenceBatch(*(None if values[0] is None else torch.cat(values)[order] for values in fields))


@contextmanager
def naming_files(paths: list[str | None]) -> Iterator[None]:
    """Name the files of pictures about which something is not finite.

    Args:
        paths (list[str | None]): Files of the pictures that are looked at.

    Raises:
        NotFiniteError: With their names.
    """
    try:
        yield
    except NotFiniteError as error:
        if None in paths:
            raise
        names = ", ".join(printable(paths[place]) for place in error.images)
        msg = f"{names}: {error}"
        raise NotFiniteError(msg, error.images) from error


def warn_of_memory(trainer: Trainer, outputs: Batch) -> None:
    """Warn if the predictions that Lightning keeps for its caller will need much memory.

    Args:
        trainer (Trainer): Trainer of the pass.
        outputs (Batch): Its first batch, with predictions.
    """
    per_batch = sum(value.nbytes for value in vars(outputs).values() if isinstance(value, torch.Tensor))
    total = per_batch * sum(trainer.num_predict_batches)
    if total > MUCH_MEMORY:
        logger.warning(
            "The predictions are kept in memory until the end, with their images: about %.0f GB. If you do not "
            "need them, give --return_predictions false, or in Python Engine.predict(return_predictions=False).",
            total / 1e9,
        )


def _keys(model: ClipSamModel, batch: Batch) -> list[Hashable] | None:
    """Make a key per image for all that determines its prediction."""
    return PredictionStore.keys(batch.image_path, batch.image, tuple(model.settings().items()))


def _answer(model: ClipSamModel, batch: Batch, predictions: InferenceBatch) -> Batch:
    """Put predictions and reasons into a batch, and resize true masks to the maps' size, whatever the pre-processor.

    A pixel metric at SAM's 1024 px costs half a minute and gigabytes per 100 images; maps are smaller.
    """
    size: Sequence[int] = list(predictions.anomaly_map.shape[-2:])
    if batch.gt_mask is not None and list(batch.gt_mask.shape[-2:]) != size:
        mask = batch.gt_mask.unsqueeze(1)  # (B, 1, height, width)
        batch.gt_mask = resize(mask, size, interpolation=InterpolationMode.NEAREST_EXACT).squeeze(1)
    batch.explanation = reasons(predictions.pred_score, model.judge)
    return batch.update(**predictions._asdict())
