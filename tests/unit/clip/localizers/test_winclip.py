# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""WinCLIP's map against anomalib's own model."""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest
import torch

from anomalib_clipsam.clip import PromptEnsemble
from anomalib_clipsam.clip.localizers import WinClipLocalizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from open_clip import CLIP

pytestmark = pytest.mark.open_clip


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
def test_winclip_gives_the_scores_of_anomalibs_model(winclip: CLIP, normalised: Callable) -> None:
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
