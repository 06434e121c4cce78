# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Drawn Parts: a small data set in MVTec AD's layout that is drawn on first use instead of downloaded.

Example:
    Draw the default category and read it::

        >>> from anomalib_clipsam.drawn_parts.datamodule import DrawnParts
        >>> datamodule = DrawnParts()
        >>> datamodule.prepare_data()
        >>> datamodule.setup()
        >>> len(datamodule.test_data)
        56

    After ``prepare_data`` the folder is::

        datasets/DrawnParts/leather/
        ├── drawn.json        version of the drawing code, and the digest of each file
        ├── train/good/       000.png ... 009.png
        ├── test/good/        000.png ... 019.png
        ├── test/crack/       000.png ... 003.png, and so on for each kind of defect
        └── ground_truth/crack/  000_mask.png ... 003_mask.png

Notes:
    The categories of ``HELD_OUT_CATEGORIES`` in ``drawing.py`` were never drawn to train the weights that come with
    this package. Scores on any other category say nothing about zero-shot detection.
"""

import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path

import numpy as np
from anomalib.data.datamodules.base.image import AnomalibDataModule
from anomalib.data.datasets.image.mvtecad import MVTecADDataset
from anomalib.data.utils import Split, TestSplitMode, ValSplitMode
from anomalib.utils.path import resolve_dataset_root
from PIL import Image
from torchvision.transforms.v2 import Transform

from anomalib_clipsam.drawn_parts.drawing import CATEGORIES, DRAWING_VERSION, defects_of, draw_part
from anomalib_clipsam.errors.errors import UserFileExistsError, UserValueError

logger = logging.getLogger(__name__)

STAMP = "drawn.json"
"""File that says a folder was drawn by this module, by which version, and what is in it."""

TRAIN_GOOD = 10
TEST_GOOD = 20
_TEST_DEFECTIVE = 30
_TEST_DEFECTIVE_OF_A_KIND = 4


class DrawnParts(AnomalibDataModule):
    """Drawn Parts data module.

    Args:
        root (Path | str | None): Folder of the data set; with None, a folder of anomalib's data set cache.
            Defaults to ``"./datasets/DrawnParts"``.
        category (str): One of ``anomalib_clipsam.drawn_parts.drawing.CATEGORIES``. Defaults to ``"leather"``.
        train_batch_size (int): Training batch size. Defaults to ``8``.
        eval_batch_size (int): Test batch size. Defaults to ``8``.
        num_workers (int): Number of workers. Defaults to ``0``.
        train_augmentations (Transform | None): Augmentations of the training images. Defaults to ``None``.
        val_augmentations (Transform | None): Augmentations of the validation images. Defaults to ``None``.
        test_augmentations (Transform | None): Augmentations of the test images. Defaults to ``None``.
        augmentations (Transform | None): Augmentations where the three above are not given. Defaults to ``None``.
        test_split_mode (TestSplitMode | str): How the test set is made. Defaults to ``TestSplitMode.FROM_DIR``.
        test_split_ratio (float): Fraction of the data to test on. Defaults to ``0.2``.
        val_split_mode (ValSplitMode | str): How the validation set is made. Defaults to
            ``ValSplitMode.SAME_AS_TEST``.
        val_split_ratio (float): Fraction of the data to validate on. Defaults to ``0.5``.
        seed (int | None): Seed of the splits, as in anomalib. The pictures do not depend on it: everybody's data set
            is the same. Defaults to ``None``.

    Raises:
        ValueError: If there is no such category.
    """

    def __init__(
        self,
        root: Path | str | None = "./datasets/DrawnParts",
        category: str = "leather",
        train_batch_size: int = 8,
        eval_batch_size: int = 8,
        num_workers: int = 0,
        train_augmentations: Transform | None = None,
        val_augmentations: Transform | None = None,
        test_augmentations: Transform | None = None,
        augmentations: Transform | None = None,
        test_split_mode: TestSplitMode | str = TestSplitMode.FROM_DIR,
        test_split_ratio: float = 0.2,
        val_split_mode: ValSplitMode | str = ValSplitMode.SAME_AS_TEST,
        val_split_ratio: float = 0.5,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            train_batch_size=train_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            train_augmentations=train_augmentations,
            val_augmentations=val_augmentations,
            test_augmentations=test_augmentations,
            augmentations=augmentations,
            test_split_mode=test_split_mode,
            test_split_ratio=test_split_ratio,
            val_split_mode=val_split_mode,
            val_split_ratio=val_split_ratio,
            seed=seed,
        )
        if category not in CATEGORIES:
            msg = f"DrawnParts has no category '{category}'. Choose one of: {', '.join(CATEGORIES)}."
            raise UserValueError(msg)
        self.root = resolve_dataset_root(root, "DrawnParts")
        self.category = category

    def _setup(self, _stage: str | None = None) -> None:
        """Read both splits from the folder."""
        self.train_data = MVTecADDataset(split=Split.TRAIN, root=self.root, category=self.category)
        self.test_data = MVTecADDataset(split=Split.TEST, root=self.root, category=self.category)

    def prepare_data(self) -> None:
        """Draw the category unless this version of the drawing code has drawn it already.

        The pictures are drawn into a temporary folder beside the final one, which then takes its name: a folder of
        that name is always complete. Of two processes that draw at once, one's folder stays.

        Raises:
            FileExistsError: If the category's folder holds files that this module has not drawn. Nothing is changed.
        """
        folder = self.root / self.category
        if _is_current(folder):
            return
        _refuse_foreign_files(folder)
        logger.info("Drawing the pictures of %s into %s, once.", self.category, folder)
        self.root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.root, prefix=f".{self.category}-") as temporary:
            fresh, stale = Path(temporary) / "fresh", Path(temporary) / "stale"
            draw_category(fresh, self.category)
            if folder.exists() and not _is_current(folder):
                _refuse_foreign_files(folder)
                folder.rename(stale)
            try:
                fresh.rename(folder)
            except OSError:
                # Another process was quicker; its pictures are the same.
                if not _is_current(folder):
                    raise


def draw_category(folder: Path, category: str) -> None:
    """Draw a category in MVTec AD's layout.

    Args:
        folder (Path): Folder to make; it must not exist.
        category (str): One of ``anomalib_clipsam.drawn_parts.drawing.CATEGORIES``.
    """
    kinds = defects_of(category)
    of_a_kind = max(_TEST_DEFECTIVE_OF_A_KIND, _TEST_DEFECTIVE // len(kinds))
    counts = {("train", None): TRAIN_GOOD, ("test", None): TEST_GOOD, **{("test", kind): of_a_kind for kind in kinds}}
    for (split, defect), count in counts.items():
        for index in range(count):
            image, mask = draw_part(category, _generator(category, split, defect, index), defect)
            _write(folder / split / (defect or "good") / f"{index:03}.png", image)
            if defect:
                _write(folder / "ground_truth" / defect / f"{index:03}_mask.png", mask.astype(np.uint8) * 255)
    stamp = {"drawing_version": DRAWING_VERSION, "sha256": _digests(folder)}
    (folder / STAMP).write_text(json.dumps(stamp, indent=1), encoding="utf-8")


def _generator(category: str, split: str, defect: str | None, index: int) -> np.random.Generator:
    """Generator of one picture: the same on every machine, and unlike that of any other picture."""
    name = f"DrawnParts/{category}/{split}/{defect or 'good'}/{index}"
    return np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest(), "big"))


def _write(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder but the stamp, by its path in the folder."""
    files = sorted(path for path in folder.rglob("*") if not path.is_dir() and path != folder / STAMP)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _read_stamp(folder: Path) -> dict | None:
    """What the stamp of a folder says; None where there is no stamp of this module."""
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return stamp if isinstance(stamp, dict) and {"drawing_version", "sha256"} <= stamp.keys() else None


def _is_current(folder: Path) -> bool:
    stamp = _read_stamp(folder)
    return stamp is not None and stamp["drawing_version"] == DRAWING_VERSION


def _refuse_foreign_files(folder: Path) -> None:
    """Raise unless everything in the folder is as this module drew it, so that nothing of a user's is ever lost."""
    if not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir())):
        return
    stamp = _read_stamp(folder)
    if stamp is None:
        msg = (
            f"{folder} exists, but was not drawn by DrawnParts, and is left as it is. "
            "Give another root, or move that folder elsewhere."
        )
        raise UserFileExistsError(msg)
    found = _digests(folder)
    foreign = sorted(name for name in found if stamp["sha256"].get(name) != found[name])
    if foreign:
        msg = (
            f"{folder} was drawn by another version and must be drawn again, but {len(foreign)} of its files are not "
            f"as they were drawn, such as {foreign[0]}. Give another root, or move that folder elsewhere."
        )
        raise UserFileExistsError(msg)
