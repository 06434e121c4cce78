# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Picture files that cannot be scored: a pass skips them, and lists them at its end.

anomalib's data sets read a picture when its batch is made, perhaps in a worker process, and one damaged file ends the
pass. So every file is read once before the pass begins. That takes little time beside SAM's encoder, and batches are
the same as if the damaged files were not there.

A file may come from a stranger: only the formats that anomalib lists are opened, whatever a file is called, pictures of
too many pixels are not decoded, and those of many are decoded one after the other.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Any

from anomalib import TaskType
from anomalib.data import PredictDataset
from anomalib.data.datasets import AnomalibDataset
from anomalib.data.utils import LabelName
from lightning.pytorch import Callback, LightningDataModule
from PIL import Image, UnidentifiedImageError

from anomalib_clipsam.messages import printable
from anomalib_clipsam.passes.advice import find_overwritten, find_results_inside

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lightning import LightningModule, Trainer

logger = logging.getLogger(__name__)

SUBSETS = {"validate": "val_data", "test": "test_data", "predict": "test_data"}
"""The pass, by Lightning's name -> the subset of anomalib's data modules that it reads."""
FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""PIL's names of the formats whose endings anomalib lists. PIL knows more, and starts Ghostscript for one of them."""
THREADS = 8
"""Files that are read at once; PIL decodes without Python's lock."""
LARGE = 2**25
"""Pixels above which pictures are decoded one after the other: PIL takes up to 4 bytes for each."""
NAMED = 5
"""Most files that an error names; a warning names all."""


class PictureCheck(Callback):
    """Skip the pictures that cannot be scored, and list them when the pass ends.

    Data sets with reading code of their own are left alone. After the pass every data set is restored, for the next
    model.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []  # logged after the pass, below its table of metrics
        self.whole: list[tuple[Any, str, Any]] = []  # data set, its attribute, and the old value

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look through the data sets of the pass.

        Args:
            trainer (Trainer): Trainer that is about to run the pass.
            pl_module (LightningModule): The model, for where its visualizer writes.
            stage (str): ``"validate"``, ``"test"`` or ``"predict"``.

        Raises:
            ValueError: If a data set has no picture that can be scored.
        """
        visualizer = getattr(pl_module, "visualizer", None) if stage in ("test", "predict") else None
        for dataset in _datasets(trainer, stage):
            self.leave_out(dataset)
            if visualizer is not None and trainer.is_global_zero:
                results = getattr(visualizer, "output_dir", None) or Path(trainer.default_root_dir) / "images"
                paths = [path for path, _ in list_files(dataset)]
                found = [find_overwritten(paths, getattr(trainer, "datamodule", None))]
                if isinstance(dataset, PredictDataset):
                    found.append(find_results_inside(paths, results))
                for warning in filter(None, found):
                    logger.warning(warning)
            if stage == "test" and _reader(dataset) is AnomalibDataset:
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
            found = list(pool.map(lambda file: find_fault(*file, alone), files))
        faults = [f"{printable(path)} {fault}" for (path, _), fault in zip(files, found, strict=True) if fault]
        if not faults:
            return
        if len(faults) == len(files):
            more = f"; and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
            msg = (
                f"No picture of {len(files)} can be scored: {'; '.join(faults[:NAMED])}{more}. "
                "Fix these files or give others."
            )
            raise ValueError(msg)
        kept = [index for index, fault in enumerate(found) if not fault]
        if isinstance(dataset, PredictDataset):
            self.whole.append((dataset, "image_filenames", dataset.image_filenames))
            dataset.image_filenames = [dataset.image_filenames[index] for index in kept]
        else:
            self.whole.append((dataset, "samples", dataset.samples))
            dataset.subsample(kept, inplace=True)
        listed = "\n".join(faults)
        self.notes.append(
            f"{len(faults)} of {len(files)} pictures were skipped. Fix these files to have them scored:\n{listed}"
        )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """List what was skipped, and restore the data sets."""
        del pl_module, stage
        if trainer.is_global_zero:
            for note in self.notes:
                logger.warning(note)
        self.restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the data sets."""
        del trainer, pl_module, exception
        self.restore()

    def restore(self) -> None:
        """Restore the data sets, and forget what was skipped."""
        for dataset, name, value in self.whole:
            setattr(dataset, name, value)
        self.notes, self.whole = [], []


def find_fault(
    path: str | Path, mask_path: str | Path | None = None, alone: ThreadPoolExecutor | None = None
) -> str | None:
    """Say what is wrong with a picture.

    Args:
        path (str | Path): The picture.
        mask_path (str | Path | None): Its true mask. Defaults to ``None``.
        alone (ThreadPoolExecutor | None): Decodes pictures of more than :data:`LARGE` pixels. Defaults to ``None``: the
            caller's thread does.

    Returns:
        str | None: What follows the file's name in a sentence; ``None`` if the picture can be scored.
    """
    size, fault = _read(path, "RGB", alone)
    if fault is not None or mask_path is None:
        return fault
    mask_size, fault = _read(mask_path, "L", alone)
    if fault is not None:
        return f"has a mask that cannot be used: {printable(mask_path)} {fault}"
    if mask_size != size:
        return f"is {_text(size)} pixels, but its mask {printable(mask_path)} is {_text(mask_size)}"
    return None


def _datasets(trainer: Trainer, stage: str) -> Iterator[Any]:
    for name, subset in SUBSETS.items():
        if stage == name:
            # Lightning makes its data loaders later, and by then their workers have copies of the data sets.
            source = getattr(trainer, f"{name}_loop")._data_source.instance  # noqa: SLF001
            if isinstance(source, LightningDataModule):
                yield getattr(source, subset, None)
            else:
                for loader in source if isinstance(source, list | tuple) else [source]:
                    yield getattr(loader, "dataset", None)


def list_files(dataset: Any) -> list[tuple[str | Path, str | Path | None]]:
    """List picture and mask of each item; nothing for a data set that anomalib's own code does not read.

    Args:
        dataset (Any): The data set.

    Returns:
        list[tuple[str | Path, str | Path | None]]: Picture, and mask where one is read.
    """
    reader = _reader(dataset)
    if reader is None:
        return []
    if reader is PredictDataset:
        return [(path, None) for path in dataset.image_filenames]
    masked = dataset.task == TaskType.SEGMENTATION
    return [
        (row.image_path, row.mask_path if masked and row.label_index == LabelName.ABNORMAL else None)
        for row in dataset.samples.itertuples()
    ]


def _reader(dataset: Any) -> type | None:
    """Give anomalib's class whose code reads the items; ``None`` for other code."""
    read = getattr(type(dataset), "__getitem__", None)
    return next((reader for reader in (PredictDataset, AnomalibDataset) if read is reader.__getitem__), None)


def _read(path: str | Path, mode: str, alone: ThreadPoolExecutor | None) -> tuple[tuple[int, int] | None, str | None]:
    """Read a file as anomalib does, and give its width and height, or what is wrong with it."""
    try:
        if not S_ISREG(Path(path).stat().st_mode):  # a pipe would be waited for
            return None, "cannot be read (it is no file)"
        with Image.open(path, formats=FORMATS) as image:
            size, pixels = image.size, image.width * image.height
            if Image.MAX_IMAGE_PIXELS and pixels > Image.MAX_IMAGE_PIXELS:
                most = f"{Image.MAX_IMAGE_PIXELS:,} of PIL.Image.MAX_IMAGE_PIXELS"
                return None, f"has {pixels:,} pixels, more than the {most}: save it smaller"
            if alone is None or pixels <= LARGE:
                return size, _decode(image, mode)
            return size, alone.submit(_decode, image, mode).result()
    except UnidentifiedImageError:
        listed = f"is no picture in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        return None, listed if Path(path).stat().st_size else "is empty"
    except Exception as error:  # noqa: BLE001  # each of PIL's decoders raises what it likes
        return None, f"cannot be read ({printable(getattr(error, 'strerror', None) or error)})"


def _decode(image: Image.Image, mode: str) -> str | None:
    """Decode a file to its end, and say whether anomalib's reader would change its values."""
    if mode == "RGB" and image.mode.startswith(("I", "F")):
        low, high = image.getextrema()
        # that reader clips to 8 bits, and only the user knows which value is black and which is white
        if image.mode == "F" or low < 0 or high > 255:
            return f"holds values from {low} to {high} (mode {image.mode}): save it with 8 bits a channel"
    image.draft(None, (1, 1))  # a JPEG file is read to its end, but decoded at an eighth of its size
    image.crop((0, 0, 1, 1)).convert(mode)  # all is decoded for a pixel, and the others need not be converted
    return None


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
