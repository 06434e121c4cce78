# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The precision of the encoders."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
import torch

from anomalib_clipsam.clip.localizers import DenseLocalizer
from anomalib_clipsam.compute.precision import check_precision, encoders_in, full_precision
from anomalib_clipsam.method.cps import CascadedPrompts
from anomalib_clipsam.method.fusion import Fusion
from anomalib_clipsam.method.ppg import PointPromptGenerator
from anomalib_clipsam.torch_model import ClipSamModel

if TYPE_CHECKING:
    from open_clip import CLIP
    from segment_anything.modeling import Sam

    from anomalib_clipsam.clip import PromptEnsemble

CPU = torch.device("cpu")


@pytest.fixture
def of_precision(clip: CLIP, sam: Sam, ensemble: PromptEnsemble) -> object:
    def build(precision: str) -> ClipSamModel:
        localizer = DenseLocalizer(clip, ensemble, 160)
        ppg = PointPromptGenerator(192, min_score=0.0)
        return ClipSamModel(localizer, 192, ppg, CascadedPrompts(sam), Fusion(), precision=precision).eval()

    return build


def test_bf16_changes_the_encoders_and_little_else(of_precision: object) -> None:
    exact, rounded = of_precision("float32"), of_precision("bf16")
    image = torch.nn.functional.interpolate(torch.rand(2, 3, 8, 8), (192, 192), mode="bicubic").clamp(0, 1)
    features, expected = rounded.encode(image), exact.encode(image)
    assert features.dtype == torch.float32
    error = (features - expected).norm() / expected.norm()
    assert 0 < error < 0.02  # bf16 rounds to one in 256
    stages, others = rounded.stages(image), exact.stages(image)
    difference = (stages.anomaly_map - others.anomaly_map).abs().max()
    assert 0 < difference < 0.05
    for value in (stages.fused_map, stages.score, stages.cascade.logits_3, stages.prompts.similarity):
        assert value.dtype == torch.float32
    assert exact.settings() != rounded.settings()


def test_lightnings_precision_leaves_the_comparison_with_the_text_alone(of_precision: object) -> None:
    model, image = of_precision("float32"), torch.rand(1, 3, 192, 192)
    expected = of_precision("bf16").stages(image)
    with torch.autocast("cpu", torch.bfloat16):
        stages = model.stages(image)
    assert stages.cascade.logits_3.dtype == stages.fused_map.dtype == torch.float32
    assert torch.equal(stages.anomaly_map, expected.anomaly_map)
    assert torch.equal(stages.cascade.logits_3, expected.cascade.logits_3)


def test_contexts() -> None:
    a = torch.rand(4, 4)
    with encoders_in("float32", "cpu"):
        assert (a @ a).dtype == torch.float32
    with encoders_in("bf16", "cpu"):
        assert (a @ a).dtype == torch.bfloat16
        with full_precision("cpu"):
            assert (a @ a).dtype == torch.float32


def test_exported_program_is_in_float32(of_precision: object) -> None:
    image = torch.rand(1, 3, 192, 192)
    model = of_precision("bf16")
    model(image)  # encodes the text
    program = torch.export.export(model, (image,)).module()
    expected = of_precision("float32")(image)
    torch.testing.assert_close(program(image).anomaly_map, expected.anomaly_map, atol=1e-4, rtol=0)


def test_what_a_device_cannot_do(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="fp16' needs a GPU"):
        check_precision("fp16", CPU)
    monkeypatch.setattr("torch.cpu.get_capabilities", dict, raising=False)
    check_precision.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            check_precision("float32", CPU)
            check_precision("bf16", CPU)
    assert caplog.text.count("no native bf16") == 1
    check_precision.cache_clear()


def test_unknown_precision(of_precision: object) -> None:
    with pytest.raises(ValueError, match="Choose one of float32, bf16, fp16"):
        of_precision("half")
