# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""A data loader that passes over pictures which cannot be read any more."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch.utils.data import DataLoader

from anomalib_clipsam.data.files import find_fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


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
        """Yield batches of what can be read; one of which nothing can be read is left out."""
        for batch, faults in super().__iter__():
            self.collate_fn.faults.update(faults)
            if batch is not None:
                yield batch
