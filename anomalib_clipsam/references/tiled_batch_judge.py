# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The unlabelled batch judges large pictures in tiles.

Letters: B pictures, N pictures of a batch, H W map.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from anomalib_clipsam.compute.hashing import picture_key
from anomalib_clipsam.references.batch_judge import PassJudge, kept_answer
from anomalib_clipsam.references.bounds import pixel_level
from anomalib_clipsam.references.calibration import extremes
from anomalib_clipsam.references.distances.batch import LEAST_PICTURES
from anomalib_clipsam.references.judge import Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator

    from anomalib_clipsam.clip.taps import Taps
    from anomalib_clipsam.references.judge import View, Viewer

SAMPLE_BYTES = 2 * 2**30
"""Bytes that the patches of all pictures in tiles may take, on the model's device: 0.6 MB a picture with the carried
pair, 50 MB with four taps of ViT-L, of which 42 pictures fit; more pictures keep fewer patches each."""


class TiledBatchJudge(PassJudge):
    """The unlabelled batch judges, each picture in tiles: they are looked at three times before the pass.

    1. :meth:`sample` keeps up to 2048 patches of each picture, equally many of each of its tiles.
    2. :meth:`compare` compares every patch of a picture with those of each other picture, none with those of its own,
       and learns from the blended maps what is usual.
    3. :meth:`answer` judges the tiles, now that this is known; :meth:`keep` is told what the model makes of them.

    Of N pictures with n tiles of P patches each, N n P 2048 (N - 1) pairs of patches are compared. The patches take
    :data:`SAMPLE_BYTES` at most; one grid of distances a tile and one answer a picture stay too, in main memory.
    Pictures that are fewer than 5, or were not collected, are judged by themselves, a tile at a time.
    """

    def begin(self, count: int) -> None:
        """Forget the pictures of an earlier batch. See :meth:`PassJudge.begin`."""
        super().begin(count)
        self._samples: dict[str, Taps] = {}
        self._grids: dict[str, list[torch.Tensor]] = {}
        self._extremes: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._texts: dict[str, tuple[float, torch.Tensor]] = {}

    def steps(self, viewer: Viewer) -> dict[str, Callable[[torch.Tensor], None]]:
        """List what is done with all pictures before the pass. See :meth:`Judge.steps`."""

        def sample(picture: torch.Tensor, key: str) -> None:
            self._see(picture)
            self.sample(key, viewer.views(picture), viewer.count_views(picture))

        def compare(picture: torch.Tensor, key: str) -> None:
            self.compare(key, viewer.views(picture), partial(viewer.blend, picture))

        def answer(picture: torch.Tensor, key: str) -> None:
            if not self.answered(key):
                self.keep(key, viewer.join(picture, self.answer(key, viewer.views(picture))))

        return {
            "Looking at all pictures": partial(_one_by_one, sample),
            "Comparing all pictures": partial(_one_by_one, compare),
            "Judging all pictures": partial(_one_by_one, answer),
        }

    @property
    def too_few(self) -> bool:
        """Whether the collected pictures are too few to judge each other."""
        return len(self._samples) < LEAST_PICTURES

    def sample(self, key: str, views: Iterable[View], number: int) -> None:
        """Keep patches of a picture, the first time that it comes.

        Args:
            key (str): Its name, see :func:`picture_key`.
            views (Iterable[View]): Views of its tiles.
            number (int): Number of its tiles.
        """
        if key not in self._samples:
            limit = SAMPLE_BYTES // max(1, self._count)
            kept = [self.reference.sample(taps, number, limit) for _, _, taps in views]
            self._samples[key] = tuple(map(torch.cat, zip(*kept, strict=True)))

    @torch.no_grad()
    def compare(self, key: str, views: Iterable[View], blend: Callable[[Iterable[Answer]], Answer]) -> None:
        """Compare a picture with the others, when the patches of all are known.

        Args:
            key (str): Its name.
            views (Iterable[View]): Views of its tiles.
            blend (Callable[[Iterable[tuple]], tuple]): Makes one map ``(1, H, W)`` of those of its tiles.
        """
        if key in self._grids or self.too_few:
            return
        others = [patches for other, patches in self._samples.items() if other != key]
        found, texts = [], []
        for view in views:
            texts.append(view.map)
            distance = self.reference.distances_to(view.taps, others).mean(dim=1, keepdim=True)
            found.append((distance.cpu(), tuple(view.map.shape[-2:]), view.score))
        device = self.calibration.typical.device
        maps = (Answer(self.reference.to_map(grid.to(device), size), score) for grid, size, score in found)
        self._extremes[key] = extremes(blend(maps).map)
        self._grids[key] = [grid for grid, _, _ in found]
        self._texts[key] = pixel_level(texts), torch.cat([score for _, _, score in found]).amax().cpu()
        if len(self._extremes) == len(self._samples):  # the last has come
            medians, peaks = map(torch.cat, zip(*self._extremes.values(), strict=True))
            self.calibration.fit_extremes(medians, peaks, "batch")
            self._learn_texts(*map(list, zip(*self._texts.values(), strict=True)))

    def answer(self, key: str, views: Iterable[View]) -> Iterator[Answer]:
        """Judge the tiles of a picture; one that was not compared, since pictures are too few, by themselves.

        Args:
            key (str): Its name.
            views (Iterable[View]): Views of its tiles.

        Yields:
            tuple: Map and score of each look.
        """
        if key not in self._grids:
            yield from (self.alone(*look) for look in views)
            return
        for (text_map, text_score, _), grid in zip(views, self._grids[key], strict=True):
            distance = self.reference.to_map(grid.to(text_map.device), tuple(text_map.shape[-2:]))
            yield self._join(text_map, text_score, distance)

    def answered(self, key: str) -> bool:
        """Whether :meth:`keep` has what was found about a picture."""
        return key in self._answers

    def keep(self, key: str, answer: Answer) -> None:
        """Keep S_a ``(1, H, W)``, in half precision, and the image score ``(1,)`` of a picture."""
        self._answers[key] = kept_answer(answer)

    def judge(self, files: Hashable = None, class_name: str = "") -> None:
        """Learn the thresholds, when all answers are kept. See :meth:`PassJudge.judge`."""
        self._company, self._judged = frozenset(self._answers), (files, class_name)
        if self.too_few:
            self._warn(len(self._samples))
        else:
            self._end_batch()
        self._samples, self._grids = {}, {}

    def forward(self, text_map: torch.Tensor, text_score: torch.Tensor, taps: Taps) -> Answer:
        """Judge tiles of a picture that was not collected by themselves. See :meth:`Judge.forward`."""
        return self.alone(text_map, text_score, taps)


def _one_by_one(step: Callable[[torch.Tensor, str], None], image: torch.Tensor) -> None:
    """Do a step with each of the pictures ``(B, 3, height, width)``, and its name."""
    for picture in image.split(1):
        step(picture, picture_key(picture[0]))
