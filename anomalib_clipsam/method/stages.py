# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Every intermediate result of the method.

Letters: B images, H W map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from anomalib.data import InferenceBatch

if TYPE_CHECKING:
    from anomalib_clipsam.method.cps import CascadeOutput
    from anomalib_clipsam.method.frame import Window
    from anomalib_clipsam.method.ppg import PointPrompts


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
        crops (tuple[tuple[Window, ...], ...] | None): Of pictures in tiles, the parts of each that SAM was shown, which
            have the prompts and the cascade in place of the picture. Defaults to ``None``.
        text_map (torch.Tensor | None): CLIP's map by text alone, ``(B, H, W)`` in [0, 1]. Defaults to ``None``: it was
            not computed, since the images were judged before, or they are in tiles.
        unlike (torch.Tensor | None): Whether an image is unlike its references nearly everywhere, ``(B,)`` bool.
            Defaults to ``None``: there is nothing to tell it by.
    """

    anomaly_map: torch.Tensor
    score: torch.Tensor
    fused_map: torch.Tensor
    mask: torch.Tensor | None = None
    region: torch.Tensor | None = None
    prompts: PointPrompts | None = None
    cascade: CascadeOutput | None = None
    crops: tuple[tuple[Window, ...], ...] | None = None
    text_map: torch.Tensor | None = None
    unlike: torch.Tensor | None = None

    @property
    def predictions(self) -> InferenceBatch:
        """Score, final map and SAM's mask, as anomalib takes them."""
        return InferenceBatch(pred_score=self.score, anomaly_map=self.fused_map, pred_mask=self.mask)

    @property
    def refined(self) -> torch.Tensor | None:
        """Whether SAM has seen an image, ``(B,)`` bool; ``None`` without refinement."""
        return None if self.region is None else self.region.flatten(1).any(dim=1)
