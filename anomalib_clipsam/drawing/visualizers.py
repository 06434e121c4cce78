# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Pictures of a pass, by visualizers of anomalib's: what was found in each image, or how ClipSam came to it.

Example:
    >>> # anomalib test --model ClipSam --data MVTecAD                   # ResultVisualizer, the default
    >>> # anomalib test --model ClipSam --model.visualizer anomalib_clipsam.PromptVisualizer --data MVTecAD

Letters: B images, K points, H W map.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from anomalib.data import ImageItem
from anomalib.utils.path import generate_output_filename
from anomalib.visualization import Visualizer
from PIL import Image, ImageDraw
from torchvision.transforms.v2.functional import to_pil_image

from anomalib_clipsam.method.frame import frame_to_map
from anomalib_clipsam.drawing.panels import BOX, FOUND, NEGATIVE, POSITIVE, RING, SIDEWAYS, TRUTH, fill, fit, heat, mark, orientation_of, outline, sheet, upright
from anomalib_clipsam.torch_model import ClipSamModel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from anomalib.data import ImageBatch
    from lightning import LightningModule, Trainer

    from anomalib_clipsam.torch_model import ClipSamStages

QUALITY = {suffix: {"quality": 90} for suffix in (".jpg", ".jpeg", ".webp")}
"""How pictures are saved in formats that lose something."""
CROPS = "Extreme region, crops that SAM saw"
"""Title of a picture's panel in tiles."""
LEGEND, LEGEND_WIDTH = " (green to red: above the threshold)", 230
"""What a map's caption says of its colours, and the width of a panel from which on there is room for it, in pixels."""


class PictureVisualizer(Visualizer):
    """Write a picture per image, where anomalib's own visualizer writes it.

    Args:
        field_size (int): Longer side of each panel, in pixels.
        output_dir (str | Path | None): Folder of the pictures. Defaults to ``None``: ``images`` in the folder of the
            results.

    Raises:
        ValueError: If the size is below 1.
    """

    def __init__(self, field_size: int, output_dir: str | Path | None = None) -> None:
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
        """Write the pictures of a batch."""
        del outputs
        folder = self.output_dir or Path(trainer.default_root_dir) / "images"
        data = getattr(trainer, "datamodule", None)
        for index, item in enumerate(batch):
            path = generate_output_filename(
                input_path=item.image_path or f"picture_{dataloader_idx}_{batch_idx}_{index}.png",
                output_path=folder,
                dataset_name=getattr(data, "name", None),
                category=getattr(data, "category", None),
            )
            self.save(self.draw(pl_module, batch.image[index : index + 1], item), path)

    on_predict_batch_end = on_test_batch_end

    @abstractmethod
    def draw(self, pl_module: LightningModule, image: torch.Tensor, item: ImageItem) -> Image.Image:
        """Draw the picture of an image.

        Args:
            pl_module (LightningModule): The model of the pass.
            image (torch.Tensor): What the model sees, ``(1, 3, height, width)`` in [0, 1].
            item (ImageItem): The image's file, true mask and post-processed prediction, where there are any.

        Returns:
            Image.Image: The picture.
        """

    def save(self, picture: Image.Image, path: Path) -> None:
        """Save a picture.

        Args:
            picture (Image.Image): The picture.
            path (Path): Name that anomalib gives it: that of the image.
        """
        picture.save(path, **QUALITY.get(path.suffix.lower(), {}))


class ResultVisualizer(PictureVisualizer):
    """Write a picture per image: the image, its true mask if there is one, the map and the outline of what was found.

    A line above has the verdict, the score and its threshold. Panels have the proportions of the file, and nothing but
    map and outlines is drawn on them. The map is invisible where it is low. Photographs are turned upright as their
    EXIF data say, here only: scores, masks and boxes are of the pixels as they are stored, which is how anomalib reads
    them. It is the default of :class:`anomalib_clipsam.ClipSam`, and works with every model of anomalib.

    Args:
        field_size (int): Longer side of each panel, in pixels. Defaults to ``320``.
        output_dir (str | Path | None): Folder of the pictures. Defaults to ``None``: ``images`` in the folder of the
            results, as anomalib's own visualizer.

    Raises:
        ValueError: If the size is below 1.

    Example:
        >>> item = ImageItem(image=torch.rand(3, 64, 96), pred_score=torch.tensor(0.9), pred_label=torch.tensor(True))
        >>> ResultVisualizer(field_size=200).visualize(item).size
        (328, 207)
    """

    def __init__(self, field_size: int = 320, output_dir: str | Path | None = None) -> None:
        super().__init__(field_size, output_dir)

    def draw(self, pl_module: LightningModule, image: torch.Tensor, item: ImageItem) -> Image.Image:
        """Draw the picture of an image, see :meth:`PictureVisualizer.draw`."""
        del image
        return self.visualize(item, image_threshold(pl_module))

    def visualize(
        self, predictions: ImageItem | ImageBatch, threshold: float | None = None
    ) -> Image.Image | list[Image.Image]:
        """Draw what was found.

        Args:
            predictions (ImageItem | ImageBatch): Post-processed predictions, of an image or of a batch.
            threshold (float | None): Threshold of the score, for the line above. Defaults to ``None``: it is left out.

        Returns:
            Image.Image | list[Image.Image]: The picture, or one per image of the batch.
        """
        if not isinstance(predictions, ImageItem):
            return [self.visualize(item, threshold) for item in predictions]
        item = predictions
        picture, orientation = fit(read_picture(item), self.field_size), orientation_of(item.image_path)
        panels = {"picture": picture}
        if item.gt_mask is not None:
            panels["true mask"] = outline(picture, item.gt_mask.squeeze(), TRUTH)
        if item.anomaly_map is not None:
            legend = LEGEND if upright(picture, orientation).width >= LEGEND_WIDTH else ""
            panels[f"map{legend}"] = heat(picture, item.anomaly_map.squeeze())
        if item.pred_mask is not None:
            panels["outline"] = outline(picture, item.pred_mask.squeeze(), FOUND)
        panels = {title: upright(panel, orientation) for title, panel in panels.items()}
        return sheet(panels, len(panels), *heading(item, threshold))


class PromptVisualizer(PictureVisualizer):
    """Write a picture per image: CLIP's map, extreme region and ring, points, masks, box, result.

    With :class:`anomalib_clipsam.SamPostProcessor` it tells the same story of any model's map.

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
        super().__init__(field_size, output_dir)

    def draw(self, pl_module: LightningModule, image: torch.Tensor, item: ImageItem) -> Image.Image:
        """Draw the picture of an image, see :meth:`PictureVisualizer.draw`.

        Raises:
            TypeError: If the model is neither ClipSam nor refined by SamPostProcessor.
        """
        panels = draw_stages(pl_module, image, item, self.field_size)
        return sheet(panels, 4, *heading(item, image_threshold(pl_module)))

    def save(self, picture: Image.Image, path: Path) -> None:
        """Save a picture without a loss, see :meth:`PictureVisualizer.save`."""
        super().save(picture, path if path.suffix.lower() == ".png" else path.with_name(f"{path.name}.png"))


def image_threshold(pl_module: Any) -> float | None:
    """Give the threshold of the scores that a model's post-processor has left in a batch.

    Args:
        pl_module (Any): The model of the pass.

    Returns:
        float | None: The threshold; ``None`` where no such post-processor is, or where it has none.
    """
    post_processor = getattr(pl_module, "post_processor", None)
    if not getattr(post_processor, "enable_thresholding", False):
        return None
    name = "normalized_image_threshold" if post_processor.enable_normalization else "image_threshold"
    threshold = float(getattr(post_processor, name))
    return None if math.isnan(threshold) else threshold


def heading(item: ImageItem, threshold: float | None = None) -> tuple[str, tuple[int, int, int] | None, str]:
    """Say what was decided about an image, for the line above its panels.

    Args:
        item (ImageItem): Its post-processed prediction.
        threshold (float | None): Threshold of its score. Defaults to ``None``: not known.

    Returns:
        tuple[str, tuple[int, int, int] | None, str]: Verdict, its colour, and figures, as :func:`sheet` takes them.
    """
    figures = [] if item.pred_score is None else [f"score {float(item.pred_score):.2f}"]
    figures += [] if threshold is None else [f"threshold {threshold:.2f}"]
    if item.pred_label is None:
        return "Not judged", None, "   ".join(figures)
    defective = bool(item.pred_label)
    if defective and item.pred_mask is not None and not item.pred_mask.any():
        figures.append("nothing outlined: no region passes as a whole")
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


@contextmanager
def _uncounted(model: ClipSamModel) -> Iterator[None]:
    """Let a model look at images once more without counting them again, and ask about what it likes."""
    counters = [(model, "images_seen"), (model, "images_refined"), (model, "class_name")]
    if model.judge is not None:
        counters += [(model.judge, "judged"), (model.judge, "unlike")]
    before = [getattr(owner, name) for owner, name in counters]
    try:
        yield
    finally:
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
        raise TypeError(msg)
    picture = fit(read_picture(item), size)
    with _uncounted(model):
        model.set_class_name(class_name or model.class_name)
        stages = model.stages(image)
        text_map = stages.anomaly_map
        if model.judge is not None:
            text_map, _ = model.join(image, (look[:2] for look in model.looks(image)))
    maps = {"CLIP map": text_map}
    if model.judge is not None:
        maps = {"CLIP map by text": text_map, "Text and references": stages.anomaly_map}
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
    elif stages.asks is not None and stages.region is not None:
        panels[CROPS] = draw_asks(picture, stages)
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


def draw_asks(picture: Image.Image, stages: ClipSamStages) -> Image.Image:
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
