# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Who judges a picture beside the text: the picture itself, a few good parts, or the batch that it came in.

A judge holds a reference, the calibration that turns its distances into probabilities, and the rule that joins these
with the text's. It also says which thresholds good parts, or the bulk of the batch, would pass.

Letters: B pictures or tiles, k good parts, N pictures of a batch, T taps, H W map.
"""

from __future__ import annotations

import hashlib
import logging
from abc import ABC
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from torch import nn

from anomalib_clipsam.references.distances.batch import LEAST_PICTURES, BatchReference, smooth_scores
from anomalib_clipsam.references.calibration import Calibration, extremes, passing_threshold
from anomalib_clipsam.references.combination import Combination
from anomalib_clipsam.references.distances.few_shot import FewShotReference, quarter_turns
from anomalib_clipsam.references.options import ReferenceOptions
from anomalib_clipsam.references.distances.self_reference import SelfReference

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

    from anomalib_clipsam.clip.localizers import Localizer
    from anomalib_clipsam.references.distances.features import Taps

    Look = tuple[torch.Tensor, torch.Tensor, Taps]
    Answer = tuple[torch.Tensor, torch.Tensor]

logger = logging.getLogger(__name__)

REFERENCES = ("none", "self", "batch")
"""What ``references`` may name; ``k_shot`` asks for good parts."""
SPREADS = 6.0
"""Where nobody knows which distances are usual to a CLIP, a picture's limit lies so many interquartile ranges above its
own median. [ours, not measured]"""
UNLIKE = 2.0
"""A picture whose median distance is so many times the largest of any good part is of another part. [ours: pictures of
the same part, drawn and real, stayed below 1.5 times, those of other parts were mostly above 2.5 times]"""
RAW_PASSING_SHARE = 0.9
"""Share of a batch that its thresholds let pass where distances are given as they are: nothing has fitted 0.5 then."""
POOL_BYTES = 6 * 2**30
"""Bytes that the features of a batch may take; pictures judge each other in subsets where they do not fit. 200
pictures, as a category of MVTec AD or VisA has, fit at 518 px with four taps of ViT-L."""
SAMPLE_BYTES = 2 * 2**30
"""Bytes that the patches of all pictures in tiles may take, on the model's device: 0.6 MB a picture with the carried
pair, 50 MB with four taps of ViT-L, of which 42 pictures fit; more pictures keep fewer patches each."""


@dataclass(frozen=True)
class Thresholds:
    """What the reference says without a label.

    Args:
        image (float): Image score above which a picture is defective.
        pixel (float): Value of S_a above which a pixel is.
    """

    image: float
    pixel: float


class Looker(Protocol):
    """Who looks at pictures: whole in one look, or at a large one in tiles, some of them in each look."""

    def count_looks(self, image: torch.Tensor) -> int:
        """Say how many views of a picture ``(1, 3, height, width)`` its looks show: 1, or its tiles."""

    def looks(self, image: torch.Tensor) -> Iterable[Look]:
        """Look at a picture: text map ``(B, H, W)``, text score ``(B,)`` and taps of its B views, or some at a time."""

    def join(self, image: torch.Tensor, answers: Iterable[Answer]) -> Answer:
        """Make S_a ``(1, H, W)`` and image score ``(1,)`` of what a judge says about each look."""


class Judge(nn.Module, ABC):
    """Base: text and one kind of reference, joined.

    Args:
        reference (nn.Module): Gives distances.
        combination (Combination): Joins text and reference.
        calibration (Calibration): Turns distances into probabilities.
        passing_share (float | None): Share of the good parts, or of the batch, that the thresholds let pass, in (0, 1];
            ``None`` for thresholds of 0.5, which the calibration has fitted. Defaults to ``1``.

    Attributes:
        thresholds (Thresholds | None): What good parts, or the bulk of the batch, pass; ``None`` before they are known.
        common (float): Largest median distance of a good part from the others; infinite where there are none.
        unlike (int): Pictures that were unlike good parts nearly everywhere, since the count was last set to zero.
        judged (int): Pictures that were judged since then.
    """

    NAME: ClassVar[str]

    def __init__(
        self,
        reference: nn.Module,
        combination: Combination,
        calibration: Calibration,
        passing_share: float | None = 1.0,
    ) -> None:
        super().__init__()
        if passing_share is not None and not 0 < passing_share <= 1:
            msg = f"passing_share is {passing_share}, but it is a share of the pictures. Choose above 0, 1 at most."
            raise ValueError(msg)
        self.reference = reference
        self.combination = combination
        self.calibration = calibration
        self.passing_share = passing_share
        self.thresholds: Thresholds | None = None
        self.common = float("inf")
        self.unlike = self.judged = 0

    def forward(
        self, text_map: torch.Tensor, text_score: torch.Tensor, taps: Taps
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Judge pictures.

        Args:
            text_map (torch.Tensor): CLIP's map by text, ``(B, H, W)`` in [0, 1].
            text_score (torch.Tensor): Image score by text, ``(B,)`` in [0, 1].
            taps (tuple[torch.Tensor, ...]): T grids of features ``(B, C_t, h_t, w_t)``.

        Returns:
            tuple[torch.Tensor, torch.Tensor]: S_a ``(B, H, W)`` and the image score ``(B,)``, in [0, 1].
        """
        distance = self.reference(taps, tuple(text_map.shape[-2:]))
        return self._join(text_map, text_score, distance)

    def _join(
        self, text_map: torch.Tensor, text_score: torch.Tensor, distance: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Calibrate distances ``(B, H, W)`` and join them with the text."""
        probability = self.calibration(distance)
        if not torch.compiler.is_compiling():
            self.judged += len(probability)
            self.unlike += int((distance.flatten(1).median(dim=1).values > UNLIKE * self.common).sum())
        return self.combination(text_map, text_score, probability)

    def _set_thresholds(self, peaks: torch.Tensor, scores: torch.Tensor) -> None:
        """Let a share of good pictures pass, by the highest pixels of their maps and by their scores, ``(N,)``."""
        if self.passing_share is None:
            self.thresholds = Thresholds(image=0.5, pixel=0.5)
            return
        self.thresholds = Thresholds(
            image=float(passing_threshold(scores, self.passing_share)),
            pixel=float(passing_threshold(peaks, self.passing_share)),
        )

    def rule(self) -> dict[str, Hashable]:
        """Say how it judges, whatever the pictures: what thresholds found with one judge say of another's scores."""
        shares = {name: value for name, value in vars(self.combination).items() if name.endswith("share")}
        return {"references": self.NAME, "raw": self.calibration.raw, **shares}

    def settings(self) -> Hashable:
        """Say what its answers depend on beside picture and text."""
        known = not bool(self.calibration.limit.isnan())  # not a number is not even equal to itself
        learnt = (self.calibration.usual.item(), self.calibration.limit.item()) if known else None
        return (*self.rule().items(), learnt)


class SelfJudge(Judge):
    """The picture judges itself.

    Args:
        reference (SelfReference): Gives distances.
        combination (Combination): Joins text and reference.
        calibration (Calibration): Turns distances into probabilities.
        usual (tuple[float, float] | None): Usual distance and limit, as
            :class:`~anomalib_clipsam.references.calibration.Calibration` has them, of good pictures that this CLIP
            was shown. Defaults to ``None``: each picture's own median, and six interquartile ranges above it.
    """

    NAME = "self"

    def __init__(
        self,
        reference: SelfReference,
        combination: Combination,
        calibration: Calibration,
        usual: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(reference, combination, calibration)
        self.known = usual is not None or calibration.raw
        if usual is not None:
            self.calibration.usual.fill_(usual[0])
            self.calibration.limit.fill_(usual[1])

    def judge_features(
        self, text_map: torch.Tensor, text_score: torch.Tensor, features: Taps
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Judge pictures by features that were joined already. See :meth:`Judge.forward`."""
        distance = self.reference.to_map(self.reference.distances(features), tuple(text_map.shape[-2:]))
        return self._join(text_map, text_score, distance)

    def _join(
        self, text_map: torch.Tensor, text_score: torch.Tensor, distance: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.known:
            return super()._join(text_map, text_score, distance)
        low, usual, high = torch.quantile(distance.flatten(1), distance.new_tensor([0.25, 0.5, 0.75]), dim=1)
        excess = (distance - usual.view(-1, 1, 1)).clamp(min=0)
        limit = (SPREADS * (high - low)).clamp(min=torch.finfo(distance.dtype).eps).view(-1, 1, 1)
        return self.combination(text_map, text_score, excess / (excess + limit))


class FewShotJudge(Judge):
    """A few good parts judge.

    Args:
        reference (FewShotReference): Gives distances.
        combination (Combination): Joins text and reference.
        calibration (Calibration): Turns distances into probabilities.
        passing_share (float): Share of the good parts that the thresholds let pass, each judged by the others.
        rotate (bool): Whether good parts also count as turned by 90, 180 and 270 degrees.

    Attributes:
        sources (tuple[str, ...]): SHA-256 of each good part as the model was shown it; empty before they are known.
    """

    NAME = "good parts"

    def __init__(
        self,
        reference: FewShotReference,
        combination: Combination,
        calibration: Calibration,
        passing_share: float,
        rotate: bool,
    ) -> None:
        super().__init__(reference, combination, calibration, passing_share)
        self.rotate = rotate
        self.sources: tuple[str, ...] = ()

    def forget(self) -> None:
        """Forget the good parts."""
        self.reference.set_memory(())
        self.sources = ()

    @torch.no_grad()
    def learn(self, parts: Sequence[torch.Tensor], looker: Looker) -> None:
        """Look at good parts: keep their patches, and learn how far one of them is from the others.

        Each part is then judged as a picture that is tested, but by the patches of the others; a single one by its own,
        see :meth:`FewShotReference.distances_within`. Of tiles the features are not kept, so that these are looked at a
        second time; their maps by text are, 0.3 MB a tile of the carried pair.

        Args:
            parts (Sequence[torch.Tensor]): Good parts ``(3, height, width)``, as the model takes them, of one size or
                several. They are asked for three times, so that files need not stay in memory.
            looker (Looker): The model.
        """
        self.forget()
        reference = self.reference
        own, kept, sources = [], [], []
        for part in parts:
            start = reference.size
            kept.append(self._memorise(part[None], looker, reference.memory_limit // len(parts)))
            own.append(slice(start, reference.size))
            sources.append(picture_key(part))
        seen, found = [], []
        for part, looks, span in zip(parts, kept, own, strict=True):
            seen.append([])
            for text_map, text_score, taps in looks or looker.looks(part[None]):
                features = reference.features(taps)
                alone = len(own) == 1
                distance = reference.distances_within(features) if alone else reference.distances(features, span)
                found.append(extremes(reference.to_map(distance, tuple(text_map.shape[-2:]))))
                seen[-1].append((text_map, text_score, distance))
        medians, peaks = map(torch.cat, zip(*found, strict=True))
        self.calibration.fit_extremes(medians, peaks, "few_shot")
        self.common = float(medians.amax())
        answers = [looker.join(part[None], map(self._answer, looks)) for part, looks in zip(parts, seen, strict=True)]
        self._set_thresholds(
            torch.cat([anomaly_map.flatten(1).amax(dim=1) for anomaly_map, _ in answers]),
            torch.cat([score for _, score in answers]),
        )
        self.sources = tuple(sources)

    def _memorise(self, part: torch.Tensor, looker: Looker, limit: int) -> list[Look]:
        """Keep so many patches of a part, and of its quarter turns; give the look at it, if there is only one."""
        pictures = quarter_turns(part) if self.rotate else [part]
        kept = []
        for picture in pictures:
            count = looker.count_looks(picture)
            for look in looker.looks(picture):
                self.reference.memorise(look[2], limit // (len(pictures) * count))
                if picture is pictures[0] and count == 1:
                    kept.append(look)
        return kept

    def _answer(self, seen: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> Answer:
        """Join text map, text score and the distances of a look, as :meth:`forward` does."""
        text_map, text_score, distance = seen
        probability = self.calibration(self.reference.to_map(distance, tuple(text_map.shape[-2:])))
        return self.combination(text_map, text_score, probability)

    def settings(self) -> Hashable:
        """Say what its answers depend on beside picture and text."""
        return *super().settings(), self.sources


class BatchJudge(Judge):
    """The unlabelled batch judges: pictures are collected first, and judge each other when all have come.

    Features are dropped as soon as their subset was compared, so that no more than :data:`POOL_BYTES` of them are held;
    one map by text, one grid of distances and one answer per picture stay. Pictures that were not collected judge each
    other in the batch that they come in; where these are too few, each judges itself.

    Args:
        reference (BatchReference): Gives distances.
        combination (Combination): Joins text and reference.
        calibration (Calibration): Turns distances into probabilities.
        passing_share (float | None): Share of the batch that the thresholds let pass; ``None`` for 0.5.
        alone (SelfJudge): Judges pictures that are too few.
        windows (tuple[int, ...]): Pictures that share their image scores, see :func:`smooth_scores`; none if empty.
    """

    NAME = "batch"

    def __init__(
        self,
        reference: BatchReference,
        combination: Combination,
        calibration: Calibration,
        passing_share: float | None,
        alone: SelfJudge,
        windows: tuple[int, ...],
    ) -> None:
        super().__init__(reference, combination, calibration, passing_share)
        self.alone = alone
        self.windows = windows
        self.begin(0)

    def begin(self, count: int) -> None:
        """Forget the pictures of an earlier batch.

        Args:
            count (int): How many are to come.
        """
        self._count, self._seen, self._parts, self._compared = count, 0, 0, 0
        self._pool: dict[str, Taps] = {}
        self._texts: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]] = {}
        self._distances: dict[str, torch.Tensor] = {}
        self._answers: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._company: frozenset[str] = frozenset()
        self._judged: Hashable = None

    def knows(self, key: str) -> bool:
        """Say whether a picture was collected."""
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
            raise ValueError(msg)
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
        device = self.calibration.usual.device
        if len(self._pool) < LEAST_PICTURES:
            self._warn(len(self._pool))
        else:
            taps = tuple(torch.cat(grids) for grids in zip(*self._pool.values(), strict=True))
            self._distances |= zip(self._pool, self.reference.distances(taps, device).split(1), strict=True)
            self._pool = {}
        self._compared += 1

    def judged_already(self, files: Hashable, class_name: str) -> bool:
        """Say whether these were judged last, so that the answers can stay.

        Args:
            files (Hashable): What :meth:`judge` was told; ``None`` if it is not known.
            class_name (str): Name in the text prompts.
        """
        return files is not None and self._judged == (files, class_name)

    @torch.no_grad()
    def judge(self, files: Hashable = None, class_name: str = "") -> None:
        """Let the collected pictures judge each other; where they are too few, each judges itself, with a warning.

        Args:
            files (Hashable): What tells these pictures from others. Defaults to ``None``, not known.
            class_name (str): Name in the text prompts. Defaults to an empty one.
        """
        if self._pool:
            self._compare()
        alone = dict(self._pool)  # too few
        device = self.calibration.usual.device
        size = next((tuple(entry[0].shape) for entry in self._texts.values()), (1, 1))
        if self._distances:
            found = [extremes(self.reference.to_map(grid, size)) for grid in self._distances.values()]
            self.calibration.fit_extremes(*map(torch.cat, zip(*found, strict=True)), "batch")
        peaks = []
        for key, (text_map, text_score, _) in self._texts.items():
            text = text_map[None].to(device).float(), text_score[None].to(device)
            if key in alone:
                joined = self.alone.judge_features(*text, tuple(grid.to(device).float() for grid in alone[key]))
            else:
                joined = self._join(*text, self.reference.to_map(self._distances[key], size))
            self._answers[key] = (joined[0][0].half().cpu(), joined[1][0].cpu())
            peaks.append(joined[0].amax().cpu())
        self._company, self._judged = frozenset(self._answers), (files, class_name)
        self._pool, self._distances = {}, {}
        if self._answers and not alone:
            self._smooth()
            self._set_thresholds(torch.stack(peaks), torch.stack([score for _, score in self._answers.values()]))

    def _smooth(self) -> None:
        """Let pictures that look alike share their scores."""
        if not self.windows:
            return
        scores = torch.stack([score for _, score in self._answers.values()])
        embeddings = torch.stack([entry[2] for entry in self._texts.values()])
        smoothed = smooth_scores(scores, embeddings, self.windows)
        self._answers = {
            key: (answer[0], score) for (key, answer), score in zip(self._answers.items(), smoothed, strict=True)
        }

    def recall(self, keys: list[str], device: torch.device) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Give the answers about collected pictures.

        Args:
            keys (list[str]): Their names.
            device (torch.device): Where to.

        Returns:
            tuple[torch.Tensor, torch.Tensor] | None: S_a ``(B, H, W)`` and image scores ``(B,)``; ``None`` unless all
            were judged.
        """
        if any(key not in self._answers for key in keys):
            return None
        maps, scores = zip(*(self._answers[key] for key in keys), strict=True)
        return torch.stack(maps).float().to(device), torch.stack(scores).to(device)

    def forward(
        self, text_map: torch.Tensor, text_score: torch.Tensor, taps: Taps
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Let the pictures of one batch judge each other. See :meth:`Judge.forward`."""
        if len(text_map) < LEAST_PICTURES:
            self._warn(len(text_map))
            return self.alone(text_map, text_score, taps)
        distance = self.reference.to_map(
            self.reference.distances(self.reference.features(taps)), tuple(text_map.shape[-2:])
        )
        self.calibration.fit(distance, "batch")
        return self._join(text_map, text_score, distance)

    @staticmethod
    def _warn(number: int) -> None:
        logger.warning(
            "%s too few to judge each other, %d are needed: each is judged by itself. Give more at once, or good parts "
            "by k_shot.",
            "1 picture is" if number == 1 else f"{number} pictures are",
            LEAST_PICTURES,
        )

    def rule(self) -> dict[str, Hashable]:
        """Say how it judges. See :meth:`Judge.rule`."""
        return {**super().rule(), "windows": self.windows}

    def settings(self) -> Hashable:
        """Say what its answers depend on beside picture and text."""
        return *super().settings(), self._company


class TiledBatchJudge(BatchJudge):
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
        """Forget the pictures of an earlier batch. See :meth:`BatchJudge.begin`."""
        super().begin(count)
        self._samples: dict[str, Taps] = {}
        self._grids: dict[str, list[torch.Tensor]] = {}
        self._extremes: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def too_few(self) -> bool:
        """Whether the collected pictures are too few to judge each other."""
        return len(self._samples) < LEAST_PICTURES

    def sample(self, key: str, looks: Iterable[Look], views: int) -> None:
        """Keep patches of a picture, the first time that it comes.

        Args:
            key (str): Its name, see :func:`picture_key`.
            looks (Iterable[tuple]): Looks at its tiles.
            views (int): Number of its tiles.
        """
        if key not in self._samples:
            limit = SAMPLE_BYTES // max(1, self._count)
            kept = [self.reference.sample(taps, views, limit) for _, _, taps in looks]
            self._samples[key] = tuple(map(torch.cat, zip(*kept, strict=True)))

    @torch.no_grad()
    def compare(self, key: str, looks: Iterable[Look], blend: Callable[[Iterable[Answer]], Answer]) -> None:
        """Compare a picture with the others, when the patches of all are known.

        Args:
            key (str): Its name.
            looks (Iterable[tuple]): Looks at its tiles.
            blend (Callable[[Iterable[tuple]], tuple]): Makes one map ``(1, H, W)`` of those of its tiles.
        """
        if key in self._grids or self.too_few:
            return
        self._grids[key] = []
        others = [patches for other, patches in self._samples.items() if other != key]

        def compared() -> Iterator[Answer]:
            for text_map, text_score, taps in looks:
                distance = self.reference.distances_to(taps, others).mean(dim=1, keepdim=True)
                self._grids[key].append(distance.cpu())
                yield self.reference.to_map(distance, tuple(text_map.shape[-2:])), text_score

        self._extremes[key] = extremes(blend(compared())[0])
        if len(self._extremes) == len(self._samples):  # the last has come
            medians, peaks = map(torch.cat, zip(*self._extremes.values(), strict=True))
            self.calibration.fit_extremes(medians, peaks, "batch")

    def answer(self, key: str, looks: Iterable[Look]) -> Iterator[Answer]:
        """Judge the tiles of a picture; one that was not compared, since pictures are too few, by themselves.

        Args:
            key (str): Its name.
            looks (Iterable[tuple]): Looks at its tiles.

        Yields:
            tuple: Map and score of each look.
        """
        if key not in self._grids:
            yield from (self.alone(*look) for look in looks)
            return
        for (text_map, text_score, _), grid in zip(looks, self._grids[key], strict=True):
            distance = self.reference.to_map(grid.to(text_map.device), tuple(text_map.shape[-2:]))
            yield self._join(text_map, text_score, distance)

    def answered(self, key: str) -> bool:
        """Say whether :meth:`keep` has what was found about a picture."""
        return key in self._answers

    def keep(self, key: str, answer: Answer) -> None:
        """Keep S_a ``(1, H, W)``, in half precision, and the image score ``(1,)`` of a picture."""
        anomaly_map, score = answer
        self._answers[key] = (anomaly_map[0].half().cpu(), score[0].cpu())

    def judge(self, files: Hashable = None, class_name: str = "") -> None:
        """Say the thresholds, when all answers are kept. See :meth:`BatchJudge.judge`."""
        self._company, self._judged = frozenset(self._answers), (files, class_name)
        if self.too_few:
            self._warn(len(self._samples))
        else:
            maps, scores = zip(*self._answers.values(), strict=True)
            self._set_thresholds(torch.stack([anomaly_map.amax().float() for anomaly_map in maps]), torch.stack(scores))
        self._samples, self._grids = {}, {}

    def forward(
        self, text_map: torch.Tensor, text_score: torch.Tensor, taps: Taps
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Judge tiles of a picture that was not collected by themselves. See :meth:`Judge.forward`."""
        return self.alone(text_map, text_score, taps)


def picture_key(image: torch.Tensor) -> str:
    """Name a picture by its pixels.

    Args:
        image (torch.Tensor): ``(3, height, width)``.

    Returns:
        str: SHA-256, in hexadecimal.
    """
    return hashlib.sha256(image.detach().cpu().contiguous().numpy()).hexdigest()


def build_judge(
    localizer: Localizer, references: str, k_shot: int, options: ReferenceOptions, in_tiles: bool = False
) -> Judge | None:
    """Build the judge that was asked for.

    Args:
        localizer (Localizer): Gives the taps, and says how they are compared.
        references (str): One of :data:`REFERENCES`.
        k_shot (int): Good parts that judge; 0 for none.
        options (ReferenceOptions): What the user set.
        in_tiles (bool): Whether pictures are seen in tiles. Defaults to ``False``.

    Returns:
        Judge | None: The judge; ``None`` for the text alone.

    Raises:
        ValueError: If an option is outside its range, or ``windows`` are asked of a batch in tiles.
    """
    if references == "none" and not k_shot:
        return None
    if "taps" in options:
        _set_taps(localizer, tuple(options["taps"]))
    how = {"join": localizer.joins_taps, "sigma": localizer.reference_sigma}
    shares = ("text_share", "text_score_share", "peak_share")
    combination = Combination(**{name: options[name] for name in shares if name in options})
    calibration = Calibration(options.get("raw", False))
    if k_shot:
        limit = {name: options[name] for name in ("memory_limit",) if name in options}
        reference = FewShotReference(**limit, **how)
        share, rotate = options.get("passing_share", 1.0), options.get("rotate", False)
        return FewShotJudge(reference, combination, calibration, share, rotate)
    usual = localizer.usual_self_distance
    if references == "self":
        return SelfJudge(SelfReference(**how), combination, calibration, usual)
    alone = SelfJudge(SelfReference(**how), combination, Calibration(calibration.raw), usual)
    windows = tuple(options.get("windows", ()))
    if windows and in_tiles:
        msg = "`windows` share the scores of pictures that look alike as wholes. With tiles, leave them out."
        raise ValueError(msg)
    share = options.get("passing_share", RAW_PASSING_SHARE if calibration.raw else None)
    judge = TiledBatchJudge if in_tiles else BatchJudge
    return judge(BatchReference(**how), combination, calibration, share, alone, windows)


def _set_taps(localizer: Localizer, taps: tuple[int, ...]) -> None:
    """Choose the blocks that are compared, of a localizer that has a choice."""
    depth = localizer.depth
    if not taps or not depth or not all(1 <= tap <= depth for tap in taps):
        has = f"{depth} blocks, counted from 1" if depth else "no choice of blocks"
        msg = f"taps is {list(taps)}, but this localizer has {has}. Name some of these, or leave `taps` out."
        raise ValueError(msg)
    localizer.reference_taps = tuple(sorted(set(taps)))
