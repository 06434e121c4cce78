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
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from anomalib import LearningType
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from torch import nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from anomalib_clipsam.arguments import check_types, group
from anomalib_clipsam.clip import LOCALIZERS, Localizer, PromptEnsemble
from anomalib_clipsam.compute.hashing import hash_tensors
from anomalib_clipsam.cps import CascadedPrompts, CpsArguments
from anomalib_clipsam.deploy import export
from anomalib_clipsam.fusion import Fusion, FusionArguments
from anomalib_clipsam.passes.checkpoints import check_what_is_read
from anomalib_clipsam.passes.kept_predictions import PredictionStore
from anomalib_clipsam.passes.pictures import PictureCheck
from anomalib_clipsam.passes.processing import ClipSamPostProcessor, ClipSamPreProcessor
from anomalib_clipsam.ppg import PointPromptGenerator, PpgArguments
from anomalib_clipsam.torch_model import ClipSamModel
from anomalib_clipsam.weights.load import load_adapters, load_clip, load_sam
from anomalib_clipsam.weights.table import find_sam, get_weights

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from anomalib.data import Batch, InferenceBatch
    from lightning.pytorch import Callback
    from lightning.pytorch.utilities.types import STEP_OUTPUT

logger = logging.getLogger(__name__)

__all__ = ["ClipSam"]

DEFAULT_CLASS_NAME = "object"
FROZEN = "model."
"""Prefix of the weights, which never change: a checkpoint does without them."""
CHECKPOINT_KEY = "clip_sam"
"""Where a checkpoint holds what it says of the frozen weights and the text."""
MUCH_MEMORY = 2 * 10**9
"""Bytes of kept predictions that are worth a warning."""


class ClipSam(AnomalibModule):
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
        ppg (PpgArguments | None): What to set of the point prompts, such as ``{"min_score": 0.6}``, see
            :class:`anomalib_clipsam.ppg.PointPromptGenerator`. Defaults to ``None``, its defaults.
        cps (CpsArguments | None): What to set of the cascade, such as ``{"multimask": True}``, see
            :class:`anomalib_clipsam.cps.CascadedPrompts`. Defaults to ``None``, its defaults.
        fusion (FusionArguments | None): What to set of the fusion, such as ``{"mode": "gate"}``, see
            :class:`anomalib_clipsam.fusion.Fusion`. Defaults to ``None``, its defaults.
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
        refine: bool = True,
        prompts: str | None = None,
        clip_architecture: str | None = None,
        clip_weights: str | None = None,
        clip_quick_gelu: bool | None = None,
        sam_architecture: str | None = None,
        sam_weights: str | None = None,
        map_size: int | None = None,
        clip_size: int | None = None,
        ppg: PpgArguments | None = None,
        cps: CpsArguments | None = None,
        fusion: FusionArguments | None = None,
        precision: str = "float32",
        reuse_predictions: bool = True,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        check_types(ClipSam.__init__, locals())  # first of all, while it holds the arguments as they were given
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
            pre_processor = self.configure_pre_processor((image_size, image_size))
        super().__init__(
            pre_processor=pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        self.class_name = class_name
        self._restored_class_name: str | None = None
        self._validated = PredictionStore() if reuse_predictions else None
        # Before any weights are read: these check their arguments.
        localizer_class = _find_localizer(localizer, adapters)
        ensemble = PromptEnsemble() if prompts is None else PromptEnsemble.from_file(prompts)
        generator = PointPromptGenerator(frame_size=image_size, **group(ppg, PpgArguments, "ppg"))
        fuse = Fusion(**group(fusion, FusionArguments, "fusion"))
        cascade = partial(CascadedPrompts, **group(cps, CpsArguments, "cps"))
        clip_row = replace(
            pair.clip,
            architecture=clip_architecture or pair.clip.architecture,
            quick_gelu=pair.clip.quick_gelu if clip_quick_gelu is None else clip_quick_gelu,
        )
        if clip_architecture not in (None, pair.clip.architecture) and clip_weights is None:
            msg = f"clip_architecture='{clip_architecture}' is not in the table. Name its file with `clip_weights`."
            raise ValueError(msg)
        clip_name = clip_weights or clip_row.name
        self._weight_names = {
            "localizer": localizer_class.own_weights or (f"{clip_name} with {adapters}" if adapters else clip_name),
            "sam": sam_weights or sam_row.name,
        }
        self.model = ClipSamModel(
            localizer_class.build(
                ensemble,
                pair.clip.image_size if clip_size is None else clip_size,
                clip=partial(load_clip, clip_row, clip_weights),
                adapters=partial(load_adapters, adapters),
            ),
            map_size,
            ppg=generator if refine else None,
            cps=cascade(load_sam(sam_row, sam_weights)) if refine else None,
            fusion=fuse if refine else None,
            class_name=class_name or DEFAULT_CLASS_NAME,
            precision=precision,
        )

    # What is exported and how stands in a room of its own.
    export_metadata = export.export_metadata
    to_torch = export.to_torch
    to_onnx = export.to_onnx
    to_openvino = export.to_openvino
    to_parts = export.to_parts

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
        self._choose_class_name()

    def _choose_class_name(self) -> None:
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

    on_test_end = on_predict_end = on_validation_end

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
        return _answer(batch, predictions)

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
        return _answer(batch, self.model(batch.image) if known is None else known)

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
        self._choose_class_name()

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Trainer arguments that the model needs: none."""
        return {}

    @property
    def learning_type(self) -> LearningType:
        """Zero-shot."""
        return LearningType.ZERO_SHOT

    @classmethod
    def configure_pre_processor(cls, image_size: tuple[int, int] | None = None) -> PreProcessor:
        """Configure the default pre-processor.

        Args:
            image_size (tuple[int, int] | None): Size of the square that the model takes. Defaults to 1024, SAM's own.

        Returns:
            PreProcessor: It resizes images; the model normalises, for CLIP and SAM each their own way.

        Raises:
            ValueError: If the image size is not square.
        """
        height, width = image_size or (1024, 1024)
        if height != width:
            msg = f"image_size is {image_size}, but SAM's input frame is square. Give twice the same number."
            raise ValueError(msg)
        return ClipSamPreProcessor(height)

    @staticmethod
    def configure_post_processor() -> PostProcessor:
        """Configure the default post-processor: thresholds 0.5 and range 0 to 1 until a validation pass calibrates it.

        Returns:
            PostProcessor: The post-processor.
        """
        return ClipSamPostProcessor()


def _answer(batch: Batch, predictions: InferenceBatch) -> Batch:
    """Put predictions into a batch, and bring true masks to the maps' size, whatever pre-processor was before.

    A pixel metric at SAM's 1024 px costs half a minute and gigabytes per 100 images; maps are smaller.
    """
    size = list(predictions.anomaly_map.shape[-2:])
    if batch.gt_mask is not None and list(batch.gt_mask.shape[-2:]) != size:
        mask = batch.gt_mask.unsqueeze(1)  # (B, 1, height, width)
        batch.gt_mask = resize(mask, size, interpolation=InterpolationMode.NEAREST_EXACT).squeeze(1)
    return batch.update(**predictions._asdict())


def _find_localizer(name: str, adapters: str | None) -> type[Localizer]:
    """Look a localizer up, and see whether it goes with the adapters."""
    if name not in LOCALIZERS:
        msg = f"Unknown localizer '{name}'. Choose one of {', '.join(LOCALIZERS)}."
        raise ValueError(msg)
    if LOCALIZERS[name].needs_adapters != (adapters is not None):
        msg = "Adapter weights and localizer='april_gan' go together. Give both `localizer` and `adapters`, or neither."
        raise ValueError(msg)
    return LOCALIZERS[name]
