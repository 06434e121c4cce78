# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Checks of images, maps and features, before they become a verdict.

Letters: B images.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_clipsam.errors.errors import NotFiniteError, UserTypeError, UserValueError

OVERSHOOT = 0.5
"""How far outside [0, 1] values are clamped and not refused: where black and white pixels alternate, a bicubic resize
takes them out of it by 0.45, with antialiasing by 0.28."""


def not_finite(values: tuple[torch.Tensor, ...]) -> list[int]:
    """Find the places of a batch where something is NaN or infinite. A GPU is waited for once.

    Args:
        values (tuple[torch.Tensor, ...]): Tensors ``(B, ...)``.

    Returns:
        list[int]: The places, ascending.
    """
    each = [value.isfinite().flatten(1).all(dim=1) if value.ndim > 1 else value.isfinite() for value in values]
    finite = torch.stack(each).all(dim=0)  # (B,)
    return [] if finite.all() else (~finite).nonzero().flatten().tolist()


def check_images(images: torch.Tensor) -> None:
    """Raise unless the model can take these images. Nothing is checked during an export.

    Args:
        images (torch.Tensor): ``(B, 3, height, width)``, RGB in [0, 1], or a little outside after a resize.

    Raises:
        TypeError: If they are not a float tensor.
        ValueError: If the shape is wrong, or values lie farther outside [0, 1] than :data:`OVERSHOOT`.
        NotFiniteError: If a value is NaN or infinite.
    """
    if torch.compiler.is_compiling():
        return
    expected = "Give floats in [0, 1] of shape (B, 3, height, width)"
    if not isinstance(images, torch.Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, torch.Tensor) else type(images).__name__
        msg = f"The images are {kind}. {expected}, such as `images / 255` of 8-bit values."
        raise UserTypeError(msg)
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        msg = f"The images have the shape {tuple(images.shape)}. {expected}, such as `image.unsqueeze(0)` of one image."
        raise UserValueError(msg)
    low, high = images.amin(), images.amax()  # NaN of NaN; without a copy, as a picture may have gigabytes
    if (low >= -OVERSHOOT) & (high <= 1 + OVERSHOOT):  # a GPU is waited for here, once
        return
    wrong = not_finite((images,))
    if wrong:
        msg = f"Of the batch's images, those at {wrong} hold NaN or infinite values. {expected}."
        raise NotFiniteError(msg, wrong)
    msg = (
        f"The images hold values from {low.item():.4g} to {high.item():.4g}. {expected}: divide 8-bit values by 255, "
        "and leave `Normalize` out of pre-processor and augmentations, since the model normalises images itself."
    )
    raise UserValueError(msg)


BLANK_SIDE, BLANK_SPREAD = 32, 0.004
"""Pixels of a side that a picture is reduced to, and the standard deviation of each colour below which it shows
nothing. Noise is averaged away. [ours: of 2,600 training photographs, one that is empty is below it]"""


def is_blank(images: torch.Tensor) -> torch.Tensor:
    """Find which images are frames without structure: black, white, grey, or a sensor's noise in the dark.

    Args:
        images (torch.Tensor): ``(B, 3, height, width)`` in [0, 1].

    Returns:
        torch.Tensor: ``(B,)`` bool.
    """
    small = F.interpolate(images, (BLANK_SIDE, BLANK_SIDE), mode="area").flatten(2)  # (B, 3, 32 * 32)
    variance = (small - small.mean(dim=2, keepdim=True)).square().mean(dim=2)
    return variance.amax(dim=1) < BLANK_SPREAD**2
