# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""A small image encoder for SAM: EfficientNet-Lite0, its stages joined top-down, then SAM's neck. [ours]

A ViT of this size that starts from nothing learns the pictures it is trained on and little of any other; features
learnt on ImageNet carry over. Coarse stages know the part, fine ones where its edges run, so each level adds the one
below it, as in a feature pyramid. The stage at 1/4 comes in through a convolution that takes four of its pixels to one
cell: scratches are narrower than a cell of 8 pixels.

Letters: B images, C features, S side of the input frame, h = w = S / 8 grid, d channels of the pyramid.

References:
    - Tan and Le, "EfficientNet", https://arxiv.org/abs/1905.11946 (Lite0: without squeeze-and-excitation, ReLU6)
    - Lin et al., "Feature Pyramid Networks for Object Detection", https://arxiv.org/abs/1612.03144
    - Kirillov et al., "Segment Anything", https://arxiv.org/abs/2304.02643 (the neck)
"""

from __future__ import annotations

from typing import Any, cast

import timm
import torch
from segment_anything.modeling.common import LayerNorm2d
from torch import nn
from torch.nn import functional as F  # noqa: N812

TRUNK = "tf_efficientnet_lite0"
"""timm's name of the trunk."""
PIXEL_MEAN = PIXEL_STD = (127.5, 127.5, 127.5)
"""Normalisation that the trunk's ImageNet weights want, in grey levels."""


class ImageEncoderEfficientNet(nn.Module):
    """Encode SAM's input frame to a grid of an eighth of its side.

    Args:
        img_size (int): S, side of the square input frame in pixels, a multiple of 32. Defaults to ``256``.
        width (int): d, channels in which the stages are joined. Defaults to ``128``.
        out_chans (int): C, features that the prompt encoder and the mask decoder work with. Defaults to ``128``.
    """

    def __init__(self, img_size: int = 256, width: int = 128, out_chans: int = 128) -> None:
        super().__init__()
        self.img_size = img_size
        self.trunk = timm.create_model(TRUNK, features_only=True, out_indices=(1, 2, 3, 4))
        quarter, *others = cast("Any", self.trunk).feature_info.channels()  # stages at 1/4; 1/8, 1/16 and 1/32
        self.fine = nn.Conv2d(quarter, width, kernel_size=2, stride=2)
        self.lateral = nn.ModuleList(nn.Conv2d(channels, width, kernel_size=1) for channels in others)
        self.smooth = nn.ModuleList(_smooth(width) for _ in others[:-1])
        self.neck = nn.Sequential(
            nn.Conv2d(width, out_chans, kernel_size=1, bias=False),
            LayerNorm2d(out_chans),
            nn.Conv2d(out_chans, out_chans, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(out_chans),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Encode.

        Args:
            x (torch.Tensor): Frames ``(B, 3, S, S)`` as ``Sam.preprocess`` gives them.

        Returns:
            torch.Tensor: Features ``(B, C, h, w)``.
        """
        quarter, *stages = self.trunk(x)
        eighth, sixteenth, last = (lateral(stage) for lateral, stage in zip(self.lateral, stages, strict=True))
        joined = self.smooth[1](sixteenth + _twice(last))  # (B, d, h / 2, w / 2)
        joined = self.smooth[0](eighth + self.fine(quarter) + _twice(joined))  # (B, d, h, w)
        return self.neck(joined)


def _smooth(width: int) -> nn.Sequential:
    """Mix a level with what came from below it: 3 x 3 within a channel, then across channels."""
    within = nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width)
    return nn.Sequential(within, nn.Conv2d(width, width, kernel_size=1), nn.ReLU())


def _twice(x: torch.Tensor) -> torch.Tensor:
    """Repeat every cell in both directions."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
