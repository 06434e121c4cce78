# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Connected parts of a mask, in tensor operations that an exported graph can hold.

anomalib's own labelling calls OpenCV, or on a GPU takes a thousand steps.

Letters: B images, H W map.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F  # noqa: N812

ROUNDS = 8
"""Rounds in a graph, which cannot stop when nothing changes. Spirals, combs and noise of 518 x 518 pixels took 6 or
fewer."""
JUMPS = 8
"""Steps from label to label in a round: chains of 256 labels become one."""


def label_parts(mask: torch.Tensor, until_done: bool = True) -> torch.Tensor:
    """Number the connected parts of masks; pixels that touch by a corner are connected, as in anomalib.

    Each pixel starts with a number of its own. In a round, each part that is known takes the highest number beside it,
    and then the number that this part has taken meanwhile, and so on.

    Args:
        mask (torch.Tensor): ``(B, H, W)`` bool, up to 4096 x 4096 pixels.
        until_done (bool): Whether to go on until nothing changes, which a GPU is waited for in each round, or for
            :data:`ROUNDS`, as in a graph. Defaults to ``True``.

    Returns:
        torch.Tensor: ``(B, H, W)`` of whole numbers: 0 outside, one number above 0 for all pixels of a part.
    """
    height, width = mask.shape[-2:]
    place = torch.arange(1, height * width + 1, device=mask.device).view(height, width)
    labels = place * mask  # (B, H, W)
    until_done = until_done and not torch.compiler.is_compiling()
    left = height * width if until_done else ROUNDS
    while left:
        beside = F.max_pool2d(labels.float(), 3, stride=1, padding=1).long() * mask
        table = torch.zeros_like(labels).flatten(1)  # label -> the label that it becomes
        table = F.pad(table, (1, 0)).scatter_reduce(1, labels.flatten(1), beside.flatten(1), "amax")
        for _ in range(JUMPS):
            table = table.gather(1, table)
        merged = table.gather(1, labels.flatten(1)).view_as(labels)
        left -= 1
        if until_done and torch.equal(merged, labels):
            break
        labels = merged
    return labels


def measure_parts(mask: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Measure the connected parts of masks.

    Args:
        mask (torch.Tensor): ``(B, H, W)`` bool.
        values (torch.Tensor): ``(B, H, W)``.

    Returns:
        tuple[torch.Tensor, torch.Tensor]: At each pixel of a mask, the mean of the values in its part, and the part's
        area in pixels, ``(B, H, W)``. What is outside means nothing.
    """
    labels = label_parts(mask).flatten(1)  # (B, H * W)
    empty = F.pad(torch.zeros_like(values).flatten(1), (1, 0))
    area = empty.scatter_add(1, labels, torch.ones_like(values).flatten(1)).gather(1, labels)
    total = empty.scatter_add(1, labels, values.flatten(1)).gather(1, labels)
    return (total / area).view_as(values), area.view_as(values)
