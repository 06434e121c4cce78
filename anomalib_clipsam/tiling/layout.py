# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Large pictures: where tiles lie, how their maps are blended, and where SAM is asked. [ours]

Everything is laid out on the pixels of the picture's map, so that a tile's map falls on whole pixels and the blend is
exact; pixels of the picture are reached by :meth:`TileGrid.pixels`.

anomalib has a tiler, which is not used: all tiles of a picture are in memory at once, the last ones hang over the
picture's edge, and where tiles overlap all count the same, which shows their edges.

Letters: H W map, T side of a tile in pixels of the map, N tiles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch

from anomalib_clipsam.method.frame import scaled_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

AUTO = "auto"
LEAST_SIDE = 32
"""Smallest side of a tile: the coarsest step of the networks, the last stage of the carried CLIP."""
MOST_TILES = 4096
"""Most tiles of a picture; ``"auto"`` takes larger ones before there are more. 12,000 x 9,000 px have 3,072 of 256."""
MOST_OVERLAP = 0.75
LARGEST_MAP = 1024
"""Longer side of a map that nobody has set, unless the picture is smaller: 16 times the memory of a map of 256 px."""
LARGE = 4
"""``"auto"`` cuts pictures whose longer side is more than so many times that of a look: 1024 px for the carried pair. A
look at a smaller one sees a defect of 10 to 40 px too, and a tile of a part lacks the rest of it."""
MOST_ASKS = 8
"""Most crops of a picture that SAM is asked about, the most suspicious first."""
ROOM = 2.0
"""Side of a crop, in longer sides of the region that it is cut out for."""
NEARLY_ALL = 1.5
"""SAM is shown the whole picture where a crop has a side of this part of it or more."""

Window = tuple[int, int, int, int]
"""Top, left, height and width of a part of the map, in pixels."""


@dataclass(frozen=True)
class Tiling:
    """How pictures are cut into tiles.

    Args:
        side (int | str): Side of a tile in pixels of the picture, or ``"auto"``: that of one look at CLIP's own scale,
            larger where the picture would have more than :data:`MOST_TILES`.
        overlap (float): Share of its side that a tile has in common with the next one, at least, in [0, 0.75].
        batch (int): Tiles that CLIP sees at once.
        map_size (int | None): Longer side of the picture's map, in pixels. Defaults to ``None``: the picture's, up to
            :data:`LARGEST_MAP`.

    Raises:
        ValueError: If an argument is outside its range.
    """

    side: int | str
    overlap: float
    batch: int
    map_size: int | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        if isinstance(self.side, str) and self.side != AUTO:
            msg = f"tiles is '{self.side}'. Give '{AUTO}', or the side of a tile in pixels, such as 512."
            raise ValueError(msg)
        if isinstance(self.side, int) and self.side < LEAST_SIDE:
            msg = f"tiles is {self.side}, but CLIP sees nothing in less than {LEAST_SIDE} px. Give more, or '{AUTO}'."
            raise ValueError(msg)
        if not 0 <= self.overlap <= MOST_OVERLAP:
            msg = f"tile_overlap is {self.overlap}; it is a share of a tile. Choose between 0 and {MOST_OVERLAP}."
            raise ValueError(msg)
        if self.batch < 1:
            msg = f"tile_batch is {self.batch}, but it is a number of tiles. Choose 1 or more."
            raise ValueError(msg)

    def grid(self, size: Sequence[int], view: int) -> TileGrid:
        """Lay tiles over a picture.

        Args:
            size (Sequence[int]): Its height and width.
            view (int): Side of what CLIP sees in one look at its own scale, in pixels.

        Returns:
            TileGrid: The tiles; one, the whole picture, where it is hardly larger than a tile.

        Raises:
            ValueError: If there are more than :data:`MOST_TILES`.
        """
        longer, shorter = max(size), min(size)
        map_size = min(longer, LARGEST_MAP) if self.map_size is None else self.map_size
        auto = self.side == AUTO
        side = view if auto else self.side
        if longer <= side * (LARGE if auto else 1):
            side = longer
        while True:
            grid = TileGrid.over(size, map_size, min(side, shorter) if side < longer else longer, self.overlap)
            if len(grid) <= MOST_TILES:
                return grid
            if not auto:
                msg = (
                    f"{size[1]} x {size[0]} pixels make {len(grid):,} tiles of {side} px, but {MOST_TILES:,} are the "
                    f"most: give a larger `tiles`, or '{AUTO}'."
                )
                raise ValueError(msg)
            side = math.ceil(1.1 * side)


@dataclass(frozen=True)
class TileGrid:
    """Tiles on the map of a picture.

    Args:
        picture (tuple[int, int]): Height and width of the picture.
        size (tuple[int, int]): H and W of its map.
        tile (tuple[int, int]): Height and width of a tile on the map: squares, or the whole.
        rows (tuple[int, ...]): First row of the tiles of each row.
        columns (tuple[int, ...]): First column of those of each column.
    """

    picture: tuple[int, int]
    size: tuple[int, int]
    tile: tuple[int, int]
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @classmethod
    def over(cls, picture: Sequence[int], map_size: int, side: int, overlap: float) -> TileGrid:
        """Lay squares of this side, in pixels of the picture, over it; the whole where the side is the longer one."""
        size = scaled_size(picture, map_size)
        if side >= max(picture):
            return cls(tuple(picture), size, size, (0,), (0,))
        length = min(max(1, round(side * max(size) / max(picture))), *size)
        rows, columns = (tuple(starts(whole, length, overlap)) for whole in size)
        return cls(tuple(picture), size, (length, length), rows, columns)

    def __len__(self) -> int:
        """Give the number of tiles."""
        return len(self.rows) * len(self.columns)

    def __iter__(self) -> Iterator[Window]:
        """Give the tiles, row by row."""
        return ((row, column, *self.tile) for row in self.rows for column in self.columns)

    def pixels(self, window: Window) -> tuple[slice, slice]:
        """Say which rows and columns of the picture a part of the map shows."""
        top, left, height, width = window
        return self._span(top, height, 0), self._span(left, width, 1)

    def _span(self, first: int, length: int, axis: int) -> slice:
        scale = self.picture[axis] / self.size[axis]
        start, stop = round(first * scale), round((first + length) * scale)
        return slice(min(start, self.picture[axis] - 1), max(stop, start + 1))


def starts(whole: int, length: int, overlap: float) -> list[int]:
    """Place the fewest tiles along one side of a map, evenly, the first and the last at its ends.

    Args:
        whole (int): Length of the side.
        length (int): Length of a tile.
        overlap (float): Share of a tile that it has in common with the next one, at least.

    Returns:
        list[int]: First pixel of each.
    """
    if whole <= length:
        return [0]
    step = max(1, math.floor(length * (1 - overlap)))
    steps = math.ceil((whole - length) / step)
    return [round(number * (whole - length) / steps) for number in range(steps + 1)]


def blend_weights(length: int, overlap: float, device: torch.device) -> torch.Tensor:
    """Give the window of a tile: raised cosines over the overlap at its sides, 1 between.

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
        """Give the picture's map ``(H, W)``: where all tiles say the same, that."""
        return self.total / self.weight


@dataclass(frozen=True)
class Ask:
    """A part of the picture that SAM is asked about.

    Args:
        window (Window): The part, on the map.
        labels (tuple[int, ...]): Numbers of the regions in it.
    """

    window: Window
    labels: tuple[int, ...]


def plan_asks(
    region: torch.Tensor, anomaly_map: torch.Tensor, side: int, most: int = MOST_ASKS
) -> tuple[list[Ask], torch.Tensor]:
    """Choose what SAM is asked about: crops around the parts of the extreme region, the most suspicious first.

    Args:
        region (torch.Tensor): M_apa, ``(H, W)`` bool.
        anomaly_map (torch.Tensor): S_a, ``(H, W)``.
        side (int): Least side of a crop, in pixels of the map.
        most (int): Most crops. Defaults to :data:`MOST_ASKS`.

    Returns:
        tuple[list[Ask], torch.Tensor]: The crops, each with all parts of the region that lie in it; and the parts that
        no crop has, ``(H, W)`` bool.
    """
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(region.cpu().numpy().astype(np.uint8), connectivity=8)
    labels = torch.from_numpy(labels).to(region.device)  # (H, W), 0 outside
    peaks = anomaly_map.new_zeros(count).scatter_reduce(0, labels.flatten().long(), anomaly_map.flatten(), "amax")
    left = (peaks[1:].argsort(descending=True) + 1).tolist()
    asks: list[Ask] = []
    while left and len(asks) < most:
        window = crop_around(boxes[left[0]], tuple(region.shape), side)
        inside = [label for label in left if label == left[0] or _holds(window, boxes[label])]
        asks.append(Ask(window, tuple(inside)))
        left = [label for label in left if label not in inside]
    return asks, torch.isin(labels, torch.tensor(left, dtype=labels.dtype, device=labels.device)) & region


def crop_around(box: Sequence[int], size: Sequence[int], side: int) -> Window:
    """Cut a square out of a map around a region; the whole map where the region is large.

    Args:
        box (Sequence[int]): Left, top, width and height of the region.
        size (Sequence[int]): H and W.
        side (int): Least side of the square.

    Returns:
        Window: The square, moved and cut to lie in the map.
    """
    left, top, width, height = (int(value) for value in box[:4])
    side = max(side, math.ceil(ROOM * max(width, height)))
    if side * NEARLY_ALL >= max(size):
        return 0, 0, size[0], size[1]
    spans = []
    for first, length, whole in ((top, height, size[0]), (left, width, size[1])):
        span = min(side, whole)
        spans.append((min(max(0, first + (length - span) // 2), whole - span), span))
    (top, height), (left, width) = spans
    return top, left, height, width


def _holds(window: Window, box: Sequence[int]) -> bool:
    top, left, height, width = window
    return left <= box[0] and top <= box[1] and box[0] + box[2] <= left + width and box[1] + box[3] <= top + height
