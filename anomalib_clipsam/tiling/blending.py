# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Large pictures: how the maps of tiles become one. [ours]

Letters: T side of a tile in pixels of the map.
"""

from __future__ import annotations

import torch

from anomalib_clipsam.method.frame import Window
from anomalib_clipsam.tiling.layout import TileGrid


def blend_weights(length: int, overlap: float, device: torch.device) -> torch.Tensor:
    """Return the window of a tile: raised cosines over the overlap at its sides, 1 between.

    Args:
        length (int): T.
        overlap (float): Share of the side that overlaps.
        device (torch.device): Where to.

    Returns:
        torch.Tensor: ``(T, T)``, above 0: at the picture's edge a tile is alone.
    """
    ramp = min(max(1, round(length * overlap)), length // 2 or 1)
    place = torch.arange(length, device=device) + 0.5
    rise = (torch.minimum(place, length - place) / ramp).clamp(max=1)
    weights = (0.5 - 0.5 * (torch.pi * rise).cos()).clamp(min=1e-3)
    return weights[:, None] * weights


class Blend:
    """Tiles' maps, blended to the picture's. What is held does not depend on their number.

    Args:
        grid (TileGrid): The tiles.
        overlap (float): Share of a tile's side over which its weight rises.
        device (torch.device): Where to blend.
    """

    def __init__(self, grid: TileGrid, overlap: float, device: torch.device) -> None:
        self.weights = blend_weights(grid.tile[0], overlap, device)
        self.total = torch.zeros(grid.size, device=device)
        self.weight = torch.zeros(grid.size, device=device)

    def add(self, window: Window, tile_map: torch.Tensor) -> None:
        """Add the map ``(T, T)`` of a tile."""
        top, left, height, width = window
        at = (slice(top, top + height), slice(left, left + width))
        self.total[at] += self.weights * tile_map
        self.weight[at] += self.weights

    def result(self) -> torch.Tensor:
        """Return the picture's map ``(H, W)``: where all tiles say the same, that."""
        return self.total / self.weight
