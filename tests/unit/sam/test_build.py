# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Architectures of SAM. The published ones are built on the meta device, where weights take no memory."""

import re

import pytest
import torch
from segment_anything import sam_model_registry

from anomalib_clipsam.sam import SAM_ARCHITECTURES, build_sam
from anomalib_clipsam.weights.table import find_sam


def shapes(model: torch.nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in model.state_dict().items()}


@pytest.mark.parametrize("architecture", ["vit_b", "vit_l", "vit_h"])
def test_published_architecture_is_that_of_segment_anything(architecture: str) -> None:
    with torch.device("meta"):
        model = build_sam(architecture)
        original = sam_model_registry[architecture]()
    assert shapes(model) == shapes(original)
    assert model.image_encoder.img_size == find_sam(architecture).image_size == 1024
    assert not model.training


@pytest.mark.parametrize("architecture", ["vit_t", "vit_b", "vit_l", "vit_h"])
def test_published_file_is_as_large_as_the_architecture(architecture: str) -> None:
    with torch.device("meta"):
        size = sum(value.nbytes for value in build_sam(architecture).state_dict().values())
    if architecture == "vit_t":
        size += 4 * (320 * 1000 + 1000 + 2 * 320)  # a classifier and the norm before it
    assert 0 < find_sam(architecture).sources[0].size - size < 300_000  # names of the entries, in torch.save's format


def test_mobile_sam_has_the_decoder_of_the_others() -> None:
    with torch.device("meta"):
        mobile, large = build_sam("vit_t"), build_sam("vit_b")
    for part in ("prompt_encoder", "mask_decoder"):
        assert shapes(getattr(mobile, part)) == shapes(getattr(large, part))
    assert mobile.image_encoder.img_size == find_sam("vit_t").image_size == 1024
    assert not mobile.training


def test_demo_has_the_keys_of_the_published_ones() -> None:
    with torch.device("meta"):
        published, demo = shapes(build_sam("vit_b")), shapes(build_sam("demo"))

    def kinds(keys: dict[str, torch.Size]) -> set[str]:
        return {re.sub(r"image_encoder\.blocks\.\d+", "image_encoder.blocks", key) for key in keys}

    assert kinds(demo) == kinds(published)


def test_demo_frame_and_logits() -> None:
    model = build_sam("demo")
    assert model.image_encoder.img_size == 192
    assert model.prompt_encoder.input_image_size == (192, 192)
    grid = model.prompt_encoder.image_embedding_size
    assert model.prompt_encoder.mask_input_size == (4 * grid[0], 4 * grid[1])
    assert model.mask_decoder.num_mask_tokens == 4
    assert not model.training


@pytest.mark.parametrize("architecture", ["vit_x", "", "VIT_B", "default"])
def test_unknown_architecture(architecture: str) -> None:
    with pytest.raises(
        ValueError, match=f"Unknown SAM architecture '{architecture}'. Choose one of vit_h, vit_l, vit_b"
    ):
        build_sam(architecture)


def test_every_name_can_be_found_in_the_table() -> None:
    """But that of the small ViT, which is for tests: none of its weights are carried."""
    names = [name for name in SAM_ARCHITECTURES if name != "demo"]
    assert [find_sam(name).architecture for name in names] == names
