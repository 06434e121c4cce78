# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The method's second half: from images and their maps, CLIP's or another model's, to SAM's mask and the final map.

Letters: B images, A of them shown to SAM, H W map, S side of SAM's frame, h w feature grid, C channels.

Reference:
    Hou et al., "Enhancing Zero-Shot Anomaly Detection: CLIP-SAM Collaboration with Cascaded Prompts",
    https://arxiv.org/abs/2510.11028
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

from anomalib_clipsam.compute.precision import PRECISIONS, encoders_in, full_precision, precision_in_use
from anomalib_clipsam.method.frame import frame_to_map, resize_image

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

    from anomalib_clipsam.method.cps import CascadedPrompts, CascadeOutput
    from anomalib_clipsam.method.fusion import Fusion
    from anomalib_clipsam.method.ppg import PointPromptGenerator, PointPrompts
    from anomalib_clipsam.tiling.layout import Window

Answers = TypeVar("Answers")


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


class SamRefiner(nn.Module):
    """Refine maps with SAM.

    Args:
        ppg (PointPromptGenerator | None): Makes the point prompts. ``None``, like the next two, for no refinement.
        cps (CascadedPrompts | None): Decoder passes, with SAM.
        fusion (Fusion | None): Joins map and mask.
        precision (str): What the image encoders compute in: ``"float32"``, ``"bf16"`` or ``"fp16"``. Defaults to
            ``"float32"``.

    Attributes:
        images_seen (int): Images since the counts were last reset; counted with refinement only.
        images_refined (int): How many of them SAM has seen.

    Raises:
        ValueError: If the precision is unknown.
    """

    def __init__(
        self,
        ppg: PointPromptGenerator | None,
        cps: CascadedPrompts | None,
        fusion: Fusion | None,
        precision: str = "float32",
    ) -> None:
        super().__init__()
        if precision not in PRECISIONS:
            msg = f"Unknown precision '{precision}'. Choose one of {', '.join(PRECISIONS)}."
            raise ValueError(msg)
        self.ppg = ppg
        self.cps = cps
        self.fusion = fusion
        self.precision = precision
        self.images_seen = self.images_refined = 0
        self.requires_grad_(requires_grad=False)

    @property
    def sam(self) -> Sam | None:
        """SAM, or ``None`` without refinement."""
        return None if self.cps is None else self.cps.sam

    @torch.no_grad()
    def refine(self, image: torch.Tensor, anomaly_map: torch.Tensor, score: torch.Tensor) -> ClipSamStages:
        """Refine maps with SAM.

        Args:
            image (torch.Tensor): ``(B, 3, height, width)``, RGB in [0, 1].
            anomaly_map (torch.Tensor): S_a, ``(B, H, W)`` in [0, 1], in the images' proportions.
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
