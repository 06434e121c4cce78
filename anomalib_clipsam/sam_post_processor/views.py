# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""What another model saw of an image, and the best view of it for SAM.

Letters: B images, H W map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from anomalib.data.transforms.utils import extract_transforms_by_type
from PIL import Image
from torch.nn import functional as F  # noqa: N812
from torchvision.transforms.v2 import Normalize
from torchvision.transforms.v2.functional import pil_to_tensor

from anomalib_clipsam.errors.errors import UserValueError
from anomalib_clipsam.method.checks import OVERSHOOT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anomalib.data import Batch
    from lightning import LightningModule
    from torch import nn


MAX_DIFFERENCE = 0.1
"""A file is shown to SAM in place of what the model saw where the means of 4 x 4 pixels differ by less."""

NO_MAPS = (
    "{} gives scores of whole images and no maps, and SAM outlines what a map points at. Leave SamPostProcessor out, "
    "or choose a model with maps, such as Patchcore."
)


PROPORTION = 0.02
"""How far the proportions of map and image may differ: some models' grids leave a few pixels out."""


def maps_of(batch: Batch, pl_module: LightningModule) -> torch.Tensor:
    """Return the maps of a batch as ``(B, H, W)``, or raise where SAM cannot use them."""
    maps, size = batch.anomaly_map, batch.image.shape[-2:]
    if maps is None:
        raise UserValueError(NO_MAPS.format(type(pl_module).__name__))
    height, width = maps.shape[-2:]
    if abs(height / width * size[1] / size[0] - 1) > PROPORTION:
        msg = (
            f"{type(pl_module).__name__} gives maps of {height} x {width} pixels for images of {size[0]} x {size[1]}, "
            "so that SAM cannot tell what they point at. Choose image sizes for which it gives maps of the same "
            "proportions, or leave SamPostProcessor out."
        )
        raise UserValueError(msg)
    return maps.reshape(len(batch.image), height, width).float()


def undo_normalize(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Undo what a model's pre-processor normalises: ``(B, 3, height, width)`` RGB, as a rule in [0, 1]."""
    transform = getattr(getattr(model, "pre_processor", None), "transform", None)
    for normalize in reversed(extract_transforms_by_type(transform, Normalize) if transform else []):
        mean, std = (torch.tensor(values, device=images.device) for values in (normalize.mean, normalize.std))
        images = images * std.view(-1, 1, 1) + mean.view(-1, 1, 1)
    return images


def as_seen(pl_module: LightningModule, images: torch.Tensor) -> torch.Tensor:
    """Return what a model saw of images as ``(B, 3, height, width)`` uint8.

    Raises:
        ValueError: If it is no RGB in [0, 1] once the pre-processor's normalisation is undone.
    """
    images = undo_normalize(pl_module, images)
    low, high = images.amin().item(), images.amax().item()
    if images.ndim != 4 or images.shape[1] != 3 or not -OVERSHOOT <= low <= high <= 1 + OVERSHOOT:
        msg = (
            f"{type(pl_module).__name__} sees images of the shape {tuple(images.shape)} with values from {low:.4g} to "
            f"{high:.4g}, and SAM needs RGB in [0, 1]. Let the pre-processor normalise by torchvision's Normalize, "
            "which can be undone, or leave SamPostProcessor out."
        )
        raise UserValueError(msg)
    return (images.clamp(0, 1) * 255).round().byte()


def read_view(path: str) -> torch.Tensor | None:
    """Read a file as ``(1, 3, height, width)`` in [0, 1]; ``None`` if it cannot be read."""
    try:
        with Image.open(path) as image:
            return pil_to_tensor(image.convert("RGB")).unsqueeze(0).float() / 255
    except (OSError, ValueError):
        return None


def resize_view(image: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Resize images ``(B, 3, height, width)``; a graph cannot hold antialiasing, which enlarging does without."""
    size = tuple(size)
    antialias = not torch.compiler.is_compiling()
    return F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=antialias)


def looks_alike(picture: torch.Tensor, seen: torch.Tensor) -> bool:
    """Whether a file shows what a model saw: not cropped, turned or coloured by a transform or an augmentation."""
    difference = F.avg_pool2d(resize_view(picture, seen.shape[-2:]) - seen, 4, ceil_mode=True)
    return difference.abs().amax().item() < MAX_DIFFERENCE
