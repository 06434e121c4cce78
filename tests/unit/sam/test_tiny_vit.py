# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""MobileSAM's encoder: equal to what its own code gave for random weights, see tests/data/README.md."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from anomalib_clipsam.sam import build_sam
from anomalib_clipsam.sam.tiny_vit import ImageEncoderTinyViT, rename_published
from anomalib_clipsam.weights.load import load_sam
from anomalib_clipsam.weights.table import find_sam

SMALL = {"widths": (16, 32, 48, 320), "depths": (1, 2, 2, 1), "heads": (1, 2, 3, 10)}


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    values = load_file(Path(__file__).parents[2] / "data" / "mobile_sam.safetensors")
    as_float = {torch.float16: torch.Tensor.float, torch.int8: lambda value: value.float() / 256}
    return {key: as_float.get(value.dtype, lambda value: value)(value) for key, value in values.items()}


@pytest.fixture(scope="module")
def encoder(golden: dict[str, torch.Tensor]) -> ImageEncoderTinyViT:
    """With the golden weights, loaded after a first call, whose attention bias must not outlive it."""
    weights = {f"image_encoder.{key}": value for key, value in golden.items() if not key.startswith(("inp", "exp"))}
    encoder = ImageEncoderTinyViT(**SMALL).eval().requires_grad_(requires_grad=False)
    encoder(torch.zeros(1, 3, 32, 32))
    renamed = {key.removeprefix("image_encoder."): value for key, value in rename_published(weights).items()}
    encoder.load_state_dict(renamed)
    return encoder


@pytest.fixture(scope="module")
def image(golden: dict[str, torch.Tensor]) -> torch.Tensor:
    coarse, fine = golden["input.coarse"], golden["input.fine"]
    return coarse.repeat_interleave(16, 2).repeat_interleave(16, 3) + fine.tile(1, 1, 16, 16)


def test_embedding(golden: dict[str, torch.Tensor], encoder: ImageEncoderTinyViT, image: torch.Tensor) -> None:
    embedding = encoder(image)
    assert embedding.shape == (1, 256, 64, 64)
    expected = golden["expected.embedding_every_4th"]
    assert expected.abs().max() > 4
    torch.testing.assert_close(embedding[..., ::4, ::4], expected, atol=1e-4, rtol=0)
    for name, dim in (("channels", 1), ("positions", (2, 3))):
        deviation, mean = torch.std_mean(embedding, dim=dim, correction=0)
        for kind, found in (("mean", mean), ("std", deviation)):
            torch.testing.assert_close(found, golden[f"expected.embedding_{kind}_over_{name}"], atol=1e-5, rtol=0)


def test_frames_of_another_size(
    golden: dict[str, torch.Tensor], encoder: ImageEncoderTinyViT, image: torch.Tensor
) -> None:
    crops = torch.cat([image[..., :512, :512], image[..., 512:, 512:]])
    expected = golden["expected.crops_512_every_4th"]
    torch.testing.assert_close(encoder(crops)[..., ::4, ::4], expected, atol=1e-4, rtol=0)


def test_attention_bias_matters(encoder: ImageEncoderTinyViT, image: torch.Tensor) -> None:
    """So that a bias that was kept from before the weights would be seen above."""
    before = encoder(image[..., :256, :256])
    bias = encoder.trunk.stages[3].blocks[0].attn.attention_biases
    kept = bias.clone()
    bias.zero_()
    after = encoder(image[..., :256, :256])
    bias.copy_(kept)
    assert (before - after).abs().max() > 0.1


def published_names(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give a state dict of ours the names of MobileSAM's file, and its classifier."""
    published = {"image_encoder.norm_head.weight": torch.ones(320), "image_encoder.head.bias": torch.ones(1)}
    for key, value in state_dict.items():
        name = key.replace("image_encoder.trunk.", "image_encoder.").replace(".conv.", ".c.")
        name = name.replace("patch_embed.conv1", "patch_embed.seq.0").replace("patch_embed.conv2", "patch_embed.seq.2")
        for stage in range(4):
            name = name.replace(f"stages.{stage}.blocks", f"layers.{stage}.blocks")
            name = name.replace(f"stages.{stage}.downsample", f"layers.{stage - 1}.downsample")
        published[name] = value
    return published


@pytest.fixture(scope="module")
def mobile_sam() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        key: torch.rand_like(value) if value.is_floating_point() else value
        for key, value in build_sam("vit_t").state_dict().items()
    }


@pytest.mark.parametrize("published", [False, True])
def test_file_under_either_names(mobile_sam: dict[str, torch.Tensor], tmp_path: Path, published: bool) -> None:
    torch.save(published_names(mobile_sam) if published else mobile_sam, tmp_path / "sam.pt")
    loaded = load_sam(find_sam("vit_t"), str(tmp_path / "sam.pt")).state_dict()
    assert loaded.keys() == mobile_sam.keys()
    assert all(torch.equal(loaded[key], value) for key, value in mobile_sam.items())


def test_published_file_is_named_where_it_does_not_fit(mobile_sam: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(published_names(mobile_sam), tmp_path / "sam.pt")
    with pytest.raises(ValueError, match=r"sam\.pt does not fit SAM 'vit_b'.* It fits sam_architecture='vit_t'\."):
        load_sam(find_sam("vit_b"), str(tmp_path / "sam.pt"))


def test_other_names_stay() -> None:
    entries = {"image_encoder.blocks.0.c.weight": 1, "mask_decoder.x": 2}
    assert rename_published(entries) == entries
