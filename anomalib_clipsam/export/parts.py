# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""CLIP's part and SAM's part of the method as models of their own, for two files.

Letters: B images, H W map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from anomalib.data import InferenceBatch
from torch import nn

if TYPE_CHECKING:
    from anomalib_clipsam.export.mixin import ClipSamExport

INPUTS = ("input", "clip_map")
"""Names of the refiner's inputs; other graphs have the first alone."""

EXAMPLE = (2, 3, 32, 32)
"""Shape of the images that are traced. With one image, torch would fix the batch size."""


class Part(nn.Module):
    """A part of the pipeline.

    Args:
        pipeline (ClipSamExport): The whole.
    """

    def __init__(self, pipeline: ClipSamExport) -> None:
        super().__init__()
        self.pipeline = pipeline

    def _pre_process(self, image: torch.Tensor) -> torch.Tensor:
        pre_processor = self.pipeline.pre_processor
        return (pre_processor(image) if pre_processor else image).clamp(0, 1)


class LocalizerPart(Part):
    """What comes before SAM. See :func:`to_parts`."""

    NAME = "localizer"
    OUTPUTS = ("pred_score", "pred_label", "anomaly_map", "clip_map", "suspicious")

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Localize.

        Args:
            image (torch.Tensor): ``(B, 3, height, width)``, RGB in [0, 1].

        Returns:
            tuple[torch.Tensor, ...]: What :attr:`OUTPUTS` names.
        """
        model = self.pipeline.model
        _, answer = model.localize(self._pre_process(image))
        clip_map = answer.map
        predictions = InferenceBatch(pred_score=answer.score, anomaly_map=clip_map)
        processed = self.pipeline.post_process(predictions, image.shape[-2:])
        suspicious = model.ppg.extreme_region(clip_map).flatten(1).any(dim=1)
        # The map is two outputs, and the exporter wants a tensor for each: hence the copy.
        return processed.pred_score, processed.pred_label, processed.anomaly_map, clip_map.clone(), suspicious


class RefinerPart(Part):
    """SAM's part: PPG, CPS and fusion. See :func:`to_parts`."""

    NAME = "refiner"
    OUTPUTS = ("anomaly_map", "pred_mask")

    def forward(self, image: torch.Tensor, clip_map: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Refine.

        Args:
            image (torch.Tensor): ``(B, 3, height, width)``, RGB in [0, 1].
            clip_map (torch.Tensor): S_a, ``(B, H, W)`` in [0, 1].

        Returns:
            tuple[torch.Tensor, ...]: What :attr:`OUTPUTS` names.
        """
        stages = self.pipeline.model.refine(self._pre_process(image), clip_map, clip_map.amax(dim=(-2, -1)))
        predictions = InferenceBatch(
            pred_score=stages.score,
            pred_label=torch.ones_like(stages.score, dtype=torch.bool),  # the localizer has said what is good
            anomaly_map=stages.fused_map,
            pred_mask=stages.mask,
        )
        processed = self.pipeline.post_process(predictions, image.shape[-2:])
        return processed.anomaly_map, processed.pred_mask
