# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Build open_clip's CLIP from an architecture's name, and encode a prompt ensemble with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_clipsam.compute.linear import linear, use_onednn
from anomalib_clipsam.errors.errors import UserValueError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from open_clip import CLIP
    from open_clip.transformer import ResidualAttentionBlock

    from anomalib_clipsam.clip.prompts import PromptEnsemble

DEMO_CONFIG = {
    "embed_dim": 96,
    "vision_cfg": {"image_size": 160, "layers": 6, "width": 160, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 48, "heads": 4, "layers": 2},
}

LITE_CONFIG = {
    **DEMO_CONFIG,
    "vision_cfg": {
        "image_size": 320,
        "timm_model_name": "tf_efficientnet_lite0",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
    },
}

CARRIED_CONFIGS: dict[str, dict[str, Any]] = {"demo": DEMO_CONFIG, "lite": LITE_CONFIG}
"""Architectures that are not open_clip's."""


def build_clip(architecture: str, quick_gelu: bool) -> CLIP:
    """Build a CLIP with random weights, in eval mode.

    The activation is an argument of its own: open_clip derives it from how a weight file is named, and so loads
    OpenAI's weights from a local file with the wrong one.

    Args:
        architecture (str): One of :data:`CARRIED_CONFIGS` or the name of an open_clip model configuration such as
            ``"ViT-L-14-336"``.
        quick_gelu (bool): Whether the weights were trained with QuickGELU, as OpenAI's were.

    Returns:
        CLIP: Model with open_clip's state dict.

    Raises:
        ValueError: If the architecture is unknown to open_clip, or has no ViT or no plain text transformer.
    """
    import open_clip

    config = CARRIED_CONFIGS.get(architecture) or open_clip.get_model_config(architecture)
    if config is None:
        msg = (
            f"Unknown CLIP architecture '{architecture}'. Use 'lite', 'demo' or one of open_clip.list_models() "
            "such as 'ViT-L-14-336'."
        )
        raise UserValueError(msg)
    parts = {key: config[key] for key in ("embed_dim", "vision_cfg", "text_cfg") if key in config}
    vision = parts.get("vision_cfg", {})
    plain_vit = isinstance(vision.get("layers"), int)
    if len(parts) < 3 or not (plain_vit or architecture == "lite") or "hf_model_name" in parts["text_cfg"]:
        msg = f"CLIP architecture '{architecture}' has no plain ViT. Choose one of the 'ViT-...' models of open_clip."
        raise UserValueError(msg)
    clip = open_clip.CLIP(**parts, quick_gelu=quick_gelu).eval()
    use_onednn(clip)
    return clip


def find_clip_architecture(shapes: dict[str, tuple[int, ...] | str]) -> str | None:
    """Find the architecture whose state dict has these entries.

    Args:
        shapes (dict[str, tuple[int, ...] | str]): Shape of every entry; a text for what is no tensor.

    Returns:
        str | None: A name of :data:`CARRIED_CONFIGS` or of open_clip, or ``None`` if none fits.
    """
    import open_clip

    patches, projection = shapes.get("visual.conv1.weight", ()), shapes.get("text_projection", ())
    for name in (*CARRIED_CONFIGS, *open_clip.list_models()):
        config = CARRIED_CONFIGS.get(name) or open_clip.get_model_config(name)
        vision = config.get("vision_cfg", {})
        # what is read off at once rules most of them out
        width = () if "timm_model_name" in vision else (vision.get("width", 768),)
        if (*width, config["embed_dim"]) != (*patches[:1], *projection[1:]):
            continue
        try:
            with torch.device("meta"):  # no memory, no random numbers
                state_dict = build_clip(name, quick_gelu=False).state_dict()
        except ValueError:  # no plain ViT
            continue
        if shapes == {key: tuple(value.shape) for key, value in state_dict.items()}:
            return name
    return None


@torch.no_grad()
def encode_ensemble(clip: CLIP, ensemble: PromptEnsemble, class_name: str) -> torch.Tensor:
    """Encode the sentences about a normal and an abnormal part, each to one direction.

    Args:
        clip (CLIP): The model.
        ensemble (PromptEnsemble): States and templates.
        class_name (str): Name of the part.

    Returns:
        torch.Tensor: ``(2, C)``, normal and abnormal: the normalised mean of the normalised sentence embeddings.

    Raises:
        ValueError: If a sentence is longer than CLIP reads; its end, the state of the part perhaps, would be cut off.
    """
    from open_clip.tokenizer import tokenize

    states = ensemble.sentences(class_name)
    unique = list(dict.fromkeys(sentence for sentences in states for sentence in sentences))
    tokens = tokenize(unique, context_length=clip.context_length + 1)  # the last one is 0 where a sentence fits
    if tokens[:, -1].any():
        longest = max(unique, key=len)
        msg = (
            f"A text prompt has more than the {clip.context_length} tokens that CLIP reads: '{longest[:80]}...'. "
            "Shorten the class name or the prompts."
        )
        raise UserValueError(msg)
    embeddings = F.normalize(_encode_text(clip, tokens.to(clip.token_embedding.weight.device)), dim=-1)
    embedding_of = dict(zip(unique, embeddings, strict=True))
    means = [torch.stack([embedding_of[sentence] for sentence in sentences]).mean(dim=0) for sentences in states]
    return F.normalize(torch.stack(means), dim=-1)


def _encode_text(clip: CLIP, tokens: torch.Tensor) -> torch.Tensor:
    """Encode ``(P, L)`` tokens to ``(P, C)``, as ``clip.encode_text`` does, but without the padding at their end.

    No token sees a later one, so the padding changes nothing, and there are 77 tokens where a prompt has about 12.
    """
    ends = tokens.argmax(dim=1)  # the end of a text is the highest token
    used = int(ends.max()) + 1
    x = clip.token_embedding(tokens[:, :used]) + clip.positional_embedding[:used]  # (P, L, D)
    mask = clip.attn_mask[:used, :used]
    for block in clip.transformer.resblocks:
        x = run_block(block, x, mask)
    return clip.ln_final(x)[torch.arange(len(x), device=x.device), ends] @ clip.text_projection


def run_block(block: ResidualAttentionBlock, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Run one block of open_clip's, with fused attention, which torch's own layer does not use at inference on a CPU.

    Args:
        block (ResidualAttentionBlock): The block.
        tokens (torch.Tensor): ``(B, L, D)``, whichever layout the installed release works in.
        mask (torch.Tensor | None): Additive mask ``(L, L)``. Defaults to ``None``.

    Returns:
        torch.Tensor: ``(B, L, D)``.
    """
    tokens = tokens + attend(block, *project(block, tokens), mask)
    return tokens + feed_forward(block, tokens)


def project(block: ResidualAttentionBlock, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return queries, keys and values of a block, each ``(B, heads, L, D / heads)``, for its input ``(B, L, D)``."""
    attention = block.attn
    projected = linear(block.ln_1(tokens), attention.in_proj_weight, attention.in_proj_bias)
    queries, keys, values = (
        part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in projected.chunk(3, dim=-1)
    )
    return queries, keys, values


def attend(
    block: ResidualAttentionBlock,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return what the attention of a block adds to the residual stream.

    Args:
        block (ResidualAttentionBlock): A block of open_clip's.
        queries (torch.Tensor): ``(B, heads, Q, D / heads)``, of all tokens or of some.
        keys (torch.Tensor): ``(B, heads, L, D / heads)``.
        values (torch.Tensor): ``(B, heads, L, D / heads)``.
        mask (torch.Tensor | None): Additive mask ``(Q, L)``. Defaults to ``None``.

    Returns:
        torch.Tensor: ``(B, Q, D)``.
    """
    return _join_heads(block, F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask))


def attend_alike(
    block: ResidualAttentionBlock, projections: Sequence[torch.Tensor], values: torch.Tensor
) -> torch.Tensor:
    """Return what a block would add if its tokens gathered values from tokens that are like them.

    Args:
        block (ResidualAttentionBlock): A block of open_clip's.
        projections (Sequence[torch.Tensor]): What tokens are compared by, each ``(B, heads, L, D / heads)`` with
            itself; of several, the attention is summed.
        values (torch.Tensor): ``(B, heads, L, D / heads)``.

    Returns:
        torch.Tensor: ``(B, L, D)``.
    """
    gathered = [F.scaled_dot_product_attention(projected, projected, values) for projected in projections]
    return _join_heads(block, sum(gathered[1:], gathered[0]))


def _join_heads(block: ResidualAttentionBlock, attended: torch.Tensor) -> torch.Tensor:
    """Bring ``(B, heads, Q, D / heads)`` back into the residual stream, ``(B, Q, D)``."""
    joined = attended.transpose(1, 2).flatten(2)
    return block.ls_1(linear(joined, block.attn.out_proj.weight, block.attn.out_proj.bias))


def feed_forward(block: ResidualAttentionBlock, tokens: torch.Tensor) -> torch.Tensor:
    """Return what the MLP of a block adds to the residual stream ``(B, L, D)``."""
    return block.ls_2(block.mlp(block.ln_2(tokens)))
