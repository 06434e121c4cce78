# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""anomalib's pre-processor, fitted to a model that normalises images itself."""

from __future__ import annotations

import torch
from anomalib.pre_processing import PreProcessor
from torchvision.transforms.v2 import InterpolationMode, Resize

from anomalib_clipsam.method.checks import check_images


class ClipSamPreProcessor(PreProcessor):
    """Resize images to SAM's resolution, or leave them as they are for a model that looks at tiles.

    Images are squeezed to a square, as by every model of anomalib: anomalib passes the resize on to the data set, so
    that pictures of several sizes can share a batch.

    Args:
        image_size (int | None): Side of the square image that the model takes, in pixels; ``None`` for any size.
    """

    def __init__(self, image_size: int | None) -> None:
        size = (image_size, image_size)
        resize = Resize(size, interpolation=InterpolationMode.BICUBIC, antialias=True) if image_size else None
        super().__init__(resize)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Resize images as in the Engine's passes.

        Args:
            batch (torch.Tensor): Images ``(B, 3, height, width)`` in [0, 1], of any size.

        Returns:
            torch.Tensor: Images ``(B, 3, S, S)``, what the model takes; the images themselves for tiles.

        Raises:
            TypeError: If the images are not a float tensor.
            ValueError: If the shape is wrong, or a value is NaN or infinite.
        """
        check_images(batch)
        return batch if self.transform is None else self.transform(batch)
