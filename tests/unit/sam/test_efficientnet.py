# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Lite's image encoder, with random weights."""

import pytest
import timm
import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_clipsam.method.cps import CascadedPrompts
from anomalib_clipsam.method.ppg import PointPromptGenerator
from anomalib_clipsam.sam import build_sam
from anomalib_clipsam.sam.build import find_sam_architecture
from anomalib_clipsam.sam.efficientnet import TRUNK, ImageEncoderEfficientNet


@pytest.fixture(scope="module")
def encoder() -> ImageEncoderEfficientNet:
    torch.manual_seed(0)
    return ImageEncoderEfficientNet(64, width=16, out_chans=8).eval().requires_grad_(requires_grad=False)


def test_grid_is_an_eighth_of_the_frame(encoder: ImageEncoderEfficientNet) -> None:
    assert encoder.img_size == 64
    assert encoder(torch.rand(2, 3, 64, 64)).shape == (2, 8, 8, 8)


def test_stages_are_joined_from_the_coarsest_to_the_finest(encoder: ImageEncoderEfficientNet) -> None:
    """The sum written out: each coarse cell is added to the four that it covers."""
    frame = torch.rand(1, 3, 64, 64)
    quarter, eighth, sixteenth, last = encoder.trunk(frame)
    assert [stage.shape[-1] for stage in (quarter, eighth, sixteenth, last)] == [16, 8, 4, 2]
    four = torch.ones(2, 2)
    below = torch.kron(encoder.lateral[2](last), four)
    below = encoder.smooth[1](encoder.lateral[1](sixteenth) + below)
    own = encoder.lateral[0](eighth) + encoder.fine(quarter)
    expected = encoder.neck(encoder.smooth[0](own + torch.kron(below, four)))
    torch.testing.assert_close(encoder(frame), expected)


def test_trunk_is_that_of_timm_without_its_classifier(encoder: ImageEncoderEfficientNet) -> None:
    """So that published ImageNet weights fit in by name."""
    whole = timm.create_model(TRUNK).state_dict()
    own = encoder.trunk.state_dict()
    assert {name: value.shape for name, value in own.items()} == {name: whole[name].shape for name in own}
    assert {name.split(".")[0] for name in set(whole) - set(own)} == {"conv_head", "bn2", "classifier"}


def test_every_stage_counts(encoder: ImageEncoderEfficientNet) -> None:
    frame = torch.rand(1, 3, 64, 64, requires_grad=True)
    stages = encoder.trunk(frame)
    for stage in stages:
        stage.retain_grad()
    encoder.trunk.forward, stock = lambda _: stages, encoder.trunk.forward
    try:
        encoder(frame).square().sum().backward()
    finally:
        encoder.trunk.forward = stock
    assert all(stage.grad.abs().amax() > 0 for stage in stages)


def test_lite_is_known_by_its_entries() -> None:
    with torch.device("meta"):
        state = build_sam("lite").state_dict()
    assert find_sam_architecture({name: tuple(value.shape) for name, value in state.items()}) == "lite"


def test_lite_frame_logits_size_and_normalisation() -> None:
    model = build_sam("lite")
    assert model.image_encoder.img_size == 256
    assert model.prompt_encoder.input_image_size == (256, 256)
    assert model.prompt_encoder.mask_input_size == (128, 128)
    assert model.mask_decoder.num_mask_tokens == 4
    assert not model.training
    assert 2 * sum(value.numel() for value in model.state_dict().values()) < 10_000_000  # bytes in half precision
    frame = model.preprocess(torch.tensor([0.0, 127.5, 255.0]).view(1, 3, 1, 1).expand(1, 3, 256, 128))
    assert frame.shape == (1, 3, 256, 256)
    assert frame[0, :, 0, 0].tolist() == [-1, 0, 1]
    assert (frame[..., 128:] == 0).all()


def test_cascade_on_a_picture_that_is_not_square() -> None:
    torch.manual_seed(0)
    model = build_sam("lite")
    image = torch.rand(2, 3, 256, 160)
    anomaly_map = torch.zeros(2, 128, 80)
    anomaly_map[:, 40:60, 30:50] = 0.9
    with torch.no_grad():
        features = model.image_encoder(model.preprocess(image * 255))
        prompts = PointPromptGenerator(model.image_encoder.img_size)(anomaly_map, features)
        output = CascadedPrompts(model)(features, prompts, anomaly_map)
    assert features.shape == (2, 128, 32, 32)
    assert output.logits_3.shape == (2, 1, 128, 128)
    assert torch.isfinite(output.logits_3).all()
    assert (prompts.coords[prompts.labels == 1][:, 0] < 160).all()


def test_encoder_exports_to_onnx(encoder: ImageEncoderEfficientNet, tmp_path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    frame = torch.rand(2, 3, 64, 64)
    path = tmp_path / "encoder.onnx"
    torch.onnx.export(encoder, (frame,), path, dynamo=True, opset_version=18, input_names=["x"], verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {"x": frame.numpy()})[0])
    torch.testing.assert_close(found, encoder(frame), rtol=1e-3, atol=1e-4)


def test_repeats_are_nearest_neighbours() -> None:
    from anomalib_clipsam.sam.efficientnet import _twice

    field = torch.tensor([[[[1.0, 2.0, 3.0]]]])
    assert _twice(field).tolist() == [[[[1, 1, 2, 2, 3, 3], [1, 1, 2, 2, 3, 3]]]]
    assert torch.equal(_twice(field), F.interpolate(field, (2, 6), mode="nearest"))
