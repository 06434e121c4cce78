# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Compare verdicts and outlines with labels: what the command ``anomalib-clipsam check`` runs.

Predictions come from the same function as those of ``anomalib-clipsam predictions``, so that what is measured is what a
user gets.

Letters: N pictures, H W file, h w map.
"""

from __future__ import annotations

import json
from dataclasses import astuple, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import Callback
from PIL import Image

from anomalib_clipsam.errors.errors import UserFileNotFoundError
from anomalib_clipsam.predictions.run import list_pictures, write_predictions

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from anomalib.data import ImageBatch
    from lightning import LightningModule, Trainer

    from anomalib_clipsam.lightning_model import ClipSam

BINS = 4096
"""Steps in which the threshold of F1-max is searched: maps lie in [0, 1]."""
GOOD = "good"
"""Folder of the pictures without a defect."""


@dataclass(frozen=True)
class Figures:
    """What verdicts and outlines are worth on labelled pictures. NaN, here and below, for what cannot be said.

    Args:
        pictures (int): How many.
        missed (float): Share of the defective pictures that are called good.
        false_alarms (float): Share of the good pictures that are called defective.
        balanced (float): Balanced accuracy of the verdicts: 1 less the mean of the two.
        best_balanced (float): The same at the threshold that is best for these pictures, which only labels tell.
        outline (float): Pixel F1 of the written masks, all pictures together.
        outline_max (float): Pixel F1 of the final map at the threshold that is best for these pictures.
        not_outlined (float): Share of the pictures called defective that have no mask.
    """

    pictures: int
    missed: float
    false_alarms: float
    balanced: float
    best_balanced: float
    outline: float
    outline_max: float
    not_outlined: float


class MapCounts(Callback):
    """Count at each value of the final map how many pixels are damaged, and how many are not.

    Args:
        folder (Path): Folder of the data, see :func:`true_mask`.

    Attributes:
        counts (np.ndarray): ``(2, BINS)``: pixels without and with a defect.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.counts = np.zeros((2, BINS), np.int64)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: ImageBatch,
        batch: ImageBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the pixels of a batch. A trainer's callbacks are called before those of the model that normalise."""
        del trainer, pl_module, batch, batch_idx, dataloader_idx
        for path, anomaly_map in zip(outputs.image_path, outputs.anomaly_map, strict=True):
            height, width = anomaly_map.shape
            places = (anomaly_map.float().cpu().numpy().clip(0, 1) * (BINS - 1)).round().astype(int)
            truth = true_mask(self.folder, Path(path), (width, height))
            for label in (0, 1):
                self.counts[label] += np.bincount(places[truth == bool(label)], minlength=BINS)

    def best_f1(self) -> float:
        """Return F1 at the threshold where it is highest."""
        wrong, right = (counts[::-1].cumsum() for counts in self.counts)  # from the highest value down
        return float((2 * right / np.maximum(right + wrong + right[-1], 1)).max()) if right[-1] else float("nan")


def true_mask(folder: Path, picture: Path, size: tuple[int, int]) -> np.ndarray:
    """Read the true mask of a picture.

    Args:
        folder (Path): Folder in the layout of MVTec AD: ``test/KIND/NAME.png`` and ``ground_truth/KIND/NAME_mask.png``.
        picture (Path): The picture.
        size (tuple[int, int]): Width and height to bring it to.

    Returns:
        np.ndarray: ``(H, W)`` bool; all False for a good picture.

    Raises:
        FileNotFoundError: If a defective picture has none.
    """
    kind = picture.parent.name
    if kind == GOOD:
        return np.zeros(size[::-1], bool)
    truth = folder / "ground_truth" / kind
    found = [truth / f"{picture.stem}{ending}" for ending in ("_mask.png", ".png")]
    found = [file for file in found if file.is_file()]
    if not found:
        msg = f"{truth} has no mask of {picture.name}. Give it as {picture.stem}_mask.png, white where the defect is."
        raise UserFileNotFoundError(msg)
    with Image.open(found[0]) as mask:
        return np.asarray(mask.convert("L").resize(size, Image.Resampling.NEAREST)) > 0


def check(model: ClipSam, folder: Path, **options: Any) -> Figures:
    """Predict the test pictures of a folder, and compare with its labels.

    Args:
        model (ClipSam): The model.
        folder (Path): Folder in the layout of MVTec AD, see :func:`true_mask`.
        **options (Any): Further arguments of :func:`~anomalib_clipsam.predictions.run.write_predictions`.

    Returns:
        Figures: What the predictions are worth.

    Raises:
        FileNotFoundError: If there is no such folder, or a mask is missing.
        ValueError: If it has no pictures.
    """
    pictures = list_pictures(folder / "test")
    for picture in pictures:  # before minutes are spent
        true_mask(folder, picture, (1, 1))
    maps = MapCounts(folder)
    with TemporaryDirectory() as results:
        write_predictions(model, folder / "test", Path(results), callbacks=[maps], **options)
        lines = (Path(results) / "predictions.jsonl").read_text().splitlines()
        return measure(folder, Path(results), [json.loads(line) for line in lines], maps.best_f1())


def measure(folder: Path, results: Path, entries: Sequence[dict[str, Any]], outline_max: float) -> Figures:
    """Compare the lines and masks of a folder of predictions with labels.

    Args:
        folder (Path): Folder of the data.
        results (Path): Folder of the predictions.
        entries (Sequence[dict[str, Any]]): Lines of its ``predictions.jsonl``.
        outline_max (float): F1-max of the maps.

    Returns:
        Figures: What they are worth.
    """
    scores = np.array([entry["score"] for entry in entries])
    called = np.array([entry["label"] == "defective" for entry in entries])
    truth = np.array([Path(entry["file"]).parent.name != GOOD for entry in entries])
    both = marked = true = 0
    for entry in entries:
        mask = true_mask(folder, Path(entry["file"]), (entry["width"], entry["height"]))
        true += mask.sum()
        if entry["mask"] is not None:
            with Image.open(results / entry["mask"]) as drawn:
                outlined = np.asarray(drawn) > 0
            marked += outlined.sum()
            both += (outlined & mask).sum()
    missed, false_alarms = _share(~called[truth]), _share(called[~truth])
    bare = np.array([entry["mask"] is None for entry in entries])
    return Figures(
        pictures=len(entries),
        missed=missed,
        false_alarms=false_alarms,
        balanced=1 - (missed + false_alarms) / 2,
        best_balanced=best_balanced_accuracy(scores, truth),
        outline=float(2 * both / (marked + true)) if true else float("nan"),
        outline_max=outline_max,
        not_outlined=_share(bare[called]),
    )


def best_balanced_accuracy(scores: np.ndarray, truth: np.ndarray) -> float:
    """Return the balanced accuracy at the threshold where it is highest.

    Args:
        scores (np.ndarray): ``(N,)``.
        truth (np.ndarray): ``(N,)`` bool.

    Returns:
        float: It; NaN unless there are both labels.
    """
    levels = [-np.inf, *np.unique(scores)]
    return max(1 - (_share(scores[truth] <= level) + _share(scores[~truth] > level)) / 2 for level in levels)


def to_markdown(rows: Iterable[tuple[str, Figures]]) -> str:
    """Write a table.

    Args:
        rows (Iterable[tuple[str, Figures]]): A name and figures for each row.

    Returns:
        str: Markdown.
    """
    heads = ("pictures", "missed", "false alarms", "balanced accuracy", "at the best threshold", "outline F1")
    heads = ("", *heads, "map's F1-max", "defective without outline")
    lines = [heads, ("---",) * len(heads)]
    for name, figures in rows:
        pictures, *shares = astuple(figures)
        lines.append((name, str(pictures), *("-" if np.isnan(share) else f"{share:.2f}" for share in shares)))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _share(values: np.ndarray) -> float:
    """Return the share of what is true; NaN of nothing."""
    return float(values.mean()) if values.size else float("nan")
