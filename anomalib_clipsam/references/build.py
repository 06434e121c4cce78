# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Building the judge that the arguments ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from anomalib_clipsam.errors.errors import UserValueError
from anomalib_clipsam.references.batch_judge import BatchJudge
from anomalib_clipsam.references.bounds import FALSE_ALARMS, check_false_alarms
from anomalib_clipsam.references.calibration import Calibration
from anomalib_clipsam.references.combination import Combination
from anomalib_clipsam.references.distances.batch import BatchReference
from anomalib_clipsam.references.distances.few_shot import FewShotReference
from anomalib_clipsam.references.distances.self_reference import SelfReference
from anomalib_clipsam.references.few_shot_judge import FewShotJudge
from anomalib_clipsam.references.judge import Judge
from anomalib_clipsam.references.options import ReferenceOptions
from anomalib_clipsam.references.self_judge import SelfJudge
from anomalib_clipsam.references.tiled_batch_judge import TiledBatchJudge

if TYPE_CHECKING:
    from anomalib_clipsam.clip.localizers import Localizer
    from anomalib_clipsam.clip.taps import Taps

    Look = tuple[torch.Tensor, torch.Tensor, Taps]
    Answer = tuple[torch.Tensor, torch.Tensor]

REFERENCES = ("none", "self", "batch")
"""What ``references`` may name; ``k_shot`` asks for good parts."""

BESIDE_OTHERS = {"text_share": 0.2, "text_score_share": 0.2}
"""Shares of the text in map and score beside good parts or a batch, where it counts by its excess alone."""
RAW_PASSING_SHARE = 0.9
"""Share of a batch that its thresholds let pass where distances are given as they are: nothing has fitted 0.5 then."""


def build_judge(
    localizer: Localizer,
    references: str,
    k_shot: int,
    options: ReferenceOptions,
    in_tiles: bool = False,
    false_alarms: float = FALSE_ALARMS,
) -> Judge | None:
    """Build the judge that was asked for.

    Args:
        localizer (Localizer): Gives the taps, and says how they are compared.
        references (str): One of :data:`REFERENCES`.
        k_shot (int): Good parts that judge; 0 for none.
        options (ReferenceOptions): What the user set.
        in_tiles (bool): Whether pictures are seen in tiles. Defaults to ``False``.
        false_alarms (float): Share of good pictures that may be called defective. Defaults to
            :data:`~anomalib_clipsam.references.bounds.FALSE_ALARMS`.

    Returns:
        Judge | None: The judge; ``None`` for the text alone.

    Raises:
        ValueError: If an option is outside its range, or ``windows`` are asked of a batch in tiles.
    """
    check_false_alarms(false_alarms)
    if references == "none" and not k_shot:
        return None
    if "taps" in options:
        _set_taps(localizer, tuple(options["taps"]))
    how = {"join": localizer.joins_taps, "sigma": localizer.reference_sigma}
    shares = ("text_share", "text_score_share", "peak_share")
    given = {name: options[name] for name in shares if name in options}
    calibration = Calibration(options.get("raw", False))
    others = BESIDE_OTHERS if (k_shot or references == "batch") and not calibration.raw else {}
    combination = Combination(**{**others, **given})
    if k_shot:
        limit = {name: options[name] for name in ("memory_limit",) if name in options}
        reference = FewShotReference(**limit, **how)
        share, rotate = options.get("passing_share"), options.get("rotate", False)
        return FewShotJudge(reference, combination, calibration, share, rotate, false_alarms)
    usual = localizer.usual_self_distance
    if references == "self":
        return SelfJudge(SelfReference(**how), combination, calibration, usual)
    alone = SelfJudge(SelfReference(**how), Combination(**given), Calibration(calibration.raw), usual)
    windows = tuple(options.get("windows", ()))
    if windows and in_tiles:
        msg = "`windows` share the scores of pictures that look alike as wholes. With tiles, leave them out."
        raise UserValueError(msg)
    share = options.get("passing_share", RAW_PASSING_SHARE if calibration.raw else None)
    if in_tiles:
        return TiledBatchJudge(BatchReference(**how), combination, calibration, share, alone, false_alarms)
    return BatchJudge(BatchReference(**how), combination, calibration, share, alone, windows, false_alarms)


def _set_taps(localizer: Localizer, taps: tuple[int, ...]) -> None:
    """Choose the blocks that are compared, of a localizer that has a choice."""
    depth = localizer.depth
    if not taps or not depth or not all(1 <= tap <= depth for tap in taps):
        has = f"{depth} blocks, counted from 1" if depth else "no choice of blocks"
        msg = f"taps is {list(taps)}, but this localizer has {has}. Name some of these, or leave `taps` out."
        raise UserValueError(msg)
    localizer.reference_taps = tuple(sorted(set(taps)))
