# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""What the kinds of reference share: features of the taps, similarities, and a map at the picture's size.

Letters: B pictures, T taps, C channels, h w patch grid, P = h * w patches in row-major order, M patches in a memory,
H W map.

References:
    - Damm et al., "AnomalyDINO", https://arxiv.org/abs/2405.14529
    - Chen et al., "APRIL-GAN", https://arxiv.org/abs/2305.17382
    - Li et al., "MuSc: Zero-Shot Industrial Anomaly Classification and Segmentation with Mutual Scoring of the
      Unlabeled Images", https://arxiv.org/abs/2401.16753
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torchvision.transforms.v2.functional import gaussian_blur

from anomalib_clipsam.clip.taps import Taps, join_taps
from anomalib_clipsam.compute.precision import full_precision
from anomalib_clipsam.errors.errors import UserValueError

SIGMA_CANVAS = 256
"""Longer side of the map, in pixels, that ``sigma`` counts on. It scales with the map."""
MEMORY_CHUNK = 1024
"""Patches of a memory that are compared at once; a fixed number, so that an export needs no shape for it."""


def patches_of(tap: torch.Tensor) -> torch.Tensor:
    """Turn a grid ``(B, C, h, w)`` into L2-normalised patches ``(B, P, C)``."""
    return F.normalize(tap.flatten(2).transpose(1, 2), dim=-1)


def nearest_similarity(patches: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
    """Return the cosine similarity of each patch to the most similar one of a memory.

    Args:
        patches (torch.Tensor): Normalised patches ``(..., P, C)``.
        memory (torch.Tensor): Normalised patches ``(M, C)``.

    Returns:
        torch.Tensor: ``(..., P)`` in [-1, 1].
    """
    best = [(patches @ chunk.T).amax(dim=-1) for chunk in memory.split(MEMORY_CHUNK)]
    return torch.stack(best).amax(dim=0)


def spread(patches: torch.Tensor, most: int) -> torch.Tensor:
    """Pick at most so many of the patches ``(P, C)``, far from one another, the same every time."""
    if len(patches) <= most:
        return patches
    # Here, since the import loads all models of anomalib, and text prompts are printed without them.
    from anomalib.models.components import KCenterGreedy

    # its steps alone: of one look they are fast without a random projection, and need no progress bar
    sampler = KCenterGreedy(patches, sampling_ratio=1.0)
    sampler.features = patches
    picked = [torch.zeros((), dtype=torch.long, device=patches.device)]
    while len(picked) < most:
        sampler.update_distances(picked[-1])
        picked.append(sampler.get_new_idx())
    return patches[torch.stack(picked)]


def peak_score(distance_map: torch.Tensor, share: float = 0.01) -> torch.Tensor:
    """Return a picture's own score: the mean of the highest values of its map. [ours]

    Args:
        distance_map (torch.Tensor): ``(B, H, W)``.
        share (float): Share of the pixels that count, in [0, 1]; at least one pixel does. Defaults to ``0.01``.

    Returns:
        torch.Tensor: ``(B,)``.
    """
    values = distance_map.flatten(1)
    return values.topk(max(1, int(share * values.shape[1])), dim=1).values.mean(dim=1)


class Reference(nn.Module, ABC):
    """Base of the kinds of reference: from the features of some taps to a map of distances.

    A distance is no probability, see :class:`~anomalib_clipsam.references.calibration.Calibration`.

    Args:
        join (bool): Join the taps by :func:`join_taps`, for a CNN's stages. Otherwise every tap is judged by itself and
            the mean over taps is taken, as published for a ViT, whose taps must have one grid. Defaults to ``False``.
        sigma (float): Standard deviation of the Gaussian that smooths the map, in pixels of a map of 256 px; 0 for
            none, as published. Defaults to ``0``.

    Raises:
        ValueError: If ``sigma`` is below 0.
    """

    def __init__(self, join: bool = False, sigma: float = 0.0) -> None:
        super().__init__()
        if not 0 <= sigma < float("inf"):
            msg = f"sigma is {sigma}, but it is a length in pixels. Choose 0, for no smoothing, or a number above it."
            raise UserValueError(msg)
        self.join = join
        self.sigma = sigma

    def features(self, taps: Taps) -> Taps:
        """Return what is compared: the taps, or the one tap that they are joined to.

        Args:
            taps (tuple[torch.Tensor, ...]): T grids ``(B, C_t, h_t, w_t)``.

        Returns:
            tuple[torch.Tensor, ...]: Grids in float32.

        Raises:
            ValueError: If there is no tap, or the grids differ and are not joined.
        """
        if not taps:
            msg = "There are no features to compare. Let the localizer give at least one tap."
            raise UserValueError(msg)
        taps = tuple(tap.float() for tap in taps)
        if self.join:
            return join_taps(taps)
        grids = {tuple(tap.shape[-2:]) for tap in taps}
        if len(grids) > 1:
            msg = f"The taps have grids of several sizes, {sorted(grids)}. Set join=True to bring them to one."
            raise UserValueError(msg)
        return taps

    def to_map(self, distances: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Bring the distances of the taps to one map at the picture's size.

        Args:
            distances (torch.Tensor): ``(B, T, h, w)``.
            size (tuple[int, int]): Height and width of the map.

        Returns:
            torch.Tensor: Mean over the taps, ``(B, H, W)``. A ViT's corner patches lie at the map's corners, as in
            APRIL-GAN and MuSc; the cells of joined stages keep their centres.
        """
        grid = distances.mean(dim=1, keepdim=True)
        result = F.interpolate(grid, size, mode="bilinear", align_corners=not self.join)
        sigma = self.sigma * max(size) / SIGMA_CANVAS
        radius = min(round(4 * sigma), min(size) - 1)  # the border is mirrored, which needs that many pixels
        if radius > 0:
            result = gaussian_blur(result, [2 * radius + 1, 2 * radius + 1], [sigma, sigma])
        return result.squeeze(1)


class PictureReference(Reference):
    """Base of the references that judge one picture at a time, and so can be exported."""

    @abstractmethod
    def distances(self, features: Taps) -> torch.Tensor:
        """Compare features with the reference.

        Args:
            features (tuple[torch.Tensor, ...]): Grids ``(B, C_t, h, w)``, as :meth:`features` gives them.

        Returns:
            torch.Tensor: One distance per tap and patch, ``(B, T, h, w)``, at least 0.
        """

    def forward(self, taps: Taps, size: tuple[int, int]) -> torch.Tensor:
        """Return the map of distances.

        Args:
            taps (tuple[torch.Tensor, ...]): T grids ``(B, C_t, h_t, w_t)``.
            size (tuple[int, int]): Height and width of the map.

        Returns:
            torch.Tensor: ``(B, H, W)``, at least 0.
        """
        with full_precision(taps[0].device.type):
            return self.to_map(self.distances(self.features(taps)), size)
