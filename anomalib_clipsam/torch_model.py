# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""ClipSam's PyTorch model: the way of an image from CLIP's map over point prompts to SAM's mask.

Letters: B images, H W map, S side of SAM's input frame, h w feature grid, C channels, K points.

Reference:
    Hou et al., "Enhancing Zero-Shot Anomaly Detection: CLIP-SAM Collaboration with Cascaded Prompts",
    https://arxiv.org/abs/2510.11028
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from anomalib.data import InferenceBatch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from anomalib_clipsam.fusion import Fusion, image_score
from anomalib_clipsam.pictures import check_images
from anomalib_clipsam.ppg import PointPrompts
from anomalib_clipsam.precision import PRECISIONS, check_precision, encoders_in, full_precision

if TYPE_CHECKING:
    from collections.abc import Hashable

    from segment_anything.modeling import Sam

    from anomalib_clipsam.clip import Localizer
    from anomalib_clipsam.cps import CascadedPrompts
    from anomalib_clipsam.ppg import PointPromptGenerator

EMPTY_LOGIT = -32.0
"""Mask logit of an image that SAM was not asked about; SAM's own logits are clamped to 32 where it iterates."""


@dataclass(frozen=True)
class ClipSamStages:
    """Every intermediate result of a batch. What SAM has no part in is ``None`` without refinement.

    Args:
        anomaly_map (torch.Tensor): S_a, CLIP's map, ``(B, H, W)`` in [0, 1].
        region (torch.Tensor | None): M_apa, the extremely anomalous region, ``(B, H, W)`` bool.
        ring (torch.Tensor | None): N_a, the ring around it, ``(B, H, W)`` bool.
        similarity (torch.Tensor | None): Cosine similarity of SAM's features to those at the positives, ``(B, H, W)``.
        prompts (PointPrompts | None): Points ``(B, K, 2)`` and labels ``(B, K)`` in SAM's input frame.
        logits_1 (torch.Tensor | None): L_1, ``(B, 1, 4h, 4w)``.
        logits_2 (torch.Tensor | None): L_2, ``(B, 1, 4h, 4w)``.
        box (torch.Tensor | None): Box of the third pass, ``(B, 4)``, x0, y0, x1, y1 in SAM's input frame.
        logits_3 (torch.Tensor | None): L_3, ``(B, 1, 4h, 4w)``.
        iou (torch.Tensor | None): IoU that SAM predicts for its final mask, ``(B,)``.
        mask (torch.Tensor | None): M_3 = L_3 > 0 at the map's size, ``(B, H, W)`` bool.
        fused_map (torch.Tensor): Final map, ``(B, H, W)`` in [0, 1].
        score (torch.Tensor): Image score, ``(B,)`` in [0, 1].
    """

    anomaly_map: torch.Tensor
    region: torch.Tensor | None
    ring: torch.Tensor | None
    similarity: torch.Tensor | None
    prompts: PointPrompts | None
    logits_1: torch.Tensor | None
    logits_2: torch.Tensor | None
    box: torch.Tensor | None
    logits_3: torch.Tensor | None
    iou: torch.Tensor | None
    mask: torch.Tensor | None
    fused_map: torch.Tensor
    score: torch.Tensor


@dataclass(frozen=True)
class Refinement:
    """What SAM says about the images it was shown; see :class:`ClipSamStages` for the members."""

    coords: torch.Tensor
    labels: torch.Tensor
    ring: torch.Tensor
    similarity: torch.Tensor
    peak: torch.Tensor
    logits_1: torch.Tensor
    logits_2: torch.Tensor
    box: torch.Tensor
    logits_3: torch.Tensor
    iou: torch.Tensor


class ClipSamModel(nn.Module):
    """CLIP's anomaly map, refined by SAM.

    Args:
        localizer (Localizer): Gives S_a and CLIP's global score.
        map_size (int): Longer side of maps and masks, in pixels.
        ppg (PointPromptGenerator | None): Point prompts. Without it, ``cps`` and ``fusion``, the map is CLIP's alone.
            Defaults to ``None``.
        cps (CascadedPrompts | None): Decoder passes, with SAM. Defaults to ``None``.
        fusion (Fusion | None): Joins map and mask. Defaults to ``None``.
        class_name (str): Name that is asked about until :meth:`set_class_name` is called. Defaults to ``"object"``.
        precision (str): What CLIP's and SAM's image encoders compute in: ``"float32"``, ``"bf16"`` or ``"fp16"``.
            Defaults to ``"float32"``.

    Attributes:
        images_seen (int): Images that came since the counts were last set to zero; counted with refinement only.
        images_refined (int): Those of them that SAM was asked about.

    Raises:
        ValueError: If there is no such precision.
    """

    def __init__(
        self,
        localizer: Localizer,
        map_size: int,
        ppg: PointPromptGenerator | None = None,
        cps: CascadedPrompts | None = None,
        fusion: Fusion | None = None,
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
        self.class_name = class_name
        self.precision = precision
        self.images_seen = self.images_refined = 0
        self.requires_grad_(requires_grad=False)

    @property
    def sam(self) -> Sam | None:
        """SAM, or ``None`` without refinement."""
        return None if self.cps is None else self.cps.sam

    def set_class_name(self, class_name: str) -> None:
        """Ask about parts of this name. The text is encoded when the next image comes, once per name.

        Args:
            class_name (str): Name of the part in the text prompts.
        """
        self.class_name = class_name

    def settings(self) -> Hashable:
        """Say what the answer depends on beside the image and the weights.

        Returns:
            Hashable: Class name, prompts, sizes, precision, and the plain attributes of PPG, CPS and fusion.
        """
        parts = [part for part in (self.ppg, self.cps, self.fusion) if part is not None]
        plain = [
            (name, value)
            for part in parts
            for name, value in vars(part).items()
            if isinstance(value, str | int | float) and not name.startswith("_")
        ]
        localizer = self.localizer
        return self.class_name, localizer.ensemble, localizer.image_size, self.map_size, self.precision, tuple(plain)

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
            image (torch.Tensor): ``(B, 3, height, width)``, RGB in [0, 1]. Need not be square: SAM's frame is then
                padded.

        Returns:
            ClipSamStages: All results; maps have the image's aspect ratio and ``map_size`` on the longer side.

        Raises:
            TypeError: If the images are no tensor of floats.
            ValueError: If they have another shape, or a value is NaN or infinite; or if the device does not compute in
                the precision that was asked for.
        """
        check_images(image)
        check_precision(self.precision, image.device)
        image = image.clamp(0, 1)
        # CLIP map
        anomaly_map, score = self.localize(image)
        return self.refine(image, anomaly_map, score)

    @torch.no_grad()
    def refine(self, image: torch.Tensor, anomaly_map: torch.Tensor, score: torch.Tensor) -> ClipSamStages:
        """Ask SAM about images of which CLIP's answer is known.

        Args:
            image (torch.Tensor): ``(B, 3, height, width)``, RGB in [0, 1].
            anomaly_map (torch.Tensor): S_a, as :meth:`localize` gives it, ``(B, H, W)``.
            score (torch.Tensor): Image score, ``(B,)``.

        Returns:
            ClipSamStages: All results; see :meth:`stages`.
        """
        if self.sam is None:
            return ClipSamStages(anomaly_map, *[None] * 10, fused_map=anomaly_map, score=score)

        # SAM features, PPG and CPS, for the images that have an extreme region
        region = self.ppg.extreme_region(anomaly_map)
        asked = region.flatten(1).any(dim=1)  # (B,)
        if torch.compiler.is_compiling():
            # Static shapes: all are shown to SAM, and its answer is dropped where it was not asked.
            refinement = self._blank_where(~asked, self._refine(image, anomaly_map))
        else:
            refinement = self._refine_some(asked, image, anomaly_map)

        # fusion
        logits = logits_to_map(refinement.logits_3, (anomaly_map.shape[-2], anomaly_map.shape[-1]))
        prompts = PointPrompts(
            refinement.coords, refinement.labels, refinement.ring, refinement.similarity, refinement.peak
        )
        return ClipSamStages(
            anomaly_map=anomaly_map,
            region=region,
            ring=refinement.ring,
            similarity=refinement.similarity,
            prompts=prompts,
            logits_1=refinement.logits_1,
            logits_2=refinement.logits_2,
            box=refinement.box,
            logits_3=refinement.logits_3,
            iou=refinement.iou,
            mask=logits > 0,
            fused_map=self.fusion(anomaly_map, logits, refinement.peak).clamp(0, 1),
            score=score,
        )

    def localize(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Ask CLIP alone.

        Args:
            image (torch.Tensor): ``(B, 3, height, width)``, RGB in [0, 1].

        Returns:
            tuple[torch.Tensor, torch.Tensor]: S_a ``(B, H, W)`` and the image score ``(B,)``, in [0, 1] and never NaN.
        """
        self.localizer.set_class_name(self.class_name)
        shown = _resize(image, max(self.map_size, self.localizer.image_size))  # a small map must not blur CLIP's view
        with encoders_in(self.precision, image.device.type):
            anomaly_map, global_score = self.localizer(shown)
        anomaly_map = torch.nan_to_num(anomaly_map, nan=0.0).clamp(0, 1)
        size = _scaled(image.shape[-2:], self.map_size)
        if tuple(anomaly_map.shape[-2:]) != size:
            anomaly_map = F.interpolate(anomaly_map.unsqueeze(1), size, mode="area").squeeze(1)
        return anomaly_map, image_score(torch.nan_to_num(global_score, nan=0.0).clamp(0, 1), anomaly_map)

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """Encode images with SAM, resized, normalised and padded as ``Sam.preprocess`` does.

        Args:
            image (torch.Tensor): ``(B, 3, height, width)``, RGB in [0, 1].

        Returns:
            torch.Tensor: SAM's features of its whole input frame, ``(B, C, h, w)``.
        """
        frame = self.sam.preprocess(_resize(image, self.sam.image_encoder.img_size) * 255)  # (B, 3, S, S)
        with encoders_in(self.precision, image.device.type):
            return self.sam.image_encoder(frame).float()

    def _refine(self, image: torch.Tensor, anomaly_map: torch.Tensor) -> Refinement:
        """Show images to SAM: features, point prompts, three passes."""
        features = self.encode(image)  # (B, C, h, w)
        with full_precision(image.device.type):
            prompts = self.ppg(anomaly_map, features)
            output = self.cps(features, prompts, anomaly_map)
        return Refinement(
            prompts.coords,
            prompts.labels,
            prompts.ring,
            prompts.similarity,
            prompts.peak,
            output.logits_1,
            output.logits_2,
            output.box,
            output.logits_3,
            output.iou,
        )

    def _refine_some(self, asked: torch.Tensor, image: torch.Tensor, anomaly_map: torch.Tensor) -> Refinement:
        """Show SAM only the images that are asked about, ``(B,)`` bool, and leave the others blank."""
        self.images_seen += len(asked)
        self.images_refined += int(asked.sum())
        if asked.all():
            return self._refine(image, anomaly_map)
        blank = self._blank(anomaly_map)
        if not asked.any():
            return blank
        some = self._refine(image[asked], anomaly_map[asked])
        merged = {}
        for name in (f.name for f in fields(Refinement)):
            merged[name] = getattr(blank, name).clone()
            merged[name][asked] = getattr(some, name)
        return Refinement(**merged)

    def _blank(self, anomaly_map: torch.Tensor) -> Refinement:
        """What is said about images that SAM was not asked about: no point, no box, an empty mask."""
        batch, side = anomaly_map.shape[0], self.sam.prompt_encoder.mask_input_size[0]
        points = self.ppg.num_positives + self.ppg.num_negatives
        logits = anomaly_map.new_full((batch, 1, side, side), EMPTY_LOGIT)
        zeros = anomaly_map.new_zeros(batch)
        return Refinement(
            coords=anomaly_map.new_zeros(batch, points, 2),
            labels=anomaly_map.new_full((batch, points), -1, dtype=torch.long),
            ring=torch.zeros_like(anomaly_map, dtype=torch.bool),
            similarity=torch.zeros_like(anomaly_map),
            peak=zeros,
            logits_1=logits,
            logits_2=logits,
            box=anomaly_map.new_zeros(batch, 4),
            logits_3=logits,
            iou=zeros,
        )

    def _blank_where(self, blank: torch.Tensor, refinement: Refinement) -> Refinement:
        """Blank the answers about some images, ``(B,)`` bool."""
        empty = self._blank(refinement.similarity)
        merged = {}
        for name in (f.name for f in fields(Refinement)):
            given = getattr(refinement, name)
            merged[name] = torch.where(blank.view(-1, *[1] * (given.ndim - 1)), getattr(empty, name), given)
        return Refinement(**merged)


def _scaled(size: torch.Size, longer_side: int) -> tuple[int, int]:
    """Scale a size ``(height, width)`` to a longer side."""
    longer = max(size)
    return tuple(max(1, round(side * longer_side / longer)) for side in size)


def _resize(image: torch.Tensor, longer_side: int) -> torch.Tensor:
    """Resize ``(B, 3, height, width)`` in [0, 1] to a longer side, bicubic with antialiasing, within [0, 1]."""
    size = _scaled(image.shape[-2:], longer_side)
    if tuple(image.shape[-2:]) == size:
        return image
    return F.interpolate(image, size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)


def logits_to_map(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bring mask logits of SAM's frame to a map's size, without the frame's padding.

    Args:
        logits (torch.Tensor): ``(B, 1, 4h, 4w)``, of the whole square frame.
        size (tuple[int, int]): Height and width of the map, whose longer side spans the frame.

    Returns:
        torch.Tensor: Logits ``(B, H, W)``.
    """
    longer = max(size)
    logits = F.interpolate(logits, (longer, longer), mode="bilinear", align_corners=False)
    return logits[:, 0, : size[0], : size[1]]
