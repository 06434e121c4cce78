# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Picture files that cannot be scored: a pass skips them, and lists them at its end.

anomalib's data sets read a picture when its batch is made, perhaps in a worker process, and one damaged file ends the
pass. So every file is read once before the pass begins. That takes little time beside SAM's encoder, and batches are
the same as if the damaged files were not there. A file that is damaged or gone only later is left out of its batch.

A file may come from a stranger: only the formats that anomalib lists are opened, whatever a file is called, pictures of
too many pixels are not decoded, and those of many are decoded one after the other.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalib.data import PredictDataset
from anomalib.data.datasets import AnomalibDataset
from lightning.pytorch import Callback, LightningDataModule
from torch.utils.data import BatchSampler, DataLoader, Subset
from torchvision.transforms.v2 import Normalize

from anomalib_clipsam.data.advice import find_overwritten, find_results_inside
from anomalib_clipsam.data.files import PAGED, count_pages, find_fault, list_files, reader_of, whole_of
from anomalib_clipsam.data.loader import PictureLoader, _Collate, _Reader
from anomalib_clipsam.errors.errors import UserValueError, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lightning import LightningModule, Trainer

logger = logging.getLogger(__name__)

STAGES = ("validate", "test", "predict")
"""Passes that score pictures, by Lightning's names."""
THREADS = 8
"""Files that are read at once; PIL decodes without Python's lock."""
NAMED = 5
"""Most files that an error names; a warning names all."""


class PictureCheck(Callback):
    """Skip the pictures that cannot be scored, and list them when the pass ends.

    Data sets with reading code of their own are left alone. After the pass every data set is restored, for the next
    model.

    Args:
        fits (Callable[[tuple[int, int]], str | None] | None): For a model that takes pictures of any size: what is
            wrong with one of this width and height, or ``None``. Pictures then come one by one, since anomalib resizes
            those of a batch to the largest, and as many pixels are read as PIL reads at all. Defaults to ``None``.
    """

    def __init__(self, fits: Callable[[tuple[int, int]], str | None] | None = None) -> None:
        self.fits = fits
        self.skipped: list[tuple[int, dict[str, str]]] = []  # of each data set: pictures, and file -> fault
        self.pages: list[str] = []  # logged after the pass, like the next: which pages nobody looks at
        self.notes: list[str] = []  # below the table of metrics
        self.undo: list[Callable[[], None]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look through the data sets of the pass.

        Args:
            trainer (Trainer): Trainer that is about to run the pass.
            pl_module (LightningModule): The model.
            stage (str): ``"validate"``, ``"test"`` or ``"predict"``.

        Raises:
            ValueError: If a data set has no picture that can be scored, or if images are normalised before the model.
        """
        visualizer = getattr(pl_module, "visualizer", None) if stage in ("test", "predict") else None
        check_transform(getattr(getattr(pl_module, "pre_processor", None), "transform", None), "The pre-processor")
        for loader in _loaders(trainer, stage):
            dataset = getattr(loader, "dataset", None)
            whole = whole_of(dataset)
            for name in ("augmentations", "transform"):
                check_transform(getattr(whole, name, None), "The data set")
            self.leave_out(dataset)
            self.pass_over(loader)
            if self.fits is not None:
                self.take_singly(loader)
            if hasattr(visualizer, "output_dir") and trainer.is_global_zero:  # else it draws no pictures
                results = visualizer.output_dir or Path(trainer.default_root_dir) / "images"
                paths = [path for path, _ in list_files(dataset)]
                found = [find_overwritten(paths, getattr(trainer, "datamodule", None))]
                if isinstance(whole, PredictDataset):
                    found.append(find_results_inside(paths, results))
                for warning in filter(None, found):
                    logger.warning(warning)
            if stage == "test" and reader_of(dataset) is AnomalibDataset:
                self.notes += [
                    f"No test picture is labelled {label}: AUROC, AP and F1 need both labels, so these figures mean "
                    "nothing. Add such pictures to measure them."
                    for label, found in (("normal", dataset.has_normal), ("abnormal", dataset.has_anomalous))
                    if not found
                ]

    def leave_out(self, dataset: Any) -> None:
        """Remove the pictures that cannot be scored from one of anomalib's data sets.

        Args:
            dataset (Any): The data set.

        Raises:
            ValueError: If no picture is left.
        """
        files = list_files(dataset)
        # one thread for all large ones: what a thread has freed, C's allocator may keep for that thread
        with ThreadPoolExecutor(1) as alone, ThreadPoolExecutor(THREADS) as pool:
            found = list(pool.map(lambda file: find_fault(*file, alone, self.fits), files))
        faults = {str(path): fault for (path, _), fault in zip(files, found, strict=True) if fault}
        self.skipped.append((len(files), faults))
        self.note_pages(path for (path, _), fault in zip(files, found, strict=True) if not fault)
        if not faults:
            return
        kept = [index for index, fault in enumerate(found) if not fault]
        if not kept:
            more = f"; and {len(found) - NAMED} more" if len(found) > NAMED else ""
            msg = (
                f"No picture of {len(files)} can be scored: {'; '.join(_lines(faults)[:NAMED])}{more}. "
                "Fix these files or give others."
            )
            raise UserValueError(msg)
        # not by its attributes' names: anomalib's refuses samples whose files have vanished by then
        self.undo.append(partial(vars(dataset).update, dict(vars(dataset))))
        name = {PredictDataset: "image_filenames", Subset: "indices"}.get(reader_of(dataset))
        if name is None:
            dataset.subsample(kept, inplace=True)
        else:
            setattr(dataset, name, [getattr(dataset, name)[index] for index in kept])

    def note_pages(self, paths: Iterable[str | Path]) -> None:
        """Note which files have pages that nobody looks at: anomalib reads the first one.

        Args:
            paths (Iterable[str | Path]): The pictures.
        """
        paged = [path for path in paths if str(path).lower().endswith(PAGED)]
        with ThreadPoolExecutor(THREADS) as pool:
            pages = {str(path): number for path, number in zip(paged, pool.map(count_pages, paged), strict=True)}
        several = [f"{printable(path)} has {number}" for path, number in pages.items() if number > 1]
        if several:
            more = f"; and {len(several) - NAMED} more" if len(several) > NAMED else ""
            self.pages.append(
                "Of files with several pages, only the first page is scored. Save each page as a picture of its own: "
                f"{'; '.join(several[:NAMED])}{more}."
            )

    def pass_over(self, loader: Any) -> None:
        """Let a data loader pass over pictures that cannot be read any more when their turn comes.

        Args:
            loader (Any): The loader, after :meth:`leave_out` of its data set. Those of a class of their own are left
                alone, and those whose workers outlive the pass.
        """
        dataset = getattr(loader, "dataset", None)
        files = list_files(dataset)
        if not files or type(loader) is not DataLoader or loader.batch_sampler is None or loader.persistent_workers:
            return
        self.undo += [
            partial(setattr, loader, "collate_fn", loader.collate_fn),
            partial(setattr, loader, "__class__", DataLoader),
        ]
        loader.collate_fn = _Collate(loader.collate_fn, self.skipped[-1][1], singly=self.fits is not None)
        loader.__class__ = PictureLoader
        if "__getitems__" not in vars(dataset):  # torch's hook to read the items of a batch
            self.undo.append(partial(delattr, dataset, "__getitems__"))
            dataset.__getitems__ = _Reader(dataset, files)

    def take_singly(self, loader: Any) -> None:
        """Let a data loader give its pictures one by one.

        Args:
            loader (Any): The loader; one that makes no batches of single pictures is left alone.
        """
        if not isinstance(loader, DataLoader) or loader.batch_sampler is None:
            return
        before = {"batch_sampler": loader.batch_sampler, "batch_size": loader.batch_size}
        self.undo.append(partial(vars(loader).update, before))
        # not by the attributes' names: torch forbids that, since workers that run would not see it; here none run yet
        vars(loader).update(batch_sampler=BatchSampler(loader.sampler, 1, drop_last=False), batch_size=1)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """List what was skipped, and restore the data sets."""
        del pl_module, stage
        if trainer.is_global_zero:
            skipped = [
                f"{len(faults)} of {count} pictures were skipped. Fix these files to have them scored:\n"
                + "\n".join(_lines(faults))
                for count, faults in self.skipped
                if faults
            ]
            for note in self.pages + skipped + self.notes:
                logger.warning(note)
        self.restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the data sets."""
        del trainer, pl_module, exception
        self.restore()

    def restore(self) -> None:
        """Restore the data sets, and forget what was skipped."""
        for step in reversed(self.undo):
            step()
        self.skipped, self.pages, self.notes, self.undo = [], [], [], []


def _lines(faults: dict[str, str]) -> list[str]:
    return [f"{printable(path)} {fault}" for path, fault in faults.items()]


def check_transform(transform: Any, where: str) -> None:
    """Raise if a transform normalises images. Their values do not always tell: those of a grey part stay near 0.

    Args:
        transform (Any): A transform, or ``None``.
        where (str): What has it, for the message.

    Raises:
        ValueError: If it takes images of [0, 1] out of this range.
    """
    for part in getattr(transform, "transforms", ()):  # of a Compose and its like
        check_transform(part, where)
    if isinstance(transform, Normalize):
        ends = [(end - mean) / std for mean, std in zip(transform.mean, transform.std, strict=True) for end in (0, 1)]
        if min(ends) < 0 or max(ends) > 1:
            msg = (
                f"{where} normalises images to values from {min(ends):.3g} to {max(ends):.3g}, but the model takes "
                "them in [0, 1] and normalises them itself. Leave `Normalize` out."
            )
            raise UserValueError(msg)


def _loaders(trainer: Trainer, stage: str) -> list[Any]:
    """Return the data loaders of a pass. A data module's are made now, and Lightning is given these."""
    if stage not in STAGES:
        return []
    name = STAGES[STAGES.index(stage)]  # Lightning's is an enumeration, of texts that format otherwise
    source = getattr(trainer, f"{name}_loop")._data_source  # noqa: SLF001  # Lightning takes them from there later
    made = isinstance(source.instance, LightningDataModule)
    given = getattr(source.instance, source.name)() if made else source.instance
    loaders = list(given) if isinstance(given, list | tuple) else [given]
    if made and all(type(loader) is DataLoader for loader in loaders):  # Lightning makes others in a way of its own
        source.instance = given
    return loaders
