# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The method's second half: from images and their maps, CLIP's or another model's, to SAM's mask and the final map.

Letters: B images, A of them shown to SAM, H W map, S side of SAM's frame, h w feature grid, C channels.

Reference:
    Hou et al., "Enhancing Zero-Shot Anomaly Detection: CLIP-SAM Collaboration with Cascaded Prompts",
    https://arxiv.org/abs/2510.11028
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

from anomalib_clipsam.compute.precision import PRECISIONS, encoders_in, full_precision, precision_in_use
from anomalib_clipsam.errors.errors import NotFiniteError, UserValueError
from anomalib_clipsam.method.checks import not_finite
from anomalib_clipsam.method.frame import frame_to_map, resize_image
from anomalib_clipsam.method.stages import ClipSamStages

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

    from anomalib_clipsam.method.cps import CascadedPrompts, CascadeOutput
    from anomalib_clipsam.method.fusion import Fusion
    from anomalib_clipsam.method.ppg import PointPromptGenerator, PointPrompts

Answers = TypeVar("Answers", bound="PointPrompts | CascadeOutput")


class SamRefiner(nn.Module):
    """Refine maps with SAM.

    Args:
        ppg (PointPromptGenerator | None): Makes the point prompts. ``None``, like the next two, for no refinement.
        cps (CascadedPrompts | None): Decoder passes, with SAM.
        fusion (Fusion | None): Joins map and mask.
        precision (str): What the image encoders compute in: ``"float32"``, ``"bf16"`` or ``"fp16"``. Defaults to
            ``"float32"``.

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
            raise UserValueError(msg)
        self.ppg = ppg
        self.cps = cps
        self.fusion = fusion
        self.precision = precision
        self.requires_grad_(requires_grad=False)

    @property
    def sam(self) -> Sam | None:
        """SAM, or ``None`` without refinement."""
        return None if self.cps is None else self.cps.sam

    @property
    def refinement(self) -> tuple[PointPromptGenerator, CascadedPrompts, Fusion]:
        """PPG, CPS and the fusion.

        Raises:
            ValueError: If the model has no refinement.
        """
        if self.ppg is None or self.cps is None or self.fusion is None:
            msg = "This model gives the map alone. Make it with `ppg`, `cps` and `fusion` to refine the map with SAM."
            raise UserValueError(msg)
        return self.ppg, self.cps, self.fusion

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
        ppg, cps, fusion = self.refinement
        height, width = anomaly_map.shape[-2:]
        region = ppg.extreme_region(anomaly_map)  # (B, H, W)
        asked = region.flatten(1).any(dim=1)  # (B,)
        prompts, cascade = ppg.blank(anomaly_map), cps.blank(image.shape[0])
        shown = self._shown(asked)
        if shown is not None:
            features = self.encode(image[shown])  # (A, C, h, w)
            self._check_finite("SAM's features", (features,), shown)
            with full_precision(image.device.type):
                some_prompts = ppg(anomaly_map[shown], features)
                some_cascade = cps(features, some_prompts, anomaly_map[shown])
            prompts, cascade = _put(prompts, shown, some_prompts), _put(cascade, shown, some_cascade)
        logits = frame_to_map(cascade.logits_3.squeeze(1), (height, width))  # (B, H, W)
        fused_map = fusion(anomaly_map, logits, prompts.peak, cascade.iou).clamp(0, 1)
        mask = (logits > 0) & asked.view(-1, 1, 1)
        return ClipSamStages(anomaly_map, score, fused_map, mask, region, prompts, cascade)

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """Encode images with SAM, resized, normalised and padded as ``Sam.preprocess`` does.

        Args:
            image (torch.Tensor): ``(B, 3, height, width)``, RGB in [0, 1].

        Returns:
            torch.Tensor: SAM's features of its whole input frame, ``(B, C, h, w)``.
        """
        sam = self.refinement[1].sam
        frame = sam.preprocess(resize_image(image, sam.image_encoder.img_size) * 255)  # (B, 3, S, S)
        with encoders_in(self.precision, image.device.type):
            features: torch.Tensor = sam.image_encoder(frame).float()
        return features

    def _shown(self, asked: torch.Tensor) -> torch.Tensor | slice | None:
        """Select the images to show to SAM, by ``asked`` ``(B,)`` bool; ``None`` if there are none.

        A compiled graph has static shapes: there SAM sees every image.
        """
        if torch.compiler.is_compiling():
            return slice(None)
        shown = asked.nonzero().squeeze(1)  # (A,); a GPU is waited for here, and not for each tensor that it selects
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


def _put(blank: Answers, shown: torch.Tensor | slice, answers: Answers) -> Answers:
    """Put the answers for the images that SAM saw into blank answers for the whole batch."""
    if isinstance(shown, slice):
        return answers
    pairs = ((f.name, getattr(blank, f.name), getattr(answers, f.name)) for f in fields(blank))
    return type(blank)(**{name: empty.index_copy(0, shown, answer) for name, empty, answer in pairs})
