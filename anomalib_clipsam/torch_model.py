# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""ClipSam's PyTorch model: an image's path from CLIP's map through point prompts to SAM's mask.

Letters: B images, A of them shown to SAM, H W map, S side of SAM's frame, h w feature grid, C channels.

Reference:
    Hou et al., "Enhancing Zero-Shot Anomaly Detection: CLIP-SAM Collaboration with Cascaded Prompts",
    https://arxiv.org/abs/2510.11028
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from anomalib.data import InferenceBatch
from torch.nn import functional as F  # noqa: N812

from anomalib_clipsam.compute.precision import check_precision, encoders_in
from anomalib_clipsam.method.checks import check_images, is_blank
from anomalib_clipsam.method.frame import resize_image, scaled_size
from anomalib_clipsam.method.fusion import Fusion, image_score
from anomalib_clipsam.method.refiner import SamRefiner
from anomalib_clipsam.method.stages import ClipSamStages
from anomalib_clipsam.references.judge import Answer, View, decide_unlike

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator

    from anomalib_clipsam.clip.localizers import Localizer
    from anomalib_clipsam.method.cps import CascadedPrompts
    from anomalib_clipsam.method.ppg import PointPromptGenerator
    from anomalib_clipsam.references import Judge


class ClipSamModel(SamRefiner):
    """CLIP's anomaly map, refined by SAM.

    Args:
        localizer (Localizer): Gives S_a and CLIP's global score.
        map_size (int): Longer side of maps and masks, in pixels.
        ppg (PointPromptGenerator | None): Makes the point prompts. Without ``ppg``, ``cps`` and ``fusion`` the map is
            CLIP's alone. Defaults to ``None``.
        cps (CascadedPrompts | None): Decoder passes, with SAM. Defaults to ``None``.
        fusion (Fusion | None): Joins map and mask. Defaults to ``None``.
        judge (Judge | None): References beside the text: the picture itself, good parts, or the batch. Defaults to
            ``None``, the text alone.
        class_name (str): Name that is asked about until :meth:`set_class_name` is called. Defaults to ``"object"``.
        precision (str): What CLIP's and SAM's image encoders compute in: ``"float32"``, ``"bf16"`` or ``"fp16"``.
            Defaults to ``"float32"``.

    Raises:
        ValueError: If the precision is unknown.
    """

    def __init__(
        self,
        localizer: Localizer,
        map_size: int,
        ppg: PointPromptGenerator | None = None,
        cps: CascadedPrompts | None = None,
        fusion: Fusion | None = None,
        judge: Judge | None = None,
        class_name: str = "object",
        precision: str = "float32",
    ) -> None:
        super().__init__(ppg, cps, fusion, precision)
        self.localizer = localizer
        self.map_size = map_size
        self.judge = judge
        self.class_name = class_name
        self.requires_grad_(requires_grad=False)

    takes_any_size = False
    """Whether pictures come at their own size, and one by one."""

    misfit: Callable[[tuple[int, int]], str | None] | None = None
    """Explains why a picture of a width and height cannot be taken; ``None`` where any can."""

    def set_class_name(self, class_name: str) -> None:
        """Set the name in the text prompts. The text is encoded with the next image, once per name.

        Args:
            class_name (str): Name of the part in the text prompts.
        """
        self.class_name = class_name

    def judged_by(self, judge: Judge | None) -> ClipSamModel:
        """Copy the model with another judge, sharing the networks.

        Args:
            judge (Judge | None): Who judges beside the text; ``None`` for the text alone.

        Returns:
            ClipSamModel: The copy. It has a class name of its own.
        """
        other = copy(self)
        other._modules = dict(self._modules)  # noqa: SLF001  # what `copy` shares, and must not
        other.judge = judge
        return other

    def settings(self) -> dict[str, Hashable]:
        """Return all that predictions depend on besides the image and the weights.

        Returns:
            dict[str, Hashable]: Class name, prompts, sizes, precision, references, and, as ``"ppg.min_score"``, what
            PPG, CPS and fusion are set to.
        """
        parts = {"ppg": self.ppg, "cps": self.cps, "fusion": self.fusion}
        plain = {
            f"{group}.{name}": value
            for group, part in parts.items()
            if part is not None
            for name, value in vars(part).items()
            if isinstance(value, str | int | float) and not name.startswith("_") and name != "training"
        }
        return {
            "class_name": self.class_name,
            "prompts": self.localizer.ensemble,
            "clip_size": self.localizer.image_size,
            "map_size": self.map_size,
            "precision": self.precision,
            "references": None if self.judge is None else self.judge.settings(),
            **plain,
        }

    def forward(self, image: torch.Tensor, every_stage: bool = False) -> InferenceBatch | ClipSamStages:
        """Predict map, mask and score.

        Args:
            image (torch.Tensor): ``(B, 3, height, width)``, RGB in [0, 1].
            every_stage (bool): Whether to return what :meth:`stages` returns. Calling the model for it runs the hooks
                of those who time or watch a module. Defaults to ``False``.

        Returns:
            InferenceBatch | ClipSamStages: ``anomaly_map`` ``(B, H, W)`` and ``pred_score`` ``(B,)`` in [0, 1];
            ``pred_mask`` ``(B, H, W)`` bool, SAM's own, or ``None`` without refinement. Or all stages.
        """
        stages = self.stages(image)
        return stages if every_stage else stages.predictions

    @torch.no_grad()
    def stages(self, image: torch.Tensor) -> ClipSamStages:
        """Run the method and keep every intermediate result.

        Args:
            image (torch.Tensor): ``(B, 3, height, width)``, RGB in [0, 1]. If it is not square, SAM's frame is padded.

        Returns:
            ClipSamStages: All results; maps have the image's aspect ratio and ``map_size`` on the longer side.

        Raises:
            TypeError: If the images are not a float tensor.
            ValueError: If the shape or the range of values is wrong, or the device does not support the precision.
            NotFiniteError: If a value of an image, CLIP's map or SAM's features is NaN or infinite. Nothing is checked
                in a compiled or exported graph.
        """
        check_images(image)
        if not torch.compiler.is_compiling():
            check_precision(self.precision, image.device)
        image = image.clamp(0, 1)
        text_map, answer = self.localize(image)
        stages = ClipSamStages(answer.map, answer.score, fused_map=answer.map)
        if self.sam is not None:
            stages = self.refine(image, answer.map, answer.score)
        return replace(stages, text_map=text_map, unlike=answer.unlike)

    def localize(self, image: torch.Tensor) -> tuple[torch.Tensor | None, Answer]:
        """Find where a part looks damaged, and whether it does, by text and references.

        Args:
            image (torch.Tensor): ``(B, 3, height, width)``, RGB in [0, 1].

        Returns:
            tuple[torch.Tensor | None, Answer]: Map by text alone, ``(B, H, W)`` in [0, 1], or ``None`` of images that
            were judged before; and S_a with the image score.
        """
        answer = None if self.judge is None else self.judge.known(image)
        if answer is not None:
            return None, answer
        view = self.view(image)
        answer = Answer(*view[:2]) if self.judge is None else self.judge(*view)
        return view.map, self._finish(image, answer)

    def _finish(self, image: torch.Tensor, answer: Answer) -> Answer:
        """Put thresholds at 0.5; where no other picture is known, a frame without structure is defective."""
        if self.judge is not None:
            answer = self.judge.finish(answer)
            if self.judge.knows_others or self.judge.calibration.raw:
                return answer
        return answer._replace(score=decide_unlike(answer.score, is_blank(image)))

    def count_views(self, image: torch.Tensor) -> int:
        """Count the views of pictures ``(B, 3, height, width)``: each is seen as a whole."""
        return len(image)

    def views(self, image: torch.Tensor) -> Iterator[View]:
        """View pictures ``(B, 3, height, width)``, once, see :meth:`view`."""
        yield self.view(image)

    def join(self, image: torch.Tensor, answers: Iterable[Answer]) -> Answer:
        """Join what text and references say of each view: of a single one, that.

        Args:
            image (torch.Tensor): ``(B, 3, height, width)``, RGB in [0, 1].
            answers (Iterable[Answer]): What they say of each view, in order.

        Returns:
            Answer: What they say of the pictures.
        """
        del image
        (answer,) = answers
        return answer

    blend = join

    @torch.no_grad()
    def view(self, image: torch.Tensor) -> View:
        """Ask CLIP alone.

        Args:
            image (torch.Tensor): ``(B, 3, height, width)``, RGB in [0, 1].

        Returns:
            View: Map and image score by text; and, where there are references, the features that they are compared by.

        Raises:
            NotFiniteError: If a value is NaN or infinite.
        """
        self.localizer.set_class_name(self.class_name)
        shown = resize_image(image, max(self.map_size, self.localizer.image_size))  # a small map must not blur the view
        taps: tuple[torch.Tensor, ...] = ()
        with encoders_in(self.precision, image.device.type):
            if self.judge is None:
                anomaly_map, global_score = self.localizer(shown)
            else:
                anomaly_map, global_score, taps = self.localizer.with_taps(shown)
        self._check_finite("CLIP's map", (anomaly_map, global_score, *taps))
        anomaly_map, global_score = anomaly_map.clamp(0, 1), global_score.clamp(0, 1)
        size = scaled_size(image.shape[-2:], self.map_size)
        if tuple(anomaly_map.shape[-2:]) != size:
            anomaly_map = F.interpolate(anomaly_map.unsqueeze(1), size, mode="area").squeeze(1)
        score = global_score if self.localizer.own_score else image_score(global_score, anomaly_map)
        return View(anomaly_map, score, taps)
