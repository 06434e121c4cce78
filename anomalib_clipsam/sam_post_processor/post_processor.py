# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""SAM's outline for the maps of any model of anomalib, as a post-processor.

PPG and CPS need a map, not CLIP's. A map of distances or of likelihoods is brought to [0, 1] by what anomalib's
calibration says of it, refined, and brought back, so that thresholds, normalisation and metrics go on as before. [ours]

Example:
    >>> from anomalib.models import Padim
    >>> from anomalib_clipsam import SamPostProcessor
    >>> model = Padim(post_processor=SamPostProcessor(weights="lite"), pre_trained=False)

    On the command line::

        anomalib train --model Patchcore --model.post_processor anomalib_clipsam.SamPostProcessor --data MVTecAD

Letters: B images, H W map, S side of SAM's frame.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from anomalib.data import InferenceBatch
from anomalib.metrics import F1AdaptiveThreshold
from anomalib.post_processing import PostProcessor
from lightning.pytorch.utilities import rank_zero_only

from anomalib_clipsam.arguments import group, plain
from anomalib_clipsam.data.advice import refuse_videos
from anomalib_clipsam.errors.errors import UserValueError
from anomalib_clipsam.method.cps import CascadedPrompts, CpsArguments
from anomalib_clipsam.method.frame import scaled_size
from anomalib_clipsam.method.fusion import Fusion, FusionArguments
from anomalib_clipsam.method.ppg import PointPromptGenerator, PpgArguments
from anomalib_clipsam.method.refiner import SamRefiner
from anomalib_clipsam.plugin.kept_predictions import PredictionStore
from anomalib_clipsam.sam_post_processor.hooks import listen_for
from anomalib_clipsam.sam_post_processor.scale import Scale
from anomalib_clipsam.sam_post_processor.views import (
    NO_MAPS,
    as_seen,
    looks_alike,
    maps_of,
    read_view,
    resize_view,
    undo_normalize,
)
from anomalib_clipsam.torch_model import ClipSamModel
from anomalib_clipsam.weights.load import load_sam
from anomalib_clipsam.weights.store import announce
from anomalib_clipsam.weights.table import get_weights

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from anomalib.data import Batch
    from lightning import LightningModule, Trainer
    from torch import nn

    from anomalib_clipsam.method.stages import ClipSamStages

logger = logging.getLogger(__name__)
logger.addFilter(lambda _record: rank_zero_only.rank == 0)  # once, not in each of several processes

REFINED_THRESHOLD = 0.42
"""Where the threshold lies in refined maps that were not calibrated: the mean of what calibrations of Patchcore and
Padim gave on drawn parts (``docs/compare.md``)."""
MASK_WEIGHT = 0.5
"""SAM's share. Other models' maps are blurred more than CLIP's; chosen on the same parts."""
SAM_BATCH_SIZE = 4
"""Images that SAM sees at once: other models' batches are larger than what SAM has memory for."""
MAX_THRESHOLD = 0.95
"""The threshold of refined maps lies between 1 less this and this: what is above it must keep room."""


@dataclass
class KeptBatch:
    """What the calibration of refined maps needs of a validation batch.

    Args:
        seen (torch.Tensor): What the model saw, ``(B, 3, height, width)`` uint8.
        maps (torch.Tensor): Its maps, ``(B, H, W)``.
        masks (torch.Tensor): True masks, ``(B, H, W)`` bool.
        paths (list[str] | None): The images' files.
    """

    seen: torch.Tensor
    maps: torch.Tensor
    masks: torch.Tensor
    paths: list[str] | None


class SamPostProcessor(PostProcessor):
    """Refine the maps of any model of anomalib with SAM, then normalise and threshold them as anomalib does.

    Image scores and labels stay what they are. SAM sees an image where its map has an extreme region only.

    A validation pass calibrates the model's own maps, and then, on the refined maps, where their threshold lies. A
    checkpoint keeps the first as anomalib does and the second as one number, and nothing of SAM: it works with and
    without this post-processor, also one that was made without it.

    Args:
        weights (str): SAM of this pair of weights: ``"vit_b"``, ``"vit_l"``, ``"vit_h"``, ``"mobile"`` or ``"lite"``,
            which the package carries. Defaults to ``"vit_b"``.
        sam_weights (str | None): Local file of SAM's weights. Defaults to ``None``, the pair's.
        ppg (PpgArguments | None): What to set of the point prompts, see
            :class:`anomalib_clipsam.method.ppg.PointPromptGenerator`. Defaults to ``None``, its defaults.
        cps (CpsArguments | None): Settings of the cascade, see :class:`anomalib_clipsam.method.cps.CascadedPrompts`.
            Defaults to ``None``, its defaults.
        fusion (FusionArguments | None): Settings of the fusion, see :class:`anomalib_clipsam.method.fusion.Fusion`.
            Defaults to ``None``, its defaults, but for ``weight``: 0.5.
        precision (str): What SAM's image encoder computes in: ``"float32"``, ``"bf16"`` or, on a GPU, ``"fp16"``.
            Defaults to ``"float32"``.
        **kwargs (Any): Arguments of :class:`anomalib.post_processing.PostProcessor`.

    Raises:
        ValueError: If an argument is unknown or outside its range.
        FileNotFoundError: If weights are not found and cannot be fetched.
    """

    def __init__(
        self,
        weights: str = "vit_b",
        sam_weights: str | None = None,
        ppg: PpgArguments | None = None,
        cps: CpsArguments | None = None,
        fusion: FusionArguments | None = None,
        precision: str = "float32",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        listen_for(SamPostProcessor)
        row = get_weights(weights).sam
        ppg, cps, fusion = map(plain, (ppg, cps, fusion))
        generator = PointPromptGenerator(frame_size=row.image_size, **group(ppg, PpgArguments, "ppg"))
        fuse = Fusion(**{"weight": MASK_WEIGHT, **group(fusion, FusionArguments, "fusion")})
        cascade = group(cps, CpsArguments, "cps")
        if sam_weights is None:
            announce([row])
        with torch.random.fork_rng(devices=[]):  # SAM is built with random weights: a seed must give the same model
            sam = load_sam(row, sam_weights)
        self.refiner = SamRefiner(generator, CascadedPrompts(sam, **cascade), fuse, precision)
        self.refined_threshold = REFINED_THRESHOLD
        self.images_seen = self.images_refined = 0
        self._refined_threshold_metric = F1AdaptiveThreshold(fields=["anomaly_map", "gt_mask"], strict=False)
        self._kept: list[KeptBatch] = []
        self._store = PredictionStore()
        self._done: tuple[Batch, torch.Tensor] | None = None  # the batch that was refined last, and its maps before
        self._given: torch.Tensor | None = None
        self.register_state_dict_post_hook(_leave_sam_out)
        self.register_load_state_dict_pre_hook(_keep_own_sam)

    def train(self, mode: bool = True) -> SamPostProcessor:
        """Set the training mode of all but SAM, which does not learn."""
        super().train(mode)
        self.refiner.eval()
        return self

    # A checkpoint holds thresholds of the model's own maps, by anomalib's names, and one number more.

    @property
    def state_key(self) -> str:
        """Name of a checkpoint's entry, for Lightning: that of anomalib's own post-processor, which can read it."""
        return PostProcessor.__qualname__

    @property
    def _checkpoint_config_keys(self) -> tuple[str, ...]:
        return *super()._checkpoint_config_keys, "refined_threshold"

    def load_checkpoint_config(self, config: dict[str, Any]) -> None:
        """Take over what a checkpoint says.

        Args:
            config (dict[str, Any]): What :meth:`checkpoint_config` gave, of this class or of anomalib's own.
        """
        super().load_checkpoint_config({"refined_threshold": REFINED_THRESHOLD, **config})

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what has no use for it, before the pass.

        Args:
            trainer (Trainer): Trainer that is about to run the pass.
            pl_module (LightningModule): The model.
            stage (str): The pass, by Lightning's name.

        Raises:
            ValueError: If the model is ClipSam, the data are videos, or the trainer converts weights.
        """
        precision = getattr(trainer, "precision", "32-true")
        if precision.endswith("-true") and precision != "32-true":
            msg = (
                f"The trainer's precision '{precision}' converts SAM's weights, but points and masks need float32. "
                "Choose '16-mixed' or 'bf16-mixed', or set the post-processor's own precision."
            )
            raise UserValueError(msg)
        refuse_videos(getattr(trainer, "datamodule", None), "SamPostProcessor refines maps of single pictures")
        if isinstance(pl_module.model, ClipSamModel):
            msg = "ClipSam refines its maps with SAM itself. Leave SamPostProcessor out, and set the model's `weights`."
            raise UserValueError(msg)  # the command line's argument is at fault, not a type in Python
        if stage in ("fit", "validate"):
            self._store.clear()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget a run's pictures, unless another pass of it follows."""
        del pl_module
        self._done = None
        if stage != "fit" and (stage != "validate" or trainer.validate_loop.verbose):
            self._store.clear()

    def forget(self) -> None:
        """Forget refined maps of the validation pass, which a test pass on the same images reuses."""
        self._store.clear()

    # Validation: the model's own maps are calibrated first, and then the refined ones.

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin without what a pass that broke off may have left."""
        del trainer, pl_module
        self._kept = []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Batch, *args: Any, **kwargs: Any
    ) -> None:
        """Calibrate on the model's own maps, and keep what refining them needs."""
        super().on_validation_batch_end(trainer, pl_module, outputs, *args, **kwargs)
        maps = maps_of(outputs, pl_module)
        if self.enable_thresholding and outputs.gt_mask is not None:
            masks = outputs.gt_mask.reshape(len(maps), *outputs.gt_mask.shape[-2:]) > 0
            seen = as_seen(pl_module, outputs.image)
            self._kept.append(KeptBatch(seen.cpu(), maps.cpu(), masks.cpu(), outputs.image_path))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the calibration: refine the kept maps, and find where their threshold lies."""
        super().on_validation_epoch_end(trainer, pl_module)
        self._store.clear()
        kept, self._kept = self._kept, []
        for batch in kept:
            refined, _ = self._refine(batch.maps.to(pl_module.device), batch.seen, batch.paths)
            masks = batch.masks.to(pl_module.device)
            self._refined_threshold_metric.update(SimpleNamespace(anomaly_map=refined, gt_mask=masks))
        if self._refined_threshold_metric.update_called:
            threshold = self._refined_threshold_metric.compute().item()
            self.refined_threshold = min(max(threshold, 1 - MAX_THRESHOLD), MAX_THRESHOLD)
            self._refined_threshold_metric.reset()
        self.images_seen = self.images_refined = 0

    # Test and predict: refine, and then what anomalib does.

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Batch, *args: Any, **kwargs: Any
    ) -> None:
        """Refine a batch, and post-process it."""
        self.refine_batch(pl_module, outputs)
        super().on_test_batch_end(trainer, pl_module, outputs, *args, **kwargs)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Batch, *args: Any, **kwargs: Any
    ) -> None:
        """Refine a batch, and post-process it."""
        self.refine_batch(pl_module, outputs)
        super().on_predict_batch_end(trainer, pl_module, outputs, *args, **kwargs)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log how many images SAM skipped, and count anew."""
        counts = torch.tensor([self.images_seen, self.images_refined], device=pl_module.device)
        seen, refined = trainer.strategy.reduce(counts, reduce_op="sum").tolist()  # of all processes
        self.images_seen = self.images_refined = 0
        if seen:
            skipped = seen - refined
            logger.info("SAM skipped %d of %d pictures: the map finds nothing suspicious in them.", skipped, seen)

    on_predict_end = on_test_end

    def refine_batch(self, pl_module: LightningModule, batch: Batch) -> None:
        """Refine the maps of a batch, in the model's own scale. A batch that was refined stays as it is.

        Args:
            pl_module (LightningModule): The model that made the maps.
            batch (Batch): Batch with predictions, not normalised yet.

        Raises:
            ValueError: If the model gives no maps, or maps of other proportions than its images.
        """
        if self._done is not None and self._done[0] is batch:
            return
        maps = maps_of(batch, pl_module)
        self._done = (batch, maps)
        unit, scale = self._refine(maps, as_seen(pl_module, batch.image), batch.image_path)
        batch.anomaly_map = scale.from_unit(self._recentre_threshold(unit))
        batch.pred_mask = None  # a model's own fits its own map

    def stages_of(self, pl_module: LightningModule, image: torch.Tensor, path: str | None) -> ClipSamStages:
        """Return every intermediate result for an image of the batch that was refined last. SAM sees it once more.

        Args:
            pl_module (LightningModule): The model that made the map.
            image (torch.Tensor): The image as it is in the batch, ``(1, 3, height, width)``.
            path (str | None): Its file.

        Returns:
            ClipSamStages: Results for this image; ``anomaly_map`` is the model's, brought to [0, 1].

        Raises:
            ValueError: If the image is not of that batch.
        """
        batch, maps = (None, None) if self._done is None else self._done
        images = [] if batch is None else batch.image
        index = next((place for place, other in enumerate(images) if torch.equal(other, image[0])), None)
        if index is None:
            msg = "This image is not of the batch that was refined last. Ask when the batch ends."
            raise UserValueError(msg)
        maps = maps[index : index + 1]
        unit = self._scale(maps).to_unit(maps).clamp(0, 1)
        picture = self._view(path, as_seen(pl_module, image)[0], maps.shape[-2:])
        stages = self.refiner.refine(picture, unit, unit.amax(dim=(-2, -1)))
        return replace(stages, fused_map=self._recentre_threshold(stages.fused_map))

    def forward(self, predictions: InferenceBatch) -> InferenceBatch:
        """Refine and post-process predictions outside anomalib's passes, as in an export.

        Args:
            predictions (InferenceBatch): What the model gives; its ``forward`` has shown the images.

        Returns:
            InferenceBatch: Normalised scores and maps, labels and masks.

        Raises:
            ValueError: If no model has shown its images, or it gives no maps.
        """
        given, self._given = self._given, None
        if given is None:
            msg = "SamPostProcessor needs the images too. Call the model that it belongs to, which shows them."
            raise UserValueError(msg)
        if predictions.anomaly_map is None:
            raise UserValueError(NO_MAPS.format("The model"))
        shape = predictions.anomaly_map.shape
        maps = predictions.anomaly_map.reshape(shape[0], *shape[-2:])
        score = maps.amax(dim=(-2, -1)) if predictions.pred_score is None else predictions.pred_score
        scale = self._scale(maps)
        unit = scale.to_unit(maps)
        image = resize_view(given, scaled_size(shape[-2:], self.refiner.ppg.frame_size))
        fused = self.refiner.refine(image, unit.clamp(0, 1), score).fused_map + unit.clamp(max=0)
        refined = scale.from_unit(self._recentre_threshold(fused)).reshape(shape)
        return super().forward(predictions._replace(pred_score=score, anomaly_map=refined, pred_mask=None))

    def show(self, model: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        """Take a look at the images that a model is called with: a hook before its ``forward``.

        Args:
            model (nn.Module): The model that this post-processor belongs to.
            arguments (tuple[torch.Tensor, ...]): Its arguments; the first is the images.
        """
        images = arguments[0]
        self._given = undo_normalize(model, model.pre_processor(images) if model.pre_processor else images)

    def _scale(self, maps: torch.Tensor) -> Scale:
        """Find how maps ``(B, H, W)`` come to [0, 1]: by the calibration, else each by its median and maximum."""
        flat = maps.flatten(1)
        median = flat.topk(flat.shape[1] // 2 + 1, dim=1).values[:, -1:].unsqueeze(-1)  # (B, 1, 1); exports know topk
        peak = flat.amax(dim=1).view(-1, 1, 1)
        known = torch.isfinite(self.pixel_min) & torch.isfinite(self.pixel_max)
        low, high = torch.where(known, self.pixel_min, median), torch.where(known, self.pixel_max, peak)
        threshold = torch.where(torch.isfinite(self.pixel_threshold), self.pixel_threshold, (low + high) / 2)
        reach = high - low
        over = (peak - threshold) / reach.clamp(min=torch.finfo(maps.dtype).tiny)  # above 0.5 where the maximum is
        return Scale(threshold, reach, 0.5 / over.clamp(min=0.5))

    def _recentre_threshold(self, unit: torch.Tensor) -> torch.Tensor:
        """Move the threshold of refined maps to 0.5, and keep the order of values."""
        at = self.refined_threshold
        return torch.where(unit > at, 1 - (1 - unit) * (0.5 / (1 - at)), unit * (0.5 / at))

    def _refine(self, maps: torch.Tensor, seen: torch.Tensor, paths: list[str] | None) -> tuple[torch.Tensor, Scale]:
        """Refine maps where they have an extreme region.

        Args:
            maps (torch.Tensor): The model's, ``(B, H, W)``.
            seen (torch.Tensor): What the model saw, ``(B, 3, height, width)`` uint8.
            paths (list[str] | None): The images' files.

        Returns:
            tuple[torch.Tensor, Scale]: Refined maps, 1 at most, ``(B, H, W)``; and how they are brought back.
        """
        scale = self._scale(maps)
        unit = scale.to_unit(maps)
        inside = unit.clamp(0, 1)
        asked = self.refiner.ppg.extreme_region(inside).flatten(1).any(dim=1).nonzero().flatten().tolist()
        paths = paths or [None] * len(maps)
        self.images_seen += len(maps)
        refined = unit.clone()
        keys, unknown = {}, []
        for index in asked:
            keys[index] = self._keys(paths[index], seen[index], maps[index])
            known = self._store.get(keys[index], maps.device)
            if known is None:
                unknown.append(index)
            else:
                refined[index] = known.anomaly_map[0]
        for start in range(0, len(unknown), SAM_BATCH_SIZE):
            some = unknown[start : start + SAM_BATCH_SIZE]
            views = torch.cat([self._view(paths[index], seen[index], maps.shape[-2:]) for index in some])
            fused = self.refiner.refine(views.to(maps.device), inside[some], maps.new_zeros(len(some))).fused_map
            refined[some] = fused + unit[some].clamp(max=0)  # what is far below the threshold keeps its order
            for index in some:
                kept = InferenceBatch(pred_score=maps.new_zeros(1), anomaly_map=refined[index : index + 1])
                self._store.put(keys[index], kept)
        self.images_refined += len(asked)
        return refined, scale

    def _keys(self, path: str | None, seen: torch.Tensor, image_map: torch.Tensor) -> list[Hashable] | None:
        """Return a key for all that an image's refined map depends on, in a list; ``None`` if it has no file."""
        if path is None:
            return None
        values = torch.stack([image_map.flatten()[::61].sum(), self.pixel_threshold, self.pixel_min, self.pixel_max])
        return PredictionStore.keys([str(path)], seen.unsqueeze(0), str(values.tolist()))

    def _view(self, path: str | None, seen: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """Find the best view of an image for SAM: its file where the model saw less of it, and the same part.

        Args:
            path (str | None): The image's file.
            seen (torch.Tensor): What the model saw, ``(3, height, width)`` uint8.
            size (Sequence[int]): Height and width of its map.

        Returns:
            torch.Tensor: ``(1, 3, S, S)`` RGB in [0, 1], or less of one side, in the map's proportions.
        """
        size = scaled_size(size, self.refiner.ppg.frame_size)
        seen = seen.unsqueeze(0).float() / 255
        if path is not None and max(seen.shape[-2:]) < max(size):
            picture = read_view(path)
            if picture is not None and looks_alike(picture, seen.cpu()):
                return resize_view(picture, size).to(seen.device)
        return resize_view(seen, size)

    def __getstate__(self) -> dict[str, Any]:
        """Leave a pass's pictures out of copies and exports."""
        return {**super().__getstate__(), "_kept": [], "_store": PredictionStore(), "_done": None, "_given": None}


def _leave_sam_out(
    post_processor: SamPostProcessor, state_dict: dict[str, torch.Tensor], prefix: str, _local_metadata: Any
) -> None:
    """Leave SAM out of a state dict, so that checkpoints are those of anomalib's own post-processor."""
    del post_processor
    for key in [key for key in state_dict if key.startswith(f"{prefix}refiner.")]:
        del state_dict[key]


def _keep_own_sam(
    post_processor: SamPostProcessor, state_dict: dict[str, torch.Tensor], prefix: str, *_others: Any
) -> None:
    """Put this SAM's weights into a state dict that is loaded, since none has them."""
    state_dict.update({f"{prefix}refiner.{key}": value for key, value in post_processor.refiner.state_dict().items()})
