# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""One pass of SAM's prompt encoder and mask decoder for many images, each with its own prompts.

``segment_anything`` decodes many prompts of ONE image (``MaskDecoder`` repeats the image for every prompt) and writes
point embeddings through boolean masks. Here the same submodules are called in tensor operations of static shape, so
that a whole batch is one pass and the pass can be exported. The result is ``SamPredictor.predict_torch``'s.

Letters: N prompt sets (one image each), K points, C feature channels, h w feature grid, M mask tokens.

Reference:
    Kirillov et al., "Segment Anything", https://arxiv.org/abs/2304.02643
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F  # noqa: N812

if TYPE_CHECKING:
    from segment_anything.modeling import Sam
    from segment_anything.modeling.prompt_encoder import PromptEncoder


def embed_points(prompt_encoder: PromptEncoder, coords: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Embed point prompts, each by its label.

    Args:
        prompt_encoder (PromptEncoder): SAM's prompt encoder.
        coords (torch.Tensor): Points ``(N, K, 2)``, x then y, in pixels of SAM's input frame.
        labels (torch.Tensor): ``(N, K)``: 1 foreground, 0 background, -1 not a point (its coordinates are ignored).

    Returns:
        torch.Tensor: Embeddings ``(N, K, C)``.
    """
    position = prompt_encoder.pe_layer.forward_with_coords(coords + 0.5, prompt_encoder.input_image_size)
    label = labels.unsqueeze(-1)  # (N, K, 1)
    background, foreground = (prompt_encoder.point_embeddings[i].weight for i in (0, 1))  # (1, C) each
    points = position + torch.where(label == 1, foreground, background)
    return torch.where(label == -1, prompt_encoder.not_a_point_embed.weight, points)


def embed_boxes(prompt_encoder: PromptEncoder, boxes: torch.Tensor) -> torch.Tensor:
    """Embed one box prompt per image as its two corners.

    Args:
        prompt_encoder (PromptEncoder): SAM's prompt encoder.
        boxes (torch.Tensor): ``(N, 4)``, x0, y0, x1, y1 in pixels of SAM's input frame.

    Returns:
        torch.Tensor: Embeddings ``(N, 2, C)``.
    """
    corners = boxes.reshape(-1, 2, 2) + 0.5
    position = prompt_encoder.pe_layer.forward_with_coords(corners, prompt_encoder.input_image_size)
    return position + torch.stack([prompt_encoder.point_embeddings[i].weight[0] for i in (2, 3)])


def decode(
    sam: Sam,
    features: torch.Tensor,
    coords: torch.Tensor,
    labels: torch.Tensor,
    boxes: torch.Tensor | None = None,
    mask_logits: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run SAM's prompt encoder and mask decoder once for a batch of images.

    Args:
        sam (Sam): The model.
        features (torch.Tensor): Image-encoder features ``(N, C, h, w)``.
        coords (torch.Tensor): Points ``(N, K, 2)``, x then y, in pixels of SAM's input frame.
        labels (torch.Tensor): ``(N, K)`` in {1, 0, -1}.
        boxes (torch.Tensor | None): ``(N, 4)``, x0, y0, x1, y1 in the same pixels. Defaults to ``None``.
        mask_logits (torch.Tensor | None): Logits ``(N, 1, 4h, 4w)`` of an earlier pass. Defaults to ``None``.

    Returns:
        tuple[torch.Tensor, torch.Tensor]: Mask logits ``(N, M, 4h, 4w)`` and predicted IoU ``(N, M)`` of all M = 4
        mask tokens: token 0 is the single-mask output, tokens 1 to 3 are the multimask output.
    """
    prompt_encoder, decoder = sam.prompt_encoder, sam.mask_decoder
    batch_size = features.shape[0]
    if boxes is None:  # as in SAM: without a box, a point that is none stands in for it
        coords = F.pad(coords, (0, 0, 0, 1))
        labels = F.pad(labels, (0, 1), value=-1)
    sparse = embed_points(prompt_encoder, coords, labels)
    if boxes is not None:
        sparse = torch.cat([sparse, embed_boxes(prompt_encoder, boxes)], dim=1)
    if mask_logits is None:
        dense = prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
    else:
        dense = prompt_encoder.mask_downscaling(mask_logits)

    output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])  # (1 + M, C)
    tokens = torch.cat([output_tokens.expand(batch_size, -1, -1), sparse], dim=1)
    image_pe = prompt_encoder.get_dense_pe().expand(batch_size, -1, -1, -1)
    tokens, image_tokens = decoder.transformer(features + dense, image_pe, tokens)

    upscaled = decoder.output_upscaling(image_tokens.transpose(1, 2).reshape(features.shape))  # (N, C / 8, 4h, 4w)
    mask_tokens = tokens[:, 1 : 1 + decoder.num_mask_tokens].unbind(1)
    weights = torch.stack(
        [mlp(token) for mlp, token in zip(decoder.output_hypernetworks_mlps, mask_tokens, strict=True)],
        dim=1,
    )  # (N, M, C / 8)
    logits = torch.einsum("nmc,nchw->nmhw", weights, upscaled)
    return logits, decoder.iou_prediction_head(tokens[:, 0])
