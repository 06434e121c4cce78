# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""How another model's maps come to [0, 1] and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class Scale:
    """How a model's maps are brought to [0, 1]: where PPG's threshold is, and how far up and down they reach.

    Args:
        threshold (torch.Tensor): What becomes 0.5, ``(B, 1, 1)``.
        reach (torch.Tensor): What becomes 1 wide, ``(B, 1, 1)``; 0 where a map is constant.
        squeeze (torch.Tensor): Factor of what lies above 0.5, ``(B, 1, 1)``: below 1 where a map reaches farther than
            those of the calibration, so that its highest values stay apart.
    """

    threshold: torch.Tensor
    reach: torch.Tensor
    squeeze: torch.Tensor

    def to_unit(self, maps: torch.Tensor) -> torch.Tensor:
        """Bring maps ``(B, H, W)`` to 1 and less; what is far below the threshold is below 0."""
        unit = (maps - self.threshold) / self.reach.clamp(min=torch.finfo(maps.dtype).tiny) + 0.5
        unit = torch.where(unit > 0.5, 0.5 + (unit - 0.5) * self.squeeze, unit)
        return torch.where(self.reach > 0, unit, 0.0)

    def from_unit(self, unit: torch.Tensor) -> torch.Tensor:
        """Bring maps ``(B, H, W)`` back."""
        unit = torch.where(unit > 0.5, 0.5 + (unit - 0.5) / self.squeeze, unit)
        return (unit - 0.5) * self.reach + self.threshold
