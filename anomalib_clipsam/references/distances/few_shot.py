# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""A few good parts as reference: a patch that is like none of theirs is suspect.

Letters: B pictures or tiles, each seen in one look, T taps, C channels, h w patch grid, P = h * w patches, M patches in
the memory.

References:
    - Chen et al., "APRIL-GAN", https://arxiv.org/abs/2305.17382
    - Damm et al., "AnomalyDINO", https://arxiv.org/abs/2405.14529
    - Roth et al., "Towards Total Recall in Industrial Anomaly Detection" (PatchCore), https://arxiv.org/abs/2106.08265
"""

from __future__ import annotations

import torch

from anomalib_clipsam.clip.taps import Taps
from anomalib_clipsam.errors.errors import UserValueError
from anomalib_clipsam.references.distances.features import PictureReference, nearest_similarity, patches_of, spread


def quarter_turns(images: torch.Tensor) -> list[torch.Tensor]:
    """Rotate good parts, for products that lie in any direction. [related: AnomalyDINO, which turns by 45 degrees]

    Args:
        images (torch.Tensor): ``(k, 3, height, width)``.

    Returns:
        list[torch.Tensor]: The images as they are, and rotated by 90, 180 and 270 degrees. Quarter turns leave no empty
        corner, which would enter the memory as good. [ours]
    """
    return [torch.rot90(images, turn, dims=(-2, -1)) for turn in range(4)]


class FewShotReference(PictureReference):
    """Distance of a patch to the nearest patch of k good parts: 1 - cosine similarity. [related: APRIL-GAN]

    APRIL-GAN sums its taps' maps; the mean is taken here, the sum divided by T. It gives every tap equal weight, so the
    order of scores is the same.

    Args:
        memory_limit (int): Most patches in the memory of a tap, shared equally among the good parts. Where a look at
            them has more than its share, anomalib's ``KCenterGreedy`` picks, as for PatchCore. Defaults to ``32768``:
            eight parts and their quarter turns on a grid of 32 x 32.
        join (bool): See :class:`~anomalib_clipsam.references.distances.features.Reference`. Defaults to ``False``.
        sigma (float): See there. Defaults to ``0``.

    Raises:
        ValueError: If ``memory_limit`` is below 1.
    """

    def __init__(self, memory_limit: int = 32768, join: bool = False, sigma: float = 0.0) -> None:
        super().__init__(join, sigma)
        if memory_limit < 1:
            msg = f"memory_limit is {memory_limit}, but the memory needs patches. Choose 1 or more."
            raise UserValueError(msg)
        self.memory_limit = memory_limit
        self._names: tuple[str, ...] = ()

    @property
    def memory(self) -> Taps:
        """Normalised patches ``(M, C_t)`` of every tap; empty before the good parts are known.

        The buffers are not part of the state dict: their shape depends on the good parts. What stores them takes them
        from here and gives them back by :meth:`set_memory`.
        """
        return tuple(getattr(self, name) for name in self._names)

    @property
    def size(self) -> int:
        """Number of patches M in the memory of a tap."""
        return len(self.memory[0]) if self._names else 0

    def set_memory(self, memory: Taps) -> None:
        """Take patches as they are, from a checkpoint perhaps, in half precision perhaps.

        Args:
            memory (tuple[torch.Tensor, ...]): What :attr:`memory` gave, ``(M, C_t)`` per tap.
        """
        for name in self._names:
            delattr(self, name)
        self._names = tuple(f"memory_{index}" for index in range(len(memory)))
        for name, patches in zip(self._names, memory, strict=True):
            self.register_buffer(name, patches.float(), persistent=False)

    @torch.no_grad()
    def memorise(self, taps: Taps, most: int | None = None) -> None:
        """Add the patches of looks at good parts to the memory.

        Args:
            taps (tuple[torch.Tensor, ...]): Grids ``(B, C_t, h_t, w_t)``.
            most (int | None): Most patches of each look and tap, 1 at least. Where a look has more, anomalib's
                ``KCenterGreedy`` picks those that are farthest from one another. Defaults to ``None``: the memory's
                limit, in equal shares.
        """
        most = max(1, self.memory_limit // len(taps[0]) if most is None else most)
        added = [torch.cat([spread(look, most) for look in patches_of(tap)]) for tap in self.features(taps)]
        self.set_memory(tuple(map(torch.cat, zip(self.memory, added, strict=True))) if self.memory else tuple(added))

    @staticmethod
    def distances_within(features: Taps, apart: int = 3) -> torch.Tensor:
        """Compare each patch with those of its own picture that are more than ``apart`` steps away.

        What occurs once in a picture counts as far, so a single good part is judged too strictly rather than too
        mildly. [ours]

        Args:
            features (tuple[torch.Tensor, ...]): Grids ``(B, C_t, h, w)``, as :meth:`features` gives them.
            apart (int): Steps on the grid, in rows or columns. Defaults to ``3``.

        Returns:
            torch.Tensor: Distances ``(B, T, h, w)``, at least 0.
        """
        height, width = features[0].shape[-2:]
        place = torch.arange(height * width, device=features[0].device)
        row, column = place // width, place % width
        steps = torch.maximum((row[:, None] - row).abs(), (column[:, None] - column).abs())  # (P, P)
        near = steps <= min(apart, (max(height, width) - 1) // 2)  # on a tiny grid too, every patch has one to compare
        grids = []
        for tap in features:
            patches = patches_of(tap)  # (B, P, C)
            similarity = (patches @ patches.transpose(1, 2)).masked_fill(near, -1).amax(dim=-1)
            grids.append((1 - similarity).unflatten(1, (height, width)))
        return torch.stack(grids, dim=1).clamp(min=0)

    def distances(self, features: Taps, without: slice | None = None) -> torch.Tensor:
        """Compare every patch with the memory. See :meth:`PictureReference.distances`.

        Args:
            features (tuple[torch.Tensor, ...]): See there.
            without (slice | None): Part of the memory that does not count. Defaults to ``None``: all of it does.

        Raises:
            RuntimeError: If no good part is known.
        """
        if not self._names:
            msg = "No good part is known. Give some, by `k_shot` and `few_shot_source` or by `set_references`."
            raise RuntimeError(msg)
        memory = self.memory
        if without is not None:
            memory = [torch.cat([patches[: without.start], patches[without.stop :]]) for patches in memory]
        grids = [
            (1 - nearest_similarity(patches_of(tap), patches)).unflatten(1, tap.shape[-2:])
            for tap, patches in zip(features, memory, strict=True)
        ]
        return torch.stack(grids, dim=1).clamp(min=0)  # rounding
