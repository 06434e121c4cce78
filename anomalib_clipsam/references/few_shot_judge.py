# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""A few good parts judge a picture beside the text.

Letters: B pictures or tiles, k good parts, H W map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from anomalib_clipsam.compute.hashing import picture_key
from anomalib_clipsam.errors.errors import counted
from anomalib_clipsam.references.calibration import Calibration, extremes
from anomalib_clipsam.references.combination import Combination
from anomalib_clipsam.references.distances.few_shot import FewShotReference, quarter_turns
from anomalib_clipsam.references.judge import Answer, Judge, Thresholds, View, Viewer

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence


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
    needs_good_parts = True

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
        self.sources = ()

    @torch.no_grad()
    def learn(self, parts: Sequence[torch.Tensor], viewer: Viewer) -> None:
        """Look at good parts: keep their patches, and learn how far one of them is from the others.

        Each part is then judged as a picture that is tested, but by the patches of the others; a single one by its own,
        see :meth:`FewShotReference.distances_within`. Of tiles the features are not kept, so that these are looked at a
        second time; their maps by text are, 0.3 MB a tile of the carried pair.

        Args:
            parts (Sequence[torch.Tensor]): Good parts ``(3, height, width)``, as the model takes them, of one size or
                several. They are asked for three times, so that files need not stay in memory.
            viewer (Viewer): The model.
        """
        self.forget()
        reference = self.reference
        own, kept, sources = [], [], []
        for part in parts:
            start = reference.size
            kept.append(self._memorise(part[None], viewer, reference.memory_limit // len(parts)))
            own.append(slice(start, reference.size))
            sources.append(picture_key(part))
        seen, found = [], []
        for part, looks, span in zip(parts, kept, own, strict=True):
            seen.append([])
            for text_map, text_score, taps in looks or viewer.views(part[None]):
                features = reference.features(taps)
                alone = len(own) == 1
                distance = reference.distances_within(features) if alone else reference.distances(features, span)
                found.append(extremes(reference.to_map(distance, tuple(text_map.shape[-2:]))))
                seen[-1].append((text_map, text_score, distance))
        medians, peaks = map(torch.cat, zip(*found, strict=True))
        self.calibration.fit_extremes(medians, peaks, "few_shot")
        self.max_median_distance = float(medians.amax())
        answers = [viewer.join(part[None], map(self._answer, looks)) for part, looks in zip(parts, seen, strict=True)]
        self._set_thresholds(
            torch.cat([answer.map.flatten(1).amax(dim=1) for answer in answers]),
            torch.cat([answer.score for answer in answers]),
        )
        self.sources = tuple(sources)

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

    def explain(self, reference_option: str, threshold_option: str) -> str:
        """Explain what the thresholds rest on. See :meth:`Judge.explain`."""
        if self.thresholds is None:
            return super().explain(reference_option, threshold_option)
        number = len(self.sources)
        if self.passing_share < 1:
            share = f"{100 * self.passing_share:.0f} %"
            parts = counted(number, "good part")
            return f"The threshold lets {share} of the {parts} pass. Set another with {threshold_option}."
        parts = "good part" if number == 1 else f"{number} good parts, each judged by the others"
        return (
            f"The threshold is the highest score of the {parts}. Expect at least 1 in {number + 1} further good "
            f"pictures above it: give more good parts to make that rarer, or set it with {threshold_option}."
        )
