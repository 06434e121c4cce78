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
from anomalib_clipsam.references.calibration import passing_threshold

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    from anomalib_clipsam.clip.taps import Taps
    from anomalib_clipsam.references.calibration import Calibration
    from anomalib_clipsam.references.combination import Combination

UNLIKE = 2.0
"""A picture whose median distance is so many times the largest of any good part is of another part. [ours: pictures of
the same part, drawn and real, stayed below 1.5 times, those of other parts were mostly above 2.5 times]"""
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
        passing_share (float | None): Share of the good parts, or of the batch, that the thresholds let pass, in (0, 1];
            ``None`` for thresholds of 0.5, which the calibration has fitted. Defaults to ``1``.

    Attributes:
        thresholds (Thresholds | None): What good parts, or the bulk of the batch, pass; ``None`` before they are known.
        max_median_distance (float): Largest median distance of a good part from the others; infinite where there are
            none.
    """

    NAME: ClassVar[str]
    needs_pass: ClassVar[bool] = False
    """Whether it must view all pictures of a pass before the pass, see :meth:`steps`."""
    needs_good_parts: ClassVar[bool] = False
    """Whether it must be shown good parts."""
    exportable: ClassVar[bool] = True
    """Whether what it knows can be put into a file that judges one picture."""

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
            raise UserValueError(msg)
        self.reference = reference
        self.combination = combination
        self.calibration = calibration
        self.passing_share = passing_share
        self.thresholds: Thresholds | None = None
        self.max_median_distance = float("inf")

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
        if torch.compiler.is_compiling():  # an export has no place for it
            return Answer(anomaly_map, score)
        unlike = distance.flatten(1).median(dim=1).values > UNLIKE * self.max_median_distance
        return Answer(anomaly_map, score, unlike)

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
        """Describe how it judges, whatever the pictures: thresholds found with one judge fit no other's scores."""
        shares = {name: value for name, value in vars(self.combination).items() if name.endswith("share")}
        return {"references": self.NAME, "raw": self.calibration.raw, **shares}

    def settings(self) -> Hashable:
        """List what its answers depend on beside picture and text."""
        known = not bool(self.calibration.half_point.isnan())  # not a number is not even equal to itself
        learnt = (self.calibration.typical.item(), self.calibration.half_point.item()) if known else None
        return (*self.rule().items(), learnt)
