# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Predictions as a folder: tables, masks, JSON lines and COCO, by one process or many, in one run or several.

The journal is what counts. For each picture, a process first writes mask and drawing, then adds a line to a file of its
own, ``journal/0.jsonl``, ``journal/1.jsonl`` and so on, and syncs it. Whenever a run is killed, the pictures without a
whole line are scored by the next one. At the end the tables are made from all lines, each picture once and in the order
of the files, whoever has scored it and how often; each table is replaced in one step.

``settings.json`` says what the lines were made with. A run with other settings is refused.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import os
from collections import Counter
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from anomalib_clipsam.drawing.verdict import image_threshold, own_name
from anomalib_clipsam.errors.errors import UserFileExistsError, UserValueError
from anomalib_clipsam.predictions.coco import to_coco
from anomalib_clipsam.predictions.describe import DIGITS, count_pictures, describe

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from anomalib.data import ImageBatch, ImageItem
    from lightning import LightningModule, Trainer

    from anomalib_clipsam.drawing.visualizers import PictureVisualizer

logger = logging.getLogger(__name__)

Entry = dict[str, Any]
"""A picture's line: what ``predictions.jsonl`` has, and the state of its file."""
State = list[int]
"""Bytes of a file, and when it was changed last, in nanoseconds: what tells that a picture is still the same."""

COLUMNS = ("file", "score", "threshold", "label", "reason", "class_name", "mask_area")
REGION_COLUMNS = ("file", "x0", "y0", "x1", "y1", "area", "score")
MADE = ("predictions.csv", "regions.csv", "predictions.jsonl", "coco.json")


class PredictionFolder(BasePredictionWriter):
    """Write predictions into a folder, for as long as a pass lasts.

    It belongs in the place of a model's visualizer, because Lightning calls a model's callbacks after those of the
    trainer, and anomalib's post-processor is one of them. Nothing is kept of a picture in memory.

    Args:
        folder (Path): The folder.
        root (Path): Folder of the pictures, or the one picture.
        files (Sequence[str | Path]): The pictures.
        pictures (PictureVisualizer | None): What draws them, too. Defaults to ``None``: nothing does.

    Attributes:
        sums_up (bool): That a pass needs no other line at its end.

    Raises:
        ValueError: If the masks of two pictures would have the same name.
    """

    sums_up = True

    def __init__(
        self, folder: Path, root: Path, files: Sequence[str | Path], pictures: PictureVisualizer | None = None
    ) -> None:
        super().__init__(write_interval="batch")
        self.folder = folder
        self.root = root.resolve()
        self.states = {str(file): _state(file) for file in files}
        self.pictures = pictures
        self.names = {file: self._name(file) for file in self.states}
        twice = [name for name, count in Counter(self.names.values()).items() if count > 1]
        if twice:
            both = " and ".join(file for file, name in self.names.items() if name == twice[0])
            msg = f"The masks of {both} would both be called {twice[0]}. Rename one of these pictures."
            raise UserValueError(msg)

    def hash_states(self) -> str:
        """Tell these pictures, as they are now, from others: the first digits of a SHA-256."""
        return hashlib.sha256(json.dumps(self.states).encode()).hexdigest()[:16]

    def begin(self, settings: Mapping[str, str | None]) -> set[str]:
        """Begin the folder, or go on with it.

        Args:
            settings (Mapping[str, str | None]): What the predictions depend on beside the pictures, by name.

        Returns:
            set[str]: The pictures that are scored already, and have not changed since.

        Raises:
            FileExistsError: If the folder has files of these names that another program has written.
            ValueError: If its predictions were made with other settings.
        """
        file = self.folder / "settings.json"
        if not file.exists():
            found = [name for name in (*MADE, "masks") if (self.folder / name).exists()]
            if found:
                msg = f"{self.folder} has a {found[0]} of something else, which would be lost. Give another folder."
                raise UserFileExistsError(msg)
            self._replace(file, json.dumps(settings, indent=1).encode())
        before = json.loads(file.read_bytes())
        differ = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
        if differ:
            changes = "; ".join(f"{name} was {before.get(name)} and is {settings.get(name)}" for name in differ)
            msg = (
                f"{self.folder} has predictions that were made in another way: {changes}. Give another folder, or "
                "delete this one to begin anew."
            )
            raise UserValueError(msg)
        return set(self.read())

    def read(self) -> dict[str, Entry]:
        """Read the journal.

        Returns:
            dict[str, Entry]: The line of each picture that is scored and has not changed since, in the order of files.
        """
        found: dict[str, Entry] = {}
        for file in sorted((self.folder / "journal").glob("*.jsonl")):
            with file.open("rb") as lines:
                for line in lines:
                    try:
                        entry = json.loads(line)
                    except ValueError:  # empty, or torn by a kill
                        continue
                    if self.states.get(entry["file"]) == entry["state"]:
                        found[entry["file"]] = entry
        return {file: found[file] for file in self.states if file in found}

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: ImageBatch,
        batch_indices: Sequence[int] | None,
        batch: ImageBatch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write what was predicted of a batch, its lines of the journal last."""
        del batch_indices, batch, batch_idx, dataloader_idx
        entries = []
        for index, item in enumerate(prediction):
            if self.pictures is not None:
                drawn = self.pictures.draw(pl_module, prediction.image[index : index + 1], item)
                self._replace(self.folder / "pictures" / self.names[item.image_path], _to_png(drawn))
            entries.append(self._write_mask(pl_module, item))
        # What a kill has torn ends where the next line begins.
        lines = "".join(f"\n{json.dumps(entry)}" for entry in entries)
        with (self.folder / "journal" / f"{trainer.global_rank}.jsonl").open("ab") as journal:
            journal.write(lines.encode())
            journal.flush()
            os.fsync(journal.fileno())

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait until every process has written all of its lines."""
        del pl_module
        trainer.strategy.barrier()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Report what a run leaves that a user has stopped."""
        del pl_module
        if trainer.is_global_zero and isinstance(exception, KeyboardInterrupt):
            logger.warning("Stopped. The same command goes on from here.")

    def finish(self) -> str:
        """Make the tables of the journal, replacing old ones.

        Returns:
            str: How many pictures, how many of them defective, and where everything is.
        """
        entries = self.read()
        for entry in entries.values():
            del entry["state"]
        made = {
            "predictions.csv": _to_csv(COLUMNS, ([entry.get(name) for name in COLUMNS] for entry in entries.values())),
            "regions.csv": _to_csv(
                REGION_COLUMNS,
                (
                    (file, *region["box"], region["area"], region["score"])
                    for file, entry in entries.items()
                    for region in entry["regions"]
                ),
            ),
            "predictions.jsonl": "".join(f"{json.dumps(entry)}\n" for entry in entries.values()).encode(),
        }
        try:
            pictures = {self._relative(file): entry for file, entry in entries.items()}
            made["coco.json"] = json.dumps(to_coco(pictures, self.folder)).encode()
        except ImportError as error:
            (self.folder / "coco.json").unlink(missing_ok=True)  # it may be of fewer pictures
            logger.warning("%s", error)
        for name, content in made.items():
            self._replace(self.folder / name, content)
        for left in (self.folder / "journal").glob("*.tmp"):
            left.unlink()
        labels = Counter(entry["label"] for entry in entries.values())
        missing = len(self.states) - len(entries)
        found = f"{labels['defective']:,} defective, {labels['good']:,} good"
        if missing:
            found += f", {missing:,} not scored"
        places = [*made, *(name for name in ("masks", "pictures") if (self.folder / name).exists())]
        return f"{count_pictures(len(self.states))}: {found}. In {self.folder}: {', '.join(places)}."

    def _relative(self, file: str) -> Path:
        """Name a picture as seen from the folder of the pictures."""
        return Path(os.path.relpath(file, self.root if self.root.is_dir() else self.root.parent))

    def _name(self, file: str) -> str:
        """Name what is drawn of a picture: as the picture, as PNG."""
        name = self._relative(file).as_posix()
        return name if name.lower().endswith(".png") else f"{name}.png"

    def _write_mask(self, pl_module: LightningModule, item: ImageItem) -> Entry:
        """Write the mask of an image, and give the image's line."""
        found = describe(item)
        path = self.folder / "masks" / self.names[found.file]
        if found.mask_area:
            self._replace(path, _to_png(Image.fromarray(found.mask)))
        else:
            path.unlink(missing_ok=True)  # of the picture that had this name before
        threshold = image_threshold(pl_module)
        return {
            "file": found.file,
            "score": found.score,
            "threshold": None if threshold is None else round(threshold, DIGITS),
            "label": found.label,
            "reason": found.reason,
            "class_name": own_name(pl_module, item),
            "width": found.size[0],
            "height": found.size[1],
            "mask_area": found.mask_area,
            "mask": path.relative_to(self.folder).as_posix() if found.mask_area else None,
            "regions": [{"box": list(part.box), "area": part.area, "score": part.score} for part in found.regions],
            "state": self.states[found.file],
        }

    def _replace(self, path: Path, content: bytes) -> None:
        """Write a file in one step: it is the old one or the new one, whole."""
        temporary = self.folder / "journal" / f"{rank_zero_only.rank}-{os.getpid()}.tmp"
        for parent in (temporary.parent, path.parent):
            parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def _state(file: str | Path) -> State:
    status = Path(file).stat()
    return [status.st_size, status.st_mtime_ns]


def _to_png(picture: Image.Image) -> bytes:
    png = BytesIO()
    picture.save(png, "PNG")
    return png.getvalue()


def _to_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    text = StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue().encode(errors="backslashreplace")  # a file's name may be no UTF-8
