# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""A few good parts to compare with: read from a folder, or from the training data of a data module.

They are the first in the order of their files, so that every process and every run takes the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from anomalib.data import PredictDataset
from anomalib.data.utils import LabelName

from anomalib_clipsam.data.files import find_fault
from anomalib_clipsam.errors.errors import UserFileNotFoundError, UserValueError, counted, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch
    from anomalib.data import AnomalibDataModule
    from torch.utils.data import Dataset

    from anomalib_clipsam.references.judge import View, Viewer


class GoodParts(Sequence):
    """Good parts, each of which is read when it is asked for.

    Args:
        dataset (Dataset): Where they are.
        places (Sequence[int]): Their places in it.
        prepare (Callable[[torch.Tensor], torch.Tensor]): What to do with a picture that was read.
    """

    def __init__(
        self, dataset: Dataset, places: Sequence[int], prepare: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        self.dataset = dataset
        self.places = places
        self.prepare = prepare

    def __len__(self) -> int:
        """Count them."""
        return len(self.places)

    def __getitem__(self, number: int) -> torch.Tensor:
        """Read one: ``(3, height, width)``, RGB in [0, 1] before it is prepared."""
        return self.prepare(self.dataset[self.places[number]].image)


class WatchedViews:
    """A model whose looks at good parts move a progress bar: by 1 for each picture.

    Args:
        model (Viewer): The model.
        advance (Callable[[float], object]): Moves the bar.
    """

    def __init__(self, model: Viewer, advance: Callable[[float], object]) -> None:
        self.count_views = model.count_views
        self.join = model.join
        self.model = model
        self.advance = advance

    def views(self, image: torch.Tensor) -> Iterator[View]:
        """Look at a picture ``(1, 3, height, width)``."""
        count = self.count_views(image)
        for view in self.model.views(image):
            yield view
            self.advance(len(view.map) / count)


def read_good_parts(
    number: int,
    source: str | Path | None,
    datamodule: AnomalibDataModule | None,
    prepare: Callable[[torch.Tensor], torch.Tensor],
    fits: Callable[[tuple[int, int]], str | None] | None = None,
) -> GoodParts:
    """Choose good parts, and check that they can be read.

    Args:
        number (int): How many, k.
        source (str | Path | None): Folder of pictures, or one picture. ``None`` takes the training data.
        datamodule (AnomalibDataModule | None): Where the training data are; ``None`` if there is none.
        prepare (Callable[[torch.Tensor], torch.Tensor]): Makes of a picture ``(3, height, width)``, RGB in [0, 1], what
            the model takes.
        fits (Callable[[tuple[int, int]], str | None] | None): Says why a picture of a width and height cannot be used.
            Defaults to ``None``: any can.

    Returns:
        GoodParts: The parts.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If there are fewer good parts, or one of them cannot be read.
    """
    if source is not None:
        if not Path(source).exists():
            msg = (
                f"few_shot_source='{source}' does not exist. Give a folder of at least {counted(number, 'good part')}."
            )
            raise UserFileNotFoundError(msg)
        try:
            dataset = PredictDataset(Path(source))
            paths = dataset.image_filenames
        except ValueError:  # anomalib's word for a folder without pictures
            paths = []
        where = f"few_shot_source='{source}'"
    elif datamodule is not None and getattr(datamodule, "train_data", None) is not None:
        dataset = datamodule.train_data
        samples = dataset.samples
        paths = samples[samples.label_index == LabelName.NORMAL].image_path.tolist()
        where = "the data module's training data"
    else:
        msg = (
            f"k_shot={number} needs good parts, and there are no training data here. Name a folder of them: "
            "few_shot_source, on the command line --model.few_shot_source FOLDER."
        )
        raise UserValueError(msg)
    if len(paths) < number:
        msg = f"k_shot is {number}, but {where} has {counted(len(paths), 'good part')}. Add pictures, or lower k_shot."
        raise UserValueError(msg)
    chosen = sorted(map(str, paths))[:number]
    faults = [f"{printable(path)} {fault}" for path in chosen if (fault := find_fault(path, fits=fits))]
    if faults:
        msg = f"A good part cannot be used: {'; '.join(faults)}. Mend the file or take it out of the folder."
        raise UserValueError(msg)
    names = list(map(str, paths if source is not None else dataset.samples.image_path))
    return GoodParts(dataset, [names.index(path) for path in chosen], prepare)
