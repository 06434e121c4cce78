# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""SAM's image encoder with exact attention that is faster and needs less memory, behind the same weights.

segment_anything writes out every attention map, adds the relative-position bias to it and takes its softmax: three
times 0.8 GB for one global block of ViT-B. Here fused attention takes the bias as its mask, made for some rows of
queries at a time; and queries, keys and values are computed before a window is padded, not for the padding too. On a
CPU, linear layers are multiplied by oneDNN.

Letters: N images or windows, B images, H W grid of tokens, D width, c width of a head, L = H W tokens, R rows.

Reference:
    Kirillov et al., "Segment Anything", https://arxiv.org/abs/2304.02643
"""

from __future__ import annotations

import torch
from segment_anything.modeling.image_encoder import (
    Attention,
    Block,
    ImageEncoderViT,
    window_partition,
    window_unpartition,
)
from torch.nn import functional as F  # noqa: N812

from anomalib_clipsam.compute.linear import use_onednn

BIAS_BYTES = {"cpu": 16 * 2**20}
"""Largest bias that is held at a time, in bytes, by type of device: what a CPU's cache holds."""
OTHER_BIAS_BYTES = 2**30
"""The same on any other device, which many small steps would leave idle: one step for an image of ViT-H."""


def relative_positions(size: int, table: torch.Tensor) -> torch.Tensor:
    """Look up the embedding of each pair of places along an axis.

    As segment_anything's ``get_rel_pos``, but for its index, which is made on the CPU whatever the device: a copy that
    the device is waited for, twice a block.

    Args:
        size (int): Number of places.
        table (torch.Tensor): Embedding of each distance, ``(2 size - 1, c)``.

    Returns:
        torch.Tensor: ``(size, size, c)``, queries then keys.
    """
    place = torch.arange(size, device=table.device)
    return table[place[:, None] - place + size - 1]


class LeanAttention(Attention):
    """Segment_anything's attention, fused. Made of one by :func:`make_lean`."""

    def forward(self, x: torch.Tensor, window_size: int = 0) -> torch.Tensor:
        """Attend, within windows or everywhere.

        Args:
            x (torch.Tensor): Tokens ``(B, H, W, D)``.
            window_size (int): Side of the windows, in tokens; 0 for none. Defaults to ``0``.

        Returns:
            torch.Tensor: ``(B, H, W, D)``.
        """
        height, width = x.shape[1:3]
        qkv = self.qkv(x)  # (B, H, W, 3 D)
        if window_size:
            # The padding is zeros before this layer, and its bias after it.
            down, right = -height % window_size, -width % window_size
            bias = self.qkv.bias
            qkv = torch.cat([qkv, bias.expand(qkv.shape[0], height, right, -1)], dim=2)
            qkv = torch.cat([qkv, bias.expand(qkv.shape[0], down, width + right, -1)], dim=1)
            qkv, padded = window_partition(qkv, window_size)
        attended = self._attend(qkv)
        if window_size:
            attended = window_unpartition(attended, window_size, padded, (height, width))
        return self.proj(attended)

    def _attend(self, qkv: torch.Tensor) -> torch.Tensor:
        """Attend everywhere: ``(N, H, W, 3 D)`` to ``(N, H, W, D)``."""
        number, height, width, _ = qkv.shape
        query, key, value = qkv.flatten(1, 2).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if not self.use_rel_pos:
            attended = F.scaled_dot_product_attention(query, key, value)  # (N, heads, L, c)
        else:
            grid = query.unflatten(2, (height, width))  # (N, heads, H, W, c)
            # Contiguous, so that their sum is too, and need not be copied.
            rows = torch.einsum("nayxc,ykc->nayxk", grid, relative_positions(height, self.rel_pos_h)).contiguous()
            columns = torch.einsum("nayxc,xkc->nayxk", grid, relative_positions(width, self.rel_pos_w)).contiguous()
            # An exported graph has one step, for batches of any size and devices of any type.
            counted, device = (1, "cpu") if torch.compiler.is_exporting() else (number, query.device.type)
            row_bytes = counted * self.num_heads * width * height * width * query.element_size()
            step = max(1, min(height, BIAS_BYTES.get(device, OTHER_BIAS_BYTES) // row_bytes))
            parts = []
            for start in range(0, height, step):
                some = slice(start, start + step)
                bias = rows[:, :, some].unsqueeze(-1) + columns[:, :, some].unsqueeze(-2)  # (N, heads, R, W, H, W)
                queries = grid[:, :, some].flatten(2, 3)  # (N, heads, R W, c)
                parts.append(
                    F.scaled_dot_product_attention(queries, key, value, attn_mask=bias.flatten(4).flatten(2, 3))
                )
            attended = torch.cat(parts, dim=2)
        return attended.transpose(1, 2).flatten(2).unflatten(1, (height, width))


class LeanBlock(Block):
    """Segment_anything's block, with :class:`LeanAttention`. Made of one by :func:`make_lean`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the block.

        Args:
            x (torch.Tensor): Tokens ``(B, H, W, D)``.

        Returns:
            torch.Tensor: ``(B, H, W, D)``.
        """
        x = x + self.attn(self.norm1(x), self.window_size)
        return x + self.mlp(self.norm2(x))


def make_lean(encoder: ImageEncoderViT) -> ImageEncoderViT:
    """Let an encoder of segment_anything compute in the lean way. Weights and their names stay.

    Args:
        encoder (ImageEncoderViT): The encoder; changed in place.

    Returns:
        ImageEncoderViT: The same encoder.
    """
    for block in encoder.blocks:
        block.__class__, block.attn.__class__ = LeanBlock, LeanAttention
    use_onednn(encoder)
    return encoder
