# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Picture files: what is wrong with one, and which ones a data set reads.

A file may come from a stranger: only the formats that anomalib lists are opened, whatever a file is called, pictures of
too many pixels are not decoded, and those of many are decoded one after the other.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from anomalib import TaskType
from anomalib.data import PredictDataset
from anomalib.data.datasets import AnomalibDataset
from anomalib.data.utils import LabelName
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Subset

from anomalib_clipsam.errors.errors import printable

if TYPE_CHECKING:
    from collections.abc import Callable


FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""PIL's names of the formats whose endings anomalib lists. PIL knows more, and starts Ghostscript for one of them."""

LARGE = 2**25
"""Pixels above which pictures are decoded one after the other: PIL takes up to 4 bytes for each."""

PAGED = (".tif", ".tiff", ".png", ".webp")
"""Endings of files that may have several pages."""
NEW_SUBFILE_TYPE = 254
"""TIFF's tag whose first bit marks a reduced copy of another page."""
DARK = 64
"""A colour picture of 16 bits whose values all have a top byte below this has 14 bits or fewer in them: PIL, which
keeps the top byte, makes it nearly black."""
ABOVE_LIMIT = 2
"""Times PIL's limit of pixels up to which it only warns of a picture; what is asked for large pictures reads these."""


def find_fault(
    path: str | Path,
    mask_path: str | Path | None = None,
    alone: ThreadPoolExecutor | None = None,
    fits: Callable[[tuple[int, int]], str | None] | None = None,
) -> str | None:
    """Find what is wrong with a picture.

    Args:
        path (str | Path): The picture.
        mask_path (str | Path | None): Its true mask. Defaults to ``None``.
        alone (ThreadPoolExecutor | None): Decodes pictures of more than :data:`LARGE` pixels. Defaults to ``None``: the
            caller's thread does.
        fits (Callable[[tuple[int, int]], str | None] | None): See :class:`PictureCheck`. Defaults to ``None``.

    Returns:
        str | None: What follows the file's name in a sentence; ``None`` if the picture can be scored.
    """
    times = 1 if fits is None else ABOVE_LIMIT
    size, fault = _read(path, "RGB", alone, times)
    if fault is None and fits is not None:
        fault = fits(size)
    if fault is not None or mask_path is None:
        return fault
    mask_size, fault = _read(mask_path, "L", alone, times)
    if fault is not None:
        return f"has a mask that cannot be used: {printable(mask_path)} {fault}"
    if mask_size != size:
        return f"is {_text(size)} pixels, but its mask {printable(mask_path)} is {_text(mask_size)}"
    return None


def _read(
    path: str | Path, mode: str, alone: ThreadPoolExecutor | None, times: int = 1
) -> tuple[tuple[int, int] | None, str | None]:
    """Read a file of up to so many times PIL's limit as anomalib does: width and height, or what is wrong with it."""
    try:
        if not S_ISREG(Path(path).stat().st_mode):  # a pipe would be waited for
            return None, "cannot be read (it is no file)"
        with Image.open(path, formats=FORMATS) as image:
            size, pixels = image.size, image.width * image.height
            if Image.MAX_IMAGE_PIXELS and pixels > times * Image.MAX_IMAGE_PIXELS:
                most = f"{times * Image.MAX_IMAGE_PIXELS:,} of {'twice ' * (times > 1)}PIL.Image.MAX_IMAGE_PIXELS"
                return None, f"has {pixels:,} pixels, more than the {most}: save it smaller"
            if alone is None or pixels <= LARGE:
                return size, _decode(image, mode)
            return size, alone.submit(_decode, image, mode).result()
    except UnidentifiedImageError:
        listed = f"is no picture in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        return None, listed if Path(path).stat().st_size else "is empty"
    except Exception as error:  # noqa: BLE001  # each of PIL's decoders raises what it likes
        return None, f"cannot be read ({printable(getattr(error, 'strerror', None) or error)})"


def _decode(image: Image.Image, mode: str) -> str | None:
    """Decode a file to its end, and say whether anomalib's reader would change its values."""
    if mode == "RGB" and image.mode.startswith(("I", "F")):
        low, high = image.getextrema()
        # that reader clips to 8 bits, and only the user knows which value is black and which is white
        if image.mode == "F" or low < 0 or high > 255:
            return f"holds values from {low} to {high} (mode {image.mode}): save it with 8 bits a channel"
    deep = any(_is_deep(tile.args) for tile in image.tile)  # PIL forgets it once the file is decoded
    image.draft(None, (1, 1))  # a JPEG file is read to its end, but decoded at an eighth of its size
    image.crop((0, 0, 1, 1)).convert(mode)  # all is decoded for a pixel, and the others need not be converted
    if deep and mode == "RGB" and max(high for _, high in image.convert(mode).getextrema()) < DARK:
        highest = int(cv2.imdecode(np.fromfile(image.filename, np.uint8), cv2.IMREAD_UNCHANGED)[..., :3].max())
        return (
            f"has 16 bits a channel and no value above {highest}, as from a camera of {highest.bit_length()} bits: it "
            "would be read as nearly black. Save it with 8 bits a channel, or with values that fill the range"
        )
    return None


def _is_deep(arguments: object) -> bool:
    """Whether a decoder of PIL's, by its arguments, drops the lower byte of each value of a colour picture."""
    texts = arguments if isinstance(arguments, tuple) else (arguments,)
    return any(";16" in str(text) for text in texts) or (texts[0] == "RGB" and texts[-1] == 65535)


def count_pages(path: str | Path) -> int:
    """Count the pages of a TIFF, or the frames of an animation. Reduced copies in a pyramid are none.

    Args:
        path (str | Path): The file.

    Returns:
        int: Their number; 1 for a file that cannot be read.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            frames = getattr(image, "n_frames", 1)
            if image.format != "TIFF" or frames == 1:
                return frames
            pages = 0
            for frame in range(frames):
                image.seek(frame)
                pages += not image.tag_v2.get(NEW_SUBFILE_TYPE, 0) & 1
            return pages
    except Exception:  # noqa: BLE001  # each of PIL's decoders raises what it likes; `find_fault` says what it is
        return 1


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def list_files(dataset: Any) -> list[tuple[str | Path, str | Path | None]]:
    """List picture and mask of each item; nothing for a data set that anomalib's own code does not read.

    Args:
        dataset (Any): The data set.

    Returns:
        list[tuple[str | Path, str | Path | None]]: Picture, and mask where one is read.
    """
    reader = reader_of(dataset)
    if reader is None:
        return []
    if reader is Subset:
        files = list_files(dataset.dataset)
        return [files[index] for index in dataset.indices] if files else []
    if reader is PredictDataset:
        return [(path, None) for path in dataset.image_filenames]
    masked = dataset.task == TaskType.SEGMENTATION
    return [
        (row.image_path, row.mask_path if masked and row.label_index == LabelName.ABNORMAL else None)
        for row in dataset.samples.itertuples()
    ]


def whole_of(dataset: Any) -> Any:
    """Return the data set that a subset is of."""
    return whole_of(dataset.dataset) if isinstance(dataset, Subset) else dataset


def reader_of(dataset: Any) -> type | None:
    """Return anomalib's or torch's class whose code reads the items; ``None`` for other code."""
    read = getattr(type(dataset), "__getitem__", None)
    return next((reader for reader in (PredictDataset, AnomalibDataset, Subset) if read is reader.__getitem__), None)
