# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""What is said about an image in its picture: the verdict, its score and threshold."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from anomalib.data import ImageItem
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from anomalib_clipsam.drawing.panels import (
    FOUND,
    POSITIVE,
)

if TYPE_CHECKING:
    from typing import Any

    from lightning import LightningModule


def image_threshold(pl_module: Any) -> float | None:
    """Return the threshold of the scores that a model's post-processor has left in a batch.

    Args:
        pl_module (Any): The model of the pass.

    Returns:
        float | None: The threshold; ``None`` where no such post-processor is, or where it has none.
    """
    return _threshold(pl_module, "image")


def _threshold(pl_module: Any, level: str) -> float | None:
    post_processor = getattr(pl_module, "post_processor", None)
    if not getattr(post_processor, "enable_thresholding", False):
        return None
    name = f"normalized_{level}_threshold" if post_processor.enable_normalization else f"{level}_threshold"
    threshold = float(getattr(post_processor, name))
    return None if math.isnan(threshold) else threshold


def pixel_threshold(pl_module: Any) -> float | None:
    """Return the threshold of the maps that a post-processor has left in a batch. See :func:`image_threshold`."""
    return _threshold(pl_module, "pixel")


def written(score: float | None, threshold: float | None) -> tuple[str, str]:
    """Write a score and its threshold with as many decimals as tell which is higher: two, else four.

    Args:
        score (float | None): The score; ``None`` for none.
        threshold (float | None): Its threshold; ``None`` for none.

    Returns:
        tuple[str, str]: Both; empty for none.
    """
    digits = 2
    if None not in (score, threshold) and f"{score:.2f}" == f"{threshold:.2f}" and score != threshold:
        digits = 4
    score_text, threshold_text = ("" if value is None else f"{value:.{digits}f}" for value in (score, threshold))
    return score_text, threshold_text


def heading(item: ImageItem, threshold: float | None = None) -> tuple[str, tuple[int, int, int] | None, str]:
    """Describe what was decided about an image, for the line above its panels.

    Args:
        item (ImageItem): Its post-processed prediction.
        threshold (float | None): Threshold of its score. Defaults to ``None``: not known.

    Returns:
        tuple[str, tuple[int, int, int] | None, str]: Verdict, its colour, and figures, as :func:`sheet` takes them.
    """
    score = None if item.pred_score is None else float(item.pred_score)
    figures = [
        f"{name} {text}" for name, text in zip(("score", "threshold"), written(score, threshold), strict=True) if text
    ]
    if item.pred_label is None:
        return "Not judged", None, "   ".join(figures)
    defective = bool(item.pred_label)
    if defective and item.explanation:
        figures.append(item.explanation)
    if defective and item.pred_mask is not None and not item.pred_mask.any():
        figures.append("nothing outlined")
    if item.gt_label is not None and bool(item.gt_label) != defective:
        figures.append("a false alarm: labelled good" if defective else "missed: labelled defective")
    return "Defective" if defective else "Good", FOUND if defective else POSITIVE, "   ".join(figures)


def read_picture(item: ImageItem) -> Image.Image:
    """Read an image's file; where there is none, or where it is gone by now, take the image as the model got it.

    Args:
        item (ImageItem): The image.

    Returns:
        Image.Image: The picture, RGB.
    """
    try:
        return Image.open(item.image_path).convert("RGB")
    except (OSError, AttributeError):  # no file any more, or no path
        return to_pil_image(item.image.cpu().clamp(0, 1))


def own_name(pl_module: LightningModule, item: ImageItem) -> str | None:
    """Return the name by which the text prompts ask about an image.

    Args:
        pl_module (LightningModule): The model of the pass.
        item (ImageItem): The image's file.

    Returns:
        str | None: The name; ``None`` if the model does not tell.
    """
    return pl_module.name_of(item.image_path) if hasattr(pl_module, "name_of") else None
