# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Models with seeded random weights, built once: no test of a unit depends on what the carried weights have learnt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from collections.abc import Iterator

    from open_clip import CLIP
    from segment_anything import SamPredictor
    from segment_anything.modeling import Sam
    from torch import nn

    from anomalib_clipsam.clip import PromptEnsemble


class FakeCuda(TorchDispatchMode):
    """Compute shapes, types and devices as on a GPU, without one, and note where a GPU would be waited for.

    There are no values, so what a program asks of them is answered here. Make networks under ``torch.device("cuda")``,
    but run them outside, where it shows what they make on the CPU.

    Attributes:
        waits (list[str]): Operations that wait for the GPU: values that are read, copies between it and the CPU.
        found (int): How many of a batch's images are found where a program asks which.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.found = 1

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run an operation, or answer it."""
        del types
        kwargs = kwargs or {}
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        on_gpu = any(tensor.is_cuda for tensor in tensors)
        if on_gpu and func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.waits.append(str(func))
        if func is torch.ops.aten._local_scalar_dense.default:
            (tensor,) = tensors
            return tensor.is_cuda if tensor.dtype == torch.bool else 10  # of the text's tokens, the CPU asks for faults
        if func is torch.ops.aten.nonzero.default:
            return tensors[0].new_zeros((self.found, tensors[0].ndim), dtype=torch.long)
        result = func(*args, **kwargs)
        tensors += [value for value in tree_leaves(result) if isinstance(value, torch.Tensor)]
        if {tensor.device.type for tensor in tensors if tensor.ndim} == {"cpu", "cuda"}:
            self.waits.append(str(func))
        return result


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    """Let a test make tensors and networks on a GPU that there need not be; it can do bf16."""
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda **_: True)
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    with FakeTensorMode(), FakeCuda() as mode:
        yield mode


IMAGE_SIZES = ((150, 230), (192, 192), (200, 120))
"""Height and width of the images that SAM's predictors are set to: wide, square and tall."""


def _perturb(model: nn.Module) -> nn.Module:
    """Move every parameter a little, so that none is zero: biases, position embeddings, the bias of attention."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model.requires_grad_(requires_grad=False).eval()


@pytest.fixture(scope="session")
def sam() -> Sam:
    """The demo's SAM with random weights. Shared: leave it as it is."""
    from anomalib_clipsam.sam import build_sam

    torch.manual_seed(1)
    return _perturb(build_sam("demo"))


@pytest.fixture(scope="session")
def clip() -> CLIP:
    """The demo's CLIP with random weights. Shared: leave it as it is."""
    from anomalib_clipsam.clip import build_clip

    torch.manual_seed(2)
    return _perturb(build_clip("demo", quick_gelu=False))


@pytest.fixture(scope="session")
def ensemble() -> PromptEnsemble:
    """A prompt ensemble that is encoded fast."""
    from anomalib_clipsam.clip import PromptEnsemble

    return PromptEnsemble(normal=("{}", "flawless {}"), abnormal=("broken {}",), templates=("a photo of a {}.",))


@pytest.fixture(scope="session")
def predictors(sam: Sam) -> list[SamPredictor]:
    """segment_anything's own predictors, one per size of :data:`IMAGE_SIZES`, each set to a random image."""
    from segment_anything import SamPredictor

    torch.manual_seed(3)
    torch.set_num_threads(1)
    predictors = []
    for size in IMAGE_SIZES:
        coarse = torch.rand(1, 3, 6, 5)
        image = torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1)
        predictors.append(SamPredictor(sam))
        predictors[-1].set_image((image[0] * 255).byte().permute(1, 2, 0).numpy())
    return predictors
