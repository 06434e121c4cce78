# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Panels of the method's stages: CLIP's map, region, points, masks, box, result.

Letters: B images, K points, H W map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from anomalib.data import ImageItem
from PIL import Image, ImageDraw

from anomalib_clipsam.drawing.panels import (
    BOX,
    NEGATIVE,
    POSITIVE,
    RING,
    SIDEWAYS,
    TRUTH,
    fill,
    fit,
    heat,
    mark,
    orientation_of,
    outline,
    upright,
)
from anomalib_clipsam.drawing.verdict import own_name, read_picture
from anomalib_clipsam.errors.errors import UserTypeError
from anomalib_clipsam.method.frame import frame_to_map
from anomalib_clipsam.torch_model import ClipSamModel

if TYPE_CHECKING:
    from lightning import LightningModule

    from anomalib_clipsam.method.stages import ClipSamStages

CROPS = "Extreme region, crops that SAM saw"
"""Title of a picture's panel in tiles."""


def has_stages(pl_module: LightningModule) -> bool:
    """Whether :func:`draw_stages` can draw: the model is ClipSam, or SAM refines its maps.

    Args:
        pl_module (LightningModule): The model of the pass.

    Returns:
        bool: Whether it has stages.
    """
    return isinstance(pl_module.model, ClipSamModel) or hasattr(pl_module.post_processor, "stages_of")


def draw_stages(pl_module: LightningModule, image: torch.Tensor, item: ImageItem, size: int) -> dict[str, Image.Image]:
    """Draw the stages of one image of the batch that was post-processed last.

    Args:
        pl_module (LightningModule): The model of the pass.
        image (torch.Tensor): What the model sees, ``(1, 3, height, width)``.
        item (ImageItem): The image's file, true mask and post-processed prediction, where there are any.
        size (int): Longer side of each panel, in pixels.

    Returns:
        dict[str, Image.Image]: Title -> panel, in the order of the method, all of one size.

    Raises:
        TypeError: If the model has no stages.
    """
    if not hasattr(pl_module.post_processor, "stages_of"):
        return draw_item(pl_module.model, image, item, size, own_name(pl_module, item))
    stages = pl_module.post_processor.stages_of(pl_module, image, item.image_path)
    picture = fit(read_picture(item), size)
    maps = {f"Map of {type(pl_module).__name__}": stages.anomaly_map}
    frame_size = pl_module.post_processor.refiner.ppg.frame_size
    return _draw_all(picture, item, maps, stages, frame_size, stages.anomaly_map.shape[-2:])


def draw_item(
    model: torch.nn.Module, image: torch.Tensor, item: ImageItem, size: int, class_name: str | None = None
) -> dict[str, Image.Image]:
    """Draw the stages of one image.

    Args:
        model (torch.nn.Module): ClipSam's PyTorch model.
        image (torch.Tensor): What the model sees, ``(1, 3, height, width)`` in [0, 1].
        item (ImageItem): The image's file, true mask and post-processed prediction, where there are any.
        size (int): Longer side of each panel, in pixels.
        class_name (str | None): Name by which the text prompts ask about it. Defaults to ``None``, the model's.

    Returns:
        dict[str, Image.Image]: Title -> panel, in the order of the method, all of one size.

    Raises:
        TypeError: If it is another model.
    """
    if not isinstance(model, ClipSamModel):
        msg = (
            f"The model is {type(model).__name__}, and has none of ClipSam's stages. Leave the visualizer out, or name "
            "anomalib.visualization.ImageVisualizer."
        )
        raise UserTypeError(msg)
    picture = fit(read_picture(item), size)
    before = model.class_name
    model.set_class_name(class_name or before)
    try:
        stages = model.stages(image)
    finally:
        model.set_class_name(before)
    maps = {"CLIP map": stages.anomaly_map}
    if model.judge is not None:
        maps = {} if stages.text_map is None else {"CLIP map by text": stages.text_map}
        maps["Text and references"] = stages.anomaly_map
    frame_size = 0 if model.ppg is None else model.ppg.frame_size
    return _draw_all(picture, item, maps, stages, frame_size, image.shape[-2:])


def _draw_all(
    picture: Image.Image,
    item: ImageItem,
    maps: dict[str, torch.Tensor],
    stages: ClipSamStages,
    frame_size: int,
    image_size: torch.Size,
) -> dict[str, Image.Image]:
    """Draw the maps ``(1, H, W)`` that there were before SAM, what SAM was asked, and the result."""
    panels = {"Image": picture}
    if item.gt_mask is not None:
        panels = {"Image and true mask": outline(picture, item.gt_mask.squeeze(), TRUTH)}
    panels |= {title: heat(picture, values[0]) for title, values in maps.items()}
    orientation = orientation_of(item.image_path)
    if stages.prompts is not None:
        panels |= draw_prompts(picture, stages, frame_size, image_size, orientation)
    elif stages.crops is not None and stages.region is not None:
        panels[CROPS] = draw_crops(picture, stages)
    result = heat(picture, stages.fused_map[0])
    if item.pred_mask is not None:
        result = outline(result, item.pred_mask.squeeze(), TRUTH)
    panels[f"Result: {verdict(item, stages)}"] = result
    return {title: upright(panel, orientation) for title, panel in panels.items()}


def draw_prompts(
    picture: Image.Image,
    stages: ClipSamStages,
    frame_size: int,
    image_size: torch.Size,
    orientation: int = 1,
) -> dict[str, Image.Image]:
    """Draw what PPG and CPS did with the first image of the stages.

    Args:
        picture (Image.Image): The picture, as large as the panels are to be.
        stages (ClipSamStages): Its stages, with SAM's.
        frame_size (int): Side of SAM's input frame, in pixels.
        image_size (torch.Size): Height and width of the image as the model got it.
        orientation (int): How the panels will be turned, for the signs of points. Defaults to ``1``, not at all.

    Returns:
        dict[str, Image.Image]: Title -> panel, in the order of the method.
    """
    cascade = stages.cascade
    region = fill(fill(picture, stages.prompts.ring[0], RING), stages.region[0], NEGATIVE)
    # The image's longer side spans SAM's frame; a panel has the proportions of the file.
    longer = max(image_size)
    x = picture.width / (frame_size * image_size[1] / longer)
    y = picture.height / (frame_size * image_size[0] / longer)
    coords, labels = stages.prompts.coords[0].tolist(), stages.prompts.labels[0].tolist()
    points = [((column + 0.5) * x, (row + 0.5) * y, label) for (column, row), label in zip(coords, labels, strict=True)]
    size = tuple(stages.anomaly_map.shape[-2:])
    first, second, third = (
        fill(picture, frame_to_map(logits.squeeze(1), size)[0] > 0, POSITIVE)
        for logits in (cascade.logits_1, cascade.logits_2, cascade.logits_3)
    )
    x0, y0, x1, y1 = cascade.box[0].tolist()
    if x1 > x0 and y1 > y0:
        ImageDraw.Draw(third).rectangle((x0 * x, y0 * y, x1 * x, y1 * y), outline=BOX, width=2)
    return {
        "Extreme region, ring": region,
        f"{labels.count(1)} positive, {labels.count(0)} negative points": mark(
            region, points, sideways=orientation in SIDEWAYS
        ),
        "Mask 1: points": first,
        "Mask 2: + mask 1": second,
        "Mask 3: + box, mask 2": third,
    }


def draw_crops(picture: Image.Image, stages: ClipSamStages) -> Image.Image:
    """Draw the extreme region of the first picture in tiles, and the crops that SAM saw.

    Args:
        picture (Image.Image): The picture, as large as the panel is to be.
        stages (ClipSamStages): Its stages, with crops.

    Returns:
        Image.Image: A new picture.
    """
    drawn = fill(picture, stages.region[0], NEGATIVE)
    height, width = stages.region.shape[-2:]
    x, y = picture.width / width, picture.height / height
    for top, left, rows, columns in stages.crops[0]:
        corners = (left * x, top * y, (left + columns) * x - 1, (top + rows) * y - 1)
        ImageDraw.Draw(drawn).rectangle(corners, outline=BOX, width=2)
    return drawn


def verdict(item: ImageItem, stages: ClipSamStages) -> str:
    """Describe what was decided about an image.

    Args:
        item (ImageItem): Its post-processed prediction.
        stages (ClipSamStages): Its stages, for the score where the prediction has none.

    Returns:
        str: Such as ``"defective, 0.71"``.
    """
    score = stages.score[0] if item.pred_score is None else item.pred_score
    label = "" if item.pred_label is None else "defective, " if bool(item.pred_label) else "good, "
    return f"{label}{float(score):.2f}"
