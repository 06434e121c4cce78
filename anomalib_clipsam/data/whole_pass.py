# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""All pictures of a pass, before the pass: what the unlabelled batch as reference asks for.

They come from data loaders of their own: one that is iterated already, perhaps with workers that stay, cannot begin
again, and in distributed runs each process has a part of the pictures only, but must compare with all.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from anomalib_clipsam.data.files import list_files
from anomalib_clipsam.data.loader import PictureLoader
from anomalib_clipsam.data.progress import progress
from anomalib_clipsam.errors.errors import UserTypeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anomalib.data import Batch
    from lightning import Trainer

SEED = 0
"""Seed of the order of pictures: folders that are read one after the other are spread over all parts of a batch."""


class WholePass:
    """Batches of all pictures of a pass, in a mixed order.

    Args:
        loaders (Any): The pass's data loader, or a list of them.
        batches (Sequence[float]): Batches of each that the pass takes, in this process.
        processes (int): Number of processes. Defaults to ``1``.

    Attributes:
        pictures (int): Number of pictures.
        files (tuple | None): Path, bytes and time of each picture; ``None`` where a data set does not say.

    Raises:
        TypeError: If a data set has no length.
    """

    def __init__(self, loaders: Any, batches: Sequence[float], processes: int = 1) -> None:
        loaders = list(loaders) if isinstance(loaders, list | tuple) else [loaders]
        self.parts: list[tuple[DataLoader, list[int]]] = []
        files: list[tuple[str, int, int]] | None = []
        for loader, number in zip(loaders, batches, strict=False):
            if not isinstance(loader, DataLoader):
                continue  # no picture: the empty list of a model without validation data
            if isinstance(loader.dataset, IterableDataset):
                msg = "references='batch' must know how many pictures come. Give a data set with a length, or k_shot."
                raise UserTypeError(msg)
            size = loader.batch_size  # not known of batches that a user makes up
            # One that takes all of its batches takes part in a pass over all, whatever its sampler leaves to others.
            whole = size is None or number >= len(loader)
            count = len(loader.dataset) if whole else min(len(loader.dataset), int(number) * size * processes)
            order = torch.randperm(count, generator=torch.Generator().manual_seed(SEED)).tolist()
            self.parts.append((loader, order))
            paths = [path for path, _ in list_files(loader.dataset)][:count]
            files = files + [_state(path) for path in paths] if files is not None and len(paths) == count else None
        self.files = None if files is None else tuple(files)
        self.pictures = sum(len(order) for _, order in self.parts)

    def __len__(self) -> int:
        """Return the number of batches."""
        return sum(-(-len(order) // (loader.batch_size or 1)) for loader, order in self.parts)

    def shown(self, trainer: Trainer, says: str) -> Iterator[Batch]:
        """Read the batches under a progress bar, where the pass has one.

        Args:
            trainer (Trainer): Trainer of the pass.
            says (str): What is done.

        Yields:
            Batch: The batches.
        """
        with progress(trainer, says, len(self)) as advance:
            for batch in self:
                yield batch
                advance(1)

    def __iter__(self) -> Iterator[Batch]:
        """Read the batches."""
        for loader, order in self.parts:
            kind = PictureLoader if isinstance(loader, PictureLoader) else DataLoader
            yield from kind(
                loader.dataset,
                batch_size=loader.batch_size or 1,
                sampler=order,
                num_workers=loader.num_workers,
                collate_fn=loader.collate_fn,
            )


def _state(path: str | Path) -> tuple[str, int, int]:
    try:
        status = Path(path).stat()
    except OSError:  # it has vanished since the pass began
        return str(path), 0, 0
    return str(path), status.st_size, status.st_mtime_ns
