# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Predictions of a validation pass, kept for the test pass that follows it on the same images.

anomalib's Engine validates a zero-shot model on the data module's validation images before it tests it, and by default
these are the test images: without this the networks run twice on each.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from anomalib.data import InferenceBatch
from lightning.pytorch import Callback

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from typing import Any

    from lightning import LightningModule, Trainer

LIMIT = 2**30
"""Most bytes that are kept: about 800 maps and masks of 518 x 518 pixels."""


class PredictionStore:
    """Keep predictions, each under a key of all that determines it, up to a number of bytes.

    Args:
        limit (int): Most bytes to keep; what comes after is not kept. Defaults to 1 GiB.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self.used = 0
        self.kept: dict[Hashable, tuple[torch.Tensor | None, ...]] = {}

    @staticmethod
    def keys(paths: list[str] | None, images: torch.Tensor, settings: Hashable) -> list[Hashable] | None:
        """Make a key per image of all that determines its prediction.

        Args:
            paths (list[str] | None): The images' files.
            images (torch.Tensor): ``(B, 3, height, width)``, as the model sees them; a sample of the pixels shows
                whether the two passes augment or resize differently.
            settings (Hashable): What else the prediction depends on.

        Returns:
            list[Hashable] | None: A key per image; ``None`` if the images have no files.
        """
        if not paths or len(paths) != len(images):
            return None
        keys = []
        for path, image in zip(paths, images[..., ::8, ::8].cpu(), strict=True):
            try:
                status = Path(path).stat()
            except OSError:
                return None
            pixels = hashlib.sha256(image.contiguous().numpy()).digest()
            keys.append((str(path), status.st_size, status.st_mtime_ns, tuple(images.shape[1:]), pixels, settings))
        return keys

    def put(self, keys: list[Hashable] | None, predictions: InferenceBatch) -> None:
        """Keep the predictions for a batch, as far as there is room.

        Args:
            keys (list[Hashable] | None): What :meth:`keys` gave.
            predictions (InferenceBatch): ``pred_score`` ``(B,)``, ``anomaly_map`` and ``pred_mask`` ``(B, H, W)``.
        """
        if not keys:
            return
        mask = predictions.pred_mask
        batch = (  # moved as a whole: a GPU is waited for with each copy
            predictions.pred_score.cpu(),
            predictions.anomaly_map.cpu(),
            None if mask is None else mask.cpu(),
        )
        for index, key in enumerate(keys):
            entry = tuple(None if values is None else values[index].clone() for values in batch)
            size = sum(value.nbytes for value in entry if value is not None)
            if key not in self.kept and self.used + size <= self.limit:
                self.used += size
                self.kept[key] = entry

    def get(self, keys: list[Hashable] | None, device: torch.device) -> InferenceBatch | None:
        """Return the predictions for a batch.

        Args:
            keys (list[Hashable] | None): What :meth:`keys` gave.
            device (torch.device): Where to.

        Returns:
            InferenceBatch | None: What was put in; ``None`` unless all are known.
        """
        if not keys or any(key not in self.kept for key in keys):
            return None
        scores, maps, masks = zip(*(self.kept[key] for key in keys), strict=True)
        return InferenceBatch(
            pred_score=torch.stack(scores).to(device),
            anomaly_map=torch.stack(maps).to(device),
            pred_mask=None if masks[0] is None else torch.stack(masks).to(device),
        )

    def clear(self) -> None:
        """Forget all predictions."""
        self.used = 0
        self.kept = {}


class RunEnd(Callback):
    """Forget what was kept of a run's pictures when the run ends, also where an error ends it.

    A run is what was asked of anomalib's Engine: its test and predict run validate first, without printing the metrics.

    Args:
        forget (Callable[[], None]): Forgets it.
    """

    def __init__(self, forget: Callable[[], None]) -> None:
        self.forget = forget

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin a run with nothing, where nothing can be of this run."""
        del trainer, pl_module
        if stage == "validate":
            self.forget()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget, unless another pass of the run follows."""
        del pl_module
        if stage != "validate" or trainer.validate_loop.verbose:
            self.forget()

    def on_exception(self, *args: Any) -> None:
        """Forget."""
        del args
        self.forget()
