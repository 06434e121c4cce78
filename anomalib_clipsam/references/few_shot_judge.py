# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""A few good parts judge a picture beside the text.

Letters: B pictures or tiles, k good parts, H W map.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import torch

from anomalib_clipsam.compute.hashing import picture_key
from anomalib_clipsam.errors.errors import counted
from anomalib_clipsam.references.bounds import FALSE_ALARMS, pixel_level
from anomalib_clipsam.references.calibration import Calibration, extremes
from anomalib_clipsam.references.combination import Combination
from anomalib_clipsam.references.copies import find_copies
from anomalib_clipsam.references.distances.few_shot import FewShotReference, quarter_turns
from anomalib_clipsam.references.judge import (
    LEAST_TEXT,
    LEAST_UNLIKE,
    MOST_TEXT,
    UNLIKE,
    Answer,
    Judge,
    Levels,
    Thresholds,
    View,
    Viewer,
)

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

logger = logging.getLogger(__name__)

BLANK_SIDE = 256
"""Most pixels of a side of the empty frame that good parts are compared with: a single view."""


class FewShotJudge(Judge):
    """A few good parts judge.

    Args:
        reference (FewShotReference): Gives distances.
        combination (Combination): Joins text and reference.
        calibration (Calibration): Turns distances into probabilities.
        passing_share (float | None): Share of the good parts that the image threshold lets pass, each judged by the
            others; ``None`` for what ``false_alarms`` says.
        rotate (bool): Whether good parts also count as turned by 90, 180 and 270 degrees.
        false_alarms (float): Share of further good parts that may be called defective. Defaults to
            :data:`~anomalib_clipsam.references.bounds.FALSE_ALARMS`.

    Attributes:
        sources (tuple[str, ...]): SHA-256 of each good part as the model was shown it; empty before they are known.
        copies (tuple[int, ...]): Places of good parts, counted from 0, that show the same as an earlier one.
    """

    NAME = "good parts"
    needs_good_parts = True
    knows_others = True
    says_of_unlike = "unlike every good part"

    def __init__(
        self,
        reference: FewShotReference,
        combination: Combination,
        calibration: Calibration,
        passing_share: float | None,
        rotate: bool,
        false_alarms: float = FALSE_ALARMS,
    ) -> None:
        super().__init__(reference, combination, calibration, passing_share, false_alarms)
        self.rotate = rotate
        self.sources: tuple[str, ...] = ()
        self.copies: tuple[int, ...] = ()

    @property
    def ready(self) -> bool:
        """Whether it has been shown good parts."""
        return bool(self.sources)

    def views_of_a_part(self, in_tiles: bool) -> int:
        """Count how often :meth:`learn` views a good part: each of its turns, and tiles once more."""
        return (4 if self.rotate else 1) + in_tiles

    def forget(self) -> None:
        """Forget the good parts."""
        self.reference.set_memory(())
        self.sources = self.copies = ()

    @torch.no_grad()
    def learn(self, parts: Sequence[torch.Tensor], viewer: Viewer) -> None:
        """Look at good parts: keep their patches, and learn how far one of them is from the others.

        Each part is then judged as a picture that is tested, but by the patches of the others; a single one by its own,
        see :meth:`FewShotReference.distances_within`. Of tiles the features are not kept, so that these are looked at a
        second time; their maps by text are, 0.3 MB a tile of the carried pair. Copies of an earlier part say nothing
        new: they are left out.

        A picture is unlike the parts whose median distance is beyond the geometric mean of two: that of the farthest
        good part, and that of an empty grey frame.

        Args:
            parts (Sequence[torch.Tensor]): Good parts ``(3, height, width)``, as the model takes them, of one size or
                several. They are asked for several times, so that files need not stay in memory.
            viewer (Viewer): The model.
        """
        self.forget()
        reference = self.reference
        copies = find_copies(parts)
        self.copies = tuple(sorted(copies))
        if copies:
            logger.warning(
                "Of the good parts, these show the same as an earlier one: number %s. They do not count, and %s left. "
                "Give pictures of different parts.",
                ", ".join(str(place + 1) for place in self.copies),
                f"{len(parts) - len(copies)} {'is' if len(parts) - len(copies) == 1 else 'are'}",
            )
        sources = [picture_key(part) for part in parts]
        places = [place for place in range(len(parts)) if place not in copies]
        own, kept = [], []
        for place in places:
            start = reference.size
            kept.append(self._memorise(parts[place][None], viewer, reference.memory_limit // len(places)))
            own.append(slice(start, reference.size))
        seen, found, texts = [], [], []
        for place, looks, span in zip(places, kept, own, strict=True):
            seen.append([])
            for text_map, text_score, taps in looks or viewer.views(parts[place][None]):
                features = reference.features(taps)
                alone = len(own) == 1
                distance = reference.distances_within(features) if alone else reference.distances(features, span)
                found.append(extremes(reference.to_map(distance, tuple(text_map.shape[-2:]))))
                seen[-1].append((text_map, text_score, distance))
            texts.append(torch.cat([text_score for _, text_score, _ in seen[-1]]).amax())
        medians, peaks = map(torch.cat, zip(*found, strict=True))
        self.calibration.fit_extremes(medians, peaks, "few_shot")
        self.max_median_distance = float(medians.amax())
        self.unlike_distance = self._find_unlike_distance(parts[places[0]], viewer)
        if not self.calibration.raw:
            self.combination.text_level = max(pixel_level([view[0] for views in seen for view in views]), LEAST_TEXT)
        answers, scores = [], []
        for number, (place, views) in enumerate(zip(places, seen, strict=True)):
            # what the text says of a part, too, is compared with what it says of the others
            self._level_text([text for other, text in enumerate(texts) if other != number] or texts)
            answers.append(viewer.join(parts[place][None], map(self._answer, views)))
            scores.append(answers[-1].score)
        self._level_text(texts)
        self._set_levels([answer.map for answer in answers], torch.cat(scores))
        self.sources = tuple(sources)

    def _level_text(self, scores: list[torch.Tensor]) -> None:
        """Take the highest of the text's scores of good parts for what it says of a good one."""
        if not self.calibration.raw:
            self.combination.text_score_level = min(max(float(torch.stack(scores).amax()), LEAST_TEXT), MOST_TEXT)

    def _find_unlike_distance(self, part: torch.Tensor, viewer: Viewer) -> float:
        """Find the median distance beyond which a picture is no such part: between good parts and an empty frame."""
        rows, columns = (min(side, BLANK_SIDE) for side in part.shape[-2:])
        blank = torch.full_like(part[None, :, :rows, :columns], 0.5)
        view = next(iter(viewer.views(blank)))
        distance = self.reference(view.taps, tuple(view.map.shape[-2:])).median().item()
        good = self.max_median_distance
        return max(LEAST_UNLIKE * good, math.sqrt(good * distance))

    def _memorise(self, part: torch.Tensor, viewer: Viewer, limit: int) -> list[View]:
        """Keep so many patches of a part, and of its quarter turns; return the view of it, if there is only one."""
        pictures = quarter_turns(part) if self.rotate else [part]
        kept = []
        for picture in pictures:
            count = viewer.count_views(picture)
            for view in viewer.views(picture):
                self.reference.memorise(view.taps, limit // (len(pictures) * count))
                if picture is pictures[0] and count == 1:
                    kept.append(view)
        return kept

    def _answer(self, seen: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> Answer:
        """Join text map, text score and the distances of a look, as :meth:`forward` does."""
        text_map, text_score, distance = seen
        probability = self.calibration(self.reference.to_map(distance, tuple(text_map.shape[-2:])))
        return Answer(*self.combination(text_map, text_score, probability))

    def settings(self) -> Hashable:
        """Report what its answers depend on beside picture and text."""
        return *super().settings(), self.sources

    def state(self) -> dict[str, Any] | None:
        """Collect the patches in half precision, and what was learnt of them. See :meth:`Judge.state`."""
        if not self.ready:
            return None
        return {
            "memory": [patches.half().cpu() for patches in self.reference.memory],
            "calibration": (self.calibration.typical.item(), self.calibration.half_point.item()),
            "thresholds": (self.thresholds.image, self.thresholds.pixel),
            "common": self.max_median_distance,
            "sources": list(self.sources),
            "levels": (self.levels.image, self.levels.pixel, self.levels.halo),
            "text": (self.combination.text_level, self.combination.text_score_level),
            "unlike": self.unlike_distance,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take the good parts of a checkpoint over. See :meth:`Judge.restore`."""
        device = self.calibration.typical.device
        self.reference.set_memory(tuple(patches.to(device) for patches in state["memory"]))
        # new tensors: after a pass of Lightning's the old ones cannot be changed
        self.calibration.typical, self.calibration.half_point = (
            torch.tensor(value, device=device) for value in state["calibration"]
        )
        self.thresholds = Thresholds(*state["thresholds"])
        self.max_median_distance, self.sources = state["common"], tuple(state["sources"])
        # earlier versions shifted nothing
        self.levels = Levels(*state.get("levels", ()))
        self.combination.text_level, self.combination.text_score_level = state.get("text", (0.5, 0.5))
        self.unlike_distance = state.get("unlike", UNLIKE * self.max_median_distance)

    def explain(self, reference_option: str, threshold_option: str) -> str:
        """Explain what the thresholds rest on. See :meth:`Judge.explain`."""
        if self.thresholds is None:
            return super().explain(reference_option, threshold_option)
        number = len(self.sources) - len(self.copies)
        parts = counted(number, "good part")
        if self.passing_share is not None:
            share = f"{100 * self.passing_share:.0f} %"
            return f"The threshold lets {share} of the {parts} pass. Set another with {threshold_option}."
        return (
            f"The threshold is set for {100 * self.false_alarms:.3g} % false alarms, by {parts} and by how much good "
            "pictures of other products differ. So few parts cannot promise it: look at the pictures just above it. "
            f"Give more good parts, or set it with {threshold_option}."
        )
