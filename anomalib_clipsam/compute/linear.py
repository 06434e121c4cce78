# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Linear layers that a CPU multiplies with oneDNN.

torch computes a float32 linear layer with MKL, but a convolution with oneDNN, which is a tenth to a half faster on some
CPUs (figures in ``docs/performance.md``).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812


def linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:  # noqa: A002
    """Compute ``torch.nn.functional.linear``, on a CPU as a 1 x 1 convolution.

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
    pixels = input.reshape(1, -1, 1, input.shape[-1]).permute(0, 3, 1, 2)  # tokens as pixels of one row
    convolved = F.conv2d(pixels, weight[..., None, None], bias)
    return convolved.permute(0, 2, 3, 1).reshape(*input.shape[:-1], len(weight))


class OneDnnLinear(nn.Linear):
    """torch's linear layer through :func:`linear`; see :func:`use_onednn`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  # torch's name
        """Run the layer.

        Args:
            input (torch.Tensor): ``(..., in_features)``.

        Returns:
            torch.Tensor: ``(..., out_features)``.
        """
        return linear(input, self.weight, self.bias)


def use_onednn(module: nn.Module) -> None:
    """Make the plain linear layers of a module use oneDNN on a CPU. Weights and their names stay.

    Args:
        module (nn.Module): Changed in place.
    """
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = OneDnnLinear
