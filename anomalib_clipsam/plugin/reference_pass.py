# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""What pictures are compared with, looked at before a pass: good parts, or all pictures of the pass."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from anomalib_clipsam.data.good_parts import WatchedViews, read_good_parts
from anomalib_clipsam.data.progress import progress
from anomalib_clipsam.data.whole_pass import WholePass
from anomalib_clipsam.errors.errors import UserValueError, counted
from anomalib_clipsam.method.checks import check_images
from anomalib_clipsam.plugin.post_processor import ClipSamPostProcessor
from anomalib_clipsam.plugin.predicting import naming_files

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lightning import LightningModule, Trainer
    from torch import nn

    from anomalib_clipsam.torch_model import ClipSamModel

logger = logging.getLogger(__name__)


class References:
    """Good parts of a model, or the batch that it compares.

    Args:
        k_shot (int): Number of good parts; 0 for none.
        source (str | None): Folder of these; ``None`` for the training data.

    Attributes:
        read_from (str | None): Where the good parts are from; ``None`` for those given by a user, or of a checkpoint.
    """

    def __init__(self, k_shot: int, source: str | None) -> None:
        self.k_shot = k_shot
        self.source = source
        self.read_from: str | None = None

    def forget_others(self, model: ClipSamModel, trainer: Trainer | None) -> None:
        """Forget good parts of another category than the one that is tested now.

        Args:
            model (ClipSamModel): The model.
            trainer (Trainer | None): Its trainer.
        """
        if self.k_shot and self.read_from not in (None, self._place(trainer)):
            model.judge.forget()

    def read(
        self, model: ClipSamModel, trainer: Trainer | None, prepare: Callable[[torch.Tensor], torch.Tensor]
    ) -> bool:
        """Read the good parts and look at them, where that was not done yet.

        Args:
            model (ClipSamModel): The model.
            trainer (Trainer | None): Its trainer, if it has one.
            prepare (Callable[[torch.Tensor], torch.Tensor]): Makes of a picture ``(3, height, width)`` what the model
                takes.

        Returns:
            bool: Whether any were looked at.

        Raises:
            FileNotFoundError: If their folder does not exist.
            ValueError: If there are too few, or one of them cannot be read.
        """
        judge = model.judge
        if judge is None or not judge.needs_good_parts or judge.ready:
            return False
        datamodule = None if trainer is None else getattr(trainer, "datamodule", None)
        parts = read_good_parts(self.k_shot, self.source, datamodule, prepare, model.misfit)
        show_good_parts(model, trainer, parts if model.takes_any_size else list(parts))  # large ones are read again
        self.read_from = self._place(trainer)
        logger.info("Pictures are compared with %s from %s.", counted(self.k_shot, "good part"), self.read_from)
        return True

    def _place(self, trainer: Trainer | None) -> str:
        """Describe where good parts are read from."""
        if self.source is not None:
            return self.source
        datamodule = None if trainer is None else getattr(trainer, "datamodule", None)
        named = [getattr(datamodule, name, None) for name in ("name", "root", "category")]
        return " ".join(["the training data of", *(str(value) for value in named if value is not None)])


def show_good_parts(model: ClipSamModel, trainer: Trainer | None, parts: Sequence[torch.Tensor]) -> None:
    """Let the model learn good parts, under a progress bar where the pass has one.

    Args:
        model (ClipSamModel): The model.
        trainer (Trainer | None): Its trainer, if it has one.
        parts (Sequence[torch.Tensor]): Parts ``(3, height, width)``, as it takes them.
    """
    steps = len(parts) * model.judge.views_of_a_part(model.takes_any_size)
    with progress(trainer, "Looking at good parts", steps) as advance:
        model.judge.learn(parts, WatchedViews(model, advance))


def compare_batch(module: LightningModule, model: ClipSamModel, loaders: Any, batches: Sequence[float]) -> bool:
    """Let all pictures of a pass judge each other, where the model compares them.

    Args:
        module (LightningModule): The module of the pass, with its trainer and pre-processor.
        model (ClipSamModel): Its model.
        loaders (Any): The pass's data loader, or a list of them.
        batches (Sequence[float]): Batches of each that the pass takes, in each process.

    Returns:
        bool: Whether they were judged now.
    """
    judge = model.judge
    if judge is None or not judge.needs_pass:
        return False
    whole = WholePass(loaders, batches, module.trainer.world_size)
    if not whole.pictures or judge.judged_already(whole.files, model.class_name):
        return False
    judge.begin(whole.pictures)
    for says, step in judge.steps(model).items():
        for batch in whole.shown(module.trainer, says):
            batch.image = batch.image.to(module.device)  # resized there, as in the pass, so to the same bits
            if module.pre_processor is not None:
                module.pre_processor.on_predict_batch_start(module.trainer, module, batch, 0)
            with naming_files(batch.image_path or [None]):
                check_images(batch.image)
                step(batch.image.clamp(0, 1))
    judge.judge(whole.files, model.class_name)
    return True


class ClipSamReferences:
    """What ClipSam does about its references: put it before :class:`anomalib.models.components.AnomalibModule`."""

    model: ClipSamModel
    pre_processor: nn.Module | None
    post_processor: nn.Module | None
    k_shot: int
    _references: References

    @property
    def compares_batch(self) -> bool:
        """Whether the pictures of a pass are compared with one another, so that each score depends on all."""
        return self.model.judge is not None and self.model.judge.needs_pass

    def on_validation_start(self) -> None:
        """Log what a validation pass is for, and look at the references."""
        if not self.trainer.sanity_checking:
            logger.info("ClipSam trains nothing. This pass calibrates thresholds and normalisation.")
        self._look_at_references(self.trainer.val_dataloaders, self.trainer.num_val_batches)

    def on_test_start(self) -> None:
        """Look at the references."""
        self._look_at_references(self.trainer.test_dataloaders, self.trainer.num_test_batches)

    def on_predict_start(self) -> None:
        """Look at the references."""
        self._look_at_references(self.trainer.predict_dataloaders, self.trainer.num_predict_batches)

    def _look_at_references(self, loaders: Any, batches: Sequence[float]) -> None:
        self.learn_good_parts()
        if compare_batch(self, self.model, loaders, batches):
            self._use_thresholds()

    def learn_good_parts(self) -> None:
        """Read the good parts and look at them, where that was not done yet.

        Raises:
            FileNotFoundError: If their folder does not exist.
            ValueError: If there are fewer than ``k_shot``, or one of them cannot be read.
        """
        if self._references.read(self.model, self._trainer, self._prepare):
            self._use_thresholds()

    def set_references(self, images: torch.Tensor | Sequence[torch.Tensor]) -> None:
        """Compare with these good parts from now on.

        Args:
            images (torch.Tensor | Sequence[torch.Tensor]): ``(k, 3, height, width)``, or ``(3, height, width)`` each,
                RGB in [0, 1].

        Raises:
            TypeError: If the images are no tensor of floats.
            ValueError: If they have another shape, or a value is NaN or infinite; or if the model has no ``k_shot``.
        """
        if not self.k_shot:
            msg = "This model compares with no good parts. Make it with `k_shot`, such as ClipSam(k_shot=4)."
            raise UserValueError(msg)
        for image in [images] if isinstance(images, torch.Tensor) or not images else [image[None] for image in images]:
            check_images(image)
        show_good_parts(self.model, self._trainer, [self._prepare(image) for image in images])
        self._use_thresholds()
        self._references.read_from = None

    def _prepare(self, image: torch.Tensor) -> torch.Tensor:
        """Make of a good part ``(3, height, width)`` what the model takes."""
        image = image[None].to(self.device)
        return (image if self.pre_processor is None else self.pre_processor(image))[0].clamp(0, 1)

    def _use_thresholds(self) -> None:
        """Use the thresholds that the references give, unless labels have given others."""
        thresholds = self.model.judge.thresholds
        if thresholds is not None and isinstance(self.post_processor, ClipSamPostProcessor):
            self.post_processor.use_thresholds(thresholds.image, thresholds.pixel)
