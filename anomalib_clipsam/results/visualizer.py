# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""How ClipSam came to its answer, stage by stage, as pictures: a visualizer for anomalib.

Example:
    >>> # anomalib test --model ClipSam --model.visualizer anomalib_clipsam.PromptVisualizer --data MVTecAD

Letters: B images, K points, H W map.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from anomalib.utils.path import generate_output_filename
from anomalib.visualization import Visualizer
from anomalib.visualization.image.functional import (
    add_text_to_image,
    create_image_grid,
    visualize_anomaly_map,
    visualize_mask,
)
from PIL import Image, ImageDraw
from torch.nn import functional as F  # noqa: N812
from torchvision.transforms.v2.functional import to_pil_image

from anomalib_clipsam.frame import frame_to_map
from anomalib_clipsam.torch_model import ClipSamModel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anomalib.data import ImageBatch, ImageItem
    from lightning import LightningModule, Trainer

    from anomalib_clipsam.torch_model import ClipSamStages

POSITIVE, NEGATIVE, RING, BOX, TRUTH = (0, 158, 115), (213, 94, 0), (86, 180, 233), (240, 228, 66), (255, 255, 255)
"""Colours, from Okabe and Ito's palette, which the colour-blind can tell apart; signs tell the points apart as well."""


class PromptVisualizer(Visualizer):
    """Write a picture per image: CLIP's map, extreme region and ring, points, masks, box, result.

    ``a.png`` of a folder becomes ``a.png``, ``a.jpg`` becomes ``a.jpg.png``; a picture without a file is called by its
    place in the pass. The stages are computed once more, so a pass takes about twice as long.

    Args:
        field_size (int): Longer side of each panel, in pixels. Defaults to ``256``.
        output_dir (str | Path | None): Folder of the pictures. Defaults to ``None``: ``images`` in the folder of the
            results, as anomalib's own visualizer.

    Raises:
        ValueError: If the size is below 1.
    """

    def __init__(self, field_size: int = 256, output_dir: str | Path | None = None) -> None:
        super().__init__()
        if field_size < 1:
            msg = f"field_size is {field_size}; it must be a number of pixels above 0, such as 256."
            raise ValueError(msg)
        self.field_size = field_size
        self.output_dir = output_dir

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: ImageBatch,
        batch: ImageBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the pictures of a batch.

        Raises:
            TypeError: If the model is not ClipSam.
        """
        del outputs
        folder = self.output_dir or Path(trainer.default_root_dir) / "images"
        data = getattr(trainer, "datamodule", None)
        for index, item in enumerate(batch):
            name = own_name(pl_module, item)
            panels = draw_item(pl_module.model, batch.image[index : index + 1], item, self.field_size, name)
            titled = [add_text_to_image(panel, title, size=14, position=(6, 6)) for title, panel in panels.items()]
            path = generate_output_filename(
                input_path=item.image_path or f"picture_{dataloader_idx}_{batch_idx}_{index}.png",
                output_path=folder,
                dataset_name=getattr(data, "name", None),
                category=getattr(data, "category", None),
            )
            if path.suffix.lower() != ".png":
                path = path.with_name(f"{path.name}.png")
            create_image_grid(titled, nrow=min(4, len(titled))).save(path)

    on_predict_batch_end = on_test_batch_end


@contextmanager
def _uncounted(model: ClipSamModel) -> Iterator[None]:
    """Let a model look at images once more without counting them again, and ask about what it likes."""
    counters = [(model, "images_seen"), (model, "images_refined"), (model, "class_name")]
    if model.judge is not None:
        counters += [(model.judge, "judged"), (model.judge, "unlike")]
    before = [getattr(owner, name) for owner, name in counters]
    yield
    for (owner, name), value in zip(counters, before, strict=True):
        setattr(owner, name, value)


def own_name(pl_module: LightningModule, item: ImageItem) -> str | None:
    """Give the name by which the text prompts ask about an image.

    Args:
        pl_module (LightningModule): The model of the pass.
        item (ImageItem): The image's file.

    Returns:
        str | None: The name; ``None`` if the model does not tell.
    """
    return pl_module.name_of(item.image_path) if hasattr(pl_module, "name_of") else None


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
        raise TypeError(msg)
    picture = Image.open(item.image_path).convert("RGB") if item.image_path else to_pil_image(image[0].clamp(0, 1))
    picture = fit(picture, size)
    with _uncounted(model):
        model.set_class_name(class_name or model.class_name)
        stages = model.stages(image)
        text_map = stages.anomaly_map if model.judge is None else model.look(image)[0]
    panels = {"Image": picture}
    if item.gt_mask is not None:
        panels = {"Image and true mask": outline(picture, item.gt_mask.squeeze(), TRUTH)}
    if model.judge is None:
        panels["CLIP map"] = heat(picture, text_map[0])
    else:
        panels["CLIP map by text"] = heat(picture, text_map[0])
        panels["Text and references"] = heat(picture, stages.anomaly_map[0])
    if stages.prompts is not None:
        panels |= _draw_prompts(picture, stages, model.ppg.frame_size, image.shape[-2:])
    elif stages.asks is not None and stages.region is not None:
        panels["Extreme region, crops that SAM saw"] = _draw_asks(picture, stages)
    result = heat(picture, stages.fused_map[0])
    if item.pred_mask is not None:
        result = outline(result, item.pred_mask.squeeze(), TRUTH)
    panels[f"Result: {verdict(item, stages)}"] = result
    return panels


def _draw_prompts(
    picture: Image.Image,
    stages: ClipSamStages,
    frame_size: int,
    image_size: torch.Size,
) -> dict[str, Image.Image]:
    """Draw what PPG and CPS did with the first image of the stages."""
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
        f"{labels.count(1)} positive, {labels.count(0)} negative points": mark(region, points),
        "Mask 1: points": first,
        "Mask 2: + mask 1": second,
        "Mask 3: + box, mask 2": third,
    }


def _draw_asks(picture: Image.Image, stages: ClipSamStages) -> Image.Image:
    """Draw the extreme region of the first picture in tiles, and the crops that SAM saw."""
    drawn = fill(picture, stages.region[0], NEGATIVE)
    height, width = stages.region.shape[-2:]
    x, y = picture.width / width, picture.height / height
    for top, left, rows, columns in stages.asks[0]:
        corners = (left * x, top * y, (left + columns) * x - 1, (top + rows) * y - 1)
        ImageDraw.Draw(drawn).rectangle(corners, outline=BOX, width=2)
    return drawn


def verdict(item: ImageItem, stages: ClipSamStages) -> str:
    """Say what was decided about an image.

    Args:
        item (ImageItem): Its post-processed prediction.
        stages (ClipSamStages): Its stages, for the score where the prediction has none.

    Returns:
        str: Such as ``"defective, 0.71"``.
    """
    score = stages.score[0] if item.pred_score is None else item.pred_score
    label = "" if item.pred_label is None else "defective, " if bool(item.pred_label) else "good, "
    return f"{label}{float(score):.2f}"


def _resized(values: torch.Tensor, picture: Image.Image) -> torch.Tensor:
    """Bring ``(H, W)`` to the size of a picture."""
    size = (picture.height, picture.width)
    return F.interpolate(values[None, None].float().cpu(), size, mode="bilinear", align_corners=False)[0, 0]


def fit(picture: Image.Image, size: int) -> Image.Image:
    """Resize a picture to a longer side, in its own proportions.

    Args:
        picture (Image.Image): The picture.
        size (int): Longer side, in pixels.

    Returns:
        Image.Image: A new picture.
    """
    longer = max(picture.size)
    return picture.resize([max(1, round(side * size / longer)) for side in picture.size], Image.Resampling.BICUBIC)


def heat(picture: Image.Image, anomaly_map: torch.Tensor) -> Image.Image:
    """Lay a map over a picture, as colours.

    Args:
        picture (Image.Image): The picture.
        anomaly_map (torch.Tensor): ``(H, W)`` in [0, 1], of any size.

    Returns:
        Image.Image: A new picture.
    """
    return Image.blend(picture, visualize_anomaly_map(_resized(anomaly_map, picture).clamp(0, 1)), 0.5)


def fill(picture: Image.Image, mask: torch.Tensor, color: tuple[int, int, int]) -> Image.Image:
    """Colour a mask in.

    Args:
        picture (Image.Image): The picture.
        mask (torch.Tensor): ``(H, W)`` of 0 and 1, of any size.
        color (tuple[int, int, int]): RGB.

    Returns:
        Image.Image: A new picture.
    """
    filled = visualize_mask(_resized(mask, picture) > 0.5, mode="fill", color=color, alpha=0.55)
    return Image.alpha_composite(picture.convert("RGBA"), filled).convert("RGB")


def outline(picture: Image.Image, mask: torch.Tensor, color: tuple[int, int, int]) -> Image.Image:
    """Draw the outline of a mask, see :func:`fill`."""
    drawn = visualize_mask(_resized(mask, picture) > 0.5, mode="contour", color=color)
    return Image.alpha_composite(picture.convert("RGBA"), drawn).convert("RGB")


def mark(picture: Image.Image, points: list[tuple[float, float, int]]) -> Image.Image:
    """Draw points: a disc with a plus for a positive one, with a minus for a negative one.

    Args:
        picture (Image.Image): The picture.
        points (list[tuple[float, float, int]]): x, y in pixels; 1 for a positive, 0 for a negative, -1 for no point.

    Returns:
        Image.Image: A new picture.
    """
    marked, radius = picture.copy(), max(5, max(picture.size) // 40)
    draw = ImageDraw.Draw(marked)
    for x, y, label in points:
        if label not in (0, 1):
            continue
        disc = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(disc, fill=POSITIVE if label else NEGATIVE, outline=TRUTH)
        draw.line((x - radius / 2, y, x + radius / 2, y), fill=TRUTH, width=2)
        if label:
            draw.line((x, y - radius / 2, x, y + radius / 2), fill=TRUTH, width=2)
    return marked
