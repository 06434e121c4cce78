# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The cascade against explicit passes of ``SamPredictor``, and its rules with a decoder that answers as it is told."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import torch

from anomalib_clipsam.method import cps
from anomalib_clipsam.method.cps import CascadedPrompts, mask_to_box, most_anomalous_component
from anomalib_clipsam.method.ppg import PointPrompts

if TYPE_CHECKING:
    from segment_anything import SamPredictor
    from segment_anything.modeling import Sam


def points(coords: torch.Tensor, labels: torch.Tensor) -> PointPrompts:
    """Prompts of which CPS reads these two members only."""
    return PointPrompts(coords, labels, ring=torch.empty(0), similarity=torch.empty(0), peak=torch.empty(0))


PROMPTS = points(
    torch.tensor(
        [
            [[40.0, 30.0], [100.0, 70.5], [150.0, 20.0], [0.0, 0.0]],
            [[95.5, 95.5], [30.0, 160.0], [0.0, 0.0], [3.0, 188.0]],
            [[60.0, 170.0], [0.0, 0.0], [20.0, 33.0], [100.0, 5.0]],
        ],
    ),
    torch.tensor([[1, 1, 0, -1], [1, 1, -1, 0], [1, -1, 0, 0]]),
)
"""Prompts for the three images of the predictors: wide, square and tall."""


def of(prompts: PointPrompts, i: int) -> PointPrompts:
    return points(prompts.coords[i : i + 1], prompts.labels[i : i + 1])


def passes_of_the_predictor(
    predictor: SamPredictor,
    prompts: PointPrompts,
    multimask: bool,
) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Three passes: logits ``(1, 1, 4h, 4w)`` each, the box ``(1, 4)`` and the last predicted IoU ``(1,)``."""

    def run(many: bool, **more: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        _, iou, logits = predictor.predict_torch(prompts.coords, prompts.labels, multimask_output=many, **more)
        best = iou[0].argmax()
        return logits[:, best : best + 1], iou[:, best]

    first, _ = run(False)
    second, _ = run(multimask, mask_input=first)
    # the box: pixel by pixel of the part of the frame that the image fills
    height, width = predictor.input_size
    side = second.shape[-1]
    scale = 192 / side
    inside = [
        (x, y)
        for y in range(side)
        for x in range(side)
        if second[0, 0, y, x] > 0 and y * scale < height and x * scale < width
    ]
    xs, ys = zip(*inside, strict=True)
    box = [min(xs) * scale, min(ys) * scale, (max(xs) + 1) * scale - 1, (max(ys) + 1) * scale - 1]
    box = torch.tensor([box])
    third, iou = run(multimask, boxes=box, mask_input=second)
    return [first, second, third], box, iou


@pytest.mark.parametrize("multimask", [False, True])
def test_passes_equal_those_of_the_predictor(sam: Sam, predictors: list[SamPredictor], multimask: bool) -> None:
    """Images of three shapes, one at a time; the anomaly map tells what part of the frame is image."""
    cascade = CascadedPrompts(sam, multimask)
    for i, predictor in enumerate(predictors):
        expected, box, iou = passes_of_the_predictor(predictor, of(PROMPTS, i), multimask)
        output = cascade(predictor.features, of(PROMPTS, i), torch.rand(1, *predictor.input_size))
        assert torch.equal(output.box, box)
        for logits, right in zip((output.logits_1, output.logits_2, output.logits_3), expected, strict=True):
            assert logits.shape == right.shape
            assert (logits - right).abs().max() < 1e-4
        assert (output.iou - iou).abs().max() < 1e-4
        assert (expected[2] - expected[1]).abs().max() > 1e-2  # three passes, not two
        assert (expected[1] - expected[0]).abs().max() > 1e-2


@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize("box", ["mask", "component"])
def test_batch_equals_one_at_a_time(sam: Sam, predictors: list[SamPredictor], multimask: bool, box: str) -> None:
    features = torch.cat([predictor.features for predictor in predictors])
    maps = torch.rand(3, 60, 48)
    cascade = CascadedPrompts(sam, multimask, box)
    together = cascade(features, PROMPTS, maps)
    for i in range(3):
        alone = cascade(features[i : i + 1], of(PROMPTS, i), maps[i : i + 1])
        for name in ("logits_1", "logits_2", "logits_3", "box", "iou"):
            torch.testing.assert_close(
                getattr(together, name)[i : i + 1], getattr(alone, name), atol=1e-4, rtol=0, msg=name
            )


# ---------------------------------------------------------------- with a decoder that answers as it is told


class Decoder:
    """Stands in for :func:`anomalib_clipsam.sam.decode`: gives prepared answers and keeps the prompts."""

    def __init__(self, *answers: tuple[torch.Tensor, torch.Tensor]) -> None:
        self.answers = list(answers)
        self.calls: list[tuple] = []

    def __call__(self, _sam: object, features: torch.Tensor, coords, labels, boxes, mask) -> tuple:
        self.calls.append((boxes, mask))
        return self.answers[len(self.calls) - 1]


SAM = SimpleNamespace(mask_threshold=0.0, image_encoder=SimpleNamespace(img_size=32))


class Cascade(CascadedPrompts):
    """A cascade whose SAM is only asked for its sizes: logits of 16 x 16 in a frame of 32."""

    def __setattr__(self, name: str, value: object) -> None:
        """Keep a SAM that is no module."""
        if name == "sam":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)


def answer(single: torch.Tensor, iou: float | list[float] = 0.5) -> tuple[torch.Tensor, torch.Tensor]:
    """Answer for B masks ``(B, 16, 16)``: token t gives the single mask's logits plus t / 8."""
    tokens = torch.arange(4.0).view(1, 4, 1, 1) / 8
    values = torch.tensor(iou) if isinstance(iou, list) else torch.full((4,), iou)
    return single.unsqueeze(1) + tokens, values.expand(len(single), 4)


def logits_of(*rectangles: tuple[int, int, int, int]) -> torch.Tensor:
    """Logits of one image ``(1, 16, 16)``: 2 inside the rectangles x0, y0, x1, y1, and -2 elsewhere."""
    logits = torch.full((1, 16, 16), -2.0)
    for x0, y0, x1, y1 in rectangles:
        logits[0, y0 : y1 + 1, x0 : x1 + 1] = 2.0
    return logits


EMPTY = logits_of()
NO_POINTS = points(torch.zeros(1, 1, 2), torch.ones(1, 1, dtype=torch.long))


def run(
    monkeypatch: pytest.MonkeyPatch,
    answers: list[tuple[torch.Tensor, torch.Tensor]],
    anomaly_map: torch.Tensor | None = None,
    **arguments: object,
) -> tuple[cps.CascadeOutput, Decoder]:
    decoder = Decoder(*answers)
    monkeypatch.setattr(cps, "decode", decoder)
    batch = len(answers[0][0])
    prompts = points(NO_POINTS.coords.expand(batch, -1, -1), NO_POINTS.labels.expand(batch, -1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        output = Cascade(SAM, **arguments)(torch.zeros(batch, 2, 4, 4), prompts, anomaly_map)
    return output, decoder


def test_each_pass_is_prompted_by_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = (answer(logits_of((i, i, i + 3, i + 5))) for i in (1, 2, 3))
    output, decoder = run(monkeypatch, [first, second, third], multimask=False)
    (box_1, mask_1), (box_2, mask_2), (box_3, mask_3) = decoder.calls
    assert box_1 is None
    assert mask_1 is None
    assert box_2 is None
    assert torch.equal(mask_2, first[0][:, :1])
    assert box_3.tolist() == [[4.0, 4.0, 11.0, 15.0]]  # pixels 2 to 5 and 2 to 7, each two pixels of the frame
    assert torch.equal(mask_3, second[0][:, :1])
    assert torch.equal(output.box, box_3)
    for logits, given in zip((output.logits_1, output.logits_2, output.logits_3), (first, second, third), strict=True):
        assert torch.equal(logits, given[0][:, :1])


@pytest.mark.parametrize(
    ("rectangle", "box"),
    [
        ((0, 0, 15, 15), [0.0, 0.0, 31.0, 31.0]),
        ((0, 0, 0, 0), [0.0, 0.0, 1.0, 1.0]),
        ((15, 3, 15, 3), [30.0, 6.0, 31.0, 7.0]),
        ((4, 9, 7, 9), [8.0, 18.0, 15.0, 19.0]),
    ],
)
def test_box_covers_the_mask_in_the_frame(
    monkeypatch: pytest.MonkeyPatch,
    rectangle: tuple[int, int, int, int],
    box: list[float],
) -> None:
    output, _ = run(monkeypatch, [answer(EMPTY), answer(logits_of(rectangle)), answer(EMPTY)])
    assert output.box.tolist() == [box]


@pytest.mark.parametrize("multimask", [False, True])
def test_empty_second_mask_is_the_answer(monkeypatch: pytest.MonkeyPatch, multimask: bool) -> None:
    """The first image has no box; its last pass, whatever it says, does not count. The second image is as ever."""
    second = torch.cat([EMPTY, logits_of((4, 4, 8, 8))])
    third = torch.full((2, 16, 16), torch.nan)
    third[1] = 1.0
    iou = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]])
    output, _ = run(
        monkeypatch,
        [answer(second), (answer(second)[0], iou), (answer(third)[0], iou + 0.1)],
        multimask=multimask,
        box="component",
        anomaly_map=torch.rand(2, 8, 8),
    )
    token = 3 if multimask else 0
    assert output.box.tolist() == [[0.0, 0.0, 0.0, 0.0], [8.0, 8.0, 17.0, 17.0]]
    assert torch.equal(output.logits_3[0], output.logits_2[0])
    assert torch.equal(output.logits_3[1, 0], third[1] + token / 8)
    assert output.iou.tolist() == pytest.approx([0.4, 0.9] if multimask else [0.1, 0.6])
    assert torch.isfinite(output.logits_3).all()


def test_multimask_keeps_the_highest_predicted_iou(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of tokens 1 to 3, never of token 0, and not in the first pass."""
    batch = torch.cat([logits_of((2, 2, 9, 9))] * 3)
    iou = torch.tensor([[0.9, 0.2, 0.7, 0.3], [0.1, 0.4, 0.2, 0.3], [0.99, 0.0, -0.1, 0.1]])
    given = (answer(batch)[0], iou)
    output, _ = run(monkeypatch, [given] * 3, multimask=True)
    assert torch.equal(output.logits_1, given[0][:, :1])
    best = torch.stack([given[0][0, 2:3], given[0][1, 1:2], given[0][2, 3:4]])
    assert torch.equal(output.logits_2, best)
    assert torch.equal(output.logits_3, best)
    assert output.iou.tolist() == pytest.approx([0.7, 0.4, 0.1])


def test_without_multimask_token_0_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    given = answer(logits_of((2, 2, 9, 9)), [0.1, 0.9, 0.9, 0.9])
    output, _ = run(monkeypatch, [given] * 3, multimask=False)
    assert torch.equal(output.logits_3, given[0][:, :1])
    assert output.iou.tolist() == pytest.approx([0.1])


@pytest.mark.parametrize("passes", [1, 2, 3])
def test_fewer_passes_repeat_the_last_logits(monkeypatch: pytest.MonkeyPatch, passes: int) -> None:
    answers = [answer(logits_of((i, 0, 9, 9)), i / 10) for i in (1, 2, 3)]
    output, decoder = run(monkeypatch, answers, multimask=False, passes=passes)
    assert len(decoder.calls) == passes
    given = [answers[min(i, passes - 1)][0][:, :1] for i in range(3)]
    for logits, right in zip((output.logits_1, output.logits_2, output.logits_3), given, strict=True):
        assert torch.equal(logits, right)
    assert output.iou.tolist() == pytest.approx([passes / 10])


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((8, 8), [0.0, 0.0, 31.0, 31.0]),
        ((4, 8), [0.0, 0.0, 31.0, 15.0]),
        ((8, 2), [0.0, 0.0, 7.0, 31.0]),
        ((5, 8), [0.0, 0.0, 31.0, 19.0]),
        ((150, 230), [0.0, 0.0, 31.0, 21.0]),  # the last of 10.4 rows belongs to the image in part
    ],
)
def test_box_leaves_out_the_padding(monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], box: list[float]) -> None:
    whole = answer(logits_of((0, 0, 15, 15)))
    output, _ = run(monkeypatch, [whole] * 3, torch.rand(1, *size))
    assert output.box.tolist() == [box]


def test_mask_in_the_padding_alone_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    below = logits_of((2, 9, 5, 12))
    output, _ = run(monkeypatch, [answer(below), answer(below), answer(-below)], torch.rand(1, 4, 8))
    assert output.box.tolist() == [[0.0, 0.0, 0.0, 0.0]]
    assert torch.equal(output.logits_3, output.logits_2)


# ---------------------------------------------------------------- boxes and components


def test_mask_to_box() -> None:
    mask = torch.zeros(4, 5, 7, dtype=torch.bool)
    mask[0, 1:3, 2:6] = True
    mask[1, 4, 0] = mask[1, 0, 6] = True
    mask[2, 3, 5] = True
    assert mask_to_box(mask).tolist() == [[2, 1, 5, 2], [0, 0, 6, 4], [5, 3, 5, 3], [0, 0, 0, 0]]


COMPONENTS = torch.tensor(
    [
        [1, 1, 0, 0, 0, 0, 1],
        [1, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 1, 0, 0],  # touches the one above at a corner: one component
        [0, 1, 1, 0, 1, 1, 0],
    ],
).bool()
PARTS = {
    "left": [(0, 0), (1, 0), (0, 1)],
    "corner": [(6, 0)],
    "middle": [(3, 1), (4, 2), (4, 3), (5, 3)],
    "bottom": [(1, 3), (2, 3)],
}


@pytest.mark.parametrize("chosen", PARTS)
def test_component_with_the_highest_mean(chosen: str) -> None:
    """Mean, not sum and not maximum: others hold more in all, or a higher peak; what is outside does not count."""
    scores = torch.where(COMPONENTS, 0.4, 1.0)
    for x, y in PARTS[chosen]:
        scores[y, x] = 0.5
    other = PARTS["left" if chosen != "left" else "middle"]
    scores[other[0][1], other[0][0]] = 0.6  # mean 0.467 of three, or 0.45 of four
    expected = torch.zeros_like(COMPONENTS)
    for x, y in PARTS[chosen]:
        expected[y, x] = True
    assert torch.equal(most_anomalous_component(COMPONENTS[None], scores[None])[0], expected)


def test_component_of_each_image_for_itself() -> None:
    masks = torch.stack([COMPONENTS, torch.zeros_like(COMPONENTS), COMPONENTS.flip(1)])
    scores = torch.zeros(3, 4, 7)
    scores[0, 0, 6] = scores[1, 0, 0] = scores[2, 3, 5] = 0.3
    result = most_anomalous_component(masks, scores)
    assert result.sum(dim=(1, 2)).tolist() == [1, 0, 2]
    assert result[0, 0, 6]
    assert result[2, 3, 4:6].all()


def test_component_of_a_winding_shape() -> None:
    """Three arms of a snake are one component, though the way along it is longer than the map's two sides."""
    snake = torch.zeros(1, 9, 12, dtype=torch.bool)
    snake[0, 0:5:2] = True
    snake[0, 1, -1] = snake[0, 3, 0] = True
    assert torch.equal(most_anomalous_component(snake, torch.rand(1, 9, 12)), snake)


def test_component_of_a_shape_that_winds_often() -> None:
    """Its way of 670 pixels is many times as long as the map's two sides, and its ends are one component."""
    snake = torch.zeros(1, 41, 32, dtype=torch.bool)
    snake[0, ::2] = True
    snake[0, 1::4, -1] = snake[0, 3::4, 0] = True
    assert torch.equal(most_anomalous_component(snake, torch.rand(1, 41, 32)), snake)


def test_component_box(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two blobs; the smaller is the more anomalous, and the box bounds it alone, to the pixel of the mask."""
    second = answer(logits_of((1, 1, 6, 3), (10, 9, 12, 14)))
    anomaly_map = torch.zeros(1, 16, 16)
    anomaly_map[0, 1:4, 1:7] = 0.5
    anomaly_map[0, 8:16, 8:16] = 0.9
    for box, expected in (("component", [20.0, 18.0, 25.0, 29.0]), ("mask", [2.0, 2.0, 25.0, 29.0])):
        output, _ = run(monkeypatch, [answer(EMPTY), second, second], anomaly_map, box=box)
        assert output.box.tolist() == [expected]
    output, _ = run(monkeypatch, [answer(EMPTY), second, second], 1 - anomaly_map, box="component")
    assert output.box.tolist() == [[2.0, 2.0, 13.0, 7.0]]


def test_component_box_of_an_image_that_is_not_square(monkeypatch: pytest.MonkeyPatch) -> None:
    """The map covers the upper half of the frame: scores are compared there, not stretched over all of it."""
    second = answer(logits_of((1, 1, 3, 3), (9, 5, 11, 6), (0, 12, 15, 15)))
    anomaly_map = torch.zeros(1, 8, 16)
    anomaly_map[0, 4:8, 8:12] = 0.9
    anomaly_map[0, :4, :4] = 0.5
    output, _ = run(monkeypatch, [answer(EMPTY), second, second], anomaly_map, box="component")
    assert output.box.tolist() == [[18.0, 10.0, 23.0, 13.0]]


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize("box", ["", "Mask", "none"])
def test_unknown_box(box: str) -> None:
    with pytest.raises(ValueError, match=f"Unknown box '{box}'. Choose one of mask, component"):
        Cascade(SAM, box=box)


@pytest.mark.parametrize("passes", [0, 4, -1])
def test_number_of_passes(passes: int) -> None:
    with pytest.raises(ValueError, match=f"passes is {passes}, .* Choose 1, 2 or 3"):
        Cascade(SAM, passes=passes)


def test_component_box_needs_the_map(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="Pass `anomaly_map`, or use box='mask'"):
        run(monkeypatch, [answer(EMPTY)] * 3, box="component")
