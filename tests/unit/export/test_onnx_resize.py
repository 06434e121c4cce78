# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The resize of exported graphs is torch's, in both runtimes and for any size."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from anomalib_clipsam.export.onnx_file import onnx_arguments
from anomalib_clipsam.export.onnx_resize import resize


class Resize(nn.Module):
    """Resize, and normalise as CLIP does: OpenVINO joins that to a matrix product before it."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        resized = F.interpolate(image, (40, 25), mode="bicubic", align_corners=False, antialias=True)
        return (resized - torch.tensor([0.1, 0.2, 0.3]).view(-1, 1, 1)) / torch.tensor([0.5, 1.0, 2.0]).view(-1, 1, 1)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("resize") / "resize.onnx"
    batch, height, width = (torch.export.Dim(name) for name in ("batch", "height", "width"))
    shapes = ({0: batch, 2: height, 3: width},)
    arguments = {"input_names": ["input"], "dynamic_shapes": shapes, "dynamo": True, **onnx_arguments()}
    torch.onnx.export(Resize().eval(), (torch.rand(2, 3, 32, 33),), str(path), **arguments)
    return path


@pytest.mark.parametrize("size", [(100, 61), (20, 30), (40, 25), (1, 1), (3, 700), (1500, 2)])
@pytest.mark.parametrize(
    ("runtime", "tolerance"), [("onnxruntime", 1e-5), ("f32", 1e-4), ("bf16", 0.05)], ids=["onnx", "f32", "bf16"]
)
def test_resizes_as_torch(path: Path, runtime: str, tolerance: float, size: tuple[int, int]) -> None:
    """In bf16, which has no 0.5 above 128, pixels are where they belong too."""
    torch.manual_seed(0)
    image = torch.rand(2, 3, *size)
    if runtime == "onnxruntime":
        answer = onnxruntime.InferenceSession(path).run(None, {"input": image.numpy()})[0]
    else:
        answer = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": runtime})(image.numpy())[0]
    np.testing.assert_allclose(answer, Resize()(image), atol=tolerance, rtol=0)


def test_no_operator_that_runtimes_read_differently(path: Path) -> None:
    assert "Resize" not in {node.op_type for node in onnx.load(path).graph.node}


def test_aligned_corners_are_refused() -> None:
    with pytest.raises(ValueError, match="Leave align_corners out"):
        resize(None, [40, 25], align_corners=True)
