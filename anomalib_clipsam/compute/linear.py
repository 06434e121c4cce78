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


def linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:  # noqa: A002
    """Give what ``torch.nn.functional.linear`` gives, on a CPU as a convolution of 1 x 1.

    Args:
        input (torch.Tensor): ``(..., in_features)``.
        weight (torch.Tensor): ``(out_features, in_features)``.
        bias (torch.Tensor | None): ``(out_features,)``. Defaults to ``None``.

    Returns:
        torch.Tensor: ``(..., out_features)``.
    """
    if (
        input.device.type != "cpu"
        or torch.compiler.is_compiling()
        or input.numel() == 0
        or not torch.backends.mkldnn.is_available()
    ):
        return F.linear(input, weight, bias)
    pixels = input.reshape(1, -1, 1, input.shape[-1]).permute(0, 3, 1, 2)  # as they lie, under another name
    convolved = F.conv2d(pixels, weight[..., None, None], bias)
    return convolved.permute(0, 2, 3, 1).reshape(*input.shape[:-1], len(weight))


class OneDnnLinear(nn.Linear):
    """torch's linear layer through :func:`linear`. Made of one by :func:`use_onednn`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  # torch's name
        """Run the layer.

        Args:
            input (torch.Tensor): ``(..., in_features)``.

        Returns:
            torch.Tensor: ``(..., out_features)``.
        """
        return linear(input, self.weight, self.bias)


def use_onednn(module: nn.Module) -> None:
    """Let the plain linear layers in a module be multiplied by oneDNN on a CPU. Weights and their names stay.

    Args:
        module (nn.Module): Changed in place.
    """
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = OneDnnLinear
