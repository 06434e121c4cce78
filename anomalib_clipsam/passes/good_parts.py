# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""A few good parts to compare with: read from a folder, or from the training data of a data module.

They are the first in the order of their files, so that every process and every run takes the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from anomalib.data import PredictDataset
from anomalib.data.utils import LabelName

from anomalib_clipsam.messages import printable
from anomalib_clipsam.passes.pictures import find_fault

if TYPE_CHECKING:
    import torch
    from anomalib.data import AnomalibDataModule


def read_good_parts(
    number: int, source: str | Path | None, datamodule: AnomalibDataModule | None
) -> list[torch.Tensor]:
    """Read good parts.

    Args:
        number (int): How many, k.
        source (str | Path | None): Folder of pictures, or one picture. ``None`` takes the training data.
        datamodule (AnomalibDataModule | None): Where the training data are; ``None`` if there is none.

    Returns:
        list[torch.Tensor]: ``(3, height, width)`` each, RGB in [0, 1].

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If there are fewer good parts, or one of them cannot be read.
    """
    if source is not None:
        if not Path(source).exists():
            msg = f"few_shot_source='{source}' does not exist. Give a folder of at least {number} good parts."
            raise FileNotFoundError(msg)
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
        raise ValueError(msg)
    if len(paths) < number:
        msg = f"k_shot is {number}, but {where} has {len(paths)} good parts. Add pictures, or lower k_shot."
        raise ValueError(msg)
    chosen = sorted(map(str, paths))[:number]
    faults = [f"{printable(path)} {fault}" for path in chosen if (fault := find_fault(path, None))]
    if faults:
        msg = f"A good part cannot be used: {'; '.join(faults)}. Mend the file or take it out of the folder."
        raise ValueError(msg)
    names = list(map(str, paths if source is not None else dataset.samples.image_path))
    return [dataset[names.index(path)].image for path in chosen]
