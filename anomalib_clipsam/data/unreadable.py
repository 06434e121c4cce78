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
from stat import S_ISREG
from typing import TYPE_CHECKING, Any, NamedTuple

from anomalib import TaskType
from anomalib.data import PredictDataset
from anomalib.data.datasets import AnomalibDataset
from anomalib.data.utils import LabelName
from lightning.pytorch import Callback, LightningDataModule
from PIL import Image, UnidentifiedImageError
from torch.utils.data import BatchSampler, DataLoader, Subset
from torchvision.transforms.v2 import Normalize

from anomalib_clipsam.errors.errors import printable
from anomalib_clipsam.data.advice import find_overwritten, find_results_inside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lightning import LightningModule, Trainer

logger = logging.getLogger(__name__)

STAGES = ("validate", "test", "predict")
"""Passes that score pictures, by Lightning's names."""
FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""PIL's names of the formats whose endings anomalib lists. PIL knows more, and starts Ghostscript for one of them."""
THREADS = 8
"""Files that are read at once; PIL decodes without Python's lock."""
LARGE = 2**25
"""Pixels above which pictures are decoded one after the other: PIL takes up to 4 bytes for each."""
ABOVE_LIMIT = 2
"""Times PIL's limit of pixels up to which it only warns of a picture; what is asked for large pictures reads these."""
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
        self.notes: list[str] = []  # logged after the pass, below its table of metrics
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
            whole = _whole(dataset)
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
            found = list(pool.map(lambda file: find_fault(*file, alone, self.fits), files))
        faults = {str(path): fault for (path, _), fault in zip(files, found, strict=True) if fault}
        self.skipped.append((len(files), faults))
        if not faults:
            return
        kept = [index for index, fault in enumerate(found) if not fault]
        if not kept:
            more = f"; and {len(found) - NAMED} more" if len(found) > NAMED else ""
            msg = (
                f"No picture of {len(files)} can be scored: {'; '.join(_lines(faults)[:NAMED])}{more}. "
                "Fix these files or give others."
            )
            raise ValueError(msg)
        # not by its attributes' names: anomalib's refuses samples whose files have vanished by then
        self.undo.append(partial(vars(dataset).update, dict(vars(dataset))))
        name = {PredictDataset: "image_filenames", Subset: "indices"}.get(_reader(dataset))
        if name is None:
            dataset.subsample(kept, inplace=True)
        else:
            setattr(dataset, name, [getattr(dataset, name)[index] for index in kept])

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
            for note in skipped + self.notes:
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
        self.skipped, self.notes, self.undo = [], [], []


class _Fault(NamedTuple):
    """What stands in the place of an item whose file cannot be read."""

    path: str
    fault: str


class _Read(NamedTuple):
    """What could be read of a batch: ``None`` for nothing; and file -> fault of the rest."""

    batch: Any
    faults: dict[str, str]


class _Reader:
    """Reads items of a data set one by one. Of a class, so that worker processes can be given it."""

    def __init__(self, dataset: Any, files: list[tuple[str | Path, str | Path | None]]) -> None:
        self.dataset = dataset
        self.files = files

    def __call__(self, indices: list[int]) -> list[Any]:
        return [self._read(index) for index in indices]

    def _read(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except Exception:
            fault = find_fault(*self.files[index])
            if fault is None:
                raise
            return _Fault(str(self.files[index][0]), fault)


class _Collate:
    """Makes a batch of the items that could be read."""

    def __init__(self, collate: Callable[[list[Any]], Any], faults: dict[str, str], *, singly: bool) -> None:
        self.collate = _Alone(collate) if singly else collate
        self.faults = faults

    def __call__(self, items: list[Any]) -> _Read:
        kept = [item for item in items if not isinstance(item, _Fault)]
        return _Read(self.collate(kept) if kept else None, dict(item for item in items if isinstance(item, _Fault)))


class _Alone:
    """Makes a batch of one item, with the item's own image: a copy of a large one would double the memory."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, items: list[Any]) -> Any:
        (item,) = items
        image, item.image = item.image, item.image[:, :1, :1]
        batch = self.collate([item])
        batch.image = image.unsqueeze(0)
        return batch


class PictureLoader(DataLoader):
    """A data loader that passes over pictures which cannot be read any more: moved, or being written to."""

    def __iter__(self) -> Iterator[Any]:
        """Give batches of what can be read; one of which nothing can be read is left out."""
        for batch, faults in super().__iter__():
            self.collate_fn.faults.update(faults)
            if batch is not None:
                yield batch


def find_fault(
    path: str | Path,
    mask_path: str | Path | None = None,
    alone: ThreadPoolExecutor | None = None,
    fits: Callable[[tuple[int, int]], str | None] | None = None,
) -> str | None:
    """Say what is wrong with a picture.

    Args:
        path (str | Path): The picture.
        mask_path (str | Path | None): Its true mask. Defaults to ``None``.
        alone (ThreadPoolExecutor | None): Decodes pictures of more than :data:`LARGE` pixels. Defaults to ``None``: the
            caller's thread does.
        fits (Callable[[tuple[int, int]], str | None] | None): See :class:`PictureCheck`. Defaults to ``None``.

    Returns:
        str | None: What follows the file's name in a sentence; ``None`` if the picture can be scored.
    """
    times = 1 if fits is None else ABOVE_LIMIT
    size, fault = _read(path, "RGB", alone, times)
    if fault is None and fits is not None:
        fault = fits(size)
    if fault is not None or mask_path is None:
        return fault
    mask_size, fault = _read(mask_path, "L", alone, times)
    if fault is not None:
        return f"has a mask that cannot be used: {printable(mask_path)} {fault}"
    if mask_size != size:
        return f"is {_text(size)} pixels, but its mask {printable(mask_path)} is {_text(mask_size)}"
    return None


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
            raise ValueError(msg)


def _loaders(trainer: Trainer, stage: str) -> list[Any]:
    """Give the data loaders of a pass. A data module's are made now, and Lightning is given these."""
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
    if reader is Subset:
        files = list_files(dataset.dataset)
        return [files[index] for index in dataset.indices] if files else []
    if reader is PredictDataset:
        return [(path, None) for path in dataset.image_filenames]
    masked = dataset.task == TaskType.SEGMENTATION
    return [
        (row.image_path, row.mask_path if masked and row.label_index == LabelName.ABNORMAL else None)
        for row in dataset.samples.itertuples()
    ]


def _whole(dataset: Any) -> Any:
    """Give the data set that a subset is of."""
    return _whole(dataset.dataset) if isinstance(dataset, Subset) else dataset


def _reader(dataset: Any) -> type | None:
    """Give anomalib's or torch's class whose code reads the items; ``None`` for other code."""
    read = getattr(type(dataset), "__getitem__", None)
    return next((reader for reader in (PredictDataset, AnomalibDataset, Subset) if read is reader.__getitem__), None)


def _read(
    path: str | Path, mode: str, alone: ThreadPoolExecutor | None, times: int = 1
) -> tuple[tuple[int, int] | None, str | None]:
    """Read a file of up to so many times PIL's limit as anomalib does: width and height, or what is wrong with it."""
    try:
        if not S_ISREG(Path(path).stat().st_mode):  # a pipe would be waited for
            return None, "cannot be read (it is no file)"
        with Image.open(path, formats=FORMATS) as image:
            size, pixels = image.size, image.width * image.height
            if Image.MAX_IMAGE_PIXELS and pixels > times * Image.MAX_IMAGE_PIXELS:
                most = f"{times * Image.MAX_IMAGE_PIXELS:,} of {'twice ' * (times > 1)}PIL.Image.MAX_IMAGE_PIXELS"
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
