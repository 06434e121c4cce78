# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Score the pictures of a folder: what the command ``anomalib-clipsam predictions`` runs."""

from __future__ import annotations

import logging
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from anomalib.data import PredictDataset
from anomalib.data.utils import get_image_filenames
from anomalib.data.utils.image import is_image_file
from anomalib.engine import Engine
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import distributed
from torch.utils.data import DataLoader, Sampler

from anomalib_clipsam.compute.file_hashes import hash_file
from anomalib_clipsam.drawing.visualizers import ResultVisualizer
from anomalib_clipsam.errors.errors import UserFileNotFoundError, UserValueError
from anomalib_clipsam.predictions.folder import PredictionFolder
from anomalib_clipsam.predictions.table import PredictionTable

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping, Sequence
    from pathlib import Path

    from anomalib.models import AnomalibModule
    from torch import nn

logger = logging.getLogger(__name__)

MOST_GOOD_PARTS = 8
"""Most good parts of a folder that pictures are compared with: more cost time and memory, and bring little."""


class Pictures(PredictDataset):
    """Pictures of any name: anomalib's own listing refuses a folder for one letter outside ASCII.

    Args:
        files (Sequence[Path]): The pictures.
        transform (nn.Module | None): What to do with each. Defaults to ``None``, nothing.
    """

    def __init__(self, files: Sequence[Path], transform: nn.Module | None = None) -> None:
        self.image_filenames = list(files)
        self.transform = transform


def list_pictures(path: Path) -> list[Path]:
    """List the pictures of a folder and its subfolders, in the order of their names.

    Args:
        path (Path): The folder, or one picture.

    Returns:
        list[Path]: Files with one of the endings that anomalib knows.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If there is no picture.
    """
    if not path.exists():
        msg = f"'{path}' does not exist. Give a folder of pictures, or one picture."
        raise UserFileNotFoundError(msg)
    found = [path.resolve()] if path.is_file() else path.resolve().rglob("*")
    files = sorted(file for file in found if is_image_file(file))
    if not files:
        what = "is no picture by its name" if path.is_file() else "has no pictures"
        msg = f"'{path}' {what}. Give a folder of files such as .png, .jpg, .bmp or .tif, or one of them."
        raise UserValueError(msg)
    return files


class Share(Sampler[int]):
    """The pictures that this process scores: of n processes, each takes every n-th of those that are left.

    Processes wait for one another at a pass's ends. So one for which none is left takes the first of all once more.

    Args:
        dataset (PredictDataset): The pictures. They may change until the sampler is asked.
        scored (Container[str]): Those that are scored already.
    """

    def __init__(self, dataset: PredictDataset, scored: Container[str]) -> None:
        self.dataset = dataset
        self.scored = scored

    def __iter__(self) -> Iterator[int]:
        """Yield their places in the data set."""
        return iter(self._places())

    def __len__(self) -> int:
        """Count them."""
        return len(self._places())

    def _places(self) -> list[int]:
        left = [place for place, file in enumerate(self.dataset.image_filenames) if str(file) not in self.scored]
        joined = distributed.is_available() and distributed.is_initialized()
        rank, processes = (distributed.get_rank(), distributed.get_world_size()) if joined else (0, 1)
        return left[rank::processes] or [0]


def count_good_parts(folder: Path) -> int:
    """Count how many good parts of a folder pictures are compared with.

    Args:
        folder (Path): The folder.

    Returns:
        int: All of its pictures, up to :data:`MOST_GOOD_PARTS`.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it has no picture.
    """
    if not folder.exists():
        msg = f"'{folder}' does not exist. Give a folder of good parts."
        raise UserFileNotFoundError(msg)
    return min(MOST_GOOD_PARTS, len(get_image_filenames(folder)))


def check_trainer(**arguments: Any) -> None:
    """Check arguments of Lightning's ``Trainer`` before anything is read or written.

    Args:
        **arguments (Any): The arguments.

    Raises:
        ValueError: If this machine or these processes cannot do it.
    """
    try:
        Trainer(logger=False, enable_checkpointing=False, **arguments)
    except (MisconfigurationException, TypeError, ValueError, RuntimeError) as error:
        named = ", ".join(f"{name}='{value}'" for name, value in arguments.items())
        msg = f"Lightning cannot run with {named}: {error} Choose others, or leave them out."
        raise UserValueError(msg) from error


def hash_content(path: Path) -> str:
    """Tell a file, or the good parts of a folder, from others.

    Args:
        path (Path): File or folder.

    Returns:
        str: The first digits of the SHA-256 of each.
    """
    files = [path] if path.is_file() else get_image_filenames(path)[:MOST_GOOD_PARTS]
    return " ".join(hash_file(file)[:8] for file in files)


def leave_out_results(files: Sequence[Path], folder: Path, to: Path) -> list[Path]:
    """Leave masks and drawings out of a folder of pictures: whoever is in it writes the results there, too.

    Args:
        files (Sequence[Path]): The files.
        folder (Path): Their folder.
        to (Path): Where results will be written.

    Returns:
        list[Path]: The others.

    Raises:
        ValueError: If there are none.
    """
    earlier = [path.parent.resolve() for path in folder.rglob("settings.json") if (path.parent / "journal").is_dir()]
    results = {to.resolve(), *earlier}
    kept = [file for file in files if results.isdisjoint(file.resolve().parents)]
    if not kept:
        msg = f"{folder} has no pictures but results. Give a folder of pictures."
        raise UserValueError(msg)
    return kept


def write_predictions(
    model: AnomalibModule,
    folder: Path,
    to: Path,
    checkpoint: Path | None = None,
    settings: Mapping[str, str | None] | None = None,
    pictures: bool = False,
    batch_size: int = 1,
    quiet: bool = False,
    **trainer: Any,
) -> str:
    """Score the pictures of a folder, and write a table or a folder of results.

    Args:
        model (AnomalibModule): The model; its visualizer is replaced.
        folder (Path): A picture, or a folder of pictures. What this or an earlier run has written there does not count.
        to (Path): CSV file to write, see :class:`PredictionTable`, or folder, see :class:`PredictionFolder`.
        checkpoint (Path | None): Checkpoint with calibrated thresholds. Defaults to ``None``, the model's own.
        settings (Mapping[str, str | None] | None): What the predictions depend on: a folder that was begun with others
            is refused. Defaults to ``None``, nothing.
        pictures (bool): Whether :class:`ResultVisualizer` draws each picture, too. Defaults to ``False``.
        batch_size (int): Pictures that the model looks at together. Defaults to ``1``.
        quiet (bool): Whether to leave out the progress bar. Defaults to ``False``.
        **trainer (Any): Arguments of Lightning's ``Trainer``: ``accelerator``, ``devices``, ``num_nodes``.

    Returns:
        str: What was found, and where it is; an empty text in all processes but the first.

    Raises:
        OSError: If a file cannot be read or written.
        ValueError: If no picture can be scored, or an argument is wrong.
    """
    files = leave_out_results(list_pictures(folder), folder, to)
    dataset = Pictures(files, getattr(model.pre_processor, "transform", None))
    if to.suffix == ".csv" or to.is_file():
        model.visualizer, scored = PredictionTable(to), set()
        model.visualizer.sums_up = True
    else:
        drawer = ResultVisualizer() if pictures else None
        model.visualizer = PredictionFolder(to, folder, dataset.image_filenames, drawer)
        settings = dict(settings or {})
        if getattr(model, "compares_batch", False):  # each score depends on all pictures
            settings["pictures"] = model.visualizer.hash_states()
        scored = model.visualizer.begin(settings)
    count = len(dataset.image_filenames)
    if scored:
        logger.info("%d of %d pictures are scored already.", len(scored), count)
    if len(scored) < count:
        loader = DataLoader(
            dataset, batch_size, sampler=Share(dataset, scored), collate_fn=dataset.collate_fn, pin_memory=True
        )
        _run_engine(model, loader, checkpoint, quiet, trainer)
        explain = getattr(model, "explain_threshold", None)  # another model of anomalib has none
        origin = explain and explain("--good FOLDER", "--threshold")
        if origin is not None and not rank_zero_only.rank:
            logger.info(origin)
    return "" if rank_zero_only.rank else model.visualizer.finish()


def _run_engine(
    model: AnomalibModule, loader: DataLoader, checkpoint: Path | None, quiet: bool, trainer: dict[str, Any]
) -> None:
    """Let anomalib's Engine predict; what it writes by itself is thrown away."""
    with TemporaryDirectory() as workspace:
        engine = Engine(
            default_root_dir=workspace,
            logger=False,
            enable_progress_bar=not quiet,
            use_distributed_sampler=False,
            **trainer,
        )
        engine.predict(model, dataloaders=loader, ckpt_path=checkpoint, return_predictions=False)
