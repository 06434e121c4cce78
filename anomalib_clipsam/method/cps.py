# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""CPS, Cascaded Prompts for SAM: three passes of SAM's light decoder over one encoding of the image. [paper]

1. points -> L_1
2. points + L_1 as mask prompt -> L_2
3. points + bounding box of L_2 > 0 + L_2 as mask prompt -> L_3

Letters: B images, K points, C channels, h w feature grid; logits are ``(B, 1, 4h, 4w)``.

References:
    - Hou et al., https://arxiv.org/abs/2510.11028
    - PerSAM, the same cascade: Zhang et al., https://arxiv.org/abs/2305.03048
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from anomalib_clipsam.errors.errors import UserValueError
from anomalib_clipsam.method.frame import inside_frame, map_to_frame
from anomalib_clipsam.method.regions import label_parts
from anomalib_clipsam.sam.decoder import decode

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

    from anomalib_clipsam.method.ppg import PointPrompts

BOXES = ("mask", "component")
EMPTY_LOGIT = -32.0
"""Mask logit of an image that SAM did not see; SAM clamps its own logits to 32 where it iterates."""


@dataclass(frozen=True)
class CascadeOutput:
    """What the three passes gave.

    Args:
        logits_1 (torch.Tensor): L_1, ``(B, 1, 4h, 4w)``.
        logits_2 (torch.Tensor): L_2, ``(B, 1, 4h, 4w)``.
        logits_3 (torch.Tensor): L_3, ``(B, 1, 4h, 4w)``; equal to L_2 where that is empty.
        box (torch.Tensor): Box prompt of the third pass ``(B, 4)``, x0, y0, x1, y1 in pixels of SAM's input frame; zero
            where L_2 is empty.
        iou (torch.Tensor): IoU that SAM predicts for the final mask, ``(B,)``.
    """

    logits_1: torch.Tensor
    logits_2: torch.Tensor
    logits_3: torch.Tensor
    box: torch.Tensor
    iou: torch.Tensor


def mask_to_box(mask: torch.Tensor) -> torch.Tensor:
    """Find the bounding box of each mask.

    Args:
        mask (torch.Tensor): ``(B, H, W)`` bool.

    Returns:
        torch.Tensor: ``(B, 4)`` long: x0, y0, x1, y1, first and last pixel of the mask; zero where it is empty.
    """

    def ends(occupied: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        length = occupied.shape[1]
        place = torch.arange(length, device=mask.device)
        first = torch.where(occupied, place, length).amin(dim=1)
        last = torch.where(occupied, place, -1).amax(dim=1)
        return first, last

    (x0, x1), (y0, y1) = ends(mask.any(dim=1)), ends(mask.any(dim=2))
    box = torch.stack([x0, y0, x1, y1], dim=1)
    return torch.where(mask.flatten(1).any(dim=1, keepdim=True), box, 0)


def most_anomalous_component(mask: torch.Tensor, anomaly_map: torch.Tensor) -> torch.Tensor:
    """Keep the connected component with the highest mean score.

    Args:
        mask (torch.Tensor): ``(B, h, w)`` bool.
        anomaly_map (torch.Tensor): Scores ``(B, h, w)``.

    Returns:
        torch.Tensor: ``(B, h, w)`` bool; empty where the mask is.
    """
    batch, height, width = mask.shape
    index = label_parts(mask, until_done=False).flatten(1)  # (B, h * w), 0 outside
    empty = torch.zeros(batch, height * width + 1, device=mask.device)
    counts = empty.scatter_add(1, index, mask.float().flatten(1))
    sums = empty.scatter_add(1, index, (anomaly_map * mask).flatten(1))
    means = torch.where(counts > 0, sums / counts.clamp(min=1), -1.0)
    means = torch.cat([torch.full_like(means[:, :1], -1.0), means[:, 1:]], dim=1)
    return (index == means.argmax(dim=1, keepdim=True)).view_as(mask) & mask


class CpsArguments(TypedDict, total=False):
    """What a user may set of CPS; see :class:`CascadedPrompts`, which has the defaults."""

    multimask: bool
    box: str
    passes: int


class CascadedPrompts(nn.Module):
    """Run SAM's decoder three times, each pass prompted by the one before.

    Args:
        sam (Sam): The model; its prompt encoder and mask decoder are used.
        multimask (bool): Pass 1 asks for one mask; passes 2 and 3 ask for three and keep the one with the highest
            predicted IoU, as PerSAM does. ``False`` asks for one mask throughout. Defaults to ``False``.
        box (str): The box of pass 3 bounds the whole of L_2 > 0 (``"mask"``, PerSAM) or its component with the highest
            mean S_a (``"component"``, EthMuSAM). Defaults to ``"mask"``.
        passes (int): 3, or fewer for an ablation: the later logits then repeat the last ones. Defaults to ``3``.

    Raises:
        ValueError: If ``box`` is unknown or ``passes`` is not 1, 2 or 3.
    """

    def __init__(self, sam: Sam, multimask: bool = False, box: str = "mask", passes: int = 3) -> None:
        super().__init__()
        if box not in BOXES:
            msg = f"Unknown box '{box}'. Choose one of {', '.join(BOXES)}."
            raise UserValueError(msg)
        if passes not in (1, 2, 3):
            msg = f"passes is {passes}, but the cascade has three. Choose 1, 2 or 3."
            raise UserValueError(msg)
        self.sam = sam
        self.multimask = multimask
        self.box = box
        self.passes = passes

    def blank(self, batch_size: int) -> CascadeOutput:
        """Return the answer for images that SAM does not see: no box, an empty mask.

        Args:
            batch_size (int): B, the number of images.

        Returns:
            CascadeOutput: For all of these images.
        """
        of = self.sam.prompt_encoder.no_mask_embed.weight  # its device and type
        logits = of.new_full((batch_size, 1, *self.sam.prompt_encoder.mask_input_size), EMPTY_LOGIT)
        return CascadeOutput(logits, logits, logits, of.new_zeros(batch_size, 4), of.new_zeros(batch_size))

    def _pass(
        self,
        features: torch.Tensor,
        prompts: PointPrompts,
        box: torch.Tensor | None,
        mask_logits: torch.Tensor | None,
        multimask: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode once and keep one mask: logits ``(B, 1, 4h, 4w)`` and predicted IoU ``(B,)``."""
        logits, iou = decode(self.sam, features, prompts.coords, prompts.labels, box, mask_logits)
        if not multimask:
            return logits[:, :1], iou[:, 0]
        best = iou[:, 1:].argmax(dim=1) + 1  # (B,)
        index = best.view(-1, 1, 1, 1).expand(-1, 1, *logits.shape[-2:])
        return logits.gather(1, index), iou.gather(1, best.unsqueeze(1)).squeeze(1)

    def forward(
        self,
        features: torch.Tensor,
        prompts: PointPrompts,
        anomaly_map: torch.Tensor | None = None,
    ) -> CascadeOutput:
        """Run the cascade.

        Args:
            features (torch.Tensor): SAM's features ``(B, C, h, w)``.
            prompts (PointPrompts): Points of each image.
            anomaly_map (torch.Tensor | None): S_a, ``(B, H, W)``, whose longer side spans SAM's frame. Keeps the box
                inside the image where that is not square, and is needed for ``box="component"``. Defaults to ``None``.

        Returns:
            CascadeOutput: Logits of the three passes, box and predicted IoU.

        Raises:
            ValueError: If ``box="component"`` and no anomaly map is given.
        """
        logits_1, iou = self._pass(features, prompts, None, None, multimask=False)
        logits_2 = logits_3 = logits_1
        if self.passes > 1:
            logits_2, iou = self._pass(features, prompts, None, logits_1, multimask=self.multimask)
            logits_3 = logits_2
        mask = logits_2[:, 0] > self.sam.mask_threshold  # (B, 4h, 4w)
        if anomaly_map is not None:
            mask = mask & inside_frame(mask.shape[-2:], anomaly_map.shape[-2:], mask.device)
        found = mask.flatten(1).any(dim=1)  # (B,)
        box = self._box(mask, anomaly_map)
        if self.passes > 2:
            last, last_iou = self._pass(features, prompts, box, logits_2, multimask=self.multimask)
            logits_3 = torch.where(found.view(-1, 1, 1, 1), last, logits_2)
            iou = torch.where(found, last_iou, iou)
        return CascadeOutput(logits_1, logits_2, logits_3, box, iou)

    def _box(self, mask: torch.Tensor, anomaly_map: torch.Tensor | None) -> torch.Tensor:
        """Bound the mask in pixels of SAM's frame: ``(B, 4)``."""
        if self.box == "component":
            if anomaly_map is None:
                msg = "box='component' weighs components by the anomaly map. Pass `anomaly_map`, or use box='mask'."
                raise UserValueError(msg)
            mask = self._component(mask, anomaly_map)
        scale = self.sam.image_encoder.img_size / mask.shape[-1]
        box = mask_to_box(mask)
        found = mask.flatten(1).any(dim=1, keepdim=True)
        first, last = box[:, :2] * scale, (box[:, 2:] + 1) * scale - 1
        return torch.where(found, torch.cat([first, last], dim=1), 0.0)

    @staticmethod
    def _component(mask: torch.Tensor, anomaly_map: torch.Tensor) -> torch.Tensor:
        """Reduce the mask to its most anomalous component, found on the feature grid, a quarter of the mask's size."""
        coarse = F.max_pool2d(mask.float().unsqueeze(1), 4).squeeze(1) > 0
        height, width = coarse.shape[-2:]
        chosen = most_anomalous_component(coarse, map_to_frame(anomaly_map, (height, width)))
        return mask & chosen.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
