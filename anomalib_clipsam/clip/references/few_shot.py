# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""A few good parts as reference: a patch that is like none of theirs is suspect.

Letters: k good parts, R rotated copies of each, B pictures, T taps, C channels, h w patch grid, P = h * w patches, M
patches in the memory.

References:
    - Chen et al., "APRIL-GAN", https://arxiv.org/abs/2305.17382
    - Damm et al., "AnomalyDINO", https://arxiv.org/abs/2405.14529
    - Roth et al., "Towards Total Recall in Industrial Anomaly Detection" (PatchCore), https://arxiv.org/abs/2106.08265
"""

from __future__ import annotations

import numpy as np
import torch

from anomalib_clipsam.clip.references.features import PictureReference, Taps, nearest_similarity, patches_of

SEED = 0
"""Seed of what ``KCenterGreedy`` leaves to chance, its projection and its first pick, so that every process and every
run keeps the same patches."""


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
        memory_limit (int): Most patches in the memory of a tap. Where the good parts have more, anomalib's
            ``KCenterGreedy`` picks, as for PatchCore. Defaults to ``32768``: eight parts and their quarter turns on a
            grid of 32 x 32.
        join (bool): See :class:`~anomalib_clipsam.clip.references.features.Reference`. Defaults to ``False``.
        sigma (float): See there. Defaults to ``0``.

    Raises:
        ValueError: If ``memory_limit`` is below 1.
    """

    def __init__(self, memory_limit: int = 32768, join: bool = False, sigma: float = 0.0) -> None:
        super().__init__(join, sigma)
        if memory_limit < 1:
            msg = f"memory_limit is {memory_limit}, but the memory needs patches. Choose 1 or more."
            raise ValueError(msg)
        self.memory_limit = memory_limit
        self._names: tuple[str, ...] = ()

    @property
    def memory(self) -> Taps:
        """Normalised patches ``(M, C_t)`` of every tap; empty before the good parts are known.

        The buffers are not part of the state dict: their shape depends on the good parts. What stores them takes them
        from here and gives them back by :meth:`set_memory`.
        """
        return tuple(getattr(self, name) for name in self._names)

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
    def memorise(self, taps: Taps, copies: int = 1) -> torch.Tensor:
        """Keep the patches of good parts, and judge each part by the others.

        Args:
            taps (tuple[torch.Tensor, ...]): Grids ``(R * k, C_t, h_t, w_t)``: the k parts, then the k rotated, and so
                on, as ``torch.cat(quarter_turns(images))`` orders square images.
            copies (int): R, pictures of each part. Defaults to ``1``.

        Returns:
            torch.Tensor: Distances of each unrotated part, ``(k, T, h, w)``: to the nearest patch of the other parts. A
            single part is judged by itself, see :meth:`_judge_single`. They say how far a good part may be, which
            :class:`~anomalib_clipsam.clip.references.calibration.Calibration` needs.

        Raises:
            ValueError: If there is no picture, or their number is no multiple of ``copies``.
        """
        count, rest = divmod(len(taps[0]), copies)
        if rest or not count:
            msg = f"{len(taps[0])} pictures are no {copies} copies of each good part. Give every part as often."
            raise ValueError(msg)
        features = self.features(taps)
        memory, left_out = [], []
        for tap in features:
            patches = patches_of(tap).unflatten(0, (copies, count))  # (R, k, P, C)
            memory.append(self._bounded(patches.flatten(0, 2)))
            similarity = [self._judge_single(tap)] if count == 1 else []
            if count > 1:
                parts = torch.arange(count, device=tap.device)
                similarity = [
                    nearest_similarity(patches[0, part], patches[:, parts != part].flatten(0, 2))
                    for part in range(count)
                ]
            left_out.append(1 - torch.stack(similarity).unflatten(1, tap.shape[-2:]))
        self.set_memory(tuple(memory))
        return torch.stack(left_out, dim=1).clamp(min=0)

    @staticmethod
    def _judge_single(tap: torch.Tensor, apart: int = 3) -> torch.Tensor:
        """Compare each patch of the first picture with its other patches that are more than ``apart`` steps away.

        What occurs once in the part counts as far, so a single part is judged too strictly rather than too mildly.
        [ours]

        Args:
            tap (torch.Tensor): ``(R, C, h, w)``.
            apart (int): Steps on the grid, in rows or columns. Defaults to ``3``.

        Returns:
            torch.Tensor: Cosine similarity ``(P,)``.
        """
        patches = patches_of(tap[:1])[0]  # (P, C)
        place = torch.arange(len(patches), device=tap.device)
        row, column = place // tap.shape[-1], place % tap.shape[-1]
        steps = torch.maximum((row[:, None] - row).abs(), (column[:, None] - column).abs())  # (P, P)
        apart = min(apart, (max(tap.shape[-2:]) - 1) // 2)  # on a tiny grid too, every patch has one to compare with
        return (patches @ patches.T).masked_fill(steps <= apart, -1).amax(dim=1)

    def _bounded(self, patches: torch.Tensor) -> torch.Tensor:
        """Pick at most ``memory_limit`` of the patches ``(M, C)``."""
        if len(patches) <= self.memory_limit:
            return patches
        # Here, since the import loads all models of anomalib, and text prompts are printed without them.
        from anomalib.models.components import KCenterGreedy

        # half a patch more, as the sampler rounds its product down
        sampler = KCenterGreedy(patches.cpu(), (self.memory_limit + 0.5) / len(patches))
        # one generator, as a number would give every row of the projection the same columns
        sampler.model.random_state = np.random.RandomState(SEED)  # what scikit-learn takes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            return sampler.sample_coreset().to(patches)

    def distances(self, features: Taps) -> torch.Tensor:
        """Compare every patch with the memory. See :meth:`PictureReference.distances`.

        Raises:
            RuntimeError: If no good part is known.
        """
        if not self._names:
            msg = "No good part is known. Give some, by `k_shot` and `few_shot_source` or by `set_references`."
            raise RuntimeError(msg)
        grids = [
            (1 - nearest_similarity(patches_of(tap), patches)).unflatten(1, tap.shape[-2:])
            for tap, patches in zip(features, self.memory, strict=True)
        ]
        return torch.stack(grids, dim=1).clamp(min=0)  # rounding
