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
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from anomalib import LearningType
from anomalib.data import InferenceBatch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from lightning.pytorch.utilities import rank_zero_only
from torch import nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from anomalib_clipsam.arguments import check_types, group, plain
from anomalib_clipsam.clip import LOCALIZERS, Localizer, PromptEnsemble
from anomalib_clipsam.plugin.part_names import DEFAULT_CLASS_NAME, FolderNames, is_name
from anomalib_clipsam.references import REFERENCES, BatchJudge, FewShotJudge, ReferenceOptions, Thresholds, build_judge
from anomalib_clipsam.compute.hashing import hash_weights
from anomalib_clipsam.method.cps import CascadedPrompts, CpsArguments
from anomalib_clipsam.export import mixin as export
from anomalib_clipsam.method.frame import resize_to
from anomalib_clipsam.method.fusion import Fusion, FusionArguments
from anomalib_clipsam.errors.errors import counted, printable
from anomalib_clipsam.data.advice import find_unused, refuse_videos
from anomalib_clipsam.plugin.skip_calibration import SkipCalibration
from anomalib_clipsam.plugin.checkpoint_file import check_entries, check_what_is_read, naming
from anomalib_clipsam.data.good_parts import WatchedLooks, read_good_parts
from anomalib_clipsam.plugin.kept_predictions import PredictionStore, RunEnd
from anomalib_clipsam.data.unreadable import PictureCheck
from anomalib_clipsam.plugin.post_processor import ClipSamPostProcessor, ClipSamPreProcessor
from anomalib_clipsam.data.progress import progress
from anomalib_clipsam.plugin.report import PassSummary
from anomalib_clipsam.data.whole_pass import WholePass
from anomalib_clipsam.method.ppg import PointPromptGenerator, PpgArguments
from anomalib_clipsam.drawing.visualizers import ResultVisualizer
from anomalib_clipsam.tiling.torch_model import TiledClipSamModel
from anomalib_clipsam.tiling.layout import Tiling
from anomalib_clipsam.torch_model import ClipSamModel, NotFiniteError, check_images
from anomalib_clipsam.weights.load import find_learned, load_adapters, load_clip, load_sam
from anomalib_clipsam.weights.store import announce
from anomalib_clipsam.weights.table import DATA_SETS, LEARNED, find_sam, get_weights, learned_for

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Sequence

    from anomalib.data import Batch
    from lightning.pytorch import Callback
    from lightning.pytorch.utilities.types import STEP_OUTPUT

    from anomalib_clipsam.weights.table import WeightFile

logger = logging.getLogger(__name__)
logger.addFilter(lambda _record: rank_zero_only.rank == 0)  # once, not in each of several processes

__all__ = ["ClipSam"]

FROZEN = "model."
"""Prefix of the frozen weights; a checkpoint leaves them out."""
CHECKPOINT_KEY = "clip_sam"
"""Key of the checkpoint's entry about the frozen weights and the text."""
DECISIVE = ("localizer", "clip_size", "prompts", "tiles", "tile_overlap")
"""Settings without which a checkpoint's thresholds mean nothing; others shift scores, maps or masks a little."""
SAVED = {"class_name": str, "sentences": (list, tuple), "text": torch.Tensor, "weights": dict}
GOOD_PARTS = {"memory": list, "calibration": tuple, "thresholds": tuple, "common": float, "sources": (list, tuple)}
"""What these entries of a checkpoint hold at least, and its types."""
TRAINER_PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")
"""Lightning's precisions that leave weights as they are."""
IN_TILES: ReferenceOptions = {"memory_limit": 8192, "text_share": 0.5}
"""What good parts have for defaults with tiles: each tile is compared with the whole memory, and the text sees small
defects better than patches do (``docs/ablation.md``). The batch takes over the share; it was not measured there."""
MUCH_MEMORY = 2 * 10**9
"""Bytes of kept predictions above which a warning is logged."""


class ClipSam(AnomalibModule):
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
        localizer (str): Where the anomaly map comes from, see :data:`anomalib_clipsam.clip.LOCALIZERS`. ``"crane"``,
            ``"anomaly_clip"`` and ``"april_gan"`` use weights that their authors trained on one industrial data set
            beside CLIP's; ``"pyramid"`` is the carried pair's; ``"dense"`` and ``"winclip"`` use nothing but CLIP.
            Defaults to ``"auto"``: ``"crane"`` for pairs with ViT-L-14-336, ``"pyramid"`` for ``"lite"``, else
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
        pixel_threshold (float | None): The same for the final map's pixels: a connected part of SAM's mask stays where
            the map's mean in it passes. Defaults to ``None``.
        min_area (int): Smallest connected part of a mask that stays, in pixels of the file. Defaults to ``0``, any.
        keep_good_masks (bool): Whether a picture that is called good keeps its mask. Defaults to ``False``: it is
            empty.
        precision (str): What CLIP's and SAM's image encoders compute in: ``"float32"``, ``"bf16"`` or, on a GPU,
            ``"fp16"``; see ``docs/performance.md`` for the time it saves and the error it makes. The localizer
            ``"winclip"`` stays in float32. Defaults to ``"float32"``.
        reuse_predictions (bool): Whether a test pass reuses the predictions of the validation pass before it for the
            same images (at most 1 GiB, maps rounded to half precision). Defaults to ``True``.
        pre_processor (nn.Module | bool): Pre-processor, or whether to use the default. Defaults to ``True``.
        post_processor (nn.Module | bool): Post-processor, or whether to use the default,
            :class:`anomalib_clipsam.plugin.post_processor.ClipSamPostProcessor`, which takes anomalib's sensitivities too.
            Defaults to ``True``.
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
        min_area: int = 0,
        keep_good_masks: bool = False,
        precision: str = "float32",
        reuse_predictions: bool = True,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        ppg, cps, fusion, reference_options = map(plain, (ppg, cps, fusion, reference_options))
        check_types(ClipSam.__init__, locals())  # first of all, while it holds the arguments as they were given
        # As text: a checkpoint and an export's metadata cannot hold a path.
        prompts, adapters, clip_weights, sam_weights, few_shot_source = (
            str(file) if isinstance(file, Path) else file
            for file in (prompts, adapters, clip_weights, sam_weights, few_shot_source)
        )
        if class_name is not None and not class_name.strip():
            msg = "class_name is empty. Name the part, such as 'bottle', or leave class_name out."
            raise ValueError(msg)
        pair = get_weights(weights)
        if map_size is not None and map_size < 1:
            msg = f"map_size is {map_size}; it must be a number of pixels above 0, such as 518."
            raise ValueError(msg)
        tiling = None if tiles is None else Tiling(tiles, tile_overlap, tile_batch, map_size)
        # Lightning saves what the arguments are called by now, so none of them may be overwritten.
        view_size = pair.map_size if map_size is None or tiling else map_size
        sam_row = pair.sam if sam_architecture is None else find_sam(sam_architecture)
        clip_side = pair.clip.image_size if clip_size is None else clip_size
        image_size = max(sam_row.image_size if refine else view_size, clip_side)  # what either of the two sees
        if pre_processor is True:
            square = (image_size, image_size)
            pre_processor = ClipSamPreProcessor(None) if tiling else self.configure_pre_processor(square)
        decisions = {
            "image_threshold": image_threshold,
            "pixel_threshold": pixel_threshold,
            "min_area": min_area or None,
            "keep_good_masks": keep_good_masks or None,
        }
        decisions = {name: value for name, value in decisions.items() if value is not None}
        if post_processor is True:
            post_processor = ClipSamPostProcessor(**decisions)
        elif decisions:
            named = ", ".join(decisions)
            msg = f"{named} cannot be set beside a post-processor of your own. Give it to ClipSamPostProcessor instead."
            raise ValueError(msg)
        super().__init__(
            pre_processor=pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        self._folder_names = FolderNames.from_argument(class_name)
        if self._folder_names is not None and (k_shot or references == "batch"):
            msg = (
                f"class_name='{class_name}' is for many products, which cannot be compared with one another. Leave "
                "k_shot and references='batch' out, or give each product a run of its own."
            )
            raise ValueError(msg)
        self.class_name = None if self._folder_names else class_name
        self._restored_class_name: str | None = None
        self._logged: dict[str, str] = {}
        self.closing_lines: list[tuple[int, str]] = []  # level and text, for the end of a pass
        self._validated = PredictionStore() if reuse_predictions else None
        # Before any weights are read: these check their arguments.
        if localizer == "auto":
            other_clip = clip_architecture not in (None, pair.clip.architecture)
            localizer = _choose_localizer("dense" if other_clip else pair.localizer, adapters, prompts)
        localizer_class = _find_localizer(localizer, adapters)
        self._localizer_name, self._adapters = localizer, adapters
        self._learned = self._choose_learned(None)
        ensemble = PromptEnsemble() if prompts is None else PromptEnsemble.from_file(prompts)
        generator = PointPromptGenerator(frame_size=sam_row.image_size, **group(ppg, PpgArguments, "ppg"))
        fuse = Fusion(**group(fusion, FusionArguments, "fusion"))
        cascade = partial(CascadedPrompts, **group(cps, CpsArguments, "cps"))
        clip_row = replace(
            pair.clip,
            architecture=clip_architecture or pair.clip.architecture,
            # Learned weights know the features of the activation that they were trained with.
            quick_gelu=(self._learned or pair.clip).quick_gelu if clip_quick_gelu is None else clip_quick_gelu,
        )
        if clip_architecture not in (None, pair.clip.architecture) and clip_weights is None:
            msg = f"clip_architecture='{clip_architecture}' is not in the table. Name its file with `clip_weights`."
            raise ValueError(msg)
        if k_shot < 0:
            msg = f"k_shot is {k_shot}, but it is a number of good parts. Choose 0, for none, or more."
            raise ValueError(msg)
        if references not in (None, *REFERENCES):
            msg = f"Unknown references '{references}'. Choose one of {', '.join(REFERENCES)}."
            raise ValueError(msg)
        if k_shot and references not in (None, "none"):
            msg = f"k_shot={k_shot} and references='{references}' are two references. Give one of them."
            raise ValueError(msg)
        if few_shot_source is not None and not k_shot:
            msg = f"few_shot_source='{few_shot_source}' is given, but k_shot is 0. Say how many good parts by k_shot."
            raise ValueError(msg)
        self.k_shot = k_shot
        self.few_shot_source = few_shot_source
        self._read_from: str | None = None  # where the good parts are from; None for those given by a user
        options = group(reference_options, ReferenceOptions, "reference_options")
        if tiling is not None and (k_shot or references == "batch"):
            options = {**IN_TILES, **options}
        if self._learned is not None and self._learned.architecture != clip_row.architecture:
            msg = (
                f"{self._learned.name} goes with CLIP {self._learned.architecture}, and this one is "
                f"{clip_row.architecture}. Name learned weights for it with `adapters`, or choose localizer='dense'."
            )
            raise ValueError(msg)
        if adapters == "auto":
            adapters = self._learned and self._learned.name
        self._weight_names = {
            "clip": localizer_class.own_weights or _file_name(clip_weights) or clip_row.name,
            "adapters": _file_name(adapters),
            "sam": _file_name(sam_weights) or sam_row.name,
        }
        own_files = (clip_weights or localizer_class.own_weights, sam_weights or not refine, adapters not in LEARNED)
        rows = zip((clip_row, sam_row, self._learned), own_files, strict=True)
        announce([row for row, own in rows if row is not None and not own])
        built = localizer_class.build(
            ensemble,
            clip_side,
            clip=partial(load_clip, clip_row, clip_weights),
            adapters=partial(load_adapters, adapters),
        )
        model_class = ClipSamModel if tiling is None else partial(TiledClipSamModel, tiling=tiling)
        self.model = model_class(
            built,
            view_size,
            ppg=generator if refine else None,
            cps=cascade(load_sam(sam_row, sam_weights)) if refine else None,
            fusion=fuse if refine else None,
            judge=build_judge(
                built,
                pair.references if references is None else references,
                k_shot,
                options,
                in_tiles=tiling is not None,
            ),
            class_name=self.class_name or DEFAULT_CLASS_NAME,
            precision=precision,
        )

    # Exports are functions of their own room, and methods here.
    export_metadata = export.export_metadata
    to_torch = export.to_torch
    to_onnx = export.to_onnx
    to_openvino = export.to_openvino
    to_parts = export.to_parts

    def configure_callbacks(self) -> Sequence[Callback]:
        """Add to anomalib's own callbacks.

        Unreadable pictures and needless calibrations are skipped, a pass ends with a line of what it found, and nothing
        is kept of a run's pictures.

        Returns:
            Sequence[Callback]: The callbacks.
        """
        # The first says whether the second has validation pictures to look at.
        check = PictureCheck(self.model.misfit if self.in_tiles else None)
        return [*super().configure_callbacks(), SkipCalibration(), check, PassSummary(), RunEnd(self._forget)]

    @property
    def in_tiles(self) -> bool:
        """Whether pictures are seen in tiles, at their own size."""
        return isinstance(self.model, TiledClipSamModel)

    def setup(self, stage: str) -> None:
        """Choose the class name for the text prompts: argument, else the data module's category, else ``"object"``.

        A category without letters, such as BTech's "01", names nothing. Called by Lightning before every pass, so the
        name follows the data module, and before it reads a checkpoint.

        Args:
            stage (str): The pass.

        Raises:
            ValueError: If the trainer would convert the whole model to another precision, or the data are videos.
        """
        if self._trainer is not None:
            _check_trainer_precision(self._trainer.precision)
            check_what_is_read(self._trainer)
        datamodule = getattr(self._trainer, "datamodule", None)
        refuse_videos(datamodule)
        if stage in ("validate", "test") and (not self.k_shot or self.few_shot_source):
            unused = find_unused(datamodule)
            if unused is not None:
                self._log_once("unused", unused)
        self._learn(DATA_SETS.get(type(datamodule).__name__))
        self._choose_class_name()
        judge = self.model.judge
        if isinstance(judge, FewShotJudge) and self._read_from not in (None, self._good_parts_at()):
            judge.forget()  # those were of another category

    def _choose_learned(self, tested_on: str | None) -> WeightFile | None:
        """Choose learned weights; ``None`` for none, or for a file that is not a published one."""
        if not LOCALIZERS[self._localizer_name].needs_adapters:
            return None
        if self._adapters == "auto":
            return learned_for(self._localizer_name, tested_on)
        return find_learned(self._adapters)

    def _learn(self, tested_on: str | None) -> None:
        """Use learned weights that were not trained on what is tested, if the choice is ours, and say which."""
        row = self._choose_learned(tested_on)
        if row is None:
            return
        if row != self._learned:
            self.model.localizer.use_learned(load_adapters(row.name))
            self._learned, self._weight_names["adapters"] = row, row.name
        if row.trained_on is not None:
            self._log_once(
                "weights", f"The map's learned weights are {row.name}: its authors trained them on {row.trained_on}."
            )
        if tested_on is not None and row.trained_on == tested_on:
            logger.warning(
                "%s was trained on %s, which is tested: that is not zero-shot. adapters='auto' takes the others.",
                row.name,
                tested_on,
            )

    def _choose_class_name(self) -> None:
        if self._folder_names is not None:
            return  # each picture has its own
        category = getattr(getattr(self._trainer, "datamodule", None), "category", None) if self._trainer else None
        if category and not is_name(category):
            if not self.class_name:
                text = (
                    f"The category '{printable(category)}' has no letters to ask about. Name the part by `class_name`."
                )
                self._log_once("category", text)
            category = None
        choices = (
            (self.class_name, "argument"),
            (category, "data module"),
            (self._restored_class_name, "checkpoint"),
            (DEFAULT_CLASS_NAME, "default"),
        )
        name, source = next((name, source) for name, source in choices if name)
        if self.model.localizer.uses_class_name:
            text = f"Text prompts ask about '{printable(name)}' (class name from the {source})."
            self._log_once("class name", text)
        self.model.set_class_name(name)

    def _log_once(self, about: str, text: str) -> None:
        """Log what is the same in pass after pass when it changes only."""
        if self._logged.get(about) != text:
            self._logged[about] = text
            logger.info(text)

    def on_validation_start(self) -> None:
        """Say what a validation pass is for, and look at the references."""
        if not self.trainer.sanity_checking:
            logger.info("ClipSam trains nothing. This pass calibrates thresholds and normalisation.")
        self._look_at_references(self.trainer.val_dataloaders, self.trainer.num_val_batches)

    def on_test_start(self) -> None:
        """Look at the references."""
        self._look_at_references(self.trainer.test_dataloaders, self.trainer.num_test_batches)

    def on_predict_start(self) -> None:
        """Look at the references."""
        self._look_at_references(self.trainer.predict_dataloaders, self.trainer.num_predict_batches)

    def set_references(self, images: torch.Tensor | Sequence[torch.Tensor]) -> None:
        """Compare with these good parts from now on.

        Args:
            images (torch.Tensor | Sequence[torch.Tensor]): ``(k, 3, height, width)``, or ``(3, height, width)`` each,
                RGB in [0, 1].

        Raises:
            TypeError: If the images are no tensor of floats.
            ValueError: If they have another shape, or a value is NaN or infinite; or if the model has no ``k_shot``.
        """
        if not isinstance(self.model.judge, FewShotJudge):
            msg = "This model compares with no good parts. Make it with `k_shot`, such as ClipSam(k_shot=4)."
            raise ValueError(msg)  # noqa: TRY004  # it was made with another argument
        for image in [images] if isinstance(images, torch.Tensor) or not images else [image[None] for image in images]:
            check_images(image)
        self._show_good_parts([self._prepare(image) for image in images])
        self._read_from = None

    def _prepare(self, image: torch.Tensor) -> torch.Tensor:
        """Make of a good part ``(3, height, width)`` what the model takes."""
        image = image[None].to(self.device)
        return (image if self.pre_processor is None else self.pre_processor(image))[0].clamp(0, 1)

    def _show_good_parts(self, parts: Sequence[torch.Tensor]) -> None:
        """Let the model learn good parts ``(3, height, width)``, as it takes them."""
        judge = self.model.judge
        steps = len(parts) * ((4 if judge.rotate else 1) + self.in_tiles)  # tiles are looked at twice
        with progress(self._trainer, "Looking at good parts", steps) as advance:
            judge.learn(parts, WatchedLooks(self.model, advance))
        self._use_thresholds()

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

    def learn_good_parts(self) -> None:
        """Read the good parts and look at them, where that was not done yet.

        Raises:
            FileNotFoundError: If their folder does not exist.
            ValueError: If there are fewer than ``k_shot``, or one of them cannot be read.
        """
        if not isinstance(self.model.judge, FewShotJudge) or self.model.judge.sources:
            return
        datamodule = getattr(self._trainer, "datamodule", None) if self._trainer else None
        fits = self.model.misfit if self.in_tiles else None
        parts = read_good_parts(self.k_shot, self.few_shot_source, datamodule, self._prepare, fits)
        self._show_good_parts(parts if self.in_tiles else list(parts))  # large ones do not stay in memory
        self._read_from = self._good_parts_at()
        logger.info("Pictures are compared with %s from %s.", counted(self.k_shot, "good part"), self._read_from)

    def _good_parts_at(self) -> str:
        """Say where good parts are read from."""
        if self.few_shot_source is not None:
            return self.few_shot_source
        datamodule = getattr(self._trainer, "datamodule", None) if self._trainer else None
        named = [getattr(datamodule, name, None) for name in ("name", "root", "category")]
        return " ".join(["the training data of", *(str(value) for value in named if value is not None)])

    def _look_at_references(self, loaders: Any, batches: Sequence[float]) -> None:
        """Look at what the pictures of a pass are compared with, before the pass: good parts, or all of themselves.

        Args:
            loaders (Any): The pass's data loader, or a list of them.
            batches (Sequence[float]): Batches of each that the pass takes, in each process.
        """
        self.learn_good_parts()
        judge = self.model.judge
        if not isinstance(judge, BatchJudge):
            return
        whole = WholePass(loaders, batches, self.trainer.world_size)
        if not whole.pictures or judge.judged_already(whole.files, self.model.class_name):
            return
        judge.begin(whole.pictures)
        for says, look in self.model.batch_looks.items():
            for batch in whole.shown(self.trainer, says):
                batch.image = batch.image.to(self.device)  # resized there, as in the pass, so to the same bits
                if self.pre_processor is not None:
                    self.pre_processor.on_predict_batch_start(self.trainer, self, batch, 0)
                with _naming(batch.image_path or [None]):
                    look(batch.image)
        judge.judge(whole.files, self.model.class_name)
        self._use_thresholds()

    def _use_thresholds(self) -> None:
        """Use the thresholds that the references say, unless labels have said others."""
        thresholds = self.model.judge.thresholds
        if thresholds is not None and isinstance(self.post_processor, ClipSamPostProcessor):
            self.post_processor.use_thresholds(thresholds.image, thresholds.pixel)

    def on_validation_end(self) -> None:
        """Count the pictures that SAM skipped, for the end of the pass."""
        self._count_share()

    on_test_end = on_predict_end = on_validation_end

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
        if batch_idx or dataloader_idx:
            return
        per_batch = sum(value.nbytes for value in vars(outputs).values() if isinstance(value, torch.Tensor))
        total = per_batch * sum(self.trainer.num_predict_batches)
        if total > MUCH_MEMORY:
            logger.warning(
                "The predictions are kept in memory until the end, with their images: about %.0f GB. If you do not "
                "need them, give --return_predictions false, or in Python Engine.predict(return_predictions=False).",
                total / 1e9,
            )

    def _count_share(self) -> None:
        """Say how many pictures SAM skipped, warn of pictures of another part, and count anew."""
        judge = self.model.judge
        counts = [self.model.images_seen, self.model.images_refined]
        counts += [0, 0] if judge is None else [judge.judged, judge.unlike]
        # of all processes, each of which has seen a part of the pictures
        total = self.trainer.strategy.reduce(torch.tensor(counts, device=self.device), reduce_op="sum")
        seen, refined, judged, unlike = total.tolist()
        self.model.images_seen = self.model.images_refined = 0
        if judge is not None:
            judge.unlike = judge.judged = 0
        if judged and unlike > judged / 2:
            line = (
                f"{unlike} of {judged} {'tiles' if self.in_tiles else 'pictures'} are unlike their references nearly "
                "everywhere. Are these of the same part, seen in the same way?"
            )
            self.closing_lines.append((logging.WARNING, line))
        skipped = seen - refined
        if skipped:
            share = f"{skipped} of {seen} pictures ({100 * skipped / seen:.0f} %)"
            line = f"SAM skipped {share}: CLIP finds nothing suspicious in them."
            self.closing_lines.append((logging.INFO, line))

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
        predictions = self._predict(batch)
        if self._validated is not None:
            self._validated.put(self._keys(batch), predictions)
        return _answer(batch, predictions)

    def test_step(self, batch: Batch, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Predict a batch, or reuse the validation pass's predictions for the same images.

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
        return _answer(batch, self._predict(batch) if known is None else known)

    def predict_step(self, batch: Batch, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Predict a batch.

        Args:
            batch (Batch): Input batch.
            *args: Not used.
            **kwargs: Not used.

        Returns:
            STEP_OUTPUT: The batch with predictions.
        """
        del args, kwargs
        return _answer(batch, self._predict(batch))

    def _predict(self, batch: Batch) -> InferenceBatch:
        """Predict a batch, asking about each picture by its own name where pictures have their own."""
        paths = batch.image_path or [None] * len(batch.image)
        names = [self.name_of(path) for path in paths]
        parts = []
        for name in dict.fromkeys(names):
            index = [place for place, other in enumerate(names) if other == name]
            with self.asking_about(name), _naming([paths[place] for place in index]):
                parts.append((index, self.model(batch.image[index] if len(index) < len(names) else batch.image)))
        if len(parts) == 1:
            return parts[0][1]
        order = torch.tensor([place for index, _ in parts for place in index]).argsort()
        fields = zip(*(predictions for _, predictions in parts), strict=True)
        return InferenceBatch(*(None if values[0] is None else torch.cat(values)[order] for values in fields))

    def name_of(self, path: str | Path | None) -> str:
        """Name the part of a picture, as the text prompts ask about it.

        Args:
            path (str | Path | None): The picture's file; ``None`` if it has none.

        Returns:
            str: The name.
        """
        if self._folder_names is None or not self.model.localizer.uses_class_name:
            return self.model.class_name
        return self._folder_names(path)

    @property
    def names_by_folder(self) -> bool:
        """Whether the text prompts ask about each picture by the folder of its file."""
        return self._folder_names is not None

    @contextmanager
    def asking_about(self, name: str) -> Iterator[None]:
        """Ask about a part of this name for a while.

        Args:
            name (str): Name of the part.

        Yields:
            None: While the name holds.
        """
        before = self.model.class_name
        self.model.set_class_name(name)
        try:
            yield
        finally:
            self.model.set_class_name(before)

    def _keys(self, batch: Batch) -> list[Hashable] | None:
        """Give a key per image for all that determines its prediction."""
        return PredictionStore.keys(batch.image_path, batch.image, tuple(self.model.settings().items()))

    def _forget(self) -> None:
        """Forget the validation pass's predictions, and the pictures of a batch that judged itself."""
        if self._validated is not None:
            self._validated.clear()
        if isinstance(self.model.judge, BatchJudge):
            self.model.judge.begin(0)

    def without_files(self) -> ClipSam:
        """Copy the model for an export, sharing the weights: no argument or callback names a file of the user's.

        Returns:
            ClipSam: The copy.
        """
        # A deep copy, since Lightning gives callbacks a method of the model.
        exported = deepcopy(self, {id(tensor): tensor for tensor in chain(self.parameters(), self.buffers())})
        for name in ("_hparams", "_hparams_initial"):
            delattr(exported, name)
        exported.few_shot_source = exported.visualizer = None
        vars(exported).update(_read_from=None, _adapters=self._learned and self._learned.name)
        return exported

    @staticmethod
    def val_dataloader() -> list:
        """Give no batches: without a data module, as for an unlabelled folder, calibration is skipped."""
        return []

    @staticmethod
    def configure_optimizers() -> None:
        """Configure no optimizer: nothing is trained."""

    def frozen_weights(self) -> dict[str, dict[str, str]]:
        """Name the frozen weights that the model runs on.

        Returns:
            dict[str, dict[str, str]]: ``"localizer"`` and, with refinement, ``"sam"``: the ``"name"`` of the weights
            and the ``"sha256"`` of their values, whatever file they came in.
        """
        weights = {"localizer": dict(self.model.localizer.named_parameters())}
        if self.model.sam is not None:
            weights["sam"] = self.model.sam.state_dict(keep_vars=True)
        clip, adapters, sam = (self._weight_names[part] for part in ("clip", "adapters", "sam"))
        names = {"localizer": f"{clip} with {adapters}" if adapters else clip, "sam": sam}
        networks = {"localizer": self.model.localizer, "sam": self.model.sam}
        return {
            part: {"name": names[part], "sha256": hash_weights(networks[part], tensors)}
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
            "activation": localizer.activation,
            "sentences": localizer.ensemble.sentences(class_name),
            "settings": self._settings(),
            "text": localizer.text_of(class_name),
            "weights": self.frozen_weights(),
            "references": self._references(),
            "good_parts": self._good_parts(),
        }

    def _settings(self) -> dict[str, Any]:
        """Say what scores, maps and masks depend on, but for weights, text and references, which have entries too."""
        named = {"class_name", "prompts", "references"}
        settings = {name: value for name, value in self.model.settings().items() if name not in named}
        return {"localizer": self._localizer_name, "refine": self.model.sam is not None, **settings}

    def _references(self) -> dict[str, Any] | None:
        """Say how pictures are compared: thresholds found in one way mean nothing in another."""
        judge = self.model.judge
        return None if judge is None else {**judge.rule(), "taps": getattr(self.model.localizer, "reference_taps", ())}

    def _good_parts(self) -> dict[str, Any] | None:
        """What a checkpoint holds of the good parts: their patches in half precision, and who they were."""
        judge = self.model.judge
        if not isinstance(judge, FewShotJudge) or not judge.sources:
            return None
        return {
            "memory": [patches.half().cpu() for patches in judge.reference.memory],
            "calibration": (judge.calibration.usual.item(), judge.calibration.limit.item()),
            "thresholds": (judge.thresholds.image, judge.thresholds.pixel),
            "common": judge.common,
            "sources": list(judge.sources),
        }

    def _restore_good_parts(self, saved: dict[str, Any] | None) -> None:
        judge = self.model.judge
        if saved is None or not isinstance(judge, FewShotJudge):
            return
        judge.reference.set_memory(tuple(patches.to(self.device) for patches in saved["memory"]))
        # new tensors: after a pass of Lightning's the old ones cannot be changed
        judge.calibration.usual, judge.calibration.limit = (
            torch.tensor(value, device=self.device) for value in saved["calibration"]
        )
        judge.thresholds = Thresholds(*saved["thresholds"])
        judge.common, judge.sources = saved["common"], tuple(saved["sources"])
        self._read_from = None
        logger.info("Pictures are compared with the checkpoint's %s.", counted(len(judge.sources), "good part"))

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> ClipSam:
        """Load a model from a checkpoint, without torch's advice to run what code another file holds.

        Args:
            checkpoint_path (Any): The file.
            *args: As anomalib's.
            **kwargs: As anomalib's.

        Returns:
            ClipSam: The model.

        Raises:
            ValueError: If the file holds more than tensors and plain values.
        """
        with naming(checkpoint_path, (UnpicklingError,)):
            return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore thresholds and text embeddings; the frozen weights are the model's own.

        Args:
            checkpoint (dict[str, Any]): What Lightning has read.

        Raises:
            ValueError: If another model made the checkpoint, or ClipSam with other frozen weights, prompts, references,
                localizer or ``clip_size``; or if an entry is missing or no such thing.
        """
        saved = checkpoint.get(CHECKPOINT_KEY)
        if saved is None:
            msg = "The checkpoint is not one of ClipSam. Give the model that it was made with, or leave the path out."
            raise ValueError(msg)
        check_entries(checkpoint, {"state_dict": dict})
        check_entries(saved, SAVED)
        for name, entries in (("references", {"references": str}), ("good_parts", GOOD_PARTS)):
            if saved.get(name) is not None:
                check_entries(saved[name], entries)
        check_entries(saved["weights"], {"localizer": dict})  # one made without SAM fits a model with SAM too
        for part, weights in self.frozen_weights().items():
            made_with = saved["weights"].get(part, weights)
            check_entries(made_with, {"name": str, "sha256": str})
            if made_with["sha256"] != weights["sha256"]:
                msg = (
                    f"The checkpoint was made with other weights of the {part}: {made_with['name']} (SHA-256 of the "
                    f"values {made_with['sha256']}), and this model has {weights['name']} ({weights['sha256']}). Its "
                    "thresholds would be wrong. Give the model those weights, or calibrate anew without the checkpoint."
                )
                raise ValueError(msg)
        activation = self.model.localizer.activation
        if saved.get("activation", activation) != activation:
            msg = (
                f"The checkpoint was made with {saved['activation']} in CLIP, and this model has {activation}. Its "
                "thresholds would be wrong. Set `clip_quick_gelu`, or calibrate anew without the checkpoint."
            )
            raise ValueError(msg)
        differ = self._differences(saved)
        decisive = [name for name in DECISIVE if name in differ]
        if decisive:
            msg = (
                f"The checkpoint was made with {_listed(differ, decisive, 0)}, and this model has "
                f"{_listed(differ, decisive, 1)}. Its thresholds would be wrong. Give the model the same, or calibrate "
                "anew without the checkpoint."
            )
            raise ValueError(msg)
        self._check_references(saved)
        super().on_load_checkpoint(checkpoint)
        self._restore_good_parts(saved.get("good_parts"))  # before the state dict, which has the calibration too
        frozen = {key: value for key, value in self.state_dict().items() if key.startswith(FROZEN)}
        own = {key: value for key, value in checkpoint["state_dict"].items() if not key.startswith(FROZEN)}
        checkpoint["state_dict"] = {**own, **frozen}  # whatever the file holds under their names
        self._restored_class_name = saved["class_name"]
        localizer = self.model.localizer
        if localizer.ensemble.sentences(saved["class_name"]) == saved["sentences"]:
            localizer.restore_text(saved["class_name"], saved["text"])
        self._choose_class_name()
        if localizer.uses_class_name and saved["class_name"] != self.model.class_name:
            differ["class_name"] = (saved["class_name"], self.model.class_name)
        if differ:
            logger.warning(
                "The checkpoint's thresholds were found with %s, and this model has %s. Calibrate anew without the "
                "checkpoint if labels or masks look wrong.",
                _listed(differ, differ, 0),
                _listed(differ, differ, 1),
            )

    def _differences(self, saved: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Find what differs from what a checkpoint was made with: its value there, and here."""
        made_with, own = ({"tiles": None, **settings} for settings in (saved.get("settings", {}), self._settings()))
        both = made_with.keys() & own.keys()  # without SAM there are no settings of its part
        differ = {name: (made_with[name], own[name]) for name in sorted(both) if made_with[name] != own[name]}
        localizer = self.model.localizer
        if localizer.uses_class_name:
            sentences = (chain(*saved["sentences"]), chain(*localizer.ensemble.sentences(saved["class_name"])))
            other = next((pair for pair in zip_longest(*sentences) if pair[0] != pair[1]), None)
            differ |= {} if other is None else {"prompts": other}
        return differ

    def _check_references(self, saved: dict[str, Any]) -> None:
        """Raise if a checkpoint was made with other references."""
        made_with, own = saved.get("references"), self._references()
        if made_with != own:
            names = [entry["references"] if entry else "text alone" for entry in (made_with, own)]
            differ = f"{names[0]}, and this model has {names[1]}"
            if names[0] == names[1]:
                differ = f"{names[0]} and {made_with}, and this model has {own}"
            msg = (
                f"The checkpoint was made with other references: {differ}. Its thresholds would be wrong. Give the "
                "model the same `references`, `k_shot` and `reference_options`, or calibrate anew without it."
            )
            raise ValueError(msg)
        known = len(saved["good_parts"]["sources"]) if saved.get("good_parts") else self.k_shot
        if known != self.k_shot:
            msg = (
                f"The checkpoint was made with {counted(known, 'good part')}, and this model has k_shot={self.k_shot}. "
                f"Set k_shot to {known}, or calibrate anew without the checkpoint."
            )
            raise ValueError(msg)

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Trainer arguments that the model needs: none."""
        return {}

    @property
    def learning_type(self) -> LearningType:
        """Few-shot with ``k_shot``, else zero-shot."""
        return LearningType.FEW_SHOT if self.k_shot else LearningType.ZERO_SHOT

    @property
    def compares_batch(self) -> bool:
        """Whether the pictures of a pass are compared with one another, so that each score depends on all."""
        return isinstance(self.model.judge, BatchJudge)

    def explain_threshold(self, good_parts: str, by_hand: str) -> str | None:
        """Say what the threshold rests on where neither labels nor the user have said it, and what moves it.

        Args:
            good_parts (str): Option that gives good parts.
            by_hand (str): Option that sets a threshold.

        Returns:
            str | None: Two sentences; ``None`` where nothing need be said.
        """
        judge = self.model.judge
        if not getattr(self.post_processor, "threshold_is_open", False):
            return None
        if judge is None or judge.thresholds is None:
            return (
                "The threshold, 0.5, is not fitted to these pictures: good ones may lie above it. A few good parts fit "
                f"it, with {good_parts}; or set it with {by_hand}."
            )
        if judge.passing_share is None:
            return (
                "The threshold, 0.5, is where a picture differs from the rest of these by more than they usually do. "
                f"If most of them are damaged, or all have the same defect, set it with {by_hand}."
            )
        share = f"{100 * judge.passing_share:.0f} %"
        if self.compares_batch:
            return (
                f"The threshold is what {share} of these pictures do not exceed: the rest are called defective, "
                f"however many are. Look at the highest scores, and set it with {by_hand}."
            )
        if judge.passing_share < 1:
            parts = counted(self.k_shot, "good part")
            return f"The threshold lets {share} of the {parts} pass. Set another with {by_hand}."
        parts = "good part" if self.k_shot == 1 else f"{self.k_shot} good parts, each judged by the others"
        return (
            f"The threshold is the highest score of the {parts}. Expect at least 1 in {self.k_shot + 1} further good "
            f"pictures above it: give more good parts to make that rarer, or set it with {by_hand}."
        )

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
            raise ValueError(msg)
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


@contextmanager
def _naming(paths: list[str | None]) -> Iterator[None]:
    """Name the files of pictures about which something is not finite."""
    try:
        yield
    except NotFiniteError as error:
        if None in paths:
            raise
        names = ", ".join(printable(paths[place]) for place in error.images)
        msg = f"{names}: {error}"
        raise NotFiniteError(msg, error.images) from error


def _check_trainer_precision(precision: str) -> None:
    """Raise if a trainer converts weights: maps, points and masks need float32, and autocast leaves them in it."""
    if precision not in TRAINER_PRECISIONS:
        msg = (
            f"The trainer's precision is '{precision}', which converts the whole model, but points and masks need "
            "float32. Leave it out, and set the model's own: precision='bf16' or 'fp16', on the command line "
            "--model.precision bf16."
        )
        raise ValueError(msg)


def _answer(batch: Batch, predictions: InferenceBatch) -> Batch:
    """Put predictions into a batch, and resize true masks to the maps' size, whichever pre-processor was used.

    A pixel metric at SAM's 1024 px costs half a minute and gigabytes per 100 images; maps are smaller.
    """
    size = list(predictions.anomaly_map.shape[-2:])
    if batch.gt_mask is not None and list(batch.gt_mask.shape[-2:]) != size:
        mask = batch.gt_mask.unsqueeze(1)  # (B, 1, height, width)
        batch.gt_mask = resize(mask, size, interpolation=InterpolationMode.NEAREST_EXACT).squeeze(1)
    return batch.update(**predictions._asdict())


def _listed(differ: dict[str, tuple[Any, Any]], names: Iterable[str], side: int) -> str:
    return " and ".join(f"{name}={differ[name][side]!r}" for name in names)


def _file_name(path: str | None) -> str | None:
    """Name a file without its folders: checkpoints and exports need not tell where a user's files are."""
    return path and Path(path).name


def _choose_localizer(own: str, adapters: str | None, prompts: str | None) -> str:
    """Choose the localizer that fits the other arguments: the pair's own, unless they speak against it."""
    if adapters in LEARNED:
        return LEARNED[adapters].localizer
    own_prompts = prompts is not None and not LOCALIZERS[own].uses_class_name
    no_adapters = adapters is None and LOCALIZERS[own].needs_adapters
    return "dense" if own_prompts or no_adapters else own


def _find_localizer(name: str, adapters: str | None) -> type[Localizer]:
    """Look a localizer up, and check that adapters are given just where it needs them."""
    if name not in LOCALIZERS:
        msg = f"Unknown localizer '{name}'. Choose one of auto, {', '.join(LOCALIZERS)}."
        raise ValueError(msg)
    needed = LOCALIZERS[name].needs_adapters
    if needed and adapters is None:
        msg = f"localizer='{name}' needs learned weights. Name them with `adapters`, or leave `adapters` out."
        raise ValueError(msg)
    if not needed and adapters not in ("auto", None):
        msg = f"localizer='{name}' has no use for `adapters`. Leave them out, or name the localizer that they are for."
        raise ValueError(msg)
    if adapters in LEARNED and LEARNED[adapters].localizer != name:
        msg = f"{adapters} is for localizer='{LEARNED[adapters].localizer}', not '{name}'. Name one of them only."
        raise ValueError(msg)
    return LOCALIZERS[name]
