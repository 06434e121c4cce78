# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Linear layers that a CPU multiplies with oneDNN.

torch gives a linear layer in float32 to MKL, and a convolution to oneDNN, which on some CPUs is faster by a tenth to a
half. Numbers are in the performance notes.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812


class OneDnnLinear(nn.Linear):
    """torch's linear layer, on a CPU as a convolution of 1 x 1. Made of one by :func:`use_onednn`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  # torch's name
        """Run the layer.

        Args:
            input (torch.Tensor): ``(..., in_features)``.

        Returns:
            torch.Tensor: ``(..., out_features)``.
        """
        if input.device.type != "cpu" or torch.compiler.is_compiling() or input.numel() == 0:
            return super().forward(input)
        pixels = input.reshape(1, -1, 1, self.in_features).permute(0, 3, 1, 2)  # as they lie, under another name
        convolved = F.conv2d(pixels, self.weight[..., None, None], self.bias)
        return convolved.permute(0, 2, 3, 1).reshape(*input.shape[:-1], self.out_features)


def use_onednn(module: nn.Module) -> None:
    """Let the plain linear layers in a module be multiplied by oneDNN on a CPU. Weights and their names stay.

    Where torch has no oneDNN, nothing is changed.

    Args:
        module (nn.Module): Changed in place.
    """
    if not torch.backends.mkldnn.is_available():
        return
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = OneDnnLinear
