# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Build a SAM whose state dict is segment_anything's.

The published architectures come from ``segment_anything.sam_model_registry``. ``"demo"`` is put together from the same
classes with smaller widths, so that the carried weights go through the code that runs the published ones. ``"lite"``
has segment_anything's prompt encoder and mask decoder behind an image encoder that learnt from photographs.

Reference:
    Kirillov et al., "Segment Anything", https://arxiv.org/abs/2304.02643
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from anomalib_clipsam.errors.errors import UserValueError

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

SAM_ARCHITECTURES = ("vit_h", "vit_l", "vit_b", "vit_t", "lite", "demo")


def build_sam(architecture: str) -> Sam:
    """Build a SAM with random weights, in eval mode.

    Args:
        architecture (str): One of ``"vit_h"``, ``"vit_l"``, ``"vit_b"``, MobileSAM's ``"vit_t"`` (1024 px), ``"lite"``
            (256 px) or ``"demo"`` (192 px).

    Returns:
        Sam: Model whose state dict has segment_anything's keys and, for the published names, its shapes; of
        ``"vit_t"`` and ``"lite"`` the image encoder's keys are its own.

    Raises:
        ValueError: If the architecture is unknown.
    """
    if architecture not in SAM_ARCHITECTURES:
        msg = f"Unknown SAM architecture '{architecture}'. Choose one of {', '.join(SAM_ARCHITECTURES)}."
        raise UserValueError(msg)
    from segment_anything import sam_model_registry

    from anomalib_clipsam.sam.encoder import make_lean

    if architecture == "vit_t":
        return _build_vit_t_sam()
    if architecture == "lite":
        return _build_lite_sam()
    sam = _build_demo_sam() if architecture == "demo" else sam_model_registry[architecture]()
    make_lean(sam.image_encoder)
    return sam


def find_sam_architecture(shapes: dict[str, tuple[int, ...] | str]) -> str | None:
    """Find the architecture whose state dict has these entries.

    Args:
        shapes (dict[str, tuple[int, ...] | str]): Shape of every entry; a text for what is no tensor.

    Returns:
        str | None: One of :data:`SAM_ARCHITECTURES`, or ``None`` if none fits.
    """
    for name in SAM_ARCHITECTURES:
        with torch.device("meta"):  # no memory, no random numbers
            state_dict = build_sam(name).state_dict()
        if shapes == {key: tuple(value.shape) for key, value in state_dict.items()}:
            return name
    return None


def _build_vit_t_sam() -> Sam:
    from segment_anything.build_sam import _build_sam

    from anomalib_clipsam.sam.tiny_vit import ImageEncoderTinyViT

    # Prompt encoder and mask decoder of the published sizes; an encoder without blocks holds the place of the other.
    sam = _build_sam(encoder_embed_dim=16, encoder_depth=0, encoder_num_heads=1, encoder_global_attn_indexes=())
    sam.image_encoder = ImageEncoderTinyViT(sam.image_encoder.img_size)
    return sam.eval()


def _build_demo_sam() -> Sam:
    from segment_anything.modeling import ImageEncoderViT

    image_size, patch_size, prompt_dim = 192, 8, 128
    encoder = ImageEncoderViT(
        depth=6,
        embed_dim=160,
        img_size=image_size,
        mlp_ratio=4,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        num_heads=5,
        patch_size=patch_size,
        qkv_bias=True,
        use_rel_pos=True,
        global_attn_indexes=(2, 5),
        window_size=12,
        out_chans=prompt_dim,
    )
    return _build_small_sam(encoder, image_size // patch_size, prompt_dim)


def _build_lite_sam() -> Sam:
    from anomalib_clipsam.sam.efficientnet import PIXEL_MEAN, PIXEL_STD, ImageEncoderEfficientNet

    image_size, prompt_dim = 256, 128
    encoder = ImageEncoderEfficientNet(image_size, out_chans=prompt_dim)
    return _build_small_sam(encoder, image_size // 8, prompt_dim, pixel_mean=PIXEL_MEAN, pixel_std=PIXEL_STD)


def _build_small_sam(encoder: nn.Module, grid: int, prompt_dim: int, **normalisation: tuple[float, ...]) -> Sam:
    """Put an encoder before segment_anything's prompt encoder and mask decoder of half their published width."""
    from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    sam = Sam(
        image_encoder=encoder,
        prompt_encoder=PromptEncoder(
            embed_dim=prompt_dim,
            image_embedding_size=(grid, grid),
            input_image_size=(encoder.img_size, encoder.img_size),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=prompt_dim, mlp_dim=256, num_heads=4),
            transformer_dim=prompt_dim,
            iou_head_depth=3,
            iou_head_hidden_dim=128,
        ),
        **normalisation,
    )
    return sam.eval()
