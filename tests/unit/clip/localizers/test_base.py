# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The definition of the map on small tensors, and what all localizers do with images and text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest
import torch

from anomalib_clipsam.clip import PromptEnsemble, encode_ensemble
from anomalib_clipsam.clip.localizers import DenseLocalizer, Localizer
from anomalib_clipsam.clip.localizers.base import text_anomaly_map

if TYPE_CHECKING:
    from open_clip import CLIP

pytestmark = pytest.mark.open_clip


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


def test_localizer_is_an_interface() -> None:
    with pytest.raises(TypeError):
        Localizer(PromptEnsemble())


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


def test_state_dict_holds_clip_only(clip: CLIP, ensemble: PromptEnsemble) -> None:
    localizer = DenseLocalizer(clip, ensemble, 64)
    localizer.set_class_name("nut")
    assert set(localizer.state_dict()) == {f"clip.{key}" for key in clip.state_dict()}
