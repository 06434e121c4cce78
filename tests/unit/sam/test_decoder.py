# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""One decoder pass for many images against ``SamPredictor``'s for one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from anomalib_clipsam.sam.decoder import decode, embed_boxes, embed_points

if TYPE_CHECKING:
    from segment_anything import SamPredictor
    from segment_anything.modeling import Sam

# Points of three images, x then y, in SAM's frame of 192 px.
COORDS = torch.tensor(
    [
        [[10.0, 20.0], [150.5, 60.25], [0.0, 0.0]],
        [[95.5, 95.5], [191.0, 0.0], [3.0, 188.0]],
        [[60.0, 170.0], [20.0, 33.0], [100.0, 5.0]],
    ],
)
LABELS = torch.tensor([[1, 0, 1], [1, 1, 0], [0, 1, 1]])
PADDED = torch.tensor([[1, 0, -1], [1, -1, -1], [-1, -1, -1]])
BOXES = torch.tensor([[4.0, 8.0, 100.0, 90.0], [0.0, 0.0, 191.0, 191.0], [50.0, 20.0, 51.0, 180.0]])


def expected(predictor: SamPredictor, **prompts: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits ``(1, 4, 4h, 4w)`` and predicted IoU ``(1, 4)`` of all four mask tokens, by two of its passes."""
    single, multiple = (predictor.predict_torch(**prompts, multimask_output=many) for many in (False, True))
    return torch.cat([single[2], multiple[2]], dim=1), torch.cat([single[1], multiple[1]], dim=1)


@pytest.mark.parametrize("labels", [LABELS, PADDED], ids=["points", "padded"])
@pytest.mark.parametrize("with_mask", [False, True], ids=["", "mask"])
@pytest.mark.parametrize("with_box", [False, True], ids=["", "box"])
def test_batch_equals_the_predictor_image_by_image(
    sam: Sam,
    predictors: list[SamPredictor],
    labels: torch.Tensor,
    with_mask: bool,
    with_box: bool,
) -> None:
    features = torch.cat([predictor.features for predictor in predictors])
    side = 4 * features.shape[-1]
    masks = 8 * torch.randn(3, 1, side, side) if with_mask else None
    boxes = BOXES if with_box else None
    logits, iou = decode(sam, features, COORDS, labels, boxes, masks)
    assert (logits.shape, iou.shape) == ((3, 4, side, side), (3, 4))
    for i, predictor in enumerate(predictors):
        expected_logits, expected_iou = expected(
            predictor,
            point_coords=COORDS[i : i + 1],
            point_labels=labels[i : i + 1],
            boxes=boxes[i : i + 1] if with_box else None,
            mask_input=masks[i : i + 1] if with_mask else None,
        )
        assert (logits[i : i + 1] - expected_logits).abs().max() < 1e-4
        assert (iou[i : i + 1] - expected_iou).abs().max() < 1e-4


def test_prompts_matter(sam: Sam, predictors: list[SamPredictor]) -> None:
    """What is compared above is not trivial: each kind of prompt moves the answer by far more than the tolerance."""
    features = predictors[0].features
    side = 4 * features.shape[-1]
    box, mask = BOXES[:1], 8 * torch.randn(1, 1, side, side)
    plain = decode(sam, features, COORDS[:1], LABELS[:1])[0]
    for prompts in (
        (COORDS[1:2], LABELS[:1]),
        (COORDS[:1], 1 - LABELS[:1]),
        (COORDS[:1], PADDED[:1]),
        (COORDS[:1], LABELS[:1], box),
        (COORDS[:1], LABELS[:1], None, mask),
    ):
        assert (decode(sam, features, *prompts)[0] - plain).abs().max() > 1e-2
    assert (plain[:, 0] - plain[:, 1]).abs().max() > 1e-2


def test_batch_equals_one_at_a_time(sam: Sam, predictors: list[SamPredictor]) -> None:
    features = torch.cat([predictor.features for predictor in predictors])
    together = decode(sam, features, COORDS, PADDED, BOXES)
    for i in range(3):
        alone = decode(sam, features[i : i + 1], COORDS[i : i + 1], PADDED[i : i + 1], BOXES[i : i + 1])
        for many, one in zip(together, alone, strict=True):
            torch.testing.assert_close(many[i : i + 1], one, atol=1e-5, rtol=0)


def test_coordinates_of_what_is_no_point_are_ignored(sam: Sam) -> None:
    labels = torch.tensor([[1, -1]])
    embedded = [
        embed_points(sam.prompt_encoder, torch.tensor([[[5.0, 9.0], other]]), labels)
        for other in ([0.0, 0.0], [180.0, 7.0])
    ]
    assert torch.equal(embedded[0], embedded[1])
    assert torch.equal(embedded[0][0, 1:], sam.prompt_encoder.not_a_point_embed.weight)


def test_embeddings_are_those_of_the_prompt_encoder(sam: Sam) -> None:
    sparse, _ = sam.prompt_encoder(points=(COORDS, PADDED), boxes=BOXES, masks=None)
    ours = torch.cat([embed_points(sam.prompt_encoder, COORDS, PADDED), embed_boxes(sam.prompt_encoder, BOXES)], dim=1)
    torch.testing.assert_close(ours, sparse, atol=1e-6, rtol=0)


def test_arguments_stay_what_they_are(sam: Sam, predictors: list[SamPredictor]) -> None:
    given = (predictors[0].features, COORDS[:1], PADDED[:1], BOXES[:1])
    copies = tuple(value.clone() for value in given)
    decode(sam, *copies)
    assert all(torch.equal(copy, value) for copy, value in zip(copies, given, strict=True))
