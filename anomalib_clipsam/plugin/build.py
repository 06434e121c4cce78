# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Building what a configuration asks for: the post-processor, and the networks with their weights."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from anomalib_clipsam.clip.prompts import PromptEnsemble
from anomalib_clipsam.errors.errors import UserValueError
from anomalib_clipsam.method.cps import CascadedPrompts
from anomalib_clipsam.method.fusion import Fusion
from anomalib_clipsam.method.ppg import PointPromptGenerator
from anomalib_clipsam.plugin.post_processor import ClipSamPostProcessor
from anomalib_clipsam.references import build_judge
from anomalib_clipsam.tiling.torch_model import TiledClipSamModel
from anomalib_clipsam.torch_model import ClipSamModel
from anomalib_clipsam.weights.load import load_adapters, load_clip, load_sam
from anomalib_clipsam.weights.store import announce
from anomalib_clipsam.weights.table import LEARNED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from anomalib_clipsam.plugin.configuration import Configuration
    from anomalib_clipsam.weights.table import WeightFile

logger = logging.getLogger(__name__)

DECISIONS = {"image_threshold": None, "pixel_threshold": None, "min_area": 0, "keep_good_masks": False}
"""Arguments of ClipSam's that are the post-processor's, and their defaults."""


def build_post_processor(asked: nn.Module | bool, given: Mapping[str, Any]) -> nn.Module | bool:
    """Build the post-processor with what was decided by hand.

    Args:
        asked (nn.Module | bool): One of the user's own, or whether to build one.
        given (Mapping[str, Any]): ClipSam's arguments by name.

    Returns:
        nn.Module | bool: The post-processor, or ``False`` for none.

    Raises:
        ValueError: If a decision cannot be given to it.
    """
    decisions = {name: given[name] for name, default in DECISIONS.items() if given[name] != default}
    if asked is True:
        return ClipSamPostProcessor(**decisions)
    if decisions:
        named = ", ".join(decisions)
        msg = f"{named} cannot be set beside a post-processor of your own. Give it to ClipSamPostProcessor instead."
        raise UserValueError(msg)
    return asked


def build_model(configuration: Configuration, class_name: str) -> ClipSamModel:
    """Build the networks, and read their weights, which are fetched if need be.

    Args:
        configuration (Configuration): What to build.
        class_name (str): Name of the part in the text prompts.

    Returns:
        ClipSamModel: The model.

    Raises:
        ValueError: If a setting is outside its range, or a file is no such weights.
        FileNotFoundError: If weights are not found and cannot be fetched.
    """
    of = configuration
    # Before any weights are read: these check their arguments.
    ensemble = PromptEnsemble() if of.prompts is None else PromptEnsemble.from_file(of.prompts)
    ppg = PointPromptGenerator(frame_size=of.sam.image_size, **of.ppg)
    fusion = Fusion(**of.fusion)
    learned = of.learned_for(None)
    own_files = (
        of.clip_file or of.localizer_class.own_weights,
        of.sam_file or not of.refine,
        of.adapters not in ("auto", *LEARNED),
    )
    rows = zip((of.clip, of.sam, learned), own_files, strict=True)
    announce([row for row, own in rows if row is not None and not own])
    localizer = of.localizer_class.build(
        ensemble,
        of.clip_side,
        clip=partial(load_clip, of.clip, of.clip_file),
        adapters=partial(load_adapters, learned and learned.name if of.adapters == "auto" else of.adapters),
    )
    build = ClipSamModel if of.tiling is None else partial(TiledClipSamModel, tiling=of.tiling)
    return build(
        localizer,
        of.view_size,
        ppg=ppg if of.refine else None,
        cps=CascadedPrompts(load_sam(of.sam, of.sam_file), **of.cps) if of.refine else None,
        fusion=fusion if of.refine else None,
        judge=build_judge(
            localizer, of.references, of.k_shot, of.reference_options, of.tiling is not None, of.false_alarms
        ),
        class_name=class_name,
        precision=of.precision,
    )


def use_learned(
    model: ClipSamModel,
    configuration: Configuration,
    in_use: WeightFile | None,
    tested_on: str | None,
    log_once: Callable[[str, str], None],
) -> WeightFile | None:
    """Use learned weights that were not trained on what is tested, if the choice is ours, and name them.

    Args:
        model (ClipSamModel): The model.
        configuration (Configuration): What it was built from.
        in_use (WeightFile | None): Row of the learned weights that it has.
        tested_on (str | None): Data set of the pass, if it is a known one.
        log_once (Callable[[str, str], None]): Logs what is said about something when it changes only.

    Returns:
        WeightFile | None: Row of those that it has now.
    """
    row = configuration.learned_for(tested_on)
    if row is None:
        return in_use
    if row != in_use:
        model.localizer.use_learned(load_adapters(row.name))
    if row.trained_on is not None:
        log_once("weights", f"The map's learned weights are {row.name}: its authors trained them on {row.trained_on}.")
    if tested_on is not None and row.trained_on == tested_on:
        logger.warning(
            "%s was trained on %s, which is tested: that is not zero-shot. adapters='auto' takes the others.",
            row.name,
            tested_on,
        )
    return row
