# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The unlabelled batch that a picture came in judges it beside the text.

Letters: B pictures, N pictures of a batch, T taps, H W map.
"""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from functools import partial
from typing import TYPE_CHECKING

import torch

from anomalib_clipsam.compute.hashing import picture_key
from anomalib_clipsam.errors.errors import UserValueError
from anomalib_clipsam.references.bounds import (
    FALSE_ALARMS,
    image_level_of_batch,
    pixel_level,
    pixel_level_of_batch,
)
from anomalib_clipsam.references.calibration import Calibration, extremes
from anomalib_clipsam.references.combination import Combination
from anomalib_clipsam.references.copies import find_same, thumbnail
from anomalib_clipsam.references.distances.batch import LEAST_PICTURES, BatchReference, smooth_scores
from anomalib_clipsam.references.judge import LEAST_TEXT, MOST_TEXT, UNLIKE, Answer, Judge, Levels
from anomalib_clipsam.references.self_judge import SelfJudge

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from anomalib_clipsam.clip.taps import Taps
    from anomalib_clipsam.references.judge import Viewer

logger = logging.getLogger(__name__)


POOL_BYTES = 6 * 2**30
"""Bytes that the features of a batch may take; pictures judge each other in subsets where they do not fit. 200
pictures, as a category of MVTec AD or VisA has, fit at 518 px with four taps of ViT-L."""
COPIES = 0.2
"""Share of a batch, two pictures at least, from which pictures that show the same as an earlier one are told of. [ours:
a still of a few pictures in a long folder changes little]"""


class PassJudge(Judge):
    """Base of the judges by an unlabelled batch: pictures are viewed before the pass, and what was found is recalled.

    Args:
        reference (BatchReference): Gives distances.
        combination (Combination): Joins text and reference.
        calibration (Calibration): Turns distances into probabilities.
        passing_share (float | None): Share of the batch that the image threshold lets pass; ``None`` for what
            ``false_alarms`` says.
        alone (SelfJudge): Judges pictures that are too few.
        false_alarms (float): Share of good pictures that may be called defective. Defaults to
            :data:`~anomalib_clipsam.references.bounds.FALSE_ALARMS`.
    """

    NAME = "batch"
    knows_others = True
    says_of_unlike = "unlike most pictures"
    needs_pass = True
    exportable = False

    def __init__(
        self,
        reference: BatchReference,
        combination: Combination,
        calibration: Calibration,
        passing_share: float | None,
        alone: SelfJudge,
        false_alarms: float = FALSE_ALARMS,
    ) -> None:
        super().__init__(reference, combination, calibration, passing_share, false_alarms)
        self.alone = alone
        self.begin(0)

    def begin(self, count: int) -> None:
        """Forget the pictures of an earlier batch.

        Args:
            count (int): How many are to come.
        """
        self._count = count
        if count:  # what the last batch has taught stays until there is another
            self.levels, self.unlike_distance = Levels(), float("inf")
            self.combination.text_level = self.combination.text_score_level = 0.5
        self._answers: dict[str, Answer] = {}
        self._company: frozenset[str] = frozenset()
        self._judged: Hashable = None
        self._thumbnails: list[torch.Tensor] = []

    def forget(self) -> None:
        """Forget the pictures of the last batch."""
        self.begin(0)

    def judged_already(self, files: Hashable, class_name: str) -> bool:
        """Whether these were judged last, so that the answers can stay.

        Args:
            files (Hashable): What :meth:`judge` was told; ``None`` if it is not known.
            class_name (str): Name in the text prompts.
        """
        return files is not None and self._judged == (files, class_name)

    @abstractmethod
    def judge(self, files: Hashable = None, class_name: str = "") -> None:
        """End the batch: learn its thresholds; where pictures are too few, each judges itself, with a warning.

        Args:
            files (Hashable): What tells these pictures from others. Defaults to ``None``, not known.
            class_name (str): Name in the text prompts. Defaults to an empty one.
        """

    def known(self, images: torch.Tensor) -> Answer | None:
        """Recall what was found about pictures before the pass. See :meth:`Judge.known`."""
        return self.recall([picture_key(picture) for picture in images], images.device)

    def recall(self, keys: list[str], device: torch.device) -> Answer | None:
        """Recall the answers about pictures of the batch.

        Args:
            keys (list[str]): Their names, see :func:`~anomalib_clipsam.compute.hashing.picture_key`.
            device (torch.device): Where to.

        Returns:
            Answer | None: S_a ``(B, H, W)`` and image scores ``(B,)``; ``None`` unless all were judged.
        """
        if not keys or any(key not in self._answers for key in keys):
            return None
        maps, scores, unlike = zip(*(self._answers[key] for key in keys), strict=True)
        told = None if any(one is None for one in unlike) else torch.stack(unlike).to(device)
        return Answer(torch.stack(maps).float().to(device), torch.stack(scores).to(device), told)

    def explain(self, reference_option: str, threshold_option: str) -> str:
        """Explain what the thresholds rest on. See :meth:`Judge.explain`."""
        if self.thresholds is None:
            return super().explain(reference_option, threshold_option)
        if self.passing_share is None:
            return (
                f"The threshold is set for {100 * self.false_alarms:.3g} % false alarms, by those of these pictures "
                "that have the lowest scores. If most of them are damaged, or all have the same defect, set it with "
                f"{threshold_option}."
            )
        return (
            f"The threshold is what {100 * self.passing_share:.0f} % of these pictures do not exceed: the rest are "
            f"called defective, however many are. Look at the highest scores, and set it with {threshold_option}."
        )

    def _see(self, image: torch.Tensor) -> None:
        """Keep how pictures ``(B, 3, height, width)`` look, also those that come a second time."""
        self._thumbnails += [thumbnail(picture) for picture in image]

    def _warn_of_copies(self) -> None:
        """Warn where pictures show the same: a defect that all of them have is not found by comparing them."""
        copies, number = len(find_same(self._thumbnails)), len(self._thumbnails)
        self._thumbnails = []
        if copies >= max(2, COPIES * number):
            logger.warning(
                "%d of %d pictures show the same as an earlier one, as from a camera or a part that stands still. They "
                "were compared with one another, so a defect that all of them show passes for good. Leave the copies "
                "out, or give good parts.",
                copies,
                number,
            )

    def _learn_texts(self, levels: list[float], scores: list[torch.Tensor]) -> None:
        """Learn what the text says of most pictures, by the level of each map and by scores; and how far they are."""
        typical = self.calibration.typical.item()
        # orthogonal features are at a distance of the root of 2
        self.unlike_distance = min(UNLIKE * typical, (typical + math.sqrt(2)) / 2)
        if not self.calibration.raw:
            self.combination.text_level = max(pixel_level_of_batch(levels), LEAST_TEXT)
            self.combination.text_score_level = min(max(float(torch.stack(scores).median()), LEAST_TEXT), MOST_TEXT)

    def _end_batch(self) -> None:
        """Learn where good pictures end, when all were judged, and put that at 0.5."""
        self._warn_of_copies()
        maps = [answer.map.float() for answer in self._answers.values()]
        scores = torch.stack([answer.score for answer in self._answers.values()])
        self._set_levels(maps, scores)
        for key, answer in self._answers.items():
            told = None if answer.unlike is None else answer.unlike[None]
            self._answers[key] = kept_answer(self.finish(Answer(answer.map[None].float(), answer.score[None], told)))

    def _image_level(self, scores: torch.Tensor) -> float:
        return image_level_of_batch(scores, self.false_alarms)

    def _pixel_level(self, maps: Sequence[torch.Tensor]) -> float:
        return pixel_level_of_batch([pixel_level([values]) for values in maps])

    @staticmethod
    def _warn(number: int) -> None:
        logger.warning(
            "%s too few to judge each other, %d are needed: each is judged by itself. Give more at once, or good parts "
            "by k_shot.",
            "1 picture is" if number == 1 else f"{number} pictures are",
            LEAST_PICTURES,
        )

    def settings(self) -> Hashable:
        """List what its answers depend on beside picture and text."""
        return *super().settings(), self._company


class BatchJudge(PassJudge):
    """The unlabelled batch judges: pictures are collected first, and judge each other when all have come.

    Features are dropped as soon as their subset was compared, so that no more than :data:`POOL_BYTES` of them are held;
    one map by text, one grid of distances and one answer per picture stay. Pictures that were not collected judge each
    other in the batch that they come in; where these are too few, each judges itself.

    Args:
        reference (BatchReference): Gives distances.
        combination (Combination): Joins text and reference.
        calibration (Calibration): Turns distances into probabilities.
        passing_share (float | None): See :class:`PassJudge`.
        alone (SelfJudge): Judges pictures that are too few.
        windows (tuple[int, ...]): Pictures that share their image scores, see :func:`smooth_scores`; none if empty.
        false_alarms (float): See :class:`PassJudge`.
    """

    def __init__(
        self,
        reference: BatchReference,
        combination: Combination,
        calibration: Calibration,
        passing_share: float | None,
        alone: SelfJudge,
        windows: tuple[int, ...],
        false_alarms: float = FALSE_ALARMS,
    ) -> None:
        super().__init__(reference, combination, calibration, passing_share, alone, false_alarms)
        self.windows = windows

    def begin(self, count: int) -> None:
        """Forget the pictures of an earlier batch. See :meth:`PassJudge.begin`."""
        super().begin(count)
        self._seen, self._parts, self._compared = 0, 0, 0
        self._pool: dict[str, Taps] = {}
        self._texts: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]] = {}
        self._distances: dict[str, torch.Tensor] = {}

    def steps(self, viewer: Viewer) -> dict[str, Callable[[torch.Tensor], None]]:
        """List what is done with all pictures before the pass: they are collected. See :meth:`Judge.steps`."""
        return {"Comparing all pictures": partial(self.view, viewer)}

    def view(self, viewer: Viewer, image: torch.Tensor) -> None:
        """View pictures of the batch, those that were not seen yet.

        Args:
            viewer (Viewer): The model.
            image (torch.Tensor): ``(B, 3, height, width)``, RGB in [0, 1], as they will come again.
        """
        self._see(image)
        keys = [picture_key(picture) for picture in image]
        new = {key: index for index, key in enumerate(keys) if not self.knows(key)}
        self.skip(len(keys) - len(new))
        if new:
            (view,) = viewer.views(image[list(new.values())])
            self.collect(list(new), *view, viewer.localizer.embedding if self.windows else None)

    def knows(self, key: str) -> bool:
        """Whether a picture was collected."""
        return key in self._texts

    def collect(
        self,
        keys: list[str],
        text_map: torch.Tensor,
        text_score: torch.Tensor,
        taps: Taps,
        embedding: torch.Tensor | None = None,
    ) -> None:
        """Keep what is needed of some pictures until all have come, in half precision, in main memory.

        Args:
            keys (list[str]): A name for each picture, see :func:`picture_key`.
            text_map (torch.Tensor): ``(B, H, W)`` in [0, 1].
            text_score (torch.Tensor): ``(B,)`` in [0, 1].
            taps (tuple[torch.Tensor, ...]): T grids of features ``(B, C_t, h_t, w_t)``.
            embedding (torch.Tensor | None): Normalised image embeddings ``(B, E)``, for ``windows``. Defaults to
                ``None``.

        Raises:
            ValueError: If ``windows`` are set and there is no embedding, or not even the fewest pictures fit.
        """
        if self.windows and embedding is None:
            msg = "This localizer gives no embedding of the image, which `windows` need. Choose 'dense', or none."
            raise UserValueError(msg)
        kept = self.reference.keep(taps)
        for index, key in enumerate(keys):
            self._pool[key] = tuple(grid[index : index + 1].clone() for grid in kept)
            of_image = None if embedding is None else embedding[index].float().cpu()
            self._texts[key] = (text_map[index].half().cpu(), text_score[index].cpu(), of_image)
        self._seen += len(keys)
        if not self._parts:
            self._parts = self.reference.parts(max(self._count, len(keys)), kept, POOL_BYTES)
        full = len(self._pool) >= LEAST_PICTURES and self._seen * self._parts >= self._count * (self._compared + 1)
        if full and self._count - self._seen >= LEAST_PICTURES:
            self._compare()

    def skip(self, number: int) -> None:
        """Count pictures that come a second time: they judge once."""
        self._seen += number

    @torch.no_grad()
    def _compare(self) -> None:
        """Let the pictures of a subset judge each other, on the device of the model, and drop their features."""
        device = self.calibration.typical.device
        if len(self._pool) < LEAST_PICTURES:
            self._warn(len(self._pool))
        else:
            taps = tuple(torch.cat(grids) for grids in zip(*self._pool.values(), strict=True))
            self._distances |= zip(self._pool, self.reference.distances(taps, device).split(1), strict=True)
            self._pool = {}
        self._compared += 1

    @torch.no_grad()
    def judge(self, files: Hashable = None, class_name: str = "") -> None:
        """Let the collected pictures judge each other. See :meth:`PassJudge.judge`."""
        if self._pool:
            self._compare()
        alone = dict(self._pool)  # too few
        device = self.calibration.typical.device
        size = next((tuple(entry[0].shape) for entry in self._texts.values()), (1, 1))
        if self._distances:
            found = [extremes(self.reference.to_map(grid, size)) for grid in self._distances.values()]
            medians, peaks = map(torch.cat, zip(*found, strict=True))
            self.calibration.fit_extremes(medians, peaks, "batch")
            text_levels = [pixel_level([text_map.float()]) for text_map, _, _ in self._texts.values()]
            self._learn_texts(text_levels, [text_score for _, text_score, _ in self._texts.values()])
        for key, (text_map, text_score, _) in self._texts.items():
            text = text_map[None].to(device).float(), text_score[None].to(device)
            if key in alone:
                joined = self.alone.judge_features(*text, tuple(grid.to(device).float() for grid in alone[key]))
            else:
                joined = self._join(*text, self.reference.to_map(self._distances[key], size))
            self._answers[key] = kept_answer(joined)
        self._company, self._judged = frozenset(self._answers), (files, class_name)
        self._pool, self._distances = {}, {}
        if self._answers and not alone:
            self._smooth()
            self._end_batch()

    def _smooth(self) -> None:
        """Let pictures that look alike share their scores."""
        if not self.windows:
            return
        scores = torch.stack([answer.score for answer in self._answers.values()])
        embeddings = torch.stack([entry[2] for entry in self._texts.values()])
        smoothed = smooth_scores(scores, embeddings, self.windows)
        self._answers = {
            key: answer._replace(score=score)
            for (key, answer), score in zip(self._answers.items(), smoothed, strict=True)
        }

    def forward(self, text_map: torch.Tensor, text_score: torch.Tensor, taps: Taps) -> Answer:
        """Let the pictures of one batch judge each other. See :meth:`Judge.forward`."""
        if len(text_map) < LEAST_PICTURES:
            self._warn(len(text_map))
            return self.alone(text_map, text_score, taps)
        distance = self.reference.to_map(
            self.reference.distances(self.reference.features(taps)), tuple(text_map.shape[-2:])
        )
        self.calibration.fit(distance, "batch")
        self._learn_texts([pixel_level([values]) for values in text_map], list(text_score))
        answer = self._join(text_map, text_score, distance)
        self._set_levels(list(answer.map[:, None]), answer.score)
        return answer

    def rule(self) -> dict[str, Hashable]:
        """Describe how it judges. See :meth:`Judge.rule`."""
        return {**super().rule(), "windows": self.windows}


def kept_answer(answer: Answer) -> Answer:
    """Keep an answer about one picture: its map ``(H, W)`` in half precision and its score, in main memory."""
    unlike = None if answer.unlike is None else answer.unlike[0].cpu()
    return Answer(answer.map[0].half().cpu(), answer.score[0].cpu(), unlike)
