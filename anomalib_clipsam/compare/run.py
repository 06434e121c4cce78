# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Run the pairs of a comparison through anomalib's Engine, one row each, and go on where an earlier run ended.

Letters: B images, H W map.
"""

from __future__ import annotations

import copy
import gc
import logging
import math
import tempfile
import time
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from anomalib import LearningType
from anomalib.callbacks import ModelCheckpoint
from anomalib.engine import Engine
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.trainer.states import TrainerFn
from torch.nn import functional as F  # noqa: N812
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from anomalib_clipsam.compare.config import build
from anomalib_clipsam.compare.metrics import PixelMetrics, image_metrics
from anomalib_clipsam.compare.pictures import ReportPictures
from anomalib_clipsam.compare.report import PICTURES, write_report
from anomalib_clipsam.compare.table import TEST_BATCH, Row, read_rows, write_tables
from anomalib_clipsam.sam_post_processor.post_processor import SamPostProcessor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anomalib.data import AnomalibDataset, ImageBatch
    from anomalib.models import AnomalibModule
    from lightning import LightningModule, Trainer

    from anomalib_clipsam.compare.config import Comparison, Pair

logger = logging.getLogger(__name__)

LEVELS = {
    **dict.fromkeys(
        ("anomalib", "lightning", "lightning.pytorch", "lightning.fabric", "lightning_fabric"), logging.ERROR
    ),
    "anomalib_clipsam": logging.WARNING,
    "anomalib_clipsam.weights": logging.INFO,  # what is fetched, and how large it is
}
"""Least level of what is logged while the progress bar is shown."""


class Measurement(Callback):
    """Measure a test pass: its time, and metrics of the model's output before the post-processor changes it.

    Args:
        truth (AnomalibDataset): The test images, with masks at their own size.
        map_size (int): Side of the square that maps and masks are brought to, in pixels.
    """

    def __init__(self, truth: AnomalibDataset, map_size: int) -> None:
        self.truth = truth
        self.index = {str(path): index for index, path in enumerate(truth.samples.image_path)}
        self.map_size = map_size
        self.pixels = PixelMetrics()
        self.scores: list[float] = []
        self.labels: list[int] = []
        self.seconds: list[tuple[float, int]] = []  # seconds and images of each batch
        self.refining: list[tuple[float, int]] = []  # the same of SAM, behind another model

    def watch(self, module: torch.nn.Module) -> None:
        """Time every call of a network that does not train. The first batch is given to it twice, to warm it up.

        Args:
            module (torch.nn.Module): ``model`` of one of anomalib's models.
        """
        start, warm = 0.0, False

        def before(network: torch.nn.Module, _arguments: Any) -> None:
            nonlocal start
            if not network.training:
                start = _now(_device(network))

        def after(network: torch.nn.Module, arguments: Any, _result: Any) -> None:
            nonlocal warm
            if network.training or not arguments:
                return
            if warm:
                self.seconds.append((_now(_device(network)) - start, len(arguments[0])))
            else:
                warm = True
                network(*arguments)

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: ImageBatch,
        batch: ImageBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take maps and scores. Lightning calls the Engine's callbacks before the model's own post-processor."""
        del trainer, batch, batch_idx, dataloader_idx
        if isinstance(pl_module.post_processor, SamPostProcessor):
            pl_module.post_processor.forget()  # what the validation pass has refined would cost no time
            start = _now(pl_module.device)
            pl_module.post_processor.refine_batch(pl_module, outputs)
            self.refining.append((_now(pl_module.device) - start, len(outputs.image)))
        maps, scores = outputs.anomaly_map, outputs.pred_score
        if scores is None:
            scores = maps.flatten(1).amax(dim=1)  # as anomalib's post-processor does
        self.scores += scores.cpu().double().flatten().tolist()  # not every GPU has doubles
        self.labels += outputs.gt_label.int().tolist()
        masks = [self.mask(str(path)) for path in outputs.image_path]
        if maps is None or any(mask is None for mask in masks):
            return  # a model or a data set without maps has image metrics only
        size = (self.map_size, self.map_size)
        maps = maps.reshape(len(masks), 1, *maps.shape[-2:]).float().cpu()
        maps = F.interpolate(maps, size, mode="bilinear", align_corners=False, antialias=True)
        masks = [F.interpolate(mask[None, None].float(), size, mode="nearest-exact") for mask in masks]
        self.pixels.update(maps.squeeze(1), torch.cat(masks).squeeze(1) > 0)

    def mask(self, path: str) -> torch.Tensor | None:
        """Read the true mask of an image.

        Args:
            path (str): The image's file.

        Returns:
            torch.Tensor | None: The mask ``(height, width)`` at its own size; ``None`` if there is none.
        """
        return self.truth[self.index[path]].gt_mask

    def results(self) -> dict[str, float]:
        """Return all figures.

        Returns:
            dict[str, float]: The metrics, and ``seconds_per_image``: of the network alone, once it is warm, and of SAM
            where it refines the maps; NaN if the network was never called.
        """
        seconds = [np.sum(calls, axis=0) for calls in (self.seconds or [(math.nan, 1)], self.refining) if calls]
        metrics = {**self.pixels.compute(), **image_metrics(self.scores, self.labels)}
        return {**metrics, "seconds_per_image": float(sum(total / images for total, images in seconds))}


def compare(comparison: Comparison) -> list[Row]:
    """Run the pairs that have not been run yet, and write the tables after each.

    Args:
        comparison (Comparison): What to compare.

    Returns:
        list[Row]: A row per pair, in the order of the configuration; a failed pair's row says why.
    """
    output = Path(comparison.output)
    output.mkdir(parents=True, exist_ok=True)
    pairs = list(comparison.pairs())
    known = {row.fingerprint: row for row in read_rows(output / "results.csv") if not row.error}
    rows = {pair.fingerprint: known[pair.fingerprint] for pair in pairs if pair.fingerprint in known}
    todo = [pair for pair in pairs if pair.fingerprint not in rows]
    done_already = {"initial": len(rows), "total": len(pairs), "disable": not todo}
    with _quiet(), tqdm(todo, unit="pair", **done_already) as progress:
        for pair in progress:
            progress.set_description(f"{pair.model.label}, {pair.data.label} {pair.category}".rstrip())
            rows[pair.fingerprint] = run_pair(comparison, pair)
            done = [rows[other.fingerprint] for other in pairs if other.fingerprint in rows]
            write_tables(output, comparison, done)
    done = [rows[pair.fingerprint] for pair in pairs]
    write_tables(output, comparison, done)
    write_report(output, comparison, done)
    return done


def run_pair(comparison: Comparison, pair: Pair) -> Row:
    """Fit or calibrate a model on a category, and test it.

    Args:
        comparison (Comparison): Seed, sizes and arguments that all pairs share.
        pair (Pair): Model and category.

    Returns:
        Row: The figures, or what went wrong.
    """
    names = {"data": pair.data.label, "category": pair.category, "model": pair.model.label}
    try:
        return Row(**names, fingerprint=pair.fingerprint, **_measure(comparison, pair))
    except Exception as error:  # whatever a model raises, the others must still run
        logger.debug("The pair failed.", exc_info=True)
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return Row(**names, fingerprint=pair.fingerprint, error=" ".join(text.split()))


def _measure(comparison: Comparison, pair: Pair) -> dict[str, Any]:
    gc.collect()
    reset_peak_memory()
    seed_everything(comparison.seed, verbose=False)
    model, data = build(pair)
    data.category = data.category or "object"  # ClipSam's own default; WinClip fails on an empty name
    data.prepare_data()
    data.setup(TrainerFn.TESTING)
    for subset in (data.test_data, data.val_data) if pair.data.max_images else ():
        subset.subsample(choose(subset, pair.data.max_images), inplace=True)
    # The Engine will make the data set resize its masks to the model's size; this copy keeps their own.
    measurement = Measurement(copy.copy(data.test_data), comparison.map_size)
    measurement.watch(model.model)
    model.evaluator = None
    folder = Path(comparison.output) / PICTURES / pair.fingerprint
    model.visualizer = ReportPictures(folder, shown_images(data.test_data, comparison.pictures), measurement.mask)
    with tempfile.TemporaryDirectory() as workspace:
        engine = Engine(
            callbacks=[measurement, ModelCheckpoint(save_top_k=0)],
            default_root_dir=workspace,
            logger=False,
            **{
                "devices": 1,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                **comparison.engine,
                **pair.model.engine,
            },
        )
        if pair.model.ckpt_path:
            engine.test(model, datamodule=data, ckpt_path=pair.model.ckpt_path, verbose=False)
        else:
            engine.train(model, datamodule=data)
    seen = seen_images(model, data)
    return {
        **measurement.results(),
        # what a batch costs comes before its pass, where nothing is timed
        **({"seconds_per_image": math.nan} if seen == TEST_BATCH else {}),
        "peak_memory_mb": peak_memory(engine.trainer.strategy.root_device),
        "train_images": None if pair.model.ckpt_path else seen,
        "test_images": len(measurement.labels),
    }


def choose(dataset: AnomalibDataset, count: int) -> list[int]:
    """Choose images evenly over a list of files, half of them defective if there are enough.

    Args:
        dataset (AnomalibDataset): The data set.
        count (int): Most images.

    Returns:
        list[int]: Indices, ascending.
    """
    labels = dataset.samples.label_index.to_numpy()
    good, defective = np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)
    half = min(len(defective), max(count // 2, count - len(good)))
    return sorted(
        int(index) for part, most in ((good, count - half), (defective, half)) for index in spread(part, most)
    )


def shown_images(dataset: AnomalibDataset, count: int) -> set[str]:
    """Choose the images that the report shows: of each kind of defect, evenly over the list of files.

    Args:
        dataset (AnomalibDataset): The test images.
        count (int): Most images of a kind, which is the name of the image's folder.

    Returns:
        set[str]: Their files.
    """
    kinds: dict[str, list[str]] = {}
    for path in dataset.samples.image_path:
        kinds.setdefault(Path(path).parent.name, []).append(str(path))
    return {str(path) for paths in kinds.values() for path in spread(sorted(paths), count)}


def spread(items: Any, count: int) -> Any:
    """Take at most that many items, evenly over the list.

    Args:
        items (Any): A list or an array.
        count (int): Most items.

    Returns:
        Any: An array of them, in their order.
    """
    items = np.asarray(items)
    return items[np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int))]


def seen_images(model: AnomalibModule, data: Any) -> int:
    """Count the images of the category that a model has seen before it is tested.

    Args:
        model (AnomalibModule): The model.
        data (Any): Data module.

    Returns:
        int: 0 for a zero-shot model, the number of its references for a few-shot model, else all training images;
        :data:`TEST_BATCH` for a model that compares the test images with one another.
    """
    if getattr(model, "compares_batch", False):
        return TEST_BATCH
    if model.learning_type == LearningType.ZERO_SHOT:
        return 0
    if model.learning_type == LearningType.FEW_SHOT and hasattr(model, "k_shot"):
        return model.k_shot
    return len(data.train_data)


def reset_peak_memory() -> None:
    """Reset the peak memory, of GPU and process: which of them a model takes is not known yet."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        logger.info("The peak memory of a process can be measured on Linux only; it is left out.")


def peak_memory(device: torch.device) -> float:
    """Return the peak memory since :func:`reset_peak_memory`.

    Args:
        device (torch.device): Where the model was.

    Returns:
        float: MB that torch has allocated on that GPU of CUDA, or elsewhere, that the process has used; NaN where the
        system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return math.nan
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def _device(network: torch.nn.Module) -> torch.device:
    """Report where a network is."""
    return next((value.device for value in (*network.parameters(), *network.buffers())), torch.device("cpu"))


def _now(device: torch.device) -> float:
    """The time in seconds at which all work given to a device so far is done."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the progress bar readable: hide what every pass logs, and write the rest above the bar."""
    levels = {logging.getLogger(name): logging.getLogger(name).level for name in LEVELS}
    try:
        for name, level in LEVELS.items():
            logging.getLogger(name).setLevel(level)
        with warnings.catch_warnings(), logging_redirect_tqdm():
            warnings.filterwarnings("ignore", module="lightning|torch|anomalib|timm|open_clip")
            yield
    finally:
        for each, level in levels.items():
            each.setLevel(level)
