# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""What ClipSam's arguments mean together: checked, with every default filled in, before any weights are read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomalib_clipsam.arguments import group
from anomalib_clipsam.clip.localizers import LOCALIZERS, Localizer
from anomalib_clipsam.errors.errors import UserValueError
from anomalib_clipsam.method.cps import CpsArguments
from anomalib_clipsam.method.fusion import FusionArguments
from anomalib_clipsam.method.ppg import PpgArguments
from anomalib_clipsam.references import REFERENCES, ReferenceOptions
from anomalib_clipsam.references.bounds import check_false_alarms
from anomalib_clipsam.tiling.layout import Tiling
from anomalib_clipsam.weights.load import find_learned
from anomalib_clipsam.weights.table import LEARNED, find_sam, get_weights, learned_for

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anomalib_clipsam.weights.table import WeightFile, WeightPair

IN_TILES: ReferenceOptions = {"memory_limit": 8192, "text_share": 0.5}
"""What good parts have for defaults with tiles: each tile is compared with the whole memory, and the text sees small
defects better than patches do (``docs/ablation.md``). The batch takes over the share; it was not measured there."""


@dataclass(frozen=True)
class Configuration:
    """ClipSam's arguments, understood.

    Args:
        pair (WeightPair): The matched pair of weights.
        clip (WeightFile): CLIP's row: the pair's, with what the arguments change.
        clip_file (str | None): Local file of CLIP's weights, in place of the row's.
        clip_side (int): Side of the square that CLIP sees, in pixels.
        sam (WeightFile): SAM's row.
        sam_file (str | None): Local file of SAM's weights, in place of the row's.
        refine (bool): Whether there is a SAM.
        localizer (str): Name of the localizer.
        adapters (str | None): Learned weights beside CLIP's: ``"auto"``, a name, a file, or ``None``.
        prompts (str | None): File of prompts.
        view_size (int): Longer side of the map of one view, in pixels.
        tiling (Tiling | None): How pictures are cut; ``None`` for whole ones.
        references (str): What a picture is compared with, one of :data:`REFERENCES`.
        k_shot (int): Number of good parts to compare with.
        reference_options (ReferenceOptions): What was set of the references.
        ppg (PpgArguments): What was set of the point prompts.
        cps (CpsArguments): What was set of the cascade.
        fusion (FusionArguments): What was set of the fusion.
        precision (str): What the image encoders compute in.
        false_alarms (float): Wished share of good pictures that are called defective.
    """

    pair: WeightPair
    clip: WeightFile
    clip_file: str | None
    clip_side: int
    sam: WeightFile
    sam_file: str | None
    refine: bool
    localizer: str
    adapters: str | None
    prompts: str | None
    view_size: int
    tiling: Tiling | None
    references: str
    k_shot: int
    reference_options: ReferenceOptions
    ppg: PpgArguments
    cps: CpsArguments
    fusion: FusionArguments
    precision: str
    false_alarms: float

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Configuration:
        """Understand arguments.

        Args:
            given (Mapping[str, Any]): ClipSam's arguments by name, of the right types, files as text.

        Returns:
            Configuration: What they mean.

        Raises:
            ValueError: If one is unknown or outside its range, or two of them do not go together.
        """
        pair = get_weights(given["weights"])
        view_size, tiling = _views(given, pair)
        localizer = _name_localizer(given, pair)
        _find_localizer(localizer, given["adapters"])
        references, options = _references(given, pair, in_tiles=tiling is not None)
        check_false_alarms(given["false_alarms"])
        configuration = cls(
            pair=pair,
            clip=pair.clip,
            clip_file=given["clip_weights"],
            clip_side=pair.clip.image_size if given["clip_size"] is None else given["clip_size"],
            sam=pair.sam if given["sam_architecture"] is None else find_sam(given["sam_architecture"]),
            sam_file=given["sam_weights"],
            refine=given["refine"],
            localizer=localizer,
            adapters=given["adapters"],
            prompts=given["prompts"],
            view_size=view_size,
            tiling=tiling,
            references=references,
            k_shot=given["k_shot"],
            reference_options=options,
            ppg=group(given["ppg"], PpgArguments, "ppg"),
            cps=group(given["cps"], CpsArguments, "cps"),
            fusion=group(given["fusion"], FusionArguments, "fusion"),
            precision=given["precision"],
            false_alarms=given["false_alarms"],
        )
        return replace(configuration, clip=_clip_row(given, pair, configuration.learned_for(None)))

    @property
    def localizer_class(self) -> type[Localizer]:
        """The class of the localizer."""
        return LOCALIZERS[self.localizer]

    @property
    def image_size(self) -> int:
        """Side of the square image that CLIP or SAM, whichever sees more, takes, in pixels."""
        return max(self.sam.image_size if self.refine else self.view_size, self.clip_side)

    def learned_for(self, tested_on: str | None) -> WeightFile | None:
        """Choose learned weights.

        Args:
            tested_on (str | None): Data set that is tested, on which they must not have been trained.

        Returns:
            WeightFile | None: Their row; ``None`` for none, or for a file that is not a published one.
        """
        if not self.localizer_class.needs_adapters:
            return None
        return learned_for(self.localizer, tested_on) if self.adapters == "auto" else find_learned(self.adapters)

    def weight_names(self, learned: WeightFile | None) -> dict[str, str | None]:
        """Name the weights of each network, without folders: checkpoints and exports need not tell where files are.

        Args:
            learned (WeightFile | None): Row of the learned weights in use.

        Returns:
            dict[str, str | None]: Of ``"clip"``, ``"adapters"`` and ``"sam"``.
        """
        adapters = learned and learned.name if self.adapters == "auto" else self.adapters
        return {
            "clip": self.localizer_class.own_weights or _file_name(self.clip_file) or self.clip.name,
            "adapters": _file_name(adapters),
            "sam": _file_name(self.sam_file) or self.sam.name,
        }


def _views(given: Mapping[str, Any], pair: WeightPair) -> tuple[int, Tiling | None]:
    """Find the size of the map of one view, and how pictures are cut."""
    map_size, tiles = given["map_size"], given["tiles"]
    if map_size is not None and map_size < 1:
        msg = f"map_size is {map_size}; it must be a number of pixels above 0, such as 518."
        raise UserValueError(msg)
    if tiles is not None:
        return pair.map_size, Tiling(tiles, given["tile_overlap"], given["tile_batch"], map_size)
    return pair.map_size if map_size is None else map_size, None


def _name_localizer(given: Mapping[str, Any], pair: WeightPair) -> str:
    """Choose the localizer that fits the other arguments: the pair's own, unless they speak against it."""
    if given["localizer"] != "auto":
        return given["localizer"]
    adapters = given["adapters"]
    if adapters in LEARNED:
        return LEARNED[adapters].localizer
    own = pair.localizer if given["clip_architecture"] in (None, pair.clip.architecture) else "dense"
    own_prompts = given["prompts"] is not None and not LOCALIZERS[own].uses_class_name
    no_adapters = adapters is None and LOCALIZERS[own].needs_adapters
    return "dense" if own_prompts or no_adapters else own


def _find_localizer(name: str, adapters: str | None) -> None:
    """Raise unless there is such a localizer, and adapters are given just where it needs them."""
    if name not in LOCALIZERS:
        msg = f"Unknown localizer '{name}'. Choose one of auto, {', '.join(LOCALIZERS)}."
        raise UserValueError(msg)
    needed = LOCALIZERS[name].needs_adapters
    if needed and adapters is None:
        msg = f"localizer='{name}' needs learned weights. Name them with `adapters`, or leave `adapters` out."
        raise UserValueError(msg)
    if not needed and adapters not in ("auto", None):
        msg = f"localizer='{name}' has no use for `adapters`. Leave them out, or name the localizer that they are for."
        raise UserValueError(msg)
    if adapters in LEARNED and LEARNED[adapters].localizer != name:
        msg = f"{adapters} is for localizer='{LEARNED[adapters].localizer}', not '{name}'. Name one of them only."
        raise UserValueError(msg)


def _clip_row(given: Mapping[str, Any], pair: WeightPair, learned: WeightFile | None) -> WeightFile:
    """Find CLIP's architecture and activation: learned weights know the features of the one they were trained with."""
    architecture, quick_gelu = given["clip_architecture"], given["clip_quick_gelu"]
    if architecture not in (None, pair.clip.architecture) and given["clip_weights"] is None:
        msg = f"clip_architecture='{architecture}' is not in the table. Name its file with `clip_weights`."
        raise UserValueError(msg)
    row = replace(
        pair.clip,
        architecture=architecture or pair.clip.architecture,
        quick_gelu=(learned or pair.clip).quick_gelu if quick_gelu is None else quick_gelu,
    )
    if learned is not None and learned.architecture != row.architecture:
        msg = (
            f"{learned.name} goes with CLIP {learned.architecture}, and this one is {row.architecture}. Name learned "
            "weights for it with `adapters`, or choose localizer='dense'."
        )
        raise UserValueError(msg)
    return row


def _references(given: Mapping[str, Any], pair: WeightPair, in_tiles: bool) -> tuple[str, ReferenceOptions]:
    """Find what a picture is compared with, and how."""
    references, k_shot, source = given["references"], given["k_shot"], given["few_shot_source"]
    if k_shot < 0:
        msg = f"k_shot is {k_shot}, but it is a number of good parts. Choose 0, for none, or more."
        raise UserValueError(msg)
    if references not in (None, *REFERENCES):
        msg = f"Unknown references '{references}'. Choose one of {', '.join(REFERENCES)}."
        raise UserValueError(msg)
    if k_shot and references not in (None, "none"):
        msg = f"k_shot={k_shot} and references='{references}' are two references. Give one of them."
        raise UserValueError(msg)
    if source is not None and not k_shot:
        msg = f"few_shot_source='{source}' is given, but k_shot is 0. Say how many good parts by k_shot."
        raise UserValueError(msg)
    options = group(given["reference_options"], ReferenceOptions, "reference_options")
    if in_tiles and (k_shot or references == "batch"):
        options = {**IN_TILES, **options}
    return pair.references if references is None else references, options


def _file_name(path: str | None) -> str | None:
    return path and Path(path).name
