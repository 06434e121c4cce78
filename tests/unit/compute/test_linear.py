# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Linear layers through oneDNN are torch's own, but for their speed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from anomalib_clipsam.compute.linear import OneDnnLinear, use_onednn


@pytest.fixture
def layers() -> tuple[nn.Linear, OneDnnLinear]:
    """The layer of torch and ours, of the same weights."""
    torch.manual_seed(0)
    stock = nn.Linear(6, 10)
    ours = copy.deepcopy(stock)
    use_onednn(ours)
    return stock, ours


@pytest.mark.parametrize("shape", [(6,), (1, 6), (7, 6), (2, 3, 6), (2, 4, 5, 6), (0, 3, 6)])
def test_same_result(layers: tuple[nn.Linear, OneDnnLinear], shape: tuple[int, ...]) -> None:
    """Inputs of any number of axes, also with nothing in them."""
    stock, ours = layers
    value = torch.randn(shape)
    torch.testing.assert_close(ours(value), stock(value), rtol=0, atol=1e-6)


def test_strided_input(layers: tuple[nn.Linear, OneDnnLinear]) -> None:
    """An input that does not lie in one piece, as from a transposition."""
    stock, ours = layers
    value = torch.randn(6, 5, 4).permute(2, 1, 0)
    torch.testing.assert_close(ours(value), stock(value), rtol=0, atol=1e-6)


def test_under_autocast(layers: tuple[nn.Linear, OneDnnLinear]) -> None:
    """In bf16 the result has that type and its rounding."""
    stock, ours = layers
    value = torch.randn(7, 6)
    with torch.autocast("cpu", torch.bfloat16):
        result, expected = ours(value), stock(value)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result, expected, rtol=0, atol=0.02)


def test_weights_and_names_stay() -> None:
    """A state dict of the plain network loads, and what is no plain linear layer is left alone."""
    stock = nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 2), nn.Linear(4, 2, bias=False))
    ours = copy.deepcopy(stock)
    use_onednn(ours)
    assert [type(ours[0]), type(ours[2])] == [OneDnnLinear, OneDnnLinear]
    assert type(ours[1].out_proj) is type(stock[1].out_proj) is not OneDnnLinear
    assert ours.state_dict().keys() == stock.state_dict().keys()
    ours.load_state_dict(stock.state_dict())


def test_same_gradients(layers: tuple[nn.Linear, OneDnnLinear]) -> None:
    """The layers can be trained."""
    stock, ours = layers
    value = torch.randn(7, 6)
    for layer in layers:
        layer(value).square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, stock.weight.grad)
    torch.testing.assert_close(ours.bias.grad, stock.bias.grad)


def test_exported_as_linear(layers: tuple[nn.Linear, OneDnnLinear]) -> None:
    """An exported program holds the plain layer, which every runtime knows how to make fast."""
    _, ours = layers
    program = torch.export.export(ours, (torch.randn(7, 6),))
    calls = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert calls == {"aten.linear.default"}


def test_without_onednn(layers: tuple[nn.Linear, OneDnnLinear], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch was built without oneDNN, the result is torch's own, bit for bit."""
    stock, ours = layers
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    value = torch.randn(7, 6)
    assert torch.equal(ours(value), stock(value))
