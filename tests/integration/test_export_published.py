# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Exports of Crane's map with MobileSAM, random weights: the same as in torch, in every runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from safetensors.torch import save_file

from anomalib_clipsam import ClipSam
from anomalib_clipsam.clip import build_clip
from anomalib_clipsam.sam import build_sam

if TYPE_CHECKING:
    from pathlib import Path

OUTPUTS = ("pred_score", "anomaly_map", "pred_mask")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ClipSam:
    """A small CLIP of random weights with learned prompts, and MobileSAM; every picture goes to SAM."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    torch.set_num_threads(2)
    content = {"compound_prompts_text.0": torch.randn(4, 48)}
    for state, end in (("pos", 15), ("neg", 16)):
        content |= {
            f"ctx_{state}": torch.randn(1, 1, 12, 48),
            f"token_prefix_{state}": torch.randn(1, 1, 1, 48),
            f"token_suffix_{state}": torch.randn(1, 1, 64, 48),
            f"tokenized_prompts_{state}": torch.arange(77).eq(end).int().view(1, 1, 77),
        }
    torch.save({"prompt_learner": content}, folder / "prompts.pth")
    sam = build_sam("vit_t")
    for name, parameter in sam.named_parameters():
        if "bn.weight" in name or "attention_biases" in name:  # zero in part until they are trained
            torch.nn.init.uniform_(parameter, 0.5, 1.0)
    save_file(sam.state_dict(), folder / "sam.safetensors")
    save_file(build_clip("demo", quick_gelu=True).state_dict(), folder / "clip.safetensors")
    return ClipSam(
        "lite",
        clip_architecture="demo",
        clip_weights=str(folder / "clip.safetensors"),
        localizer="crane",
        adapters=str(folder / "prompts.pth"),
        sam_architecture="vit_t",
        sam_weights=str(folder / "sam.safetensors"),
        clip_size=96,
        map_size=96,
        ppg={"min_score": 0.0},
        pixel_threshold=0.5,  # with random weights, near the middle of the map
        keep_good_masks=True,
    ).eval()


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    torch.manual_seed(1)
    coarse = torch.rand(2, 3, 6, 8)
    return torch.nn.functional.interpolate(coarse, (150, 200), mode="bicubic").clamp(0, 1)


@pytest.fixture(scope="module")
def expected(model: ClipSam, pictures: torch.Tensor) -> dict[str, np.ndarray]:
    with torch.no_grad():
        answer = model(pictures)
    assert answer.pred_mask.any()
    assert not answer.pred_mask.all()
    assert answer.anomaly_map.std() > 0.01
    return {name: getattr(answer, name).numpy() for name in OUTPUTS}


def check(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert np.abs(found["pred_score"] - expected["pred_score"]).max() < 1e-4
    assert (found["pred_mask"].astype(bool) != expected["pred_mask"]).mean() < 1e-3
    assert (np.abs(found["anomaly_map"] - expected["anomaly_map"]) > 1e-3).mean() < 1e-3


@pytest.fixture(scope="module")
def onnx_file(model: ClipSam, expected: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model.to_onnx(tmp_path_factory.mktemp("onnx"))


def test_onnx(onnx_file: Path, pictures: torch.Tensor, expected: dict[str, np.ndarray]) -> None:
    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    check(dict(zip(names, session.run(None, {"input": pictures.numpy()}), strict=True)), expected)


def test_openvino(
    model: ClipSam,
    onnx_file: Path,
    pictures: torch.Tensor,
    expected: dict[str, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("anomalib_clipsam.export.mixin.ClipSamExport.to_onnx", lambda *_args, **_kwargs: onnx_file)
    compiled = openvino.compile_model(model.to_openvino(tmp_path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    check({name: compiled(pictures.numpy())[name] for name in OUTPUTS}, expected)


def test_torch(
    model: ClipSam, onnx_file: Path, pictures: torch.Tensor, expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """After the other export, whose tracer must leave nothing behind in the model."""
    del onnx_file
    loaded = torch.load(model.to_torch(tmp_path), weights_only=False)["model"]
    with torch.no_grad():
        check({name: getattr(loaded(pictures), name).numpy() for name in OUTPUTS}, expected)
