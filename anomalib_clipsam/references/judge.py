# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Who judges a picture beside the text: the interface of the picture itself, a few good parts, and the batch.

A judge holds a reference, the calibration that turns its distances into probabilities, and the rule that joins these
with the text's. It also knows which thresholds good parts, or the bulk of the batch, would pass.

Letters: B pictures or tiles, k good parts, N pictures of a batch, T taps, H W map.
"""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import torch
from torch import nn

from anomalib_clipsam.errors.errors import UserValueError
from anomalib_clipsam.references.bounds import (
    FALSE_ALARMS,
    check_false_alarms,
    image_level,
    pixel_level,
    recentre,
    suppress_halo,
)
from anomalib_clipsam.references.calibration import passing_threshold

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    from anomalib_clipsam.clip.taps import Taps
    from anomalib_clipsam.references.calibration import Calibration
    from anomalib_clipsam.references.combination import Combination

UNLIKE = 2.0
"""A picture whose median distance is so many times the largest of any good part is of another part. [ours: pictures of
the same part, drawn and real, stayed below 1.5 times, those of other parts were mostly above 2.5 times] Where it is
known how far an empty frame is, see :meth:`FewShotJudge.learn`."""
LEAST_UNLIKE = 1.5
"""The same at least, where good parts look much like an empty frame."""
HALO = 0.2
"""Share of its highest log-odds that a map loses everywhere, see :func:`~bounds.suppress_halo`. With it outlines at the
pixel threshold had F1 0.44 in place of 0.36 on training sets, and F1-max was the same (``docs/ablation.md``)."""
LEAST_TEXT, MOST_TEXT = 0.1, 0.99
"""Bounds of what the text may say of good pictures: below the first, its noise would be magnified."""
SURE = 1.0
"""Score of a picture that is unlike its references, and of no other: whatever the threshold, it is defective."""
UNFITTED = (
    "The threshold, 0.5, is not fitted to these pictures: good ones may lie above it. A few good parts fit it, with "
    "{}; or set it with {}."
)
"""What is said of a threshold that neither good parts, a batch, labels nor the user have set."""


@dataclass(frozen=True)
class Thresholds:
    """What the reference says without a label.

    Args:
        image (float): Image score above which a picture is defective.
        pixel (float): Value of S_a above which a pixel is.
    """

    image: float
    pixel: float


@dataclass(frozen=True)
class Levels:
    """What becomes 0.5, and so the threshold, when references have said where good pictures end.

    Args:
        image (float): Image score, in (0, 1). Defaults to ``0.5``, which changes nothing.
        pixel (float): Value of S_a. Defaults to ``0.5``.
        halo (float): See :func:`~anomalib_clipsam.references.bounds.suppress_halo`. Defaults to ``0``, none.
    """

    image: float = 0.5
    pixel: float = 0.5
    halo: float = 0.0


class View(NamedTuple):
    """What CLIP says of pictures, or of tiles, by itself.

    Args:
        map (torch.Tensor): Map by text, ``(B, H, W)`` in [0, 1].
        score (torch.Tensor): Image score by text, ``(B,)`` in [0, 1].
        taps (tuple[torch.Tensor, ...]): T grids of features ``(B, C_t, h_t, w_t)``; empty without references.
    """

    map: torch.Tensor
    score: torch.Tensor
    taps: Taps = ()


class Answer(NamedTuple):
    """What text and reference say of pictures, or of tiles.

    Args:
        map (torch.Tensor): S_a, ``(B, H, W)`` in [0, 1].
        score (torch.Tensor): Image score, ``(B,)`` in [0, 1].
        unlike (torch.Tensor | None): Whether a picture is unlike its references nearly everywhere, ``(B,)`` bool.
            Defaults to ``None``: there is nothing to tell it by.
    """

    map: torch.Tensor
    score: torch.Tensor
    unlike: torch.Tensor | None = None


class Viewer(Protocol):
    """Who views pictures: whole in one view, or a large one in tiles, some of them in each view."""

    def count_views(self, image: torch.Tensor) -> int:
        """Count what the views of a picture ``(1, 3, height, width)`` show: 1, or its tiles."""

    def views(self, image: torch.Tensor) -> Iterable[View]:
        """View a picture, or some of its tiles at a time."""

    def join(self, image: torch.Tensor, answers: Iterable[Answer]) -> Answer:
        """Make one answer of what a judge says about each view of a picture."""

    def blend(self, image: torch.Tensor, answers: Iterable[Answer]) -> Answer:
        """Make one map of those of each view, without a view of the whole."""


class Judge(nn.Module, ABC):
    """Base: text and one kind of reference, joined.

    Args:
        reference (nn.Module): Gives distances.
        combination (Combination): Joins text and reference.
        calibration (Calibration): Turns distances into probabilities.
        passing_share (float | None): Share of the good parts, or of the batch, that the image threshold lets pass, in
            (0, 1]. Defaults to ``None``: what ``false_alarms`` says.
        false_alarms (float): Share of further good pictures that may be called defective. Defaults to
            :data:`~anomalib_clipsam.references.bounds.FALSE_ALARMS`.

    Attributes:
        thresholds (Thresholds | None): What good parts, or the bulk of the batch, pass; ``None`` before they are known.
        levels (Levels): What of S_a and of the score becomes 0.5.
        max_median_distance (float): Largest median distance of a good part from the others; infinite where there are
            none.
        unlike_distance (float): Median distance above which a picture is unlike the references.
    """

    NAME: ClassVar[str]
    needs_pass: ClassVar[bool] = False
    """Whether it must view all pictures of a pass before the pass, see :meth:`steps`."""
    needs_good_parts: ClassVar[bool] = False
    """Whether it must be shown good parts."""
    exportable: ClassVar[bool] = True
    """Whether what it knows can be put into a file that judges one picture."""
    says_of_unlike: ClassVar[str] = "a frame without structure"
    """Why a picture of the score :data:`SURE` is defective."""
    knows_others: ClassVar[bool] = False
    """Whether it compares with other pictures, and so can tell one that is unlike them."""

    def __init__(
        self,
        reference: nn.Module,
        combination: Combination,
        calibration: Calibration,
        passing_share: float | None = None,
        false_alarms: float = FALSE_ALARMS,
    ) -> None:
        super().__init__()
        check_false_alarms(false_alarms)
        if passing_share is not None and not 0 < passing_share <= 1:
            msg = f"passing_share is {passing_share}, but it is a share of the pictures. Choose above 0, 1 at most."
            raise UserValueError(msg)
        self.reference = reference
        self.combination = combination
        self.calibration = calibration
        self.passing_share = passing_share
        self.false_alarms = false_alarms
        self.thresholds: Thresholds | None = None
        self.levels = Levels()
        self.max_median_distance = self.unlike_distance = float("inf")

    @property
    def ready(self) -> bool:
        """Whether it has been shown what it needs beside the picture."""
        return True

    def forward(self, text_map: torch.Tensor, text_score: torch.Tensor, taps: Taps) -> Answer:
        """Judge pictures.

        Args:
            text_map (torch.Tensor): CLIP's map by text, ``(B, H, W)`` in [0, 1].
            text_score (torch.Tensor): Image score by text, ``(B,)`` in [0, 1].
            taps (tuple[torch.Tensor, ...]): T grids of features ``(B, C_t, h_t, w_t)``.

        Returns:
            Answer: S_a, the image score, and whether a picture is unlike the references.
        """
        distance = self.reference(taps, tuple(text_map.shape[-2:]))
        return self._join(text_map, text_score, distance)

    def _join(self, text_map: torch.Tensor, text_score: torch.Tensor, distance: torch.Tensor) -> Answer:
        """Calibrate distances ``(B, H, W)`` and join them with the text."""
        anomaly_map, score = self.combination(text_map, text_score, self.calibration(distance))
        if not self.knows_others or self.calibration.raw:
            return Answer(anomaly_map, score)
        # the median is farther where most pixels are; a graph has no median
        unlike = (distance > self.unlike_distance).float().flatten(1).mean(dim=1) > 0.5
        return Answer(anomaly_map, score, unlike)

    def finish(self, answer: Answer) -> Answer:
        """Put the thresholds at 0.5, and decide about what is unlike the references.

        Args:
            answer (Answer): What :meth:`forward` says of a picture, or what the model makes of its tiles.

        Returns:
            Answer: The same, with the levels at 0.5, and :data:`SURE` for what is unlike.
        """
        if self.calibration.raw:
            return answer
        anomaly_map = suppress_halo(recentre(answer.map, self.levels.pixel), self.levels.halo)
        score = decide_unlike(recentre(answer.score, self.levels.image), answer.unlike)
        return answer._replace(map=anomaly_map, score=score)

    def known(self, images: torch.Tensor) -> Answer | None:
        """Recall what was found about pictures before the pass.

        Args:
            images (torch.Tensor): ``(B, 3, height, width)``, as they were viewed then.

        Returns:
            Answer | None: ``None`` unless all were judged then.
        """
        del images
        return None

    def steps(self, viewer: Viewer) -> dict[str, Callable[[torch.Tensor], None]]:
        """List what is done with all pictures of a pass before it, one step after the other.

        Args:
            viewer (Viewer): The model.

        Returns:
            dict[str, Callable[[torch.Tensor], None]]: What a progress bar says -> what each batch of pictures ``(B, 3,
            height, width)`` is given to. Empty for a judge that needs no pass.
        """
        del viewer
        return {}

    def learn(self, parts: Sequence[torch.Tensor], viewer: Viewer) -> None:
        """Look at good parts.

        Args:
            parts (Sequence[torch.Tensor]): Good parts ``(3, height, width)``, as the model takes them.
            viewer (Viewer): The model.

        Raises:
            ValueError: If it compares with none.
        """
        del parts, viewer
        msg = "This model compares with no good parts. Make it with `k_shot`, such as ClipSam(k_shot=4)."
        raise UserValueError(msg)

    def views_of_a_part(self, in_tiles: bool) -> int:
        """Count how often :meth:`learn` views a good part.

        Args:
            in_tiles (bool): Whether it is seen in tiles.
        """
        del in_tiles
        return 0

    def forget(self) -> None:
        """Forget the pictures it was shown."""

    def state(self) -> dict[str, Any] | None:
        """Collect what a checkpoint must hold to judge without being shown anything again.

        Returns:
            dict[str, Any] | None: Tensors and plain values; ``None`` if there is nothing.
        """
        return None

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state` gave.

        Args:
            state (dict[str, Any]): The content of a checkpoint.
        """
        del state

    def explain(self, reference_option: str, threshold_option: str) -> str:
        """Explain what the thresholds rest on, and what moves them.

        Args:
            reference_option (str): Option that gives good parts.
            threshold_option (str): Option that sets a threshold.

        Returns:
            str: Two sentences.
        """
        return UNFITTED.format(reference_option, threshold_option)

    def _set_levels(self, maps: Sequence[torch.Tensor], scores: torch.Tensor) -> None:
        """Learn where good pictures end.

        Args:
            maps (Sequence[torch.Tensor]): S_a of each picture, ``(1, H, W)``.
            scores (torch.Tensor): Their scores ``(N,)``.
        """
        if self.calibration.raw:  # distances as they are: nothing becomes 0.5
            share = 1.0 if self.passing_share is None else self.passing_share
            peaks = torch.stack([values.amax() for values in maps])
            image, pixel = (float(passing_threshold(values, share)) for values in (scores, peaks))
            self.levels, self.thresholds = Levels(), Thresholds(image, pixel)
            return
        image = self._image_level(scores)
        if self.passing_share is not None:
            image = min(max(float(passing_threshold(scores, self.passing_share)), 1e-6), 1 - 1e-6)
        self.levels = Levels(image, self._pixel_level(maps), HALO)
        self.thresholds = Thresholds(0.5, 0.5)

    def _image_level(self, scores: torch.Tensor) -> float:
        return image_level(scores, self.false_alarms)

    def _pixel_level(self, maps: Sequence[torch.Tensor]) -> float:
        return pixel_level(maps)

    def rule(self) -> dict[str, Hashable]:
        """Describe how it judges, whatever the pictures: thresholds found with one judge fit no other's scores."""
        shares = {name: value for name, value in vars(self.combination).items() if name.endswith("share")}
        return {"references": self.NAME, "raw": self.calibration.raw, **shares}

    def settings(self) -> Hashable:
        """List what its answers depend on beside picture and text."""
        known = not bool(self.calibration.half_point.isnan())  # not a number is not even equal to itself
        learnt = (self.calibration.typical.item(), self.calibration.half_point.item()) if known else None
        text = self.combination.text_level, self.combination.text_score_level
        return (*self.rule().items(), learnt, text, self.levels, self.unlike_distance)


def reasons(score: torch.Tensor, judge: Judge | None) -> list[str]:
    """Name what makes pictures defective whatever their defects.

    Args:
        score (torch.Tensor): Scores ``(B,)``, before they are normalised.
        judge (Judge | None): Who has judged beside the text.

    Returns:
        list[str]: Of each picture, such as ``"unlike every good part"``; an empty text where there is nothing.
    """
    says = Judge.says_of_unlike if judge is None else judge.says_of_unlike
    return [says if sure else "" for sure in (score >= SURE).flatten().tolist()]


def decide_unlike(score: torch.Tensor, unlike: torch.Tensor | None) -> torch.Tensor:
    """Score pictures that are unlike the references as :data:`SURE`, and no others.

    Args:
        score (torch.Tensor): ``(B,)`` in [0, 1].
        unlike (torch.Tensor | None): ``(B,)`` bool; ``None`` if nothing is known of it.

    Returns:
        torch.Tensor: ``(B,)``.
    """
    score = score.clamp(max=SURE - 1e-6)
    return score if unlike is None else torch.where(unlike, SURE, score)
