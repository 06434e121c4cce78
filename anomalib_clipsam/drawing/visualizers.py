# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Pictures of a pass, by visualizers of anomalib's: what was found in each image, or how ClipSam came to it.

Example:
    >>> # anomalib test --model ClipSam --data MVTecAD                   # ResultVisualizer, the default
    >>> # anomalib test --model ClipSam --model.visualizer anomalib_clipsam.PromptVisualizer --data MVTecAD

Letters: B images, K points, H W map.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from anomalib.data import ImageItem
from anomalib.utils.path import generate_output_filename
from anomalib.visualization import Visualizer
from PIL import Image

from anomalib_clipsam.drawing.panels import (
    FOUND,
    TRUTH,
    fit,
    heat,
    orientation_of,
    outline,
    sheet,
    upright,
)
from anomalib_clipsam.drawing.stages import draw_stages
from anomalib_clipsam.drawing.verdict import heading, image_threshold, pixel_threshold, read_picture
from anomalib_clipsam.errors.errors import UserValueError

if TYPE_CHECKING:
    from anomalib.data import ImageBatch
    from lightning import LightningModule, Trainer


QUALITY = {suffix: {"quality": 90} for suffix in (".jpg", ".jpeg", ".webp")}
"""How pictures are saved in formats that lose something."""
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
            raise UserValueError(msg)
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
        return self.visualize(item, image_threshold(pl_module), pixel_threshold(pl_module))

    def visualize(
        self,
        predictions: ImageItem | ImageBatch,
        threshold: float | None = None,
        map_threshold: float | None = None,
    ) -> Image.Image | list[Image.Image]:
        """Draw what was found.

        Args:
            predictions (ImageItem | ImageBatch): Post-processed predictions, of an image or of a batch.
            threshold (float | None): Threshold of the score, for the line above. Defaults to ``None``: it is left out.
            map_threshold (float | None): Threshold of the map, for its colours. Defaults to ``None``, 0.5.

        Returns:
            Image.Image | list[Image.Image]: The picture, or one per image of the batch.
        """
        if not isinstance(predictions, ImageItem):
            return [self.visualize(item, threshold, map_threshold) for item in predictions]
        item = predictions
        picture, orientation = fit(read_picture(item), self.field_size), orientation_of(item.image_path)
        panels = {"picture": picture}
        if item.gt_mask is not None:
            panels["true mask"] = outline(picture, item.gt_mask.squeeze(), TRUTH)
        if item.anomaly_map is not None:
            legend = LEGEND if upright(picture, orientation).width >= LEGEND_WIDTH else ""
            panels[f"map{legend}"] = heat(picture, item.anomaly_map.squeeze(), map_threshold)
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
