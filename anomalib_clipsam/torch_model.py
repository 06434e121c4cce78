# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""ClipSam's PyTorch model: an image's path from CLIP's map through point prompts to SAM's mask.

Letters: B images, A of them shown to SAM, H W map, S side of SAM's frame, h w feature grid, C channels.

Reference:
    Hou et al., "Enhancing Zero-Shot Anomaly Detection: CLIP-SAM Collaboration with Cascaded Prompts",
    https://arxiv.org/abs/2510.11028
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, TypeVar

import torch
from anomalib.data import InferenceBatch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from anomalib_clipsam.clip.references import BatchJudge, picture_key
from anomalib_clipsam.compute.precision import (
    PRECISIONS,
    check_precision,
    encoders_in,
    full_precision,
    precision_in_use,
)
from anomalib_clipsam.frame import frame_to_map, resize_image, scaled_size
from anomalib_clipsam.fusion import Fusion, image_score

if TYPE_CHECKING:
    from collections.abc import Hashable

    from segment_anything.modeling import Sam

    from anomalib_clipsam.clip import Localizer
    from anomalib_clipsam.clip.localizers.base import Taps
    from anomalib_clipsam.clip.references import Judge
    from anomalib_clipsam.cps import CascadedPrompts, CascadeOutput
    from anomalib_clipsam.ppg import PointPromptGenerator, PointPrompts
    from anomalib_clipsam.tiles import Window

Answers = TypeVar("Answers")
OVERSHOOT = 0.5
"""How far outside [0, 1] values are clamped and not refused: where black and white pixels alternate, a bicubic resize
takes them out of it by 0.45, with antialiasing by 0.28."""


class NotFiniteError(ValueError):
    """Something about some images is NaN or infinite, so that there is no verdict.

    Args:
        message (str): What, and what to do.
        images (list[int]): Places of these images in the batch.
    """

    def __init__(self, message: str, images: list[int]) -> None:
        super().__init__(message)
        self.images = images


@dataclass(frozen=True)
class ClipSamStages:
    """Every intermediate result of a batch. Without refinement, SAM's results are ``None``.

    Args:
        anomaly_map (torch.Tensor): S_a, CLIP's map, ``(B, H, W)`` in [0, 1].
        score (torch.Tensor): Image score, ``(B,)`` in [0, 1].
        fused_map (torch.Tensor): Final map, ``(B, H, W)`` in [0, 1].
        mask (torch.Tensor | None): M_3 = L_3 > 0 at the map's size, ``(B, H, W)`` bool. Defaults to ``None``.
        region (torch.Tensor | None): M_apa, the extremely anomalous region, ``(B, H, W)`` bool. Defaults to ``None``.
        prompts (PointPrompts | None): Point prompts from PPG. Defaults to ``None``.
        cascade (CascadeOutput | None): Output of CPS. Defaults to ``None``.
        asks (tuple[tuple[Window, ...], ...] | None): Of pictures in tiles, the parts of each that SAM was shown, which
            have the prompts and the cascade in place of the picture. Defaults to ``None``.
    """

    anomaly_map: torch.Tensor
    score: torch.Tensor
    fused_map: torch.Tensor
    mask: torch.Tensor | None = None
    region: torch.Tensor | None = None
    prompts: PointPrompts | None = None
    cascade: CascadeOutput | None = None
    asks: tuple[tuple[Window, ...], ...] | None = None


class ClipSamModel(nn.Module):
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

    Attributes:
        images_seen (int): Images since the counts were last reset; counted with refinement only.
        images_refined (int): How many of them SAM has seen.

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
        super().__init__()
        if precision not in PRECISIONS:
            msg = f"Unknown precision '{precision}'. Choose one of {', '.join(PRECISIONS)}."
            raise ValueError(msg)
        self.localizer = localizer
        self.map_size = map_size
        self.ppg = ppg
        self.cps = cps
        self.fusion = fusion
        self.judge = judge
        self.class_name = class_name
        self.precision = precision
        self.images_seen = self.images_refined = 0
        self.requires_grad_(requires_grad=False)

    @property
    def sam(self) -> Sam | None:
        """SAM, or ``None`` without refinement."""
        return None if self.cps is None else self.cps.sam

    def set_class_name(self, class_name: str) -> None:
        """Set the name in the text prompts. The text is encoded with the next image, once per name.

        Args:
            class_name (str): Name of the part in the text prompts.
        """
        self.class_name = class_name

    def settings(self) -> dict[str, Hashable]:
        """Give all that predictions depend on besides the image and the weights.

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

    def forward(self, image: torch.Tensor) -> InferenceBatch:
        """Predict map, mask and score.

        Args:
            image (torch.Tensor): ``(B, 3, height, width)``, RGB in [0, 1].

        Returns:
            InferenceBatch: ``anomaly_map`` ``(B, H, W)`` and ``pred_score`` ``(B,)`` in [0, 1]; ``pred_mask`` ``(B, H,
            W)`` bool, SAM's own, or ``None`` without refinement.
        """
        stages = self.stages(image)
        return InferenceBatch(pred_score=stages.score, anomaly_map=stages.fused_map, pred_mask=stages.mask)

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
        anomaly_map, score = self.localize(image)
        if self.sam is None:
            return ClipSamStages(anomaly_map, score, fused_map=anomaly_map)
        return self.refine(image, anomaly_map, score)

    @torch.no_grad()
    def refine(self, image: torch.Tensor, anomaly_map: torch.Tensor, score: torch.Tensor) -> ClipSamStages:
        """Refine CLIP's maps with SAM: the second half of :meth:`stages`.

        Args:
            image (torch.Tensor): ``(B, 3, height, width)``, RGB in [0, 1].
            anomaly_map (torch.Tensor): S_a, as :meth:`localize` gives it, ``(B, H, W)``.
            score (torch.Tensor): Image score, ``(B,)``.

        Returns:
            ClipSamStages: All results.
        """
        region = self.ppg.extreme_region(anomaly_map)  # (B, H, W)
        asked = region.flatten(1).any(dim=1)  # (B,)
        prompts, cascade = self.ppg.blank(anomaly_map), self.cps.blank(image.shape[0])
        shown = self._shown(asked)
        if shown is not None:
            features = self.encode(image[shown])  # (A, C, h, w)
            self._check_finite("SAM's features", (features,), shown)
            with full_precision(image.device.type):
                some_prompts = self.ppg(anomaly_map[shown], features)
                some_cascade = self.cps(features, some_prompts, anomaly_map[shown])
            prompts, cascade = _put(prompts, shown, some_prompts), _put(cascade, shown, some_cascade)
        logits = frame_to_map(cascade.logits_3.squeeze(1), tuple(anomaly_map.shape[-2:]))  # (B, H, W)
        fused_map = self.fusion(anomaly_map, logits, prompts.peak, cascade.iou).clamp(0, 1)
        mask = (logits > 0) & asked.view(-1, 1, 1)
        return ClipSamStages(anomaly_map, score, fused_map, mask, region, prompts, cascade)

    def localize(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Find where a part looks damaged, and whether it does, by text and references.

        Args:
            image (torch.Tensor): ``(B, 3, height, width)``, RGB in [0, 1].

        Returns:
            tuple[torch.Tensor, torch.Tensor]: S_a ``(B, H, W)`` and the image score ``(B,)``, in [0, 1].
        """
        if isinstance(self.judge, BatchJudge):
            known = self.judge.recall([picture_key(picture) for picture in image], image.device)
            if known is not None:
                return known
        text_map, text_score, taps = self.look(image)
        return (text_map, text_score) if self.judge is None else self.judge(text_map, text_score, taps)

    @torch.no_grad()
    def look(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Taps]:
        """Ask CLIP alone.

        Args:
            image (torch.Tensor): ``(B, 3, height, width)``, RGB in [0, 1].

        Returns:
            tuple[torch.Tensor, torch.Tensor, Taps]: Map ``(B, H, W)`` and image score ``(B,)`` by text, in [0, 1]; and,
            where there are references, the features that they are compared by.

        Raises:
            NotFiniteError: If a value is NaN or infinite.
        """
        self.localizer.set_class_name(self.class_name)
        shown = resize_image(image, max(self.map_size, self.localizer.image_size))  # a small map must not blur the view
        with encoders_in(self.precision, image.device.type):
            if self.judge is None:
                (anomaly_map, global_score), taps = self.localizer(shown), ()
            else:
                anomaly_map, global_score, taps = self.localizer.with_taps(shown)
        self._check_finite("CLIP's map", (anomaly_map, global_score, *taps))
        anomaly_map, global_score = anomaly_map.clamp(0, 1), global_score.clamp(0, 1)
        size = scaled_size(image.shape[-2:], self.map_size)
        if tuple(anomaly_map.shape[-2:]) != size:
            anomaly_map = F.interpolate(anomaly_map.unsqueeze(1), size, mode="area").squeeze(1)
        score = global_score if self.localizer.own_score else image_score(global_score, anomaly_map)
        return anomaly_map, score, taps

    def collect(self, image: torch.Tensor) -> None:
        """Look at pictures of a batch that judges itself, those that were not seen yet.

        Args:
            image (torch.Tensor): ``(B, 3, height, width)``, RGB in [0, 1], as they will come again.
        """
        check_images(image)
        image = image.clamp(0, 1)
        keys = [picture_key(picture) for picture in image]
        new = {key: index for index, key in enumerate(keys) if not self.judge.knows(key)}
        self.judge.skip(len(keys) - len(new))
        if new:
            looks = self.look(image[list(new.values())])
            self.judge.collect(list(new), *looks, self.localizer.embedding)

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """Encode images with SAM, resized, normalised and padded as ``Sam.preprocess`` does.

        Args:
            image (torch.Tensor): ``(B, 3, height, width)``, RGB in [0, 1].

        Returns:
            torch.Tensor: SAM's features of its whole input frame, ``(B, C, h, w)``.
        """
        frame = self.sam.preprocess(resize_image(image, self.sam.image_encoder.img_size) * 255)  # (B, 3, S, S)
        with encoders_in(self.precision, image.device.type):
            return self.sam.image_encoder(frame).float()

    def _shown(self, asked: torch.Tensor) -> torch.Tensor | slice | None:
        """Select the images to show to SAM, by ``asked`` ``(B,)`` bool, and count them; ``None`` if there are none.

        A compiled graph has static shapes: there SAM sees every image.
        """
        if torch.compiler.is_compiling():
            return slice(None)
        shown = asked.nonzero().squeeze(1)  # (A,); a GPU is waited for here, and not for each tensor that it selects
        self.images_seen += len(asked)
        self.images_refined += len(shown)
        if len(shown) == len(asked):
            return slice(None)
        return shown if len(shown) else None

    def _check_finite(
        self, what: str, values: tuple[torch.Tensor, ...], shown: torch.Tensor | slice = slice(None)
    ) -> None:
        """Raise unless all values ``(A, ...)`` about the images that are shown are finite."""
        if torch.compiler.is_compiling():
            return
        wrong = not_finite(values)
        if wrong:
            places = wrong if isinstance(shown, slice) else shown[wrong].tolist()
            precision = precision_in_use(self.precision, values[0].device.type)
            advice = "Check the weights: `anomalib-clipsam weights verify`."
            if precision != "float32":
                advice = "Choose precision='float32', or 'bf16', whose largest number is as large."
            msg = f"{what}, computed in {precision}: NaN or infinite for the batch's images at {places}. {advice}"
            raise NotFiniteError(msg, places)


def check_images(images: torch.Tensor) -> None:
    """Raise unless the model can take these images. Nothing is checked during an export.

    Args:
        images (torch.Tensor): ``(B, 3, height, width)``, RGB in [0, 1], or a little outside after a resize.

    Raises:
        TypeError: If they are not a float tensor.
        ValueError: If the shape is wrong, or values lie farther outside [0, 1] than :data:`OVERSHOOT`.
        NotFiniteError: If a value is NaN or infinite.
    """
    if torch.compiler.is_compiling():
        return
    expected = "Give floats in [0, 1] of shape (B, 3, height, width)"
    if not isinstance(images, torch.Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, torch.Tensor) else type(images).__name__
        msg = f"The images are {kind}. {expected}, such as `images / 255` of 8-bit values."
        raise TypeError(msg)
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        msg = f"The images have the shape {tuple(images.shape)}. {expected}, such as `image.unsqueeze(0)` of one image."
        raise ValueError(msg)
    low, high = images.aminmax()  # of NaN, NaN; and no copy, as a picture may have gigabytes
    if (low >= -OVERSHOOT) & (high <= 1 + OVERSHOOT):  # a GPU is waited for here, once
        return
    wrong = not_finite((images,))
    if wrong:
        msg = f"Of the batch's images, those at {wrong} hold NaN or infinite values. {expected}."
        raise NotFiniteError(msg, wrong)
    msg = (
        f"The images hold values from {low.item():.4g} to {high.item():.4g}. {expected}: divide 8-bit values by 255, "
        "and leave `Normalize` out of pre-processor and augmentations, since the model normalises images itself."
    )
    raise ValueError(msg)


def not_finite(values: tuple[torch.Tensor, ...]) -> list[int]:
    """Say at which places of a batch something is NaN or infinite. A GPU is waited for once.

    Args:
        values (tuple[torch.Tensor, ...]): Tensors ``(B, ...)``.

    Returns:
        list[int]: The places, ascending.
    """
    finite = [value.isfinite().flatten(1).all(dim=1) if value.ndim > 1 else value.isfinite() for value in values]
    finite = torch.stack(finite).all(dim=0)  # (B,)
    return [] if finite.all() else (~finite).nonzero().flatten().tolist()


def _put(blank: Answers, shown: torch.Tensor | slice, answers: Answers) -> Answers:
    """Put the answers for the images that SAM saw into blank answers for the whole batch."""
    if isinstance(shown, slice):
        return answers
    pairs = ((f.name, getattr(blank, f.name), getattr(answers, f.name)) for f in fields(blank))
    return type(blank)(**{name: empty.index_copy(0, shown, answer) for name, empty, answer in pairs})
