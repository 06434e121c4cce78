# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Pictures that show the same: one file twice, a trigger that grabbed a part twice, a camera that stands still."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F  # noqa: N812

if TYPE_CHECKING:
    from collections.abc import Iterable

THUMBNAIL = 64
"""Side of what pictures are compared by, in pixels: a sensor's noise is averaged away."""
SAME = 1 / 255
"""Mean difference of two thumbnails below which they show the same. [ours]"""


def thumbnail(image: torch.Tensor) -> torch.Tensor:
    """Make a small picture ``(3, 64, 64)`` of a picture ``(3, height, width)``, in main memory."""
    return F.interpolate(image[None].float(), (THUMBNAIL, THUMBNAIL), mode="area")[0].cpu()


def find_copies(images: Iterable[torch.Tensor]) -> set[int]:
    """Find pictures that show the same as an earlier one.

    Args:
        images (Iterable[torch.Tensor]): Pictures ``(3, height, width)`` in [0, 1].

    Returns:
        set[int]: Their places.
    """
    return find_same([thumbnail(image) for image in images])


def find_same(thumbnails: list[torch.Tensor]) -> set[int]:
    """Find thumbnails that show the same as an earlier one.

    Args:
        thumbnails (list[torch.Tensor]): See :func:`thumbnail`.

    Returns:
        set[int]: Their places.
    """
    kept: list[torch.Tensor] = []
    copies = set()
    for place, small in enumerate(thumbnails):
        if kept and ((torch.stack(kept) - small).abs().flatten(1).mean(dim=1) < SAME).any():
            copies.add(place)
        else:
            kept.append(small)
    return copies
