# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Fusion of CLIP's map with SAM's mask, and the image score.

How the paper joins them is unknown; a large gain in F1-max at a small loss in AUROC says that the mask dominates.
[ours]

Letters: B images, H W map.
"""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import nn

from anomalib_clipsam.errors.errors import UserValueError

SMALLEST = 1e-6
"""What is divided by is no smaller."""
FUSIONS = ("agreement", "cautious", "weighted", "gate", "mask")
SURE_LOGIT = 3.0
"""SAM's logits count up to this far from 0."""


class FusionArguments(TypedDict, total=False):
    """What a user may set of the fusion; see :class:`Fusion`, which has the defaults."""

    mode: str
    weight: float


class Fusion(nn.Module):
    """Join S_a and L_3 to the final map.

    With c the highest S_a at the image's positive points, so that a doubtful region cannot outshout the map, and
    m = sigmoid(L_3):

    - ``"agreement"``: the log-odds of S_a, plus w D^2 L_3 / 2, with L_3 clamped to [-3, 3]. D says how far mask and map
      agree: Dice of where L_3 > 0 and where S_a > 0.5, the threshold. So SAM moves the border of what the map shows,
      and where mask and map disagree the map stays as it is. [ours]
    - ``"cautious"``: (1 - w) S_a + w m (S_a + t (c - S_a)). Outside the mask the map falls to its share 1 - w; inside,
      it rises towards c only as far as the mask is trusted: t, the IoU that SAM predicts for the mask times the mean
      of min(S_a / c, 1) in it. A mask that swallows the whole part, most of which the map calls good, changes nothing
      inside. [ours]
    - ``"weighted"``: (1 - w) S_a + w c m, whatever the mask. [ours]
    - ``"gate"``: S_a where L_3 > 0, else 0; S_a alone where L_3 > 0 is empty. [related: EthMuSAM]
    - ``"mask"``: c where L_3 > 0, else 0.

    Args:
        mode (str): One of the five. Defaults to ``"agreement"``.
        weight (float): w, the mask's share in the first three, in [0, 1]. Defaults to ``0.3``.

    Raises:
        ValueError: If the mode is unknown or the weight is outside [0, 1].
    """

    def __init__(self, mode: str = "agreement", weight: float = 0.3) -> None:
        super().__init__()
        if mode not in FUSIONS:
            msg = f"Unknown fusion '{mode}'. Choose one of {', '.join(FUSIONS)}."
            raise UserValueError(msg)
        if not 0 <= weight <= 1:
            msg = f"The fusion's weight is {weight}, but it is the mask's share. Choose a number between 0 and 1."
            raise UserValueError(msg)
        self.mode = mode
        self.weight = weight

    def forward(
        self, anomaly_map: torch.Tensor, logits: torch.Tensor, peak: torch.Tensor, iou: torch.Tensor
    ) -> torch.Tensor:
        """Join them.

        Args:
            anomaly_map (torch.Tensor): S_a, ``(B, H, W)`` in [0, 1].
            logits (torch.Tensor): L_3 at the map's size, ``(B, H, W)``.
            peak (torch.Tensor): c, ``(B,)`` in [0, 1]; 0 where the image has no positive point, whose map is S_a.
            iou (torch.Tensor): IoU that SAM predicts for its mask, ``(B,)``; clamped to [0, 1].

        Returns:
            torch.Tensor: Final map ``(B, H, W)`` in [0, 1].
        """
        asked = (peak > 0).view(-1, 1, 1)
        level = peak.view(-1, 1, 1)
        mask = logits > 0
        if self.mode == "agreement":
            moved = (
                self.weight
                * agreement(anomaly_map, logits).view(-1, 1, 1).square()
                * logits.clamp(-SURE_LOGIT, SURE_LOGIT)
            )
            fused = (torch.logit(anomaly_map, eps=SMALLEST) + moved / 2).sigmoid()
        elif self.mode == "cautious":
            share = logits.sigmoid()
            trust = trust_in_mask(anomaly_map, share, peak, iou).view(-1, 1, 1)
            within = anomaly_map + trust * (level - anomaly_map)
            fused = (1 - self.weight) * anomaly_map + self.weight * share * within
        elif self.mode == "weighted":
            fused = (1 - self.weight) * anomaly_map + self.weight * level * logits.sigmoid()
        elif self.mode == "gate":
            empty = ~mask.flatten(1).any(dim=1).view(-1, 1, 1)
            fused = torch.where(mask | empty, anomaly_map, 0.0)
        else:
            fused = torch.where(mask, level, 0.0)
        return torch.where(asked, fused, anomaly_map)


def agreement(anomaly_map: torch.Tensor, logits: torch.Tensor, threshold: float = 0.5) -> torch.Tensor:
    """Dice of the mask and of what the map shows above its threshold. [ours]

    Args:
        anomaly_map (torch.Tensor): S_a, ``(B, H, W)`` in [0, 1].
        logits (torch.Tensor): L_3, ``(B, H, W)``.
        threshold (float): Of the map. Defaults to ``0.5``.

    Returns:
        torch.Tensor: D, ``(B,)`` in [0, 1]; 0 where either is empty.
    """
    shown, mask = (anomaly_map > threshold).float(), (logits > 0).float()
    return 2 * (shown * mask).sum(dim=(-2, -1)) / (shown + mask).sum(dim=(-2, -1)).clamp(min=1)


def trust_in_mask(
    anomaly_map: torch.Tensor, share: torch.Tensor, peak: torch.Tensor, iou: torch.Tensor
) -> torch.Tensor:
    """How far SAM's mask may be believed: its own word, times what the map says of it. [ours]

    Args:
        anomaly_map (torch.Tensor): S_a, ``(B, H, W)`` in [0, 1].
        share (torch.Tensor): sigmoid(L_3), ``(B, H, W)``.
        peak (torch.Tensor): c, ``(B,)``.
        iou (torch.Tensor): IoU that SAM predicts for the mask, ``(B,)``.

    Returns:
        torch.Tensor: t, ``(B,)`` in [0, 1]; 0 for an empty mask.
    """
    level = peak.clamp(min=SMALLEST).view(-1, 1, 1)
    marked = ((anomaly_map / level).clamp(max=1) * share).sum(dim=(-2, -1))
    return iou.clamp(0, 1) * marked / share.sum(dim=(-2, -1)).clamp(min=SMALLEST)


def image_score(global_score: torch.Tensor, anomaly_map: torch.Tensor) -> torch.Tensor:
    """Mean of CLIP's global text score and the maximum of S_a. [related: WinCLIP, APRIL-GAN]

    Args:
        global_score (torch.Tensor): ``(B,)`` in [0, 1].
        anomaly_map (torch.Tensor): S_a, ``(B, H, W)`` in [0, 1].

    Returns:
        torch.Tensor: ``(B,)`` in [0, 1].
    """
    return (global_score + anomaly_map.amax(dim=(-2, -1))) / 2
