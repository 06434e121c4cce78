# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""ClipSam: zero-shot anomaly detection with CLIP's map and SAM's mask.

CLIP, asked about flawless and damaged parts, gives an anomaly map; PPG turns it and SAM's features into point prompts;
CPS runs SAM's decoder three times for a sharp outline. Nothing is trained.

Example:
    >>> from anomalib.data import MVTecAD
    >>> from anomalib.engine import Engine
    >>> from anomalib_clipsam import ClipSam

    >>> Engine().test(model=ClipSam(), datamodule=MVTecAD(category="bottle"))  # doctest: +SKIP

Paper:
    Hou et al., "Enhancing Zero-Shot Anomaly Detection: CLIP-SAM Collaboration with Cascaded Prompts",
    https://arxiv.org/abs/2510.11028. It is not "ClipSAM" (https://arxiv.org/abs/2401.12665).

See Also:
    - :class:`anomalib_clipsam.torch_model.ClipSamModel`: PyTorch implementation
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import torch
from anomalib import LearningType
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from torch import nn

from anomalib_clipsam.checkpoints import check_what_is_read
from anomalib_clipsam.clip import (
    AprilGanLocalizer,
    DenseLocalizer,
    Localizer,
    PromptEnsemble,
    WinClipLocalizer,
    build_adapters,
)
from anomalib_clipsam.cps import CascadedPrompts
from anomalib_clipsam.export import ClipSamExport
from anomalib_clipsam.fusion import Fusion
from anomalib_clipsam.hashing import hash_tensors
from anomalib_clipsam.pictures import PictureCheck
from anomalib_clipsam.ppg import PointPromptGenerator
from anomalib_clipsam.predictions import PredictionStore
from anomalib_clipsam.processing import ClipSamPostProcessor, ClipSamPreProcessor
from anomalib_clipsam.torch_model import ClipSamModel
from anomalib_clipsam.weights import (
    WeightFile,
    find_sam,
    get_weights,
    load_adapters,
    load_clip,
    load_sam,
)

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from anomalib.data import Batch
    from lightning.pytorch import Callback
    from lightning.pytorch.utilities.types import STEP_OUTPUT

logger = logging.getLogger(__name__)

__all__ = ["ClipSam"]

LOCALIZERS = ("dense", "april_gan", "winclip")
DEFAULT_CLASS_NAME = "object"
FILES = ("prompts", "adapters", "clip_weights", "sam_weights")
"""Arguments that name a file: in Python, a ``Path`` does too."""
FROZEN = "model."
"""Prefix of the weights, which never change: a checkpoint does without them."""
CHECKPOINT_KEY = "clip_sam"
"""Where a checkpoint holds what it says of the frozen weights and the text."""
MUCH_MEMORY = 2 * 10**9
"""Bytes of kept predictions that are worth a warning."""


class ClipSam(ClipSamExport, AnomalibModule):
    """Zero-shot anomaly detection with CLIP, point prompts and SAM.

    Args:
        weights (str): Matched pair of CLIP and SAM: ``"vit_h"``, ``"vit_l"`` or ``"vit_b"`` (OpenAI's CLIP ViT-L-14-336
            with that SAM, fetched once), or ``"demo"`` (small ones that the package carries). Defaults to ``"vit_h"``.
        class_name (str | None): Name of the part in the text prompts. ``None`` takes the data module's category, else
            ``"object"``. Defaults to ``None``.
        localizer (str): Where the anomaly map comes from: ``"dense"``, ``"april_gan"`` or ``"winclip"``. Defaults to
            ``"dense"``.
        adapters (str | None): APRIL-GAN's adapters: a file, or ``"april_gan_mvtec"`` or ``"april_gan_visa"``, named
            after what they were trained on; goes with ``localizer="april_gan"``. Defaults to ``None``.
        fusion (str): ``"weighted"``, ``"gate"`` or ``"mask"``, see :class:`anomalib_clipsam.fusion.Fusion`. Defaults to
            ``"weighted"``.
        refine (bool): Whether SAM refines the map; ``False`` gives the CLIP map alone. Defaults to ``True``.
        prompts (str | None): YAML file with the user's own states and templates, see
            :class:`anomalib_clipsam.clip.PromptEnsemble`. Defaults to ``None``, WinCLIP's ensemble.
        clip_architecture (str | None): Name of an open_clip configuration, in place of the pair's. Needs
            ``clip_weights``. Defaults to ``None``.
        clip_weights (str | None): Local file of CLIP's weights. Defaults to ``None``, the pair's.
        clip_quick_gelu (bool | None): Whether those were trained with QuickGELU, as OpenAI's were. Defaults to
            ``None``, as the pair's.
        sam_architecture (str | None): ``"vit_h"``, ``"vit_l"``, ``"vit_b"`` or ``"demo"``, in place of the pair's.
            Defaults to ``None``.
        sam_weights (str | None): Local file of SAM's weights. Defaults to ``None``, the architecture's own.
        map_size (int | None): Side of maps and masks, in pixels. Defaults to ``None``: 518 for the published weights,
            192 for the demo weights.
        clip_size (int | None): Side of the square that CLIP sees, in pixels. Defaults to ``None``, the pair's.
        min_score (float): PPG: floor of S_a in the extreme region. Defaults to ``0.4``.
        region_ratio (float): PPG: share of the image's maximum that S_a must reach there. Defaults to ``0.5``.
        num_positives (int): PPG: most positive points, k. Defaults to ``3``.
        num_negatives (int): PPG: most negative points; 0 for none. Defaults to ``6``.
        spacing (str): PPG: ``"distance"`` or ``"rank"``. Defaults to ``"distance"``.
        interval (float): PPG: spacing of points in pixels of a 1024 px canvas. Defaults to ``50.0``.
        kernel_size (int): PPG: side of the dilation kernel in pixels of that canvas. Defaults to ``101``.
        negatives (str): PPG: ``"least_similar"`` or ``"most_similar"`` ring points become negative. Defaults to
            ``"least_similar"``.
        multimask (bool): CPS: three masks in passes 2 and 3, the one with the highest predicted IoU kept. Defaults to
            ``False``.
        box (str): CPS: the box of pass 3 bounds the whole ``"mask"`` or its most anomalous ``"component"``. Defaults to
            ``"mask"``.
        passes (int): CPS: 3, or fewer for an ablation. Defaults to ``3``.
        fusion_weight (float): The mask's share of the weighted map. Defaults to ``0.5``.
        precision (str): What CLIP's and SAM's image encoders compute in: ``"float32"``, ``"bf16"`` or, on a GPU,
            ``"fp16"``; ``docs/performance.md`` has what it saves and the error it brings. The localizer ``"winclip"``
            stays in float32. Defaults to ``"float32"``.
        reuse_predictions (bool): Whether a test pass takes over what the validation pass before it has predicted for
            the same images (at most 1 GiB, maps rounded to half precision). Defaults to ``True``.
        pre_processor (nn.Module | bool): Pre-processor, or whether to use the default. Defaults to ``True``.
        post_processor (nn.Module | bool): Post-processor, or whether to use the default. Defaults to ``True``.
        evaluator (Evaluator | bool): Evaluator, or whether to use the default. Defaults to ``True``.
        visualizer (Visualizer | bool): Visualizer, or whether to use the default. Defaults to ``True``.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If an argument is unknown or outside its range; the message says which and what to choose.
        FileNotFoundError: If weights are neither here nor to be fetched.

    Example:
        >>> import torch
        >>> model = ClipSam(weights="demo", class_name="part").eval()
        >>> model(torch.rand(1, 3, 300, 200)).anomaly_map.shape
        torch.Size([1, 192, 192])
    """

    def __init__(
        self,
        weights: str = "vit_h",
        class_name: str | None = None,
        localizer: str = "dense",
        adapters: str | None = None,
        fusion: str = "weighted",
        refine: bool = True,
        prompts: str | None = None,
        clip_architecture: str | None = None,
        clip_weights: str | None = None,
        clip_quick_gelu: bool | None = None,
        sam_architecture: str | None = None,
        sam_weights: str | None = None,
        map_size: int | None = None,
        clip_size: int | None = None,
        min_score: float = 0.4,
        region_ratio: float = 0.5,
        num_positives: int = 3,
        num_negatives: int = 6,
        spacing: str = "distance",
        interval: float = 50.0,
        kernel_size: int = 101,
        negatives: str = "least_similar",
        multimask: bool = False,
        box: str = "mask",
        passes: int = 3,
        fusion_weight: float = 0.5,
        precision: str = "float32",
        reuse_predictions: bool = True,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        _check_types(locals())  # first of all, while it holds the arguments as they were given
        if class_name is not None and not class_name.strip():
            msg = "class_name is empty. Name the part, such as 'bottle', or leave class_name out."
            raise ValueError(msg)
        pair = get_weights(weights)
        map_size = pair.map_size if map_size is None else map_size
        if map_size < 1:
            msg = f"map_size is {map_size}, but it is a length in pixels. Choose a number above 0, such as 518."
            raise ValueError(msg)
        sam_row = pair.sam if sam_architecture is None else find_sam(sam_architecture)
        image_size = sam_row.image_size if refine else map_size
        if pre_processor is True:
            pre_processor = self.configure_pre_processor((image_size, image_size), map_size)
        super().__init__(
            pre_processor=pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        self.class_name = class_name
        self._restored_class_name: str | None = None
        self._validated = PredictionStore() if reuse_predictions else None
        ensemble = PromptEnsemble() if prompts is None else PromptEnsemble.from_file(prompts)
        ppg = PointPromptGenerator(  # with fusion, before any weights are read: they check their arguments
            frame_size=image_size,
            min_score=min_score,
            region_ratio=region_ratio,
            num_positives=num_positives,
            num_negatives=num_negatives,
            spacing=spacing,
            interval=interval,
            kernel_size=kernel_size,
            negatives=negatives,
        )
        fuse = Fusion(fusion, fusion_weight)
        clip_row = replace(
            pair.clip,
            architecture=clip_architecture or pair.clip.architecture,
            quick_gelu=pair.clip.quick_gelu if clip_quick_gelu is None else clip_quick_gelu,
        )
        self._weight_names = {
            "localizer": _name_localizer(localizer, adapters, clip_weights or clip_row.name),
            "sam": sam_weights or sam_row.name,
        }
        if clip_architecture not in (None, pair.clip.architecture) and clip_weights is None:
            msg = f"clip_architecture='{clip_architecture}' is not in the table. Name its file with `clip_weights`."
            raise ValueError(msg)
        self.model = ClipSamModel(
            _build_localizer(
                localizer,
                ensemble,
                adapters,
                clip_row,
                clip_weights,
                pair.clip.image_size if clip_size is None else clip_size,
            ),
            map_size,
            ppg=ppg if refine else None,
            cps=CascadedPrompts(load_sam(sam_row, sam_weights), multimask, box, passes) if refine else None,
            fusion=fuse if refine else None,
            class_name=class_name or DEFAULT_CLASS_NAME,
            precision=precision,
        )

    def configure_callbacks(self) -> Sequence[Callback]:
        """Add to anomalib's callbacks the one that leaves out pictures that cannot be read.

        Returns:
            Sequence[Callback]: The callbacks.
        """
        return [*super().configure_callbacks(), PictureCheck()]

    def setup(self, stage: str) -> None:
        """Choose the class name for the text prompts: argument, else the data module's category, else ``"object"``.

        Called by Lightning before every pass, so the name follows the data module, and before it reads a checkpoint.

        Args:
            stage (str): Not used.
        """
        del stage
        if self._trainer is not None:
            check_what_is_read(self._trainer)
        category = getattr(getattr(self._trainer, "datamodule", None), "category", None) if self._trainer else None
        choices = (
            (self.class_name, "argument"),
            (category, "data module"),
            (self._restored_class_name, "checkpoint"),
            (DEFAULT_CLASS_NAME, "default"),
        )
        name, source = next((name, source) for name, source in choices if name)
        logger.info("Text prompts ask about '%s' (class name from the %s).", name, source)
        self.model.set_class_name(name)

    def on_validation_start(self) -> None:
        """Say what a validation pass of a zero-shot model is for."""
        if not self.trainer.sanity_checking:
            logger.info("ClipSam is zero-shot: it trains nothing. This pass calibrates thresholds and normalisation.")

    def on_validation_end(self) -> None:
        """Say how many images SAM was asked about."""
        self._log_share()

    def on_test_end(self) -> None:
        """Say how many images SAM was asked about."""
        self._log_share()

    def on_predict_end(self) -> None:
        """Say how many images SAM was asked about."""
        self._log_share()

    def on_predict_batch_end(self, outputs: Batch, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Warn, once, where the predictions that Lightning keeps for its caller will need much memory.

        Args:
            outputs (Batch): The batch with predictions.
            batch (Batch): Not used.
            batch_idx (int): Number of the batch.
            dataloader_idx (int): Number of the data loader. Defaults to ``0``.
        """
        del batch
        if batch_idx or dataloader_idx or not self.trainer.predict_loop.return_predictions:
            return
        per_batch = sum(value.nbytes for value in vars(outputs).values() if isinstance(value, torch.Tensor))
        total = per_batch * sum(self.trainer.num_predict_batches)
        if total > MUCH_MEMORY:
            logger.warning(
                "The predictions are kept in memory until the end, with their images: about %.0f GB. Where nobody uses "
                "them afterwards, give --return_predictions false, in Python Engine.predict(return_predictions=False).",
                total / 1e9,
            )

    def _log_share(self) -> None:
        """Log the share of images that SAM skipped, and count anew."""
        seen, refined = self.model.images_seen, self.model.images_refined
        self.model.images_seen = self.model.images_refined = 0
        if seen:
            skipped = seen - refined
            logger.info(
                "SAM skipped %d of %d images (%.0f %%), which have no extreme region.",
                skipped,
                seen,
                100 * skipped / seen,
            )

    def validation_step(self, batch: Batch, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Predict a batch, for the post-processor to calibrate on.

        Args:
            batch (Batch): Input batch.
            *args: Not used.
            **kwargs: Not used.

        Returns:
            STEP_OUTPUT: The batch with predictions.
        """
        del args, kwargs
        predictions = self.model(batch.image)
        if self._validated is not None:
            self._validated.put(self._keys(batch), predictions)
        return batch.update(**predictions._asdict())

    def test_step(self, batch: Batch, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Predict a batch, or take over what the validation pass predicted for the same images.

        Args:
            batch (Batch): Input batch.
            *args: Not used.
            **kwargs: Not used.

        Returns:
            STEP_OUTPUT: The batch with predictions.
        """
        del args, kwargs
        known = None
        if self._validated is not None and self._validated.kept:
            known = self._validated.get(self._keys(batch), batch.image.device)
        predictions = self.model(batch.image) if known is None else known
        return batch.update(**predictions._asdict())

    def _keys(self, batch: Batch) -> list[Hashable] | None:
        """What determines the predictions for a batch."""
        return PredictionStore.keys(batch.image_path, batch.image, self.model.settings())

    def teardown(self, stage: str) -> None:
        """Forget what the validation pass predicted once it was used.

        Args:
            stage (str): ``"test"`` for that.
        """
        if stage == "test" and self._validated is not None:
            self._validated.clear()

    @staticmethod
    def val_dataloader() -> list:
        """Give no batches: the calibration is skipped where there is no data module, as for a folder without labels."""
        return []

    @staticmethod
    def configure_optimizers() -> None:
        """Configure no optimizer: nothing is trained."""

    def frozen_weights(self) -> dict[str, dict[str, str]]:
        """Say which frozen weights the model runs on.

        Returns:
            dict[str, dict[str, str]]: ``"localizer"`` and, with refinement, ``"sam"``: the ``"name"`` of the weights
            and the ``"sha256"`` of their values, which does not depend on the file that they came in.
        """
        weights = {"localizer": dict(self.model.localizer.named_parameters())}
        if self.model.sam is not None:
            weights["sam"] = self.model.sam.state_dict()
        return {
            part: {"name": self._weight_names[part], "sha256": hash_tensors(tensors)}
            for part, tensors in weights.items()
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save thresholds, text embeddings, and names and hashes of the frozen weights, not the weights.

        Args:
            checkpoint (dict[str, Any]): What Lightning is about to write.
        """
        super().on_save_checkpoint(checkpoint)
        state_dict = checkpoint["state_dict"]
        checkpoint["state_dict"] = {key: value for key, value in state_dict.items() if not key.startswith(FROZEN)}
        localizer, class_name = self.model.localizer, self.model.class_name
        checkpoint[CHECKPOINT_KEY] = {
            "class_name": class_name,
            "sentences": localizer.ensemble.sentences(class_name),
            "text": localizer.text_of(class_name),
            "weights": self.frozen_weights(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore thresholds and text embeddings; the frozen weights are the model's own.

        Args:
            checkpoint (dict[str, Any]): What Lightning has read.

        Raises:
            ValueError: If another model made the checkpoint, or ClipSam on other frozen weights.
        """
        saved = checkpoint.get(CHECKPOINT_KEY)
        if saved is None:
            msg = "The checkpoint is not one of ClipSam. Give the model that it was made with, or leave the path out."
            raise ValueError(msg)
        for part, weights in self.frozen_weights().items():
            made_with = saved["weights"].get(part, weights)  # the CLIP map's alone fits a model with SAM too
            if made_with["sha256"] != weights["sha256"]:
                msg = (
                    f"The checkpoint was made with other weights of the {part}: {made_with['name']} (SHA-256 of the "
                    f"values {made_with['sha256']}), and this model has {weights['name']} ({weights['sha256']}). Its "
                    "thresholds would be wrong. Give the model those weights, or calibrate anew without the checkpoint."
                )
                raise ValueError(msg)
        super().on_load_checkpoint(checkpoint)
        frozen = {key: value for key, value in self.state_dict().items() if key.startswith(FROZEN)}
        checkpoint["state_dict"] = {**frozen, **checkpoint["state_dict"]}
        self._restored_class_name = saved["class_name"]
        localizer = self.model.localizer
        if localizer.ensemble.sentences(saved["class_name"]) == saved["sentences"]:
            localizer.restore_text(saved["class_name"], saved["text"])
        self.setup("restore")

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Trainer arguments that the model needs: none."""
        return {}

    @property
    def learning_type(self) -> LearningType:
        """Zero-shot."""
        return LearningType.ZERO_SHOT

    @classmethod
    def configure_pre_processor(
        cls,
        image_size: tuple[int, int] | None = None,
        map_size: int | None = None,
    ) -> PreProcessor:
        """Configure the default pre-processor.

        Args:
            image_size (tuple[int, int] | None): Size of the square that the model takes. Defaults to 1024, SAM's own.
            map_size (int | None): Side of maps and masks. Defaults to 518, or the image's if that is smaller.

        Returns:
            PreProcessor: It resizes images and masks; the model normalises, for CLIP and SAM each their own way.

        Raises:
            ValueError: If the image size is not square.
        """
        height, width = image_size or (1024, 1024)
        if height != width:
            msg = f"image_size is {image_size}, but SAM's input frame is square. Give twice the same number."
            raise ValueError(msg)
        return ClipSamPreProcessor(height, map_size or min(518, height))

    @staticmethod
    def configure_post_processor() -> PostProcessor:
        """Configure the default post-processor: thresholds 0.5 and range 0 to 1 until a validation pass calibrates it.

        Returns:
            PostProcessor: The post-processor.
        """
        return ClipSamPostProcessor()


def _name_localizer(name: str, adapters: str | None, clip: str) -> str:
    """Name a localizer's weights."""
    if name == "winclip":
        return "anomalib's WinClipModel"
    return clip if adapters is None else f"{clip} with {adapters}"


def _check_types(arguments: dict[str, Any]) -> None:
    """Refuse arguments of another type than the constructor's annotations say."""
    for name, hint in get_type_hints(ClipSam.__init__).items():
        types, value = get_args(hint) or (hint,), arguments.get(name)
        allowed = (*types, *([int] if float in types else []), *([Path] if name in FILES else []))
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in types):
            names = " or ".join("None" if kind is type(None) else kind.__name__ for kind in types)
            msg = f"{name} is {value!r}, but must be of the type {names}. Give such a value, or leave {name} out."
            raise TypeError(msg)


def _build_localizer(
    name: str,
    ensemble: PromptEnsemble,
    adapters: str | None,
    clip_row: WeightFile,
    clip_weights: str | None,
    clip_size: int,
) -> Localizer:
    """Build the localizer of that name."""
    if name not in LOCALIZERS:
        msg = f"Unknown localizer '{name}'. Choose one of {', '.join(LOCALIZERS)}."
        raise ValueError(msg)
    if (name == "april_gan") != (adapters is not None):
        msg = "Adapter weights and localizer='april_gan' go together. Give both `localizer` and `adapters`, or neither."
        raise ValueError(msg)
    if name == "winclip":
        return WinClipLocalizer(ensemble)
    clip = load_clip(clip_row, clip_weights)
    if name == "dense":
        return DenseLocalizer(clip, ensemble, clip_size)
    layers = build_adapters(load_adapters(str(adapters)), clip.visual.conv1.out_channels, clip.text_projection.shape[1])
    return AprilGanLocalizer(clip, ensemble, clip_size, layers)
