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

from anomalib_clipsam.errors.errors import UserValueError
from anomalib_clipsam.method.frame import scaled_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anomalib_clipsam.method.frame import Window

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
            raise UserValueError(msg)
        if isinstance(self.side, int) and self.side < LEAST_SIDE:
            msg = f"tiles is {self.side}, but CLIP sees nothing in less than {LEAST_SIDE} px. Give more, or '{AUTO}'."
            raise UserValueError(msg)
        if not 0 <= self.overlap <= MOST_OVERLAP:
            msg = f"tile_overlap is {self.overlap}; it is a share of a tile. Choose between 0 and {MOST_OVERLAP}."
            raise UserValueError(msg)
        if self.batch < 1:
            msg = f"tile_batch is {self.batch}, but it is a number of tiles. Choose 1 or more."
            raise UserValueError(msg)

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
        auto = isinstance(self.side, str)
        side = view if isinstance(self.side, str) else self.side
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
                raise UserValueError(msg)
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
        size, (height, width) = scaled_size(picture, map_size), picture
        if side >= max(picture):
            return cls((height, width), size, size, (0,), (0,))
        length = min(max(1, round(side * max(size) / max(picture))), *size)
        rows, columns = (tuple(starts(whole, length, overlap)) for whole in size)
        return cls((height, width), size, (length, length), rows, columns)

    def __len__(self) -> int:
        """Return the number of tiles."""
        return len(self.rows) * len(self.columns)

    def __iter__(self) -> Iterator[Window]:
        """Return the tiles, row by row."""
        return ((row, column, *self.tile) for row in self.rows for column in self.columns)

    def pixels(self, window: Window) -> tuple[slice, slice]:
        """Report which rows and columns of the picture a part of the map shows."""
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
