# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The unlabelled batch as reference: what the other pictures do not show is suspect. [related: MuSc]

Letters: N pictures, B tiles of one of them, T taps, C channels, h w patch grid, P = h * w patches, M patches that are
kept of a picture in tiles, r side of a neighbourhood, E embedding.

Reference:
    Li et al., "MuSc: Zero-Shot Industrial Anomaly Classification and Segmentation with Mutual Scoring of the Unlabeled
    Images", https://arxiv.org/abs/2401.16753
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_clipsam.clip.taps import Taps
from anomalib_clipsam.compute.precision import full_precision
from anomalib_clipsam.errors.errors import UserValueError
from anomalib_clipsam.references.distances.features import Reference, nearest_similarity, patches_of, spread

if TYPE_CHECKING:
    from collections.abc import Sequence

LEAST_PICTURES = 5
"""Fewest pictures that judge each other: MuSc's own code gives NaN for 4."""
MUSC_SIZES = (1, 3, 5)
"""Sides r of the neighbourhoods that MuSc averages over."""
MOST_PATCHES = 2048
"""Most patches of a picture in tiles that others are compared with: more than any look of the published pairs has."""


def aggregate_neighbours(features: torch.Tensor, size: int) -> torch.Tensor:
    """Let each patch know its neighbours: MuSc's LNAMD. [related: MuSc]

    Args:
        features (torch.Tensor): Grids ``(N, C, h, w)``.
        size (int): Side r of the neighbourhood, odd.

    Returns:
        torch.Tensor: ``(N, C, h, w)``: the mean over r x r patches, zeros outside, of the features after one
        normalisation by the mean and deviation of all channels and patches of a picture. Before L2-normalisation.
    """
    normalised = F.layer_norm(features, features.shape[1:])
    return normalised if size == 1 else F.avg_pool2d(normalised, size, stride=1, padding=size // 2)


def mutual_scores(patches: torch.Tensor, share: float = 0.3) -> torch.Tensor:
    """Let pictures judge each other's patches: MuSc's MSM. [related: MuSc]

    Args:
        patches (torch.Tensor): Normalised patches ``(N, P, C)``.
        share (float): Share of the other pictures that decide, those with the nearest patches. Defaults to ``0.3``.

    Returns:
        torch.Tensor: ``(N, P)``: for each other picture the Euclidean distance to its nearest patch, in [0, 2], and of
        these the mean of the smallest.
    """
    count = len(patches)
    # nearest[i, j]: of each patch of picture i the similarity to picture j; a pair of pictures is compared once
    nearest = patches.new_full((count, count, patches.shape[1]), -torch.inf)
    for i in range(count):
        for j in range(i + 1, count):
            similarity = patches[i] @ patches[j].T  # (P, P)
            nearest[i, j] = similarity.amax(dim=1)
            nearest[j, i] = similarity.amax(dim=0)
    return _decide(nearest, share, count - 1)


def scores_by(patches: torch.Tensor, others: Sequence[torch.Tensor], share: float = 0.3) -> torch.Tensor:
    """Let other pictures judge patches, as :func:`mutual_scores` does, whatever number of patches they have.

    Args:
        patches (torch.Tensor): Normalised patches ``(B, P, C)`` of one picture.
        others (Sequence[torch.Tensor]): Normalised patches ``(M, C)`` of each of the other pictures.
        share (float): Share of the other pictures that decide. Defaults to ``0.3``.

    Returns:
        torch.Tensor: ``(B, P)``.
    """
    nearest = torch.stack([nearest_similarity(patches, other) for other in others], dim=1)  # (B, N - 1, P)
    return _decide(nearest, share, len(others))


def _decide(nearest: torch.Tensor, share: float, others: int) -> torch.Tensor:
    """Make scores of the similarities ``(B, N, P)`` to the nearest patch of each picture."""
    deciding = max(1, int(share * others))
    return (2 - 2 * nearest.topk(deciding, dim=1).values).clamp(min=0).sqrt().mean(dim=1)


def smooth_scores(scores: torch.Tensor, embeddings: torch.Tensor, windows: tuple[int, ...]) -> torch.Tensor:
    """Let pictures that look alike share their scores: MuSc's RsCIN. [related: MuSc]

    Args:
        scores (torch.Tensor): Image scores ``(N,)``.
        embeddings (torch.Tensor): Normalised image embeddings ``(N, E)``.
        windows (tuple[int, ...]): Pictures that share, itself among them; the mean over these numbers is taken.
            Published: 1, 2, 3 for MVTec AD and 1, 8, 9 for VisA.

    Returns:
        torch.Tensor: ``(N,)`` in [0, 1], relative to the lowest and highest score of the batch.

    Raises:
        ValueError: If a window is below 1 or above N.
    """
    if not windows or min(windows) < 1 or max(windows) > len(scores):
        msg = f"The windows {windows} do not fit a batch of {len(scores)} pictures. Choose numbers from 1 to that."
        raise UserValueError(msg)
    scaled = (scores - scores.min()) / (scores.max() - scores.min()).clamp(min=torch.finfo(scores.dtype).eps)
    similarity = embeddings @ embeddings.T  # (N, N)
    means = []
    for window in windows:
        weight, index = similarity.topk(window, dim=1)
        means.append((weight * scaled[index]).sum(dim=1) / weight.sum(dim=1))
    return torch.stack(means).mean(dim=0)


class BatchReference(Reference):
    """Distance of a patch to the nearest patches of the other pictures, none of which has a label. [related: MuSc]

    The scores of a picture depend on its company. A defect that 30 % of the pictures share counts as good.

    Args:
        share (float): Share of the other pictures that decide, in (0, 1]. Defaults to ``0.3``.
        sizes (tuple[int, ...]): Sides r of the neighbourhoods, odd; the mean over them is taken. Joined stages are
            averaged over neighbours already and take 1 alone. Defaults to ``None``: MuSc's 1, 3, 5, or 1 with ``join``.
        join (bool): See :class:`~anomalib_clipsam.references.distances.features.Reference`. Defaults to ``False``.
        sigma (float): See there. Defaults to ``0``.

    Raises:
        ValueError: If ``share`` or a size is outside its range.
    """

    def __init__(
        self, share: float = 0.3, sizes: tuple[int, ...] | None = None, join: bool = False, sigma: float = 0.0
    ) -> None:
        super().__init__(join, sigma)
        if not 0 < share <= 1:
            msg = f"share is {share}, but it is a share of the other pictures. Choose a number above 0, 1 at most."
            raise UserValueError(msg)
        sizes = ((1,) if join else MUSC_SIZES) if sizes is None else tuple(sizes)
        if not sizes or any(size < 1 or size % 2 == 0 for size in sizes):
            msg = f"sizes is {sizes}, but a neighbourhood has an odd side. Choose numbers such as 1, 3, 5."
            raise UserValueError(msg)
        self.share = share
        self.sizes = sizes

    def keep(self, taps: Taps) -> Taps:
        """Return what must be kept of some pictures until all have come: features in half precision.

        Args:
            taps (tuple[torch.Tensor, ...]): Grids ``(B, C_t, h_t, w_t)``.

        Returns:
            tuple[torch.Tensor, ...]: Grids in float16, on the CPU, scaled so that none overflows.
        """
        kept = []
        for tap in self.features(taps):
            largest = tap.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=torch.finfo(tap.dtype).tiny)
            kept.append((tap / largest).half().cpu())  # a picture's scale falls out of what follows
        return tuple(kept)

    @torch.no_grad()
    def distances(self, kept: Taps, device: torch.device | None = None) -> torch.Tensor:
        """Let pictures judge each other.

        Args:
            kept (tuple[torch.Tensor, ...]): Grids ``(N, C_t, h, w)`` of all pictures: joined results of :meth:`keep`,
                or of :meth:`features`.
            device (torch.device | None): Where to compare, a tap at a time. Defaults to ``None``, where they are.

        Returns:
            torch.Tensor: ``(N, T, h, w)`` in [0, 2].

        Raises:
            ValueError: If there are fewer than 5 pictures.
        """
        if len(kept[0]) < LEAST_PICTURES:
            msg = (
                f"{len(kept[0])} pictures are too few to judge each other, {LEAST_PICTURES} are needed. "
                "Give more pictures, or choose references='self'."
            )
            raise UserValueError(msg)
        grids = []
        for tap in kept:
            grid = tap.to(device or tap.device).float()
            with full_precision(grid.device.type):
                grids.append(torch.stack([self._scores(grid, size) for size in self.sizes]).mean(dim=0))
        return torch.stack(grids, dim=1)

    def _scores(self, tap: torch.Tensor, size: int) -> torch.Tensor:
        """Return the mutual scores ``(N, h, w)`` of one tap and neighbourhood."""
        return mutual_scores(self._patches(tap, size), self.share).unflatten(1, tap.shape[-2:])

    def _patches(self, tap: torch.Tensor, size: int) -> torch.Tensor:
        """Return the normalised patches ``(N, P, C)`` of one tap and neighbourhood."""
        # joined stages weigh the same by their norms, which another normalisation would undo
        return patches_of(tap if self.join and size == 1 else aggregate_neighbours(tap, size))

    @torch.no_grad()
    def sample(self, taps: Taps, views: int, limit: int) -> Taps:
        """Pick patches of some tiles of a picture, that other pictures are compared with.

        Args:
            taps (tuple[torch.Tensor, ...]): Grids ``(B, C_t, h_t, w_t)`` of B tiles.
            views (int): Tiles of the picture, all of which have an equal share.
            limit (int): Bytes that the patches of the picture may take.

        Returns:
            tuple[torch.Tensor, ...]: Normalised patches ``(M, C_t)`` in half precision of each tap and neighbourhood:
            of all tiles together at most :data:`MOST_PATCHES`, but one of each tile at least. Where a tile has more,
            anomalib's ``KCenterGreedy`` picks those that are farthest from one another.
        """
        features = self.features(taps)
        with full_precision(features[0].device.type):
            patches = [self._patches(tap, size) for tap in features for size in self.sizes]
            most = min(MOST_PATCHES, limit // (2 * sum(tile.shape[-1] for tile in patches)))
            each = max(1, most // views)
            return tuple(torch.cat([spread(tile, each) for tile in tiles]).half() for tiles in patches)

    @torch.no_grad()
    def distances_to(self, taps: Taps, others: Sequence[Taps]) -> torch.Tensor:
        """Let other pictures judge tiles of one.

        Args:
            taps (tuple[torch.Tensor, ...]): Grids ``(B, C_t, h_t, w_t)`` of B tiles.
            others (Sequence[tuple[torch.Tensor, ...]]): What :meth:`sample` gave of each other picture.

        Returns:
            torch.Tensor: ``(B, T, h, w)`` in [0, 2].
        """
        features = self.features(taps)
        grids, known = [], zip(*others, strict=True)  # of a tap and neighbourhood, the patches of all others
        with full_precision(features[0].device.type):
            for tap in features:
                scores = [
                    scores_by(self._patches(tap, size), [other.float() for other in next(known)], self.share)
                    for size in self.sizes
                ]
                grids.append(torch.stack(scores).mean(dim=0).unflatten(1, tap.shape[-2:]))
        return torch.stack(grids, dim=1)

    def parts(self, count: int, taps: Taps, limit: int) -> int:
        """Find into how many subsets a batch is divided where it does not fit into memory.

        Args:
            count (int): Number of pictures N.
            taps (tuple[torch.Tensor, ...]): What :meth:`keep` gave of one or more of them, for their shapes.
            limit (int): Bytes that a subset may take: its kept features, those of one tap in float32, twice more while
                they are normalised, and the nearest similarities.

        Returns:
            int: The fewest subsets of about equal size that fit.

        Raises:
            ValueError: If not even the fewest pictures fit.
        """
        numbers = [tap[0].numel() for tap in taps]
        patches = taps[0][0, 0].numel()
        parts = 1
        while True:
            size = -(-count // parts)  # of the largest subset
            needed = size * (2 * sum(numbers) + 3 * 4 * max(numbers)) + 4 * patches * size**2
            if needed <= limit:
                return parts
            parts += 1
            if count // parts < LEAST_PICTURES:
                msg = (
                    f"{count} pictures of this size do not fit into {limit} bytes, in subsets of {LEAST_PICTURES} or "
                    f"more: {size} of them need {needed}. Choose a smaller clip_size, or references='self'."
                )
                raise UserValueError(msg)
