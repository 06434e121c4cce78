# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Taps: the features of some of a tower's blocks or stages.

Letters: B images, T taps, C_t channels of a tap, h w feature grid.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F  # noqa: N812

Taps = tuple[torch.Tensor, ...]
"""Grids of patch features ``(B, C_t, h_t, w_t)``, one per tap."""


def join_taps(taps: Taps) -> Taps:
    """Join stages of several resolutions to one grid of features.

    Each stage is averaged over 3 x 3 neighbours, L2-normalised, so that every stage weighs the same, and upsampled to
    the finest of the grids. [ours; after PatchCore, which averages and concatenates, but does not normalise]

    Args:
        taps (tuple[torch.Tensor, ...]): Stages ``(B, C_t, h_t, w_t)``.

    Returns:
        tuple[torch.Tensor, ...]: One tap ``(B, C_1 + ... + C_T, h, w)``.
    """
    size = max((tuple(tap.shape[-2:]) for tap in taps), key=lambda grid: grid[0] * grid[1])
    stages = []
    for tap in taps:
        stage = F.normalize(F.avg_pool2d(tap, 3, stride=1, padding=1, count_include_pad=False), dim=1)
        if tuple(stage.shape[-2:]) != size:
            stage = F.interpolate(stage, size, mode="bilinear", align_corners=False)
        stages.append(stage)
    return (torch.cat(stages, dim=1),)
