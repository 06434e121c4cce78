# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""What is said before a pass whose data or results would surprise."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalib.data.datamodules.base.video import AnomalibVideoDataModule
from anomalib.utils.path import generate_output_filename

from anomalib_clipsam.errors.errors import UserValueError, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

TRAINER_PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")
"""Lightning's precisions that leave weights as they are."""


def refuse_videos(datamodule: Any, reason: str = "ClipSam looks at single pictures") -> None:
    """Raise if a data module gives videos.

    Args:
        datamodule (Any): The data module of the pass, or ``None``.
        reason (str): Who cannot use them. Defaults to ClipSam.

    Raises:
        ValueError: If it is one of anomalib's for videos.
    """
    if isinstance(datamodule, AnomalibVideoDataModule):
        msg = (
            f"{type(datamodule).__name__} gives videos, and {reason}. Save their frames as "
            "pictures, and give the folder to `anomalib predict --data`, or to the data module Folder."
        )
        raise UserValueError(msg)  # the command line's argument is at fault, not a type in Python


def find_unused(datamodule: Any) -> str | None:
    """Explain how to test on the pictures that anomalib's ``Folder`` keeps for a training.

    Args:
        datamodule (Any): The data module of the pass, set up, or ``None``.

    Returns:
        str | None: A sentence; ``None`` if none are kept, or if the user said which good pictures are tested.
    """
    if getattr(datamodule, "normal_test_dir", "") is not None:
        return None
    kept = len(getattr(datamodule, "train_data", ()))
    return (
        f"{kept} good pictures are kept for a training, and ClipSam needs none. To test on all, give "
        "--data.normal_test_dir the value of --data.normal_dir, and --data.val_split_mode same_as_test."
        if kept
        else None
    )


def find_overwritten(paths: Sequence[str | Path], datamodule: Any) -> str | None:
    """Find which pictures of the results would overwrite one another.

    Args:
        paths (Sequence[str | Path]): The pictures of the pass.
        datamodule (Any): Its data module, or ``None``.

    Returns:
        str | None: A sentence; ``None`` if each has a name of its own.
    """
    dataset, category = (getattr(datamodule, name, None) for name in ("name", "category"))
    named: dict[Path, str | Path] = {}
    lost = []
    for path in paths:
        result = generate_output_filename(path, "", dataset, category, mkdir=False)
        if named.setdefault(result, path) is not path:
            lost.append((path, result))
    if not lost:
        return None
    path, result = lost[0]
    return (
        f"{len(lost)} of {len(paths)} pictures of the results will overwrite others: {printable(named[result])} and "
        f"{printable(path)} both become {printable(result)}. Rename such folders, or take them one by one."
    )


def find_results_inside(paths: Sequence[str | Path], results: str | Path) -> str | None:
    """Warn that pictures of the results would be taken for pictures of parts by the next pass.

    Args:
        paths (Sequence[str | Path]): The pictures of the pass.
        results (str | Path): The folder that its pictures are written to.

    Returns:
        str | None: A sentence; ``None`` if that folder is outside, or where a single picture tells of no folder.
    """
    if len(paths) < 2:
        return None
    folder = Path(os.path.commonpath([Path(path).resolve().parent for path in paths]))
    if folder not in Path(results).resolve().parents:
        return None
    return (
        f"The results are written to {printable(results)}, inside the folder of the pictures, so that the next run "
        "takes them for pictures of parts. Give another folder by --default_root_dir."
    )


def refuse_precision(precision: str) -> None:
    """Raise if a trainer converts weights: maps, points and masks need float32, and autocast leaves them in it.

    Args:
        precision (str): Lightning's name of the precision.

    Raises:
        ValueError: If weights would be converted.
    """
    if precision not in TRAINER_PRECISIONS:
        msg = (
            f"The trainer's precision is '{precision}', which converts the whole model, but points and masks need "
            "float32. Leave it out, and set the model's own: precision='bf16' or 'fp16', on the command line "
            "--model.precision bf16."
        )
        raise UserValueError(msg)
