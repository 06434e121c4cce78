# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""What is compared: the configuration file of ``anomalib-clipsam compare``, checked before anything runs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anomalib.models  # noqa: F401  # jsonargparse finds a class by its bare name once it is loaded
import yaml
from anomalib.data import AnomalibDataModule
from anomalib.models.components import AnomalibModule
from jsonargparse import ArgumentError, ArgumentParser

from anomalib_clipsam import ClipSam, DrawnParts, __version__  # noqa: F401  # likewise
from anomalib_clipsam.errors.errors import UserValueError
from anomalib_clipsam.weights.load import find_learned
from anomalib_clipsam.weights.table import DATA_SETS

if TYPE_CHECKING:
    from collections.abc import Iterator

PUBLISHED = {
    "mvtec_ad": {
        "WinCLIP": (85.1, 31.7, None, 64.6),
        "SAA+": (None, 39.4, None, None),
        "AnoVL (training-free)": (90.6, 36.5, None, 77.8),
        "APRIL-GAN": (87.6, 43.3, 40.8, 44.0),
        "AnomalyCLIP": (91.1, 39.1, 34.4, 81.4),
    },
    "visa": {
        "WinCLIP": (79.6, 14.8, None, 56.8),
        "SAA+": (None, 27.1, None, None),
        "AnoVL (training-free)": (85.2, 14.6, None, 60.5),
        "APRIL-GAN": (94.2, 32.3, 25.7, 86.8),
        "AnomalyCLIP": (95.5, 28.3, 20.7, 87.0),
        "CLIP-SAM collaboration (about)": (None, 43.0, 33.5, None),
    },
    "magnetic_tiles": {"SAA": (None, 14.8, None, None), "SAA+": (None, 35.4, None, None)},
}
"""Zero-shot figures as printed in papers, in %: pixel AUROC, F1-max, AP and AUPRO, of all categories together."""


@dataclass(frozen=True)
class ModelEntry:
    """A model of the comparison.

    Args:
        label (str): Its name in the tables.
        class_path (str): Its class, such as ``"Patchcore"`` or ``"anomalib_clipsam.ClipSam"``.
        init_args (dict[str, Any]): Its arguments. Defaults to none.
        ckpt_path (str | None): Checkpoint to test; the model is then neither fitted nor calibrated. Defaults to
            ``None``.
        engine (dict[str, Any]): Arguments of anomalib's ``Engine`` for this model, such as ``max_epochs``. Defaults to
            none.
    """

    label: str
    class_path: str
    init_args: dict[str, Any] = field(default_factory=dict)
    ckpt_path: str | None = None
    engine: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataEntry:
    """A data set of the comparison.

    Args:
        label (str): Its name in the tables.
        class_path (str): Data module, such as ``"MVTecAD"``.
        init_args (dict[str, Any]): Its arguments. Defaults to none.
        categories (tuple[str, ...]): Values of its ``category``. Defaults to none: the data module as it is.
        max_images (int | None): Most test images of each category, half of them defective, evenly over the list of
            files. Defaults to ``None``, all.
        published (str | None): Key of :data:`PUBLISHED`, to print these figures too. Defaults to ``None``.
    """

    label: str
    class_path: str
    init_args: dict[str, Any] = field(default_factory=dict)
    categories: tuple[str, ...] = ()
    max_images: int | None = None
    published: str | None = None


@dataclass(frozen=True)
class Pair:
    """One model on one category: a row of the table.

    Args:
        model (ModelEntry): The model.
        data (DataEntry): The data set.
        category (str): The category; ``""`` where the data module has none to choose.
        fingerprint (str): Hash of everything in the configuration that the row depends on.
    """

    model: ModelEntry
    data: DataEntry
    category: str
    fingerprint: str


@dataclass(frozen=True)
class Comparison:
    """A comparison.

    Args:
        models (tuple[ModelEntry, ...]): The models.
        data (tuple[DataEntry, ...]): The data sets.
        output (str): Folder of all results. Defaults to ``"results/compare"``.
        map_size (int): Side of the square that each map and true mask is brought to before the pixel metrics, in
            pixels. Defaults to ``256``.
        seed (int): Seed of every pair. Defaults to ``0``.
        engine (dict[str, Any]): Arguments of anomalib's ``Engine``, such as ``accelerator``. Defaults to none.
        pictures (int): Test images of each kind of defect that the report shows. Defaults to ``2``.
        trained_on_tested (bool): Whether ClipSam may be given learned weights that were trained on the data set that it
            is compared on. Defaults to ``False``.
    """

    models: tuple[ModelEntry, ...]
    data: tuple[DataEntry, ...]
    output: str = "results/compare"
    map_size: int = 256
    seed: int = 0
    engine: dict[str, Any] = field(default_factory=dict)
    pictures: int = 2
    trained_on_tested: bool = False

    def pairs(self) -> Iterator[Pair]:
        """Return the rows in their order: by data set, category, model."""
        common = (self.map_size, self.seed, self.engine, self.pictures, __version__, version("anomalib"))
        for data in self.data:
            for category in data.categories or ("",):
                for model in self.models:
                    data_part = {**asdict(data), "categories": category, "published": None}
                    checkpoint = Path(model.ckpt_path).stat().st_mtime_ns if model.ckpt_path else None
                    content = json.dumps([asdict(model), checkpoint, data_part, common], sort_keys=True, default=str)
                    yield Pair(model, data, category, hashlib.sha256(content.encode()).hexdigest()[:16])


def read_config(path: str | Path) -> Comparison:
    """Read and check a configuration file.

    Args:
        path (str | Path): YAML file with the members of :class:`Comparison`.

    Returns:
        Comparison: The comparison.

    Raises:
        OSError: If the file, or a checkpoint that it names, cannot be read.
        ValueError: If an entry is unknown or missing, or a model or data module has no such arguments.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        msg = f"{path} is not YAML: {error}. Fix the file."
        raise UserValueError(msg) from error
    content = _checked(content, Comparison, str(path))
    lists = {}
    for name, kind in (("models", ModelEntry), ("data", DataEntry)):
        entries = content[name]
        if not isinstance(entries, list) or not entries:
            msg = f"'{name}' in {path} is no list of entries. List at least one, with 'label' and 'class_path'."
            raise UserValueError(msg)
        lists[name] = tuple(kind(**_checked(entry, kind, f"'{name}' in {path}")) for entry in entries)
        labels = [entry.label for entry in lists[name]]
        repeated = next((label for label in labels if labels.count(label) > 1), None)
        if repeated:
            msg = f"Two entries of '{name}' in {path} have the label '{repeated}'. Give each its own."
            raise UserValueError(msg)
    comparison = Comparison(**{**content, **lists})
    for name, least in (("map_size", 1), ("pictures", 0), ("seed", 0)):
        value = getattr(comparison, name)
        if not isinstance(value, int) or value < least:
            msg = f"{name} in {path} is {value!r}. Give a whole number of at least {least}."
            raise UserValueError(msg)
    for data in comparison.data:
        if data.published not in (None, *PUBLISHED):
            msg = f"No figures are known as '{data.published}'. Choose one of {', '.join(PUBLISHED)}, or leave it out."
            raise UserValueError(msg)
    for pair in comparison.pairs():  # what cannot be built is said now, and not after hours
        parsed = _parse(pair)
        if not comparison.trained_on_tested:
            _check_trained_on(pair, parsed)
    return comparison


def _check_trained_on(pair: Pair, parsed: Any) -> None:
    """Refuse a ClipSam with learned weights that were trained on what it is compared on."""
    adapters = parsed.model.get("init_args", {}).get("adapters")
    if not parsed.model.class_path.endswith(".ClipSam") or adapters in (None, "auto"):
        return
    row = find_learned(adapters)
    if row is not None and row.trained_on == DATA_SETS.get(parsed.data.class_path.rpartition(".")[2]):
        msg = (
            f"'{pair.model.label}' on '{pair.data.label}': {row.name} was trained on {row.trained_on}, which is no "
            "zero-shot test. Leave `adapters` out, or set `trained_on_tested: true` to do it all the same."
        )
        raise UserValueError(msg)


def _checked(entry: Any, kind: type, where: str) -> dict[str, Any]:
    """Refuse an entry with unknown or missing members."""
    names = [f.name for f in fields(kind)]
    required = names[:2]
    if not isinstance(entry, dict) or set(entry) - set(names) or set(required) - set(entry):
        may = ", ".join(names[2:])
        msg = f"An entry of {where} is {entry!r}. It must have {' and '.join(required)}, and may have {may}."
        raise UserValueError(msg)
    if "categories" in entry:
        entry = {**entry, "categories": tuple(map(str, entry["categories"]))}
    return entry


def _parser() -> ArgumentParser:
    """The parser of anomalib's command line for a model and a data module."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--model", type=AnomalibModule, required=True)
    parser.add_argument("--data", type=AnomalibDataModule, required=True)
    return parser


def _parse(pair: Pair) -> Any:
    chosen = {"category": pair.category} if pair.category else {}
    entries = {
        "model": {"class_path": pair.model.class_path, "init_args": pair.model.init_args},
        "data": {"class_path": pair.data.class_path, "init_args": {**pair.data.init_args, **chosen}},
    }
    try:
        return _parser().parse_object(entries)
    except ArgumentError as error:
        msg = (
            f"'{pair.model.label}' on '{pair.data.label}' cannot be built: {error}. Give the name of one of anomalib's "
            "classes, or the dotted path of another one, and arguments that it has."
        )
        raise UserValueError(msg) from error


def build(pair: Pair) -> tuple[AnomalibModule, AnomalibDataModule]:
    """Build model and data module of a pair, as anomalib's command line builds them.

    Args:
        pair (Pair): The pair.

    Returns:
        tuple[AnomalibModule, AnomalibDataModule]: New objects.
    """
    built = _parser().instantiate_classes(_parse(pair))
    return built.model, built.data
