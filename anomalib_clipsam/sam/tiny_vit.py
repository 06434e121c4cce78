# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""MobileSAM's image encoder: timm's TinyViT, whose features fit SAM's own prompt encoder and mask decoder.

Letters: B images, S side of SAM's frame, h w = S / 16 feature grid, C channels.

References:
    - MobileSAM: Zhang et al., https://arxiv.org/abs/2306.14289
    - TinyViT: Wu et al., https://arxiv.org/abs/2207.10666
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from segment_anything.modeling.common import LayerNorm2d
from timm.models.tiny_vit import Attention, TinyVit
from torch import nn

from anomalib_clipsam.compute.linear import use_onednn

if TYPE_CHECKING:
    from collections.abc import Mapping

Entry = TypeVar("Entry")

PUBLISHED = "image_encoder."
"""What the names of the encoder's entries begin with in MobileSAM's file."""


class RenewedAttention(Attention):
    """timm's attention with its bias gathered anew on each call. Made of one by :class:`ImageEncoderTinyViT`.

    timm keeps the gathered bias from one call to the next: it would outlive weights that are loaded afterwards, and an
    export would leave its tracer's tensor behind.
    """

    attention_bias_idxs: torch.Tensor

    def get_attention_biases(self, device: torch.device) -> torch.Tensor:
        """Gather the bias of each pair of tokens in a window.

        Args:
            device (torch.device): Not used.

        Returns:
            torch.Tensor: ``(1, heads, tokens, tokens)``: with fewer dimensions, torch does not fuse attention on a CPU.
        """
        del device
        return self.attention_biases[:, self.attention_bias_idxs].unsqueeze(0)


class ImageEncoderTinyViT(nn.Module):
    """MobileSAM's image encoder, for frames of any size that is a multiple of 16.

    Args:
        image_size (int): Side S of SAM's frame, in pixels.
        widths (tuple[int, ...]): Channels of the four stages. Defaults to the published ones.
        depths (tuple[int, ...]): Blocks of the four stages. Defaults to the published ones.
        heads (tuple[int, ...]): Attention heads of the four stages, of which the first has no use for them. Defaults to
            the published ones.
        windows (tuple[int, ...]): Sides of their windows, in tokens; likewise. Defaults to the published ones.
        out_chans (int): Channels C of the features. Defaults to 256.
    """

    def __init__(
        self,
        image_size: int = 1024,
        widths: tuple[int, ...] = (64, 128, 160, 320),
        depths: tuple[int, ...] = (2, 2, 6, 2),
        heads: tuple[int, ...] = (2, 4, 5, 10),
        windows: tuple[int, ...] = (7, 7, 14, 7),
        out_chans: int = 256,
    ) -> None:
        super().__init__()
        self.img_size = image_size
        self.trunk = cast("Any", TinyVit(embed_dims=widths, depths=depths, num_heads=heads, window_sizes=windows))
        self.trunk.head = nn.Identity()
        self.trunk.stages[3].downsample.conv2.conv.stride = (1, 1)  # a grid of 1/16, as SAM's
        for module in self.trunk.modules():
            if type(module) is Attention:
                module.__class__ = RenewedAttention
        use_onednn(self.trunk)
        self.neck = nn.Sequential(
            nn.Conv2d(widths[-1], out_chans, kernel_size=1, bias=False),
            LayerNorm2d(out_chans),
            nn.Conv2d(out_chans, out_chans, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(out_chans),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Encode images.

        Args:
            image (torch.Tensor): ``(B, 3, S, S)``, as ``Sam.preprocess`` gives it.

        Returns:
            torch.Tensor: Features ``(B, C, h, w)``.
        """
        if not torch.compiler.is_compiling():
            image = image.contiguous(
                memory_format=torch.channels_last
            )  # between convolutions and tokens nothing is copied
        return self.neck(self.trunk.forward_features(image))


def rename_published(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Return the entries of MobileSAM's file the names that they have here; all others keep theirs.

    Args:
        entries (Mapping[str, Entry]): State dict, or the shapes of one.

    Returns:
        dict[str, Entry]: The same under other names, without the classifier that SAM has no use for.
    """
    if not any(str(key).startswith(f"{PUBLISHED}layers.") for key in entries):
        return dict(entries)
    renamed = {}
    for key, value in entries.items():
        name = str(key).removeprefix(PUBLISHED)
        if name == key or name.startswith("neck."):
            renamed[key] = value
        elif not name.startswith(("norm_head.", "head.")):
            name = re.sub(r"^layers\.(\d+)\.blocks\.", r"stages.\1.blocks.", name)
            name = re.sub(
                r"^layers\.(\d+)\.downsample\.", lambda stage: f"stages.{int(stage[1]) + 1}.downsample.", name
            )
            name = name.replace("patch_embed.seq.0.", "patch_embed.conv1.").replace("seq.2.", "conv2.")
            renamed[f"{PUBLISHED}trunk.{name.replace('.c.', '.conv.')}"] = value
    return renamed
