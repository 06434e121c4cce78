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

import inspect
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from anomalib import LearningType
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from anomalib_clipsam.arguments import FILES, check_types, plain
from anomalib_clipsam.data.advice import find_unused, refuse_precision, refuse_videos
from anomalib_clipsam.data.unreadable import PictureCheck
from anomalib_clipsam.drawing.visualizers import ResultVisualizer
from anomalib_clipsam.errors.errors import MODEL_OPTIONS, UserValueError
from anomalib_clipsam.export.mixin import ClipSamExport
from anomalib_clipsam.method.cps import CpsArguments
from anomalib_clipsam.method.frame import resize_to
from anomalib_clipsam.method.fusion import FusionArguments
from anomalib_clipsam.method.ppg import PpgArguments
from anomalib_clipsam.plugin.build import build_model, build_post_processor, use_learned
from anomalib_clipsam.plugin.checkpoint import ClipSamCheckpoint
from anomalib_clipsam.plugin.checkpoint_file import check_what_is_read
from anomalib_clipsam.plugin.configuration import Configuration
from anomalib_clipsam.plugin.kept_predictions import RunEnd
from anomalib_clipsam.plugin.part_names import DEFAULT_CLASS_NAME, PartNames
from anomalib_clipsam.plugin.post_processor import ClipSamPostProcessor
from anomalib_clipsam.plugin.pre_processor import ClipSamPreProcessor
from anomalib_clipsam.plugin.predicting import Predictor, warn_of_memory
from anomalib_clipsam.plugin.reference_pass import ClipSamReferences, References
from anomalib_clipsam.plugin.report import PassSummary, Report, explain_threshold
from anomalib_clipsam.plugin.skip_calibration import SkipCalibration
from anomalib_clipsam.references import ReferenceOptions
from anomalib_clipsam.weights.table import DATA_SETS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anomalib.data import Batch, InferenceBatch
    from lightning.pytorch import Callback
    from lightning.pytorch.utilities.types import STEP_OUTPUT

logger = logging.getLogger(__name__)
logger.addFilter(lambda _record: rank_zero_only.rank == 0)  # once, not in each of several processes

__all__ = ["ClipSam"]

COMPONENTS = ("pre_processor", "post_processor", "evaluator", "visualizer")
"""Arguments that are modules; a checkpoint does not hold them."""


class ClipSam(ClipSamExport, ClipSamCheckpoint, ClipSamReferences, AnomalibModule):
    """Zero-shot anomaly detection with CLIP, point prompts and SAM.

    Args:
        weights (str): Matched pair of CLIP and SAM: ``"vit_h"``, ``"vit_l"`` or ``"vit_b"`` (OpenAI's CLIP ViT-L-14-336
            with that SAM, fetched once), ``"mobile"`` (ViT-B-16 and MobileSAM, for machines without a GPU, fetched
            once), or ``"lite"`` (small ones that the package carries; ``"demo"`` is its other name). Defaults
            to ``"vit_b"``.
        class_name (str | None): Name of the part in the text prompts. For many products in one run, ``"folder"`` takes
            the name of the folder that holds each picture, and a YAML file maps folders to names, see
            :class:`anomalib_clipsam.plugin.part_names.FolderNames`. ``None`` takes the data module's category if it has
            a letter, else ``"object"``. Defaults to ``None``.
        localizer (str): Where the anomaly map comes from, see :data:`anomalib_clipsam.clip.localizers.LOCALIZERS`.
            ``"crane"``, ``"anomaly_clip"`` and ``"april_gan"`` use weights that their authors trained on one industrial
            data set beside CLIP's; ``"pyramid"`` is the carried pair's; ``"dense"`` and ``"winclip"`` use nothing but
            CLIP. Defaults to ``"auto"``: ``"crane"`` for pairs with ViT-L-14-336, ``"pyramid"`` for ``"lite"``, else
            ``"dense"``, also with another CLIP, or with prompts that the pair's own has no use for.
        adapters (str | None): Those learned weights: a file, or a name such as ``"crane_visa"`` or
            ``"april_gan_mvtec"``, which says what they were trained on. ``None`` for none. Defaults to ``"auto"``:
            where a localizer needs some, those trained on VisA; on the data module of VisA, those trained on MVTec AD.
        refine (bool): Whether SAM refines the map; ``False`` gives the CLIP map alone. Defaults to ``True``.
        prompts (str | None): YAML file with the user's own states and templates, see
            :class:`anomalib_clipsam.clip.PromptEnsemble`. Defaults to ``None``, WinCLIP's ensemble.
        clip_architecture (str | None): Name of an open_clip configuration, in place of the pair's. Needs
            ``clip_weights``. Defaults to ``None``.
        clip_weights (str | None): Local file of CLIP's weights. Defaults to ``None``, the pair's.
        clip_quick_gelu (bool | None): Whether those were trained with QuickGELU, as OpenAI's were. Defaults to
            ``None``: as the published learned weights were trained, else as the pair's CLIP was.
        sam_architecture (str | None): ``"vit_h"``, ``"vit_l"``, ``"vit_b"``, MobileSAM's ``"vit_t"`` or ``"lite"``, in
            place of the pair's. Defaults to ``None``.
        sam_weights (str | None): Local file of SAM's weights. Defaults to ``None``, the architecture's own.
        map_size (int | None): Longer side of maps and masks, in pixels. Defaults to ``None``, the pair's: 518 for the
            published weights, 448 for ``"mobile"``, 256 for ``"lite"``; with ``tiles`` the picture's, up to 1024.
        clip_size (int | None): Side of the square that CLIP sees, in pixels. Defaults to ``None``, the pair's.
        tiles (int | str | None): For large pictures: side of the squares that they are cut into, in pixels, or
            ``"auto"``, by their size. Pictures are seen at their own scale and in their own aspect, and one by one.
            Defaults to ``None``: each picture is squeezed to one square.
        tile_overlap (float): Share of its side that a tile has in common with the next one, at least, in [0, 0.75].
            Defaults to ``0.25``.
        tile_batch (int): Tiles that CLIP sees at once; memory grows with it. Defaults to ``4``.
        references (str | None): What a picture is compared with beside the text: ``"none"``, ``"self"`` (the picture
            itself) or ``"batch"`` (all pictures of the pass, unlabelled, five or more; their scores depend on this
            company). Defaults to ``None``, as the pair says.
        k_shot (int): Number of good parts to compare with, as in anomalib's ``WinClip``; 0 for none. Defaults to ``0``.
        few_shot_source (str | None): Folder of these good parts. Defaults to ``None``, the training data.
        reference_options (ReferenceOptions | None): What to set of the references, such as ``{"rotate": True}``, see
            :class:`anomalib_clipsam.references.ReferenceOptions`. Defaults to ``None``, its defaults.
        ppg (PpgArguments | None): What to set of the point prompts, such as ``{"min_score": 0.6}``, see
            :class:`anomalib_clipsam.method.ppg.PointPromptGenerator`. Defaults to ``None``, its defaults.
        cps (CpsArguments | None): Settings of the cascade, such as ``{"multimask": True}``, see
            :class:`anomalib_clipsam.method.cps.CascadedPrompts`. Defaults to ``None``, its defaults.
        fusion (FusionArguments | None): Settings of the fusion, such as ``{"mode": "gate"}``, see
            :class:`anomalib_clipsam.method.fusion.Fusion`. Defaults to ``None``, its defaults.
        image_threshold (float | None): Image score above which a picture is defective, in [0, 1], before anomalib
            normalises it so that 0.5 is the threshold. Defaults to ``None``: as labels, good parts or the batch say,
            else 0.5.
        pixel_threshold (float | None): The same for the final map's pixels: the outline is where the map is above it.
            Defaults to ``None``.
        false_alarms (float): Wished share of good pictures that are called defective, which good parts and the batch
            set the threshold for, from 0.001 to 0.5. A few pictures cannot promise it. Defaults to ``0.2``.
        min_area (int): Smallest connected part of a mask that stays, in pixels of the file. Defaults to ``0``, any.
        keep_good_masks (bool): Whether a picture that is called good keeps its mask. Defaults to ``False``: it is
            empty.
        precision (str): What CLIP's and SAM's image encoders compute in: ``"float32"``, ``"bf16"`` or, on a GPU,
            ``"fp16"``; see ``docs/performance.md`` for the time it saves and the error it makes. The localizer
            ``"winclip"`` stays in float32. Defaults to ``"float32"``.
        reuse_predictions (bool): Whether a test pass reuses the predictions of the validation pass before it for the
            same images (at most 1 GiB). Defaults to ``True``.
        pre_processor (nn.Module | bool): Pre-processor, or whether to use the default. Defaults to ``True``.
        post_processor (nn.Module | bool): Post-processor, or whether to use the default,
            :class:`anomalib_clipsam.plugin.post_processor.ClipSamPostProcessor`, which takes anomalib's sensitivities
            too. Defaults to ``True``.
        evaluator (Evaluator | bool): Evaluator, or whether to use the default. Defaults to ``True``.
        visualizer (Visualizer | bool): Visualizer, or whether to use the default,
            :class:`anomalib_clipsam.drawing.visualizers.ResultVisualizer`. Defaults to ``True``.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If an argument is unknown or outside its range; the message says which and what to choose.
        FileNotFoundError: If weights are not found and cannot be fetched.

    Example:
        >>> import torch
        >>> model = ClipSam(weights="lite", class_name="part").eval()
        >>> model(torch.rand(1, 3, 300, 200)).anomaly_map.shape
        torch.Size([1, 256, 256])
    """

    def __init__(
        self,
        weights: str = "vit_b",
        class_name: str | None = None,
        localizer: str = "auto",
        adapters: str | None = "auto",
        refine: bool = True,
        prompts: str | None = None,
        clip_architecture: str | None = None,
        clip_weights: str | None = None,
        clip_quick_gelu: bool | None = None,
        sam_architecture: str | None = None,
        sam_weights: str | None = None,
        map_size: int | None = None,
        clip_size: int | None = None,
        tiles: int | str | None = None,
        tile_overlap: float = 0.25,
        tile_batch: int = 4,
        references: str | None = None,
        k_shot: int = 0,
        few_shot_source: str | None = None,
        reference_options: ReferenceOptions | None = None,
        ppg: PpgArguments | None = None,
        cps: CpsArguments | None = None,
        fusion: FusionArguments | None = None,
        image_threshold: float | None = None,
        pixel_threshold: float | None = None,
        false_alarms: float = 0.2,
        min_area: int = 0,
        keep_good_masks: bool = False,
        precision: str = "float32",
        reuse_predictions: bool = True,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        given = {name: plain(value) for name, value in locals().items() if name not in ("self", "__class__")}
        check_types(ClipSam.__init__, given)
        # As text: a checkpoint and an export's metadata cannot hold a path.
        given |= {name: str(given[name]) for name in FILES if given[name] is not None}
        self._report = Report(logger)
        names = PartNames(given["class_name"], self._report.log_once)
        configuration = Configuration.of(given)
        names.check(k_shot=k_shot, references=references)
        size = None if configuration.tiling else configuration.image_size
        super().__init__(
            pre_processor=ClipSamPreProcessor(size) if pre_processor is True else pre_processor,
            post_processor=build_post_processor(post_processor, given),
            evaluator=evaluator,
            visualizer=visualizer,
        )
        self.save_hyperparameters({name: value for name, value in given.items() if name not in COMPONENTS})
        self.configuration = configuration
        self.k_shot, self.few_shot_source = k_shot, given["few_shot_source"]
        self._names, self.class_name = names, names.given
        self._references = References(k_shot, given["few_shot_source"])
        self._predictor = Predictor(names, self._report, reuse_predictions)
        self._learned = configuration.learned_for(None)
        self.model = build_model(configuration, names.given or DEFAULT_CLASS_NAME)

    def configure_callbacks(self) -> Sequence[Callback]:
        """Add to anomalib's own callbacks.

        Unreadable pictures and needless calibrations are skipped, a pass ends with a line of what it found, and nothing
        is kept of a run's pictures.

        Returns:
            Sequence[Callback]: The callbacks.
        """
        # The first says whether the second has validation pictures to look at.
        check = PictureCheck(self.model.misfit)
        return [*super().configure_callbacks(), SkipCalibration(), check, PassSummary(), RunEnd(self._forget)]

    def setup(self, stage: str) -> None:
        """Choose the class name for the text prompts: argument, else the data module's category, else ``"object"``.

        Called by Lightning before every pass, so the name follows the data module, and before it reads a checkpoint.

        Args:
            stage (str): The pass.

        Raises:
            ValueError: If the trainer would convert the whole model to another precision, or the data are videos.
        """
        if self._trainer is not None:
            refuse_precision(self._trainer.precision)
            check_what_is_read(self._trainer)
        datamodule = getattr(self._trainer, "datamodule", None)
        refuse_videos(datamodule)
        if stage in ("validate", "test") and (not self.k_shot or self.few_shot_source):
            unused = find_unused(datamodule)
            if unused is not None:
                self._report.log_once("unused", unused)
        tested_on = DATA_SETS.get(type(datamodule).__name__)
        self._learned = use_learned(self.model, self.configuration, self._learned, tested_on, self._report.log_once)
        self._choose_class_name()
        self._references.forget_others(self.model, self._trainer)

    def _choose_class_name(self) -> None:
        self._names.choose(self.model, getattr(getattr(self._trainer, "datamodule", None), "category", None))

    def forward(self, batch: torch.Tensor) -> InferenceBatch:
        """Predict images outside anomalib's passes. See :meth:`AnomalibModule.forward`.

        The images should have the size of their files: ``min_area`` is counted in their pixels.
        """
        if not torch.compiler.is_compiling():
            self.learn_good_parts()
        predictions = self.model(self.pre_processor(batch) if self.pre_processor else batch)
        return self.post_process(predictions, batch.shape[-2:])

    def post_process(self, predictions: InferenceBatch, image_size: Sequence[int]) -> InferenceBatch:
        """Decide about predictions made outside anomalib's passes.

        Args:
            predictions (InferenceBatch): What the model gives.
            image_size (Sequence[int]): Height and width that the images had before any resize.

        Returns:
            InferenceBatch: Normalised scores and maps, labels and masks; the predictions without a post-processor.
        """
        if isinstance(self.post_processor, ClipSamPostProcessor):
            return self.post_processor(predictions, image_size)
        return self.post_processor(predictions) if self.post_processor else predictions

    def validation_step(self, batch: Batch, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Predict a batch, for the post-processor to calibrate on. Returns the batch with predictions."""
        del args, kwargs
        return self._predictor.validate(self.model, batch)

    def test_step(self, batch: Batch, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Predict a batch, or reuse the validation pass's predictions. Returns the batch with predictions."""
        del args, kwargs
        return self._predictor.test(self.model, batch)

    def predict_step(self, batch: Batch, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Predict a batch. Returns the batch with predictions."""
        del args, kwargs
        return self._predictor.predict(self.model, batch)

    def on_predict_batch_end(self, outputs: Batch, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Keep predictions small, and warn once if those that Lightning keeps for its caller will need much memory.

        Args:
            outputs (Batch): The batch with predictions.
            batch (Batch): Not used.
            batch_idx (int): Number of the batch.
            dataloader_idx (int): Number of the data loader. Defaults to ``0``.
        """
        del batch
        if not self.trainer.predict_loop.return_predictions:
            return
        if self.in_tiles:  # after all callbacks: what is kept of a large picture need not be larger than its map
            outputs.image = resize_to(outputs.image, tuple(outputs.anomaly_map.shape[-2:]))
        if not batch_idx and not dataloader_idx:
            warn_of_memory(self.trainer, outputs)

    def on_validation_end(self) -> None:
        """Sum up what was counted, for the end of the pass."""
        self._report.close(self.trainer, self.device)

    on_test_end = on_predict_end = on_validation_end

    @property
    def closing_lines(self) -> list[tuple[int, str]]:
        """Level and text of what is logged when a pass ends."""
        return self._report.closing_lines

    @property
    def in_tiles(self) -> bool:
        """Whether pictures are seen in tiles, at their own size."""
        return self.model.takes_any_size

    @property
    def names_by_folder(self) -> bool:
        """Whether the text prompts ask about each picture by the folder of its file."""
        return self._names.folders is not None

    def name_of(self, path: str | Path | None) -> str:
        """Name the part of a picture, as the text prompts ask about it.

        Args:
            path (str | Path | None): The picture's file; ``None`` if it has none.

        Returns:
            str: The name.
        """
        return self._names.of(self.model, path)

    def _forget(self) -> None:
        """Forget the validation pass's predictions, and the pictures of a batch that judged itself."""
        self._predictor.forget()
        if self.compares_batch:
            self.model.judge.forget()

    def forget_files(self) -> None:
        """Forget where the user's files are: this is a copy for somebody else."""
        self.few_shot_source = self.visualizer = None
        self.configuration = replace(self.configuration, clip_file=None, sam_file=None, prompts=None)
        self._references.source = self._references.read_from = None

    @staticmethod
    def val_dataloader() -> list:
        """Return no batches: without a data module, as for an unlabelled folder, calibration is skipped."""
        return []

    @staticmethod
    def configure_optimizers() -> None:
        """Configure no optimizer: nothing is trained."""

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Trainer arguments that the model needs: none."""
        return {}

    @property
    def learning_type(self) -> LearningType:
        """Few-shot with ``k_shot``, else zero-shot."""
        return LearningType.FEW_SHOT if self.k_shot else LearningType.ZERO_SHOT

    def explain_threshold(self, reference_option: str, threshold_option: str) -> str | None:
        """Explain what the threshold rests on where neither labels nor the user have set it, and what moves it.

        Args:
            reference_option (str): Option that gives good parts.
            threshold_option (str): Option that sets a threshold.

        Returns:
            str | None: Two sentences; ``None`` where nothing need be said.
        """
        return explain_threshold(self.post_processor, self.model.judge, reference_option, threshold_option)

    @classmethod
    def configure_pre_processor(cls, image_size: tuple[int, int] | None = None) -> PreProcessor:
        """Configure the default pre-processor.

        Args:
            image_size (tuple[int, int] | None): Size of the square that the model takes. Defaults to 1024, SAM's own.

        Returns:
            PreProcessor: It resizes images; the model normalises them, differently for CLIP and SAM.

        Raises:
            ValueError: If the image size is not square.
        """
        height, width = image_size or (1024, 1024)
        if height != width:
            msg = f"image_size is {image_size}, but SAM's input frame is square. Give the same number twice."
            raise UserValueError(msg)
        return ClipSamPreProcessor(height)

    @staticmethod
    def configure_post_processor() -> PostProcessor:
        """Configure the default post-processor: thresholds 0.5 and range 0 to 1 until a validation pass calibrates it.

        Returns:
            PostProcessor: The post-processor.
        """
        return ClipSamPostProcessor()

    @classmethod
    def configure_visualizer(cls) -> ResultVisualizer:
        """Configure the default visualizer.

        Returns:
            ResultVisualizer: It writes a picture per image: the image, the map, the outline, and the verdict above.
        """
        return ResultVisualizer()


MODEL_OPTIONS.update({name: f"--model.{name}" for name in inspect.signature(ClipSam).parameters})
