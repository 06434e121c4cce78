# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Localizers: the definition of the map on small tensors, whole maps against naive ones from open_clip's own passes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from anomalib_clipsam.clip import (
    AprilGanLocalizer,
    DenseLocalizer,
    Localizer,
    PromptEnsemble,
    WinClipLocalizer,
    build_adapters,
    build_clip,
    encode_ensemble,
)
from anomalib_clipsam.clip.build import attend, project, run_block
from anomalib_clipsam.clip.localizers.base import CLIP_MEAN, CLIP_STD, text_anomaly_map

if TYPE_CHECKING:
    from open_clip import CLIP

pytestmark = pytest.mark.open_clip

WIDTH, EMBED, NATIVE, GRID = 160, 96, 160, 20
"""The demo CLIP's width and embedding, the side of the images that it was made for, and of their patch grid."""


def normalised(image: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (image - mean) / std


def run_and_record(clip: CLIP, image: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """Encode with open_clip itself; its embedding, and what went into and came out of each block, ``(B, L, D)``."""
    inputs, outputs = [], []

    def hook(block: nn.Module, given: tuple[torch.Tensor, ...], result: torch.Tensor) -> None:
        batch_first = block.attn.batch_first
        inputs.append(given[0] if batch_first else given[0].transpose(0, 1))
        outputs.append(result if batch_first else result.transpose(0, 1))

    handles = [block.register_forward_hook(hook) for block in clip.visual.transformer.resblocks]
    embedding = clip.encode_image(normalised(image))
    for handle in handles:
        handle.remove()
    return embedding, inputs, outputs


def naive_map(tokens: torch.Tensor, text: torch.Tensor, scale: float) -> torch.Tensor:
    """APRIL-GAN's map of patch tokens ``(B, h * w, C)``, pixel by pixel of the grid, at the native size."""
    maps = torch.zeros(len(tokens), 2, GRID, GRID)
    for b in range(len(tokens)):
        for row in range(GRID):
            for column in range(GRID):
                token = tokens[b, row * GRID + column]
                maps[b, :, row, column] = scale * (text @ (token / token.norm()))
    maps = F.interpolate(maps, (NATIVE, NATIVE), mode="bilinear", align_corners=True)
    return (maps[:, 1].exp() / maps.exp().sum(dim=1)).clamp(0, 1)


def naive_value_value(block: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Value-value attention, image by image and head by head."""
    attention = block.attn
    width, heads = attention.embed_dim, attention.num_heads
    size = width // heads
    result = []
    for image in tokens:
        values = block.ln_1(image) @ attention.in_proj_weight[2 * width :].T + attention.in_proj_bias[2 * width :]
        attended = []
        for head in range(heads):
            v = values[:, head * size : (head + 1) * size]
            attended.append((v @ v.T / math.sqrt(size)).softmax(dim=-1) @ v)
        result.append(torch.cat(attended, dim=-1) @ attention.out_proj.weight.T + attention.out_proj.bias)
    return torch.stack(result)


@pytest.fixture
def text() -> torch.Tensor:
    """Two directions far apart, so that maps reach from near 0 to near 1."""
    return F.normalize(torch.randn(2, EMBED), dim=-1)


def adapters(count: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(WIDTH, EMBED) for _ in range(count)).requires_grad_(requires_grad=False)


# ---------------------------------------------------------------- the definition of the map


def test_map_is_the_softmax_of_a_hundred_cosines() -> None:
    """Two patches of length 5 and 2 on a 1 x 2 grid, at its own size: cosines worked out by hand."""
    tokens = torch.tensor([[[3.0, 4.0], [2.0, 0.0]]])
    text = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    # cosines (0.6, 1) and (1, 0.6): logits (60, 100) and (100, 60)
    expected = torch.tensor([[[1 / (1 + math.exp(-40)), 1 / (1 + math.exp(40))]]])
    torch.testing.assert_close(text_anomaly_map(tokens, text, 100.0, (1, 2), (1, 2)), expected, atol=1e-7, rtol=1e-4)
    # and with a factor that leaves something to see: logits (0.6, 1) and (1, 0.6)
    expected = torch.tensor([[[1 / (1 + math.exp(-0.4)), 1 / (1 + math.exp(0.4))]]])
    torch.testing.assert_close(text_anomaly_map(tokens, text, 1.0, (1, 2), (1, 2)), expected, atol=1e-6, rtol=0)


def test_map_interpolates_logits_with_aligned_corners_before_the_softmax() -> None:
    """A 1 x 2 grid on 2 x 5 pixels: the logits' difference runs in equal steps from corner to corner."""
    tokens = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    text = torch.eye(2)
    result = text_anomaly_map(tokens, text, 3.0, (1, 2), (2, 5))
    expected = torch.tensor([3.0, 1.5, 0.0, -1.5, -3.0]).sigmoid().expand(1, 2, 5)
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=0)


def test_map_keeps_rows_and_columns_apart() -> None:
    tokens = torch.tensor([1.0, 0.0]).repeat(1, 6, 1)  # all normal
    tokens[0, 3] = torch.tensor([0.0, 1.0])
    result = text_anomaly_map(tokens, torch.eye(2), 100.0, (2, 3), (2, 3))
    assert (result > 0.5).int().tolist() == [[[0, 0, 0], [1, 0, 0]]]


def test_value_value_attention(clip: CLIP) -> None:
    tokens = torch.randn(2, 7, WIDTH)
    block = clip.visual.transformer.resblocks[3]
    values = project(block, tokens)[2]
    torch.testing.assert_close(
        attend(block, values, values, values), naive_value_value(block, tokens), atol=1e-5, rtol=0
    )


def test_value_value_attention_scales_as_the_block_does() -> None:
    """A block with layer scale."""
    from open_clip.transformer import ResidualAttentionBlock

    block = ResidualAttentionBlock(32, 4, ls_init_value=0.25)
    tokens = torch.randn(1, 5, 32)
    values = project(block, tokens)[2]
    torch.testing.assert_close(
        attend(block, values, values, values), 0.25 * naive_value_value(block, tokens), atol=1e-6, rtol=0
    )


# ---------------------------------------------------------------- whole maps


@torch.no_grad()
def test_april_gan_equals_a_naive_one(clip: CLIP, ensemble: PromptEnsemble, text: torch.Tensor) -> None:
    layers = adapters(3)
    localizer = AprilGanLocalizer(clip, ensemble, NATIVE, layers)
    localizer._use_text(text)
    image = torch.rand(2, 3, NATIVE, NATIVE)
    anomaly_map, _ = localizer(image)

    _, _, outputs = run_and_record(clip, image)
    expected = torch.zeros(2, NATIVE, NATIVE)
    for layer, block in zip(layers, (2, 4, 6), strict=True):
        tokens = outputs[block - 1][:, 1:] @ layer.weight.T + layer.bias
        expected += naive_map(tokens, text, 100.0) / 3
    assert anomaly_map.shape == (2, NATIVE, NATIVE)
    assert expected.amax() - expected.amin() > 0.2
    assert (anomaly_map - expected).abs().max() < 1e-3  # a hundredfold cosine makes much of the last bits


@torch.no_grad()
def test_dense_equals_a_naive_one(clip: CLIP, ensemble: PromptEnsemble, text: torch.Tensor) -> None:
    localizer = DenseLocalizer(clip, ensemble, NATIVE, vv_blocks=2)
    localizer._use_text(text)
    image = torch.rand(2, 3, NATIVE, NATIVE)
    anomaly_map, _ = localizer(image)

    _, inputs, _ = run_and_record(clip, image)
    blocks, visual = clip.visual.transformer.resblocks, clip.visual
    fifth = inputs[4] + naive_value_value(blocks[4], inputs[4])
    sixth = fifth + naive_value_value(blocks[5], inputs[5])
    scale = clip.logit_scale.exp().item()
    first, second = (naive_map(visual.ln_post(tokens[:, 1:]) @ visual.proj, text, scale) for tokens in (fifth, sixth))
    expected = (first + second) / 2
    assert (first - second).abs().max() > 1e-2
    assert (anomaly_map - expected).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["dense", "april_gan"])
@torch.no_grad()
def test_global_score_is_that_of_open_clip(clip: CLIP, ensemble: PromptEnsemble, kind: str) -> None:
    """The plain path through the blocks gives CLIP's own image embedding, and with it CLIP's own text probability."""
    localizer = (
        DenseLocalizer(clip, ensemble, NATIVE)
        if kind == "dense"
        else AprilGanLocalizer(clip, ensemble, NATIVE, adapters(1))
    )
    localizer.set_class_name("nut")
    image = torch.rand(3, 3, NATIVE, NATIVE)
    _, score = localizer(image)
    embedding = clip.encode_image(normalised(image), normalize=True)
    text = encode_ensemble(clip, ensemble, "nut")
    expected = (clip.logit_scale.exp() * embedding @ text.T).softmax(dim=-1)[:, 1]
    assert expected.std() > 1e-6
    torch.testing.assert_close(score, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(150, 230), (90, 50), (64, 64)])
@torch.no_grad()
def test_map_has_the_size_of_the_image(
    clip: CLIP, ensemble: PromptEnsemble, text: torch.Tensor, size: tuple[int, int]
) -> None:
    for localizer in (
        DenseLocalizer(clip, ensemble, 64),
        AprilGanLocalizer(clip, ensemble, 64, adapters(2)),
    ):
        localizer._use_text(text)
        anomaly_map, score = localizer(torch.rand(2, 3, *size))
        assert (anomaly_map.shape, score.shape) == ((2, *size), (2,))
        for values in (anomaly_map, score):
            assert values.amin() >= 0
            assert values.amax() <= 1
        assert anomaly_map.std() > 1e-3


@torch.no_grad()
def test_batch_equals_one_at_a_time(clip: CLIP, ensemble: PromptEnsemble, text: torch.Tensor) -> None:
    localizer = DenseLocalizer(clip, ensemble, 64)
    localizer._use_text(text)
    image = torch.rand(3, 3, 70, 40)
    together = localizer(image)
    for i in range(3):
        for many, one in zip(together, localizer(image[i : i + 1]), strict=True):
            torch.testing.assert_close(many[i : i + 1], one, atol=1e-5, rtol=0)


def test_image_is_resized_within_its_range(clip: CLIP, ensemble: PromptEnsemble) -> None:
    """Bicubic overshoots at a sharp edge; what CLIP sees stays an image."""
    localizer = DenseLocalizer(clip, ensemble, 64)
    image = torch.zeros(1, 3, 100, 50)
    image[..., 25:] = 1
    seen = []
    handle = clip.visual.conv1.register_forward_hook(lambda _module, given, _result: seen.append(given[0]))
    localizer._embed(image)
    handle.remove()
    shown = seen[0] * localizer.std + localizer.mean
    assert shown.shape == (1, 3, 64, 64)
    assert shown.amin() > -1e-6
    assert shown.amax() < 1 + 1e-6
    assert shown[0, 0, 0, 0].abs() < 1e-6
    assert (shown[0, 0, 0, -1] - 1).abs() < 1e-6


# ---------------------------------------------------------------- position embedding


def test_position_embedding_at_the_native_grid_is_the_trained_one(clip: CLIP, ensemble: PromptEnsemble) -> None:
    assert DenseLocalizer(clip, ensemble, NATIVE)._position_embedding() is clip.visual.positional_embedding


def test_position_embedding_on_another_grid(clip: CLIP, ensemble: PromptEnsemble) -> None:
    embedding = DenseLocalizer(clip, ensemble, 64)._position_embedding()
    trained = clip.visual.positional_embedding
    assert embedding.shape == (1 + 8 * 8, WIDTH)
    assert torch.equal(embedding[0], trained[0])
    patches = trained[1:].reshape(1, GRID, GRID, WIDTH).permute(0, 3, 1, 2)
    expected = (
        F.interpolate(patches, (8, 8), mode="bicubic", align_corners=False).permute(0, 2, 3, 1).reshape(64, WIDTH)
    )
    torch.testing.assert_close(embedding[1:], expected)


# ---------------------------------------------------------------- text


def test_text_is_asked_for_once_per_class_name(clip: CLIP, ensemble: PromptEnsemble) -> None:
    localizer = DenseLocalizer(clip, ensemble, 64)
    with patch.object(localizer, "_encode_text", wraps=localizer._encode_text) as encode:
        localizer.set_class_name("nut")
        first = localizer.text.clone()
        localizer.set_class_name("nut")
        assert encode.call_count == 1
        localizer.set_class_name("bolt")
        second = localizer.text.clone()
        localizer.set_class_name("nut")
        assert encode.call_count == 2
    assert torch.equal(localizer.text, first)
    assert not torch.equal(first, second)
    torch.testing.assert_close(second, encode_ensemble(clip, ensemble, "bolt"))


def test_text_is_never_cut(clip: CLIP) -> None:
    """A sentence may fill CLIP's 77 tokens, of which two are its start and end, and no more."""
    ensemble = PromptEnsemble(normal=("{}",), abnormal=("broken {}",), templates=("{}",))
    assert encode_ensemble(clip, ensemble, "nut " * 74).shape == (2, EMBED)
    with pytest.raises(ValueError, match=r"more than the 77 tokens that CLIP reads: 'broken nut .*'\. Shorten"):
        encode_ensemble(clip, ensemble, "nut " * 75)


def test_state_dict_holds_clip_only(clip: CLIP, ensemble: PromptEnsemble) -> None:
    localizer = DenseLocalizer(clip, ensemble, 64)
    localizer.set_class_name("nut")
    assert set(localizer.state_dict()) == {f"clip.{key}" for key in clip.state_dict()}


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize("image_size", [0, -8, 4, 63, 161])
def test_image_size_must_hold_whole_patches(clip: CLIP, ensemble: PromptEnsemble, image_size: int) -> None:
    with pytest.raises(ValueError, match=rf"clip_size is {image_size}; it must be a multiple of the patch size, 8"):
        DenseLocalizer(clip, ensemble, image_size)


@pytest.mark.parametrize("vv_blocks", [0, -1, 7])
def test_number_of_value_value_blocks(clip: CLIP, ensemble: PromptEnsemble, vv_blocks: int) -> None:
    with pytest.raises(ValueError, match=f"between 1 and 6, .* not {vv_blocks}"):
        DenseLocalizer(clip, ensemble, 64, vv_blocks)


def test_default_number_of_value_value_blocks(clip: CLIP, ensemble: PromptEnsemble) -> None:
    assert DenseLocalizer(clip, ensemble, 64).vv_blocks == 2  # a quarter of 6 is less than two
    with torch.device("meta"):
        large = build_clip("ViT-L-14-336", quick_gelu=True)
    assert DenseLocalizer(large, ensemble, 518).vv_blocks == 6


def test_default_taps_are_the_published_ones(ensemble: PromptEnsemble) -> None:
    with torch.device("meta"):
        large = build_clip("ViT-L-14-336", quick_gelu=True)
        layers = nn.ModuleList(nn.Linear(1024, 768) for _ in range(4))
    localizer = AprilGanLocalizer(large, ensemble, 518, layers)
    assert localizer.taps == (6, 12, 18, 24)
    assert localizer.grid == (37, 37)


@pytest.mark.parametrize("taps", [(1,), (1, 2, 3), (0, 1), (6, 7), (-1, 2), (3, 3)])
def test_taps_must_fit(clip: CLIP, ensemble: PromptEnsemble, taps: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="do not fit 2 adapters and 6 blocks"):
        AprilGanLocalizer(clip, ensemble, 64, adapters(2), taps)


@torch.no_grad()
def test_taps_go_with_their_adapters_in_the_order_given(
    clip: CLIP, ensemble: PromptEnsemble, text: torch.Tensor
) -> None:
    layers, image = adapters(2), torch.rand(1, 3, 64, 64)
    maps = []
    for taps, order in (((2, 5), (0, 1)), ((5, 2), (1, 0)), ((5, 2), (0, 1))):
        localizer = AprilGanLocalizer(clip, ensemble, 64, nn.ModuleList(layers[i] for i in order), taps)
        localizer._use_text(text)
        maps.append(localizer(image)[0])
    torch.testing.assert_close(maps[0], maps[1])
    assert (maps[0] - maps[2]).abs().max() > 1e-2


# ---------------------------------------------------------------- adapters


def published(count: int = 2, width: int = 3, embed: int = 2) -> dict[str, torch.Tensor]:
    return {
        f"fc.{i}.{name}": torch.randn(shape)
        for i in range(count)
        for name, shape in (("weight", (embed, width)), ("bias", (embed,)))
    }


@pytest.mark.parametrize("layout", ["published file", "layer", "list"])
def test_adapters_from_the_published_layout(layout: str) -> None:
    weights = published()
    state_dict = {
        "published file": {"trainable_linearlayer": weights},
        "layer": weights,
        "list": {key.removeprefix("fc."): value for key, value in weights.items()},
    }[layout]
    layers = build_adapters(state_dict, width=3, embed_dim=2)
    assert len(layers) == 2
    tokens = torch.randn(4, 3)
    for i, layer in enumerate(layers):
        torch.testing.assert_close(layer(tokens), tokens @ weights[f"fc.{i}.weight"].T + weights[f"fc.{i}.bias"])


@pytest.mark.parametrize(
    "state_dict",
    [
        {},
        {"trainable_linearlayer": {}},
        published(width=4),
        published(embed=3),
        {key: value for key, value in published().items() if key != "fc.1.bias"},
        {key: value for key, value in published().items() if not key.startswith("fc.0")},
        {**published(), "fc.0.scale": torch.ones(1)},
        {"fc.0.weight": torch.randn(2, 3), "fc.0.bias": "no tensor"},
        {"epoch": 3, "lr": 0.1},
    ],
)
def test_adapters_that_do_not_fit(state_dict: dict) -> None:
    with pytest.raises(ValueError, match=r"'fc.<tap>.weight' of shape \(2, 3\) .* trained with the same CLIP"):
        build_adapters(state_dict, width=3, embed_dim=2)


# ---------------------------------------------------------------- architectures


@pytest.mark.parametrize("architecture", ["", "ViT-L-14-337", "/no/such/file.pt"])
def test_unknown_architecture(architecture: str) -> None:
    with pytest.raises(ValueError, match="Unknown CLIP architecture"):
        build_clip(architecture, quick_gelu=False)


@pytest.mark.parametrize("architecture", ["RN50", "convnext_base", "roberta-ViT-B-32"])
def test_architecture_without_a_plain_vit(architecture: str) -> None:
    with pytest.raises(ValueError, match="has no plain ViT"):
        build_clip(architecture, quick_gelu=False)


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_activation_is_the_argument(quick_gelu: bool) -> None:
    """Whatever the name says: a `-quickgelu` configuration of open_clip is the same architecture."""
    with torch.device("meta"):
        models = [build_clip(name, quick_gelu) for name in ("ViT-B-32", "ViT-B-32-quickgelu")]
    for model in models:
        for transformer in (model.visual.transformer, model.transformer):
            kinds = {type(block.mlp.gelu).__name__ for block in transformer.resblocks}
            assert kinds == {"QuickGELU" if quick_gelu else "GELU"}
        assert not model.training


# ---------------------------------------------------------------- WinCLIP


def small_winclip() -> CLIP:
    import open_clip

    torch.manual_seed(4)
    clip = open_clip.CLIP(
        embed_dim=32,
        vision_cfg={"image_size": 48, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8},
        text_cfg={"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    )
    return clip.requires_grad_(requires_grad=False).eval()


@pytest.fixture
def winclip(monkeypatch: pytest.MonkeyPatch) -> CLIP:
    """Give anomalib's WinClipModel a small CLIP with random weights in the place of the one that it downloads."""
    clip = small_winclip()
    monkeypatch.setattr("open_clip.create_model_and_transforms", lambda *_args, **_kwargs: (clip, None, None))
    return clip


def works(clip: CLIP) -> bool:
    """Whether anomalib's model fits the installed open_clip: it hands the transformer tokens before images."""
    return not clip.visual.transformer.resblocks[0].attn.batch_first


def test_winclip_refuses_an_open_clip_that_gives_wrong_scores(winclip: CLIP) -> None:
    if works(winclip):
        pytest.skip("anomalib's WinClipModel works with this open_clip")
    with pytest.raises(ImportError, match=r"pip install 'open_clip_torch>=2.24,<2.26.1'"):
        WinClipLocalizer(PromptEnsemble())


def test_winclip_makes_its_own_prompts(ensemble: PromptEnsemble) -> None:
    with pytest.raises(ValueError, match="'winclip' makes its own prompts"):
        WinClipLocalizer(ensemble)


@torch.no_grad()
def test_winclip_gives_the_scores_of_anomalibs_model(winclip: CLIP) -> None:
    if not works(winclip):
        pytest.skip("needs open_clip_torch<2.26.1")
    from anomalib.models.image.winclip.torch_model import WinClipModel

    localizer = WinClipLocalizer(PromptEnsemble()).eval()
    localizer.set_class_name("nut")
    image = torch.rand(2, 3, 48, 48)
    anomaly_map, score = localizer(image)
    expected = WinClipModel("nut").eval()(normalised(image))
    assert expected.anomaly_map.std() > 1e-4
    torch.testing.assert_close(anomaly_map, expected.anomaly_map, atol=1e-6, rtol=0)
    torch.testing.assert_close(score, expected.pred_score, atol=1e-6, rtol=0)


@torch.no_grad()
def test_winclip_takes_any_size_and_one_image(winclip: CLIP) -> None:
    if not works(winclip):
        pytest.skip("needs open_clip_torch<2.26.1")
    localizer = WinClipLocalizer(PromptEnsemble()).eval()
    localizer.set_class_name("nut")
    for batch in (1, 3):
        anomaly_map, score = localizer(torch.rand(batch, 3, 50, 90))
        assert (anomaly_map.shape, score.shape) == ((batch, 50, 90), (batch,))
        for values in (anomaly_map, score):
            assert values.amin() >= 0
            assert values.amax() <= 1


def test_winclip_encodes_text_once_per_class_name(winclip: CLIP) -> None:
    if not works(winclip):
        pytest.skip("needs open_clip_torch<2.26.1")
    localizer = WinClipLocalizer(PromptEnsemble())
    with patch.object(winclip, "encode_text", wraps=winclip.encode_text) as encode:
        localizer.set_class_name("nut")
        first = localizer.winclip.text_embeddings.clone()
        localizer.set_class_name("bolt")
        calls = encode.call_count
        second = localizer.winclip.text_embeddings.clone()
        localizer.set_class_name("nut")
        assert encode.call_count == calls
    assert torch.equal(localizer.winclip.text_embeddings, first)
    assert not torch.equal(first, second)


def test_localizer_is_an_interface() -> None:
    with pytest.raises(TypeError):
        Localizer(PromptEnsemble())


@pytest.mark.parametrize("masked", [False, True])
def test_block_is_open_clips(masked: bool) -> None:
    """A block run with fused attention gives what open_clip's own call gives, in either layout."""
    from open_clip.transformer import ResidualAttentionBlock

    torch.manual_seed(0)
    block = ResidualAttentionBlock(16, 2, ls_init_value=0.25).eval()
    tokens = torch.randn(2, 5, 16)
    mask = torch.full((5, 5), float("-inf")).triu(1) if masked else None
    with torch.no_grad():
        if block.attn.batch_first:
            expected = block(tokens, attn_mask=mask)
        else:
            expected = block(tokens.transpose(0, 1), attn_mask=mask).transpose(0, 1)
        torch.testing.assert_close(run_block(block, tokens, mask), expected, atol=1e-6, rtol=0)
