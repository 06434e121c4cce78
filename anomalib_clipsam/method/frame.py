# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""SAM's square input frame: an image's longer side spans it, and the rest is padding on the right or below.

Letters: B images, C channels, H W map or image, h w grid of the whole frame, S side of the frame, k points.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F  # noqa: N812

if TYPE_CHECKING:
    from collections.abc import Sequence

Window = tuple[int, int, int, int]
"""Top, left, height and width of a part of a map, in pixels."""


def scaled_size(size: Sequence[int], longer_side: int) -> tuple[int, int]:
    """Scale a size to a longer side.

    Args:
        size (Sequence[int]): Height and width.
        longer_side (int): What the longer of them becomes.

    Returns:
        tuple[int, int]: Height and width.
    """
    longer = max(size)
    height, width = (max(1, round(side * longer_side / longer)) for side in size)
    return height, width


def resize_image(image: torch.Tensor, longer_side: int) -> torch.Tensor:
    """Resize images to a longer side, bicubic with antialiasing.

    Args:
        image (torch.Tensor): ``(B, 3, height, width)`` in [0, 1].
        longer_side (int): Longer side of the result, in pixels.

    Returns:
        torch.Tensor: ``(B, 3, H, W)`` in [0, 1]; the images themselves where they have that size.
    """
    return resize_to(image, scaled_size(image.shape[-2:], longer_side))


def resize_to(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize images to a height and width, see :func:`resize_image`.

    Args:
        image (torch.Tensor): ``(B, 3, height, width)`` in [0, 1].
        size (tuple[int, int]): H and W.

    Returns:
        torch.Tensor: ``(B, 3, H, W)`` in [0, 1]; the images themselves where they have that size.
    """
    if tuple(image.shape[-2:]) == size:
        return image
    return F.interpolate(image, size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)


def frame_to_map(values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bring values of the whole frame to a map's size, without the frame's padding.

    Args:
        values (torch.Tensor): ``(B, h, w)``.
        size (tuple[int, int]): Height and width of the map, whose longer side spans the frame.

    Returns:
        torch.Tensor: ``(B, H, W)``, bilinear.
    """
    longer = max(size)
    values = F.interpolate(values.unsqueeze(1), (longer, longer), mode="bilinear", align_corners=False)
    return values[:, 0, : size[0], : size[1]]


def map_to_frame(anomaly_map: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Bring a map to a grid of the whole frame, with zeros where the frame is padding.

    Args:
        anomaly_map (torch.Tensor): ``(B, H, W)``.
        grid (tuple[int, int]): h and w.

    Returns:
        torch.Tensor: ``(B, h, w)``, the mean of the pixels of each cell.
    """
    height, width = anomaly_map.shape[-2:]
    longer = max(height, width)
    padded = F.pad(anomaly_map, (0, longer - width, 0, longer - height))
    return F.interpolate(padded.unsqueeze(1), grid, mode="area").squeeze(1)


def inside_frame(grid: tuple[int, int], size: Sequence[int], device: torch.device) -> torch.Tensor:
    """Mark which cells of a grid of the whole frame show the image, and not its padding.

    Args:
        grid (tuple[int, int]): h and w.
        size (Sequence[int]): Height and width of the image, at any scale.
        device (torch.device): Where to.

    Returns:
        torch.Tensor: ``(h, w)`` bool.
    """
    longer = max(size)
    rows, columns = (
        torch.arange(cells, device=device) * longer < side * cells for cells, side in zip(grid, size, strict=True)
    )
    return rows.unsqueeze(-1) & columns


def pixels_to_points(index: torch.Tensor, size: Sequence[int], frame_size: int) -> torch.Tensor:
    """Turn pixels of a map into points of the frame, centre to centre.

    Args:
        index (torch.Tensor): Flat indices into H * W, ``(B, k)``; -1 for none.
        size (Sequence[int]): H and W.
        frame_size (int): S.

    Returns:
        torch.Tensor: ``(B, k, 2)``, x then y, in pixels of the frame; zero where there is none.
    """
    scale = frame_size / max(size)
    xy = torch.stack([index % size[1], index // size[1]], dim=-1)
    return torch.where(index.unsqueeze(-1) >= 0, (xy + 0.5) * scale - 0.5, 0.0)
