# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""What a checkpoint holds in place of the frozen weights, and when it is refused.

It has thresholds, text embeddings and good parts, and says which weights and settings they were found with. Those mean
nothing with others.
"""

from __future__ import annotations

import logging
from itertools import chain, zip_longest
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch

from anomalib_clipsam.compute.hashing import hash_weights
from anomalib_clipsam.errors.errors import UserFileNotFoundError, UserValueError, counted
from anomalib_clipsam.method.fusion import FUSIONS, Fusion
from anomalib_clipsam.plugin.checkpoint_file import UNREADABLE, check_entries, naming

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from typing_extensions import Self

    from anomalib_clipsam.plugin.configuration import Configuration
    from anomalib_clipsam.plugin.part_names import PartNames
    from anomalib_clipsam.plugin.reference_pass import References
    from anomalib_clipsam.torch_model import ClipSamModel
    from anomalib_clipsam.weights.table import WeightFile

logger = logging.getLogger(__name__)

FROZEN = "model."
"""Prefix of the frozen weights; a checkpoint leaves them out."""
KEY = "clip_sam"
"""Key of the checkpoint's entry about the frozen weights and the text."""
DECISIVE = ("localizer", "clip_size", "prompts", "tiles", "tile_overlap")
"""Settings without which a checkpoint's thresholds mean nothing; others shift scores, maps or masks a little."""
SAVED = {"class_name": str, "sentences": (list, tuple), "text": torch.Tensor, "weights": dict}
GOOD_PARTS = {"memory": list, "calibration": tuple, "thresholds": tuple, "common": float, "sources": (list, tuple)}
"""What these entries of a checkpoint hold at least, and its types."""
LATER = {"levels": tuple, "text": tuple, "unlike": float}
"""What the good parts have since thresholds lie at 0.5."""


def frozen_weights(model: ClipSamModel, names: Mapping[str, str | None]) -> dict[str, dict[str, str]]:
    """Name the frozen weights that a model runs on.

    Args:
        model (ClipSamModel): The model.
        names (Mapping[str, str | None]): Names of the weights of ``"clip"``, ``"adapters"`` and ``"sam"``.

    Returns:
        dict[str, dict[str, str]]: ``"localizer"`` and, with refinement, ``"sam"``: the ``"name"`` of the weights and
        the ``"sha256"`` of their values, whatever file they came in.
    """
    clip, adapters = names["clip"], names["adapters"]
    localizer = dict(model.localizer.named_parameters())
    weights = {
        "localizer": {
            "name": f"{clip} with {adapters}" if adapters else clip,
            "sha256": hash_weights(model.localizer, localizer),
        }
    }
    if model.sam is not None:
        sam = model.sam.state_dict(keep_vars=True)
        weights["sam"] = {"name": names["sam"], "sha256": hash_weights(model.sam, sam)}
    return weights


def make_entry(model: ClipSamModel, localizer: str, weights: dict[str, dict[str, str]]) -> dict[str, Any]:
    """Make the checkpoint's entry.

    Args:
        model (ClipSamModel): The model.
        localizer (str): Name of its localizer.
        weights (dict[str, dict[str, str]]): What :func:`frozen_weights` gave.

    Returns:
        dict[str, Any]: Tensors and plain values.
    """
    text, class_name = model.localizer, model.class_name
    return {
        "class_name": class_name,
        "activation": text.activation,
        "sentences": text.ensemble.sentences(class_name),
        "settings": _settings(model, localizer),
        "text": text.text_of(class_name),
        "weights": weights,
        "references": _rule(model),
        "good_parts": None if model.judge is None else model.judge.state(),
    }


def leave_frozen_out(checkpoint: dict[str, Any]) -> None:
    """Leave the frozen weights out of a checkpoint that is about to be written."""
    state = checkpoint["state_dict"]
    checkpoint["state_dict"] = {key: value for key, value in state.items() if not key.startswith(FROZEN)}


def put_frozen_in(checkpoint: dict[str, Any], own: Mapping[str, torch.Tensor]) -> None:
    """Put a model's own frozen weights into a checkpoint that is read, whatever the file holds under their names."""
    leave_frozen_out(checkpoint)
    checkpoint["state_dict"] |= {key: value for key, value in own.items() if key.startswith(FROZEN)}


def find_entry(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Find ClipSam's entry in a checkpoint.

    Args:
        checkpoint (dict[str, Any]): What Lightning has read.

    Returns:
        dict[str, Any]: The entry, in which everything has its type.

    Raises:
        ValueError: If another model made the checkpoint, or an entry is missing or no such thing.
    """
    saved = checkpoint.get(KEY)
    if saved is None:
        msg = "The checkpoint is not one of ClipSam. Give the model that it was made with, or leave the path out."
        raise UserValueError(msg)
    check_entries(checkpoint, {"state_dict": dict})
    check_entries(saved, SAVED)
    for name, entries in (("references", {"references": str}), ("good_parts", GOOD_PARTS)):
        if saved.get(name) is not None:
            check_entries(saved[name], entries)
    parts = saved.get("good_parts") or {}
    check_entries(parts, {name: kind for name, kind in LATER.items() if name in parts})
    check_entries(saved["weights"], {"localizer": dict})  # one made without SAM fits a model with SAM too
    return saved


def read_compared(path: Path) -> dict[str, Any]:
    """Read what the pictures of a checkpoint were compared with.

    Args:
        path (Path): The file.

    Returns:
        dict[str, Any]: ``references``, ``k_shot`` and ``reference_options`` for a model that takes it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or another model has made it.
    """
    if not path.is_file():
        msg = f"There is no checkpoint {path}. Correct the path, or leave it out to calibrate anew."
        raise UserFileNotFoundError(msg)
    with naming(path, UNREADABLE):
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    saved = find_entry(checkpoint)
    given = checkpoint.get("hyper_parameters") or {}
    parts = len(saved["good_parts"]["sources"]) if saved.get("good_parts") else 0
    rule = saved.get("references") or {"references": "none"}
    references = None if parts else rule["references"]
    return {"references": references, "k_shot": parts, "reference_options": given.get("reference_options")}


def refuse_others(
    saved: dict[str, Any], model: ClipSamModel, localizer: str, weights: dict[str, dict[str, str]], k_shot: int
) -> dict[str, tuple[Any, Any]]:
    """Refuse a checkpoint whose thresholds would be wrong for a model.

    Args:
        saved (dict[str, Any]): The checkpoint's entry.
        model (ClipSamModel): The model.
        localizer (str): Name of its localizer.
        weights (dict[str, dict[str, str]]): What :func:`frozen_weights` gave for it.
        k_shot (int): Number of good parts that it compares with.

    Returns:
        dict[str, tuple[Any, Any]]: Settings that differ a little: their value there, and here.

    Raises:
        ValueError: If the weights, the activation, a decisive setting or the references differ.
    """
    _refuse_weights(saved, weights)
    activation = model.localizer.activation
    if saved.get("activation", activation) != activation:
        msg = (
            f"The checkpoint was made with {saved['activation']} in CLIP, and this model has {activation}. Its "
            "thresholds would be wrong. Set `clip_quick_gelu`, or calibrate anew without the checkpoint."
        )
        raise UserValueError(msg)
    differ = _differences(saved, model, localizer)
    decisive = [name for name in DECISIVE if name in differ]
    if decisive:
        msg = (
            f"The checkpoint was made with {_listed(differ, decisive, 0)}, and this model has "
            f"{_listed(differ, decisive, 1)}. Its thresholds would be wrong. Give the model the same, or calibrate "
            "anew without the checkpoint."
        )
        raise UserValueError(msg)
    _refuse_references(saved, _rule(model), k_shot)
    return differ


def use_as_before(model: ClipSamModel, saved: dict[str, Any], configuration: Configuration) -> None:
    """Let a model join maps as the one did that a checkpoint was made with, where its user has not said how.

    Earlier versions had other defaults, and the checkpoint's thresholds are of their maps and scores.

    Args:
        model (ClipSamModel): The model.
        saved (dict[str, Any]): The checkpoint's entry.
        configuration (Configuration): What the user has said.
    """
    settings = saved.get("settings", {})
    if model.fusion is not None and not configuration.fusion and settings.get("fusion.mode") in FUSIONS:
        model.fusion = Fusion(settings["fusion.mode"], settings.get("fusion.weight", model.fusion.weight))
    rule = saved.get("references") or {}
    for name in ("text_share", "text_score_share") if model.judge is not None else ():
        if name not in configuration.reference_options and _is_share(rule.get(name)):
            setattr(model.judge.combination, name, rule[name])


def _is_share(value: Any) -> bool:
    return isinstance(value, float | int) and 0 <= value <= 1


def warn_of_differences(differ: dict[str, tuple[Any, Any]]) -> None:
    """Warn of settings that differ a little from what a checkpoint was made with: their value there, and here."""
    if differ:
        logger.warning(
            "The checkpoint's thresholds were found with %s, and this model has %s. Calibrate anew without the "
            "checkpoint if labels or masks look wrong.",
            _listed(differ, differ, 0),
            _listed(differ, differ, 1),
        )


class ClipSamCheckpoint:
    """How ClipSam is saved and restored: put it before :class:`anomalib.models.components.AnomalibModule`."""

    model: ClipSamModel
    configuration: Configuration
    k_shot: int
    _learned: WeightFile | None
    _names: PartNames
    _references: References

    def frozen_weights(self) -> dict[str, dict[str, str]]:
        """Name the frozen weights that the model runs on, see :func:`frozen_weights`."""
        return frozen_weights(self.model, self.configuration.weight_names(self._learned))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save thresholds, text embeddings, and names and hashes of the frozen weights, not the weights.

        Args:
            checkpoint (dict[str, Any]): What Lightning is about to write.
        """
        super().on_save_checkpoint(checkpoint)
        leave_frozen_out(checkpoint)
        entry = make_entry(self.model, self.configuration.localizer, self.frozen_weights())
        checkpoint[KEY] = entry

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Load a model from a checkpoint, without torch's advice to run what code another file holds.

        Args:
            checkpoint_path (Any): The file.
            *args: As anomalib's.
            **kwargs: As anomalib's.

        Returns:
            Self: The model.

        Raises:
            ValueError: If the file holds more than tensors and plain values.
        """
        with naming(checkpoint_path, (UnpicklingError,)):
            return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore thresholds and text embeddings; the frozen weights are the model's own.

        Args:
            checkpoint (dict[str, Any]): What Lightning has read.

        Raises:
            ValueError: If another model made the checkpoint, or ClipSam with other frozen weights, prompts, references,
                localizer or ``clip_size``; or if an entry is missing or no such thing.
        """
        saved = find_entry(checkpoint)
        use_as_before(self.model, saved, self.configuration)
        localizer, weights = self.model.localizer, self.frozen_weights()
        differ = refuse_others(saved, self.model, self.configuration.localizer, weights, self.k_shot)
        super().on_load_checkpoint(checkpoint)
        if saved.get("good_parts") is not None and self.k_shot:  # before the state dict, which has the calibration too
            self.model.judge.restore(saved["good_parts"])
            self._references.read_from = None
            logger.info("Pictures are compared with the checkpoint's %s.", counted(self.k_shot, "good part"))
        put_frozen_in(checkpoint, self.state_dict())
        self._names.restored = saved["class_name"]
        if localizer.ensemble.sentences(saved["class_name"]) == saved["sentences"]:
            localizer.restore_text(saved["class_name"], saved["text"])
        self._choose_class_name()
        if localizer.uses_class_name and saved["class_name"] != self.model.class_name:
            differ["class_name"] = (saved["class_name"], self.model.class_name)
        warn_of_differences(differ)


def _settings(model: ClipSamModel, localizer: str) -> dict[str, Any]:
    """List what scores, maps and masks depend on, but for weights, text and references, which have entries too."""
    named = {"class_name", "prompts", "references"}
    settings = {name: value for name, value in model.settings().items() if name not in named}
    return {"localizer": localizer, "refine": model.sam is not None, **settings}


def _rule(model: ClipSamModel) -> dict[str, Any] | None:
    """Describe how pictures are compared: thresholds found in one way mean nothing in another."""
    judge = model.judge
    return None if judge is None else {**judge.rule(), "taps": getattr(model.localizer, "reference_taps", ())}


def _refuse_weights(saved: dict[str, Any], weights: dict[str, dict[str, str]]) -> None:
    for part, own in weights.items():
        made_with = saved["weights"].get(part, own)
        check_entries(made_with, {"name": str, "sha256": str})
        if made_with["sha256"] != own["sha256"]:
            msg = (
                f"The checkpoint was made with other weights of the {part}: {made_with['name']} (SHA-256 of the "
                f"values {made_with['sha256']}), and this model has {own['name']} ({own['sha256']}). Its "
                "thresholds would be wrong. Give the model those weights, or calibrate anew without the checkpoint."
            )
            raise UserValueError(msg)


def _differences(saved: dict[str, Any], model: ClipSamModel, localizer: str) -> dict[str, tuple[Any, Any]]:
    """Find what differs from what a checkpoint was made with: its value there, and here."""
    made_with = {"tiles": None, **saved.get("settings", {})}
    own = {"tiles": None, **_settings(model, localizer)}
    both = made_with.keys() & own.keys()  # without SAM there are no settings of its part
    differ = {name: (made_with[name], own[name]) for name in sorted(both) if made_with[name] != own[name]}
    if model.localizer.uses_class_name:
        sentences = (chain(*saved["sentences"]), chain(*model.localizer.ensemble.sentences(saved["class_name"])))
        other = next((pair for pair in zip_longest(*sentences) if pair[0] != pair[1]), None)
        differ |= {} if other is None else {"prompts": other}
    return differ


def _refuse_references(saved: dict[str, Any], own: dict[str, Any] | None, k_shot: int) -> None:
    made_with = saved.get("references")
    if made_with != own:
        names = [entry["references"] if entry else "text alone" for entry in (made_with, own)]
        differ = f"{names[0]}, and this model has {names[1]}"
        if names[0] == names[1]:
            differ = f"{names[0]} and {made_with}, and this model has {own}"
        msg = (
            f"The checkpoint was made with other references: {differ}. Its thresholds would be wrong. Give the "
            "model the same `references`, `k_shot` and `reference_options`, or calibrate anew without it."
        )
        raise UserValueError(msg)
    known = len(saved["good_parts"]["sources"]) if saved.get("good_parts") else k_shot
    if known != k_shot:
        msg = (
            f"The checkpoint was made with {counted(known, 'good part')}, and this model has k_shot={k_shot}. "
            f"Set k_shot to {known}, or calibrate anew without the checkpoint."
        )
        raise UserValueError(msg)


def _listed(differ: dict[str, tuple[Any, Any]], names: Iterable[str], side: int) -> str:
    return " and ".join(f"{name}={differ[name][side]!r}" for name in names)
