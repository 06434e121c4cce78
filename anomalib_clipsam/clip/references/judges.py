# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Who judges a picture beside the text: the picture itself, a few good parts, or the batch that it came in.

A judge holds a reference, the calibration that turns its distances into probabilities, and the rule that joins these
with the text's. It also says which thresholds good parts, or the bulk of the batch, would pass.

Letters: B pictures, k good parts, N pictures of a batch, T taps, H W map.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import nn

from anomalib_clipsam.clip.references.batch import LEAST_PICTURES, BatchReference
from anomalib_clipsam.clip.references.calibration import Calibration, passing_threshold
from anomalib_clipsam.clip.references.combination import Combination
from anomalib_clipsam.clip.references.few_shot import FewShotReference, quarter_turns
from anomalib_clipsam.clip.references.self_reference import SelfReference

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from anomalib_clipsam.clip.localizers import Localizer
    from anomalib_clipsam.clip.references.features import Taps

    Localize = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, Taps]]

logger = logging.getLogger(__name__)

REFERENCES = ("none", "self", "batch")
"""What ``references`` may name; ``k_shot`` asks for good parts."""
SPREADS = 6.0
"""Where nobody knows which distances are usual to a CLIP, a picture's limit lies so many interquartile ranges above its
own median. [ours, not measured]"""
POOL_BYTES = 4 * 2**30
"""Bytes that the features of a batch may take; pictures judge each other in subsets where they do not fit."""


class ReferenceOptions(TypedDict, total=False):
    """What a user may set of the references.

    Args:
        rotate (bool): Whether good parts also count as turned by 90, 180 and 270 degrees. Defaults to ``False``.
        memory_limit (int): Most patches of good parts that are kept per tap. Defaults to ``32768``.
        text_share (float): Share of the text in the map; 0 gives the reference alone.
        text_score_share (float): Share of the text in the image score.
        passing_share (float): Share of the good parts, or of the batch, that the thresholds let pass.
        taps (list[int]): Blocks of a ViT, counted from 1, whose output is compared. Defaults to four, evenly spaced.
    """

    rotate: bool
    memory_limit: int
    text_share: float
    text_score_share: float
    passing_share: float
    taps: list[int]


@dataclass(frozen=True)
class Thresholds:
    """What the reference says without a label.

    Args:
        image (float): Image score above which a picture is defective.
        pixel (float): Value of S_a above which a pixel is.
    """

    image: float
    pixel: float


class Judge(nn.Module):
    """Base: text and one kind of reference, joined.

    Args:
        reference (nn.Module): Gives distances.
        combination (Combination): Joins text and reference.
        passing_share (float): Share of the good parts, or of the batch, that the thresholds let pass, in (0, 1].

    Attributes:
        thresholds (Thresholds | None): What good parts, or the bulk of the batch, pass; ``None`` before they are known.
        unlike (int): Pictures that were unlike the reference nearly everywhere, since the count was last set to zero.
        judged (int): Pictures that were judged since then.
    """

    def __init__(self, reference: nn.Module, combination: Combination, passing_share: float) -> None:
        super().__init__()
        if not 0 < passing_share <= 1:
            msg = f"passing_share is {passing_share}, but it is a share of the pictures. Choose above 0, 1 at most."
            raise ValueError(msg)
        self.reference = reference
        self.combination = combination
        self.calibration = Calibration()
        self.passing_share = passing_share
        self.thresholds: Thresholds | None = None
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
            self.unlike += int((probability.flatten(1).median(dim=1).values > 0.5).sum())
        return self.combination(text_map, text_score, probability)

    def _set_thresholds(self, maps: torch.Tensor, scores: torch.Tensor) -> None:
        """Let a share of good pictures pass, by maps ``(N, H, W)`` and scores ``(N,)``."""
        self.thresholds = Thresholds(
            image=float(passing_threshold(scores, self.passing_share)),
            pixel=float(passing_threshold(maps.flatten(1).amax(dim=1), self.passing_share)),
        )

    def settings(self) -> Hashable:
        """Say what its answers depend on beside picture and text."""
        return (
            type(self).__name__,
            self.combination.text_share,
            self.combination.text_score_share,
            self.calibration.usual.item(),
            self.calibration.limit.item(),
        )


class SelfJudge(Judge):
    """The picture judges itself.

    Args:
        reference (SelfReference): Gives distances.
        combination (Combination): Joins text and reference.
        passing_share (float): Not used: a picture alone says nothing of others.
        usual (tuple[float, float] | None): Usual distance and limit, as
            :class:`~anomalib_clipsam.clip.references.calibration.Calibration` has them, of good pictures that this CLIP
            was shown. Defaults to ``None``: each picture's own median, and six interquartile ranges above it.
    """

    def __init__(
        self,
        reference: SelfReference,
        combination: Combination,
        passing_share: float,
        usual: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(reference, combination, passing_share)
        self.known = usual is not None
        if usual is not None:
            self.calibration.usual.fill_(usual[0])
            self.calibration.limit.fill_(usual[1])

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
        passing_share (float): Share of the good parts that the thresholds let pass, each judged by the others.
        rotate (bool): Whether good parts also count as turned by 90, 180 and 270 degrees.

    Attributes:
        sources (tuple[str, ...]): SHA-256 of each good part as the model was shown it.
    """

    def __init__(
        self, reference: FewShotReference, combination: Combination, passing_share: float, rotate: bool
    ) -> None:
        super().__init__(reference, combination, passing_share)
        self.rotate = rotate
        self.sources: tuple[str, ...] = ()

    @torch.no_grad()
    def learn(self, image: torch.Tensor, localize: Localize) -> None:
        """Look at good parts: keep their patches, and learn how far one of them is from the others.

        Args:
            image (torch.Tensor): Good parts ``(k, 3, height, width)``, square where they are to be rotated.
            localize (Localize): From images to text map ``(B, H, W)``, text score ``(B,)`` and taps.
        """
        looks = []
        for turned in quarter_turns(image) if self.rotate else [image]:
            looks += [localize(part) for part in turned.split(1)]  # a part at a time, as ViTs at 518 px are large
        text_maps, text_scores, taps = zip(*looks, strict=True)
        copies, count = len(looks) // len(image), len(image)
        left_out = self.reference.memorise(tuple(torch.cat(grids) for grids in zip(*taps, strict=True)), copies)
        text_map, text_score = torch.cat(text_maps[:count]), torch.cat(text_scores[:count])
        distance = self.reference.to_map(left_out, tuple(text_map.shape[-2:]))
        self.calibration.fit(distance, "few_shot")
        self._set_thresholds(*self.combination(text_map, text_score, self.calibration(distance)))
        self.sources = tuple(picture_key(part) for part in image)

    def settings(self) -> Hashable:
        """Say what its answers depend on beside picture and text."""
        return *super().settings(), self.sources


class BatchJudge(Judge):
    """The unlabelled batch judges: pictures are collected first, and judge each other when all have come.

    Pictures that were not collected judge each other in the batch that they come in; where these are too few, each
    judges itself.

    Args:
        reference (BatchReference): Gives distances.
        combination (Combination): Joins text and reference.
        passing_share (float): Share of the batch that the thresholds let pass.
        alone (SelfJudge): Judges pictures that are too few.
    """

    def __init__(
        self, reference: BatchReference, combination: Combination, passing_share: float, alone: SelfJudge
    ) -> None:
        super().__init__(reference, combination, passing_share)
        self.alone = alone
        self._pool: dict[str, tuple[Taps, torch.Tensor, torch.Tensor]] = {}
        self._answers: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def begin(self, keys: set[str]) -> None:
        """Forget the pictures of an earlier batch.

        Args:
            keys (set[str]): Those that stay.
        """
        self._pool = {key: value for key, value in self._pool.items() if key in keys}
        self._answers = {}

    def knows(self, key: str) -> bool:
        """Say whether a picture was collected."""
        return key in self._pool

    def collect(self, keys: list[str], text_map: torch.Tensor, text_score: torch.Tensor, taps: Taps) -> None:
        """Keep what is needed of some pictures until all have come, in half precision.

        Args:
            keys (list[str]): A name for each picture, see :func:`picture_key`.
            text_map (torch.Tensor): ``(B, H, W)`` in [0, 1].
            text_score (torch.Tensor): ``(B,)`` in [0, 1].
            taps (tuple[torch.Tensor, ...]): T grids of features ``(B, C_t, h_t, w_t)``.
        """
        kept = self.reference.keep(taps)
        for index, key in enumerate(keys):
            grids = tuple(grid[index : index + 1].clone() for grid in kept)
            self._pool[key] = (grids, text_map[index].half().cpu(), text_score[index].cpu())

    @torch.no_grad()
    def judge(self) -> None:
        """Let the collected pictures judge each other; where they are too few, each judges itself, with a warning."""
        if not self._pool:
            return
        if len(self._pool) < LEAST_PICTURES:
            self._warn(len(self._pool))
            self._answers = {key: self._alone(*entry) for key, entry in self._pool.items()}
            return
        keys, entries = list(self._pool), list(self._pool.values())
        distances: list[torch.Tensor | None] = [None] * len(keys)
        for subset in self.reference.subsets(len(keys), entries[0][0], POOL_BYTES):
            taps = tuple(torch.cat(grids) for grids in zip(*(entries[i][0] for i in subset), strict=True))
            scores = self.reference.distances(taps)
            for place, index in enumerate(subset):
                distances[index] = scores[place : place + 1]
        size = tuple(entries[0][1].shape)
        self.calibration.fit(torch.cat([self.reference.to_map(grid, size).half() for grid in distances]), "batch")
        for key, grid, (_, text_map, text_score) in zip(keys, distances, entries, strict=True):
            distance = self.reference.to_map(grid, size)
            joined = self._join(text_map[None].float(), text_score[None], distance)
            self._answers[key] = (joined[0][0].half(), joined[1][0])
        maps, scores = zip(*self._answers.values(), strict=True)
        self._set_thresholds(torch.stack(maps).float(), torch.stack(scores))

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

    def _alone(self, taps: Taps, text_map: torch.Tensor, text_score: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Let a collected picture judge itself."""
        reference = self.alone.reference
        grids = tuple(grid.float() for grid in taps)  # joined already
        distance = reference.to_map(reference.distances(grids), tuple(text_map.shape))
        joined, score = self.alone._join(text_map[None].float(), text_score[None], distance)  # noqa: SLF001  # a judge too
        return joined[0].half(), score[0]

    @staticmethod
    def _warn(number: int) -> None:
        logger.warning(
            "%d pictures are too few to judge each other, %d are needed: each is judged by itself. Give more at once, "
            "or good parts by k_shot.",
            number,
            LEAST_PICTURES,
        )

    def settings(self) -> Hashable:
        """Say what its answers depend on beside picture and text."""
        return *super().settings(), frozenset(self._answers)


def picture_key(image: torch.Tensor) -> str:
    """Name a picture by its pixels.

    Args:
        image (torch.Tensor): ``(3, height, width)``.

    Returns:
        str: SHA-256, in hexadecimal.
    """
    return hashlib.sha256(image.detach().cpu().contiguous().numpy()).hexdigest()


def build_judge(localizer: Localizer, references: str, k_shot: int, options: ReferenceOptions) -> Judge | None:
    """Build the judge that was asked for.

    Args:
        localizer (Localizer): Gives the taps, and says how they are compared.
        references (str): One of :data:`REFERENCES`.
        k_shot (int): Good parts that judge; 0 for none.
        options (ReferenceOptions): What the user set.

    Returns:
        Judge | None: The judge; ``None`` for the text alone.
    """
    if references == "none" and not k_shot:
        return None
    if "taps" in options:
        localizer.reference_taps = tuple(options["taps"])
    how = {"join": localizer.joins_taps, "sigma": localizer.reference_sigma}
    shares = {name: options[name] for name in ("text_share", "text_score_share") if name in options}
    combination = Combination(**shares)
    if k_shot:
        limit = {name: options[name] for name in ("memory_limit",) if name in options}
        reference = FewShotReference(**limit, **how)
        return FewShotJudge(reference, combination, options.get("passing_share", 1.0), options.get("rotate", False))
    alone = SelfJudge(SelfReference(**how), combination, 1.0, localizer.usual_self_distance)
    if references == "self":
        return alone
    return BatchJudge(BatchReference(**how), combination, options.get("passing_share", 0.9), alone)
