# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""anomalib's pre- and post-processor."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from anomalib.data import ImageBatch, InferenceBatch
from PIL import Image
from torch.nn import functional as F  # noqa: N812

from anomalib_clipsam.plugin.post_processor import ClipSamPostProcessor
from anomalib_clipsam.plugin.pre_processor import ClipSamPreProcessor

HOOKS = ("on_validation_batch_start", "on_test_batch_start", "on_predict_batch_start")


def batch(**more: torch.Tensor) -> ImageBatch:
    return ImageBatch(image=torch.rand(2, 3, 30, 50), gt_label=torch.tensor([0, 1]), **more)


# ---------------------------------------------------------------- pre-processor


@pytest.mark.parametrize("hook", HOOKS)
def test_image_is_resized_and_its_mask_with_it(hook: str) -> None:
    mask = torch.zeros(2, 30, 50, dtype=torch.bool)
    mask[1, :, :25] = True
    given = batch(gt_mask=mask)
    image = given.image.clone()
    getattr(ClipSamPreProcessor(64), hook)(None, None, given, 0)
    expected = F.interpolate(torch.as_tensor(image), (64, 64), mode="bicubic", antialias=True)
    torch.testing.assert_close(torch.as_tensor(given.image), expected)
    assert (given.gt_mask.dtype, given.gt_mask.shape) == (torch.bool, (2, 64, 64))
    assert not given.gt_mask[0].any()
    assert given.gt_mask[1, :, :32].all()
    assert not given.gt_mask[1, :, 32:].any()


@pytest.mark.parametrize("hook", HOOKS)
def test_batch_without_masks(hook: str) -> None:
    given = batch()
    getattr(ClipSamPreProcessor(64), hook)(None, None, given, 0)
    assert given.image.shape == (2, 3, 64, 64)
    assert given.gt_mask is None


@pytest.mark.parametrize("size", [(30, 50), (200, 90), (64, 64), (1, 7)])
def test_forward_resizes_as_the_hooks_do(size: tuple[int, int]) -> None:
    pre_processor = ClipSamPreProcessor(64)
    image = torch.rand(2, 3, *size)
    given = ImageBatch(image=image.clone())
    pre_processor.on_predict_batch_start(None, None, given, 0)
    resized = pre_processor(image)
    assert resized.shape == (2, 3, 64, 64)
    assert torch.equal(resized, torch.as_tensor(given.image))


def test_configuration_of_the_pre_processor_survives_a_checkpoint(tmp_path) -> None:
    torch.save(ClipSamPreProcessor(64).checkpoint_config(), tmp_path / "config.pt")
    config = torch.load(tmp_path / "config.pt", weights_only=True)
    other = ClipSamPreProcessor(32)
    other.load_checkpoint_config(config)
    given = batch()
    image = torch.as_tensor(given.image).clone()
    other.on_test_batch_start(None, None, given, 0)
    assert torch.equal(torch.as_tensor(given.image), ClipSamPreProcessor(64)(image))
    assert torch.equal(other(image), ClipSamPreProcessor(64)(image))


# ---------------------------------------------------------------- post-processor


def predictions(mask: torch.Tensor | None = None) -> InferenceBatch:
    return InferenceBatch(
        pred_score=torch.tensor([0.0, 0.5, 0.75, 1.0]),
        anomaly_map=torch.tensor([[[0.0, 0.25, 0.5, 0.500001, 1.0]]]).repeat(4, 2, 1),
        pred_mask=mask,
    )


def test_without_calibration_probabilities_stay_as_they_are() -> None:
    given = predictions()
    result = ClipSamPostProcessor()(given)
    assert torch.equal(result.pred_score, given.pred_score)
    assert torch.equal(result.anomaly_map, given.anomaly_map)
    assert result.pred_label.tolist() == [False, False, True, True]
    assert not result.pred_mask[:2].any()
    assert result.pred_mask[2, 0].tolist() == [False, False, False, True, True]


def test_without_calibration_a_batch_gets_labels_and_masks() -> None:
    given = predictions()
    image_batch = ImageBatch(image=torch.rand(4, 3, 2, 5), **given._asdict())
    ClipSamPostProcessor().on_predict_batch_end(None, None, image_batch)
    assert torch.equal(image_batch.pred_score, given.pred_score)
    assert torch.equal(torch.as_tensor(image_batch.anomaly_map), given.anomaly_map)
    assert image_batch.pred_label.tolist() == [False, False, True, True]
    assert not image_batch.pred_mask[:2].any()
    assert image_batch.pred_mask[2, 0].tolist() == [False, False, False, True, True]


def calibrated() -> ClipSamPostProcessor:
    """Calibrate on scores 0.1, 0.2 of normal and 0.3, 0.6 of damaged images, and on maps of 0 to 0.5."""
    post_processor = ClipSamPostProcessor()
    mask = torch.zeros(4, 2, 5, dtype=torch.bool)
    mask[2:, :, 4] = True
    anomaly_map = torch.tensor([0.0, 0.0, 0.1, 0.2, 0.3]).repeat(4, 2, 1)
    anomaly_map[2:, :, 4] = torch.tensor([0.4, 0.5])
    post_processor.on_validation_batch_end(
        None,
        None,
        ImageBatch(
            image=torch.rand(4, 3, 2, 5),
            gt_label=torch.tensor([0, 0, 1, 1]),
            gt_mask=mask,
            pred_score=torch.tensor([0.1, 0.2, 0.3, 0.6]),
            anomaly_map=anomaly_map,
        ),
    )
    post_processor.on_validation_epoch_end(None, None)
    return post_processor


def test_validation_replaces_thresholds_and_range() -> None:
    post_processor = calibrated()
    assert post_processor.image_threshold.item() == pytest.approx(0.25)  # between 0.2 and 0.3
    assert post_processor.pixel_threshold.item() == pytest.approx(0.35)
    assert (post_processor.image_min.item(), post_processor.image_max.item()) == pytest.approx((0.1, 0.6))
    assert (post_processor.pixel_min.item(), post_processor.pixel_max.item()) == pytest.approx((0.0, 0.5))
    result = post_processor(
        InferenceBatch(pred_score=torch.tensor([0.1, 0.4]), anomaly_map=torch.full((2, 1, 1), 0.45))
    )
    assert result.pred_score.tolist() == pytest.approx([0.2, 0.8])  # (score - threshold) / range + 0.5
    assert result.pred_label.tolist() == [False, True]
    assert result.anomaly_map[0].item() == pytest.approx(0.7)


def labelled(scores: list[float], labels: list[int], pixels: list[float] | None = None) -> ClipSamPostProcessor:
    """Calibrate on pictures with these scores, and a map of one pixel each."""
    post_processor = ClipSamPostProcessor()
    given = ImageBatch(
        image=torch.rand(len(scores), 3, 2, 2),
        gt_label=torch.tensor(labels),
        gt_mask=torch.tensor(labels, dtype=torch.bool).view(-1, 1, 1),
        pred_score=torch.tensor(scores),
        anomaly_map=torch.tensor(pixels or scores).view(-1, 1, 1),
    )
    post_processor.on_validation_batch_end(None, None, given)
    post_processor.on_validation_epoch_end(None, None)
    return post_processor


@pytest.mark.parametrize("scores", [[0.1, 0.2, 0.3, 0.7], [0.3, 0.2, 0.1, 0.30001]])
def test_the_picture_that_the_threshold_comes_from_is_defective(scores: list[float]) -> None:
    """Anomalib's threshold is the score of the one defective picture, which nothing is above."""
    post_processor = labelled(scores, [0, 0, 0, 1])
    result = post_processor(
        InferenceBatch(pred_score=torch.tensor(scores), anomaly_map=torch.tensor(scores).view(-1, 1, 1))
    )
    assert result.pred_label.tolist() == [False, False, False, True]
    assert result.pred_mask.flatten().tolist() == [False, False, False, True]


def test_the_threshold_is_halfway_to_the_next_lower_score() -> None:
    post_processor = labelled([0.1, 0.2, 0.5, 0.7], [0, 0, 0, 1], [0.25, 0.5, 0.125, 0.75])
    assert thresholds(post_processor) == pytest.approx((0.6, 0.625))


def test_where_all_are_called_defective_the_lowest_is_too() -> None:
    post_processor = labelled([0.4, 0.5, 0.3], [1, 0, 1])
    assert 0.2999 < post_processor.image_threshold.item() < 0.3


def test_validation_without_batches_keeps_the_fixed_ones() -> None:
    post_processor = ClipSamPostProcessor()
    post_processor.on_validation_epoch_end(None, None)
    assert post_processor.image_threshold == post_processor.pixel_threshold == 0.5
    assert (post_processor.image_min, post_processor.image_max) == (0, 1)


def test_calibration_survives_a_state_dict() -> None:
    other = ClipSamPostProcessor()
    other.load_state_dict(calibrated().state_dict())
    given = predictions()
    for ours, theirs in zip(other(given), calibrated()(given), strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(other(given).pred_score, ClipSamPostProcessor()(given).pred_score)


def test_arguments_reach_anomalibs_post_processor() -> None:
    result = ClipSamPostProcessor(image_sensitivity=0.8, enable_normalization=False)(predictions())
    assert result.pred_label.tolist() == [False, True, True, True]
    assert ClipSamPostProcessor(enable_thresholding=False)(predictions()).pred_label is None


# ---------------------------------------------------------------- thresholds without labels


def validated(post_processor: ClipSamPostProcessor, labels: list[int] | None) -> ClipSamPostProcessor:
    """Run a validation pass over four pictures with these labels."""
    given = ImageBatch(
        image=torch.rand(4, 3, 2, 5),
        gt_label=None if labels is None else torch.tensor(labels),
        pred_score=torch.tensor([0.1, 0.2, 0.3, 0.6]),
        anomaly_map=torch.rand(4, 2, 5),
    )
    if labels is not None:
        post_processor.on_validation_batch_end(None, None, given)
    post_processor.on_validation_epoch_end(None, None)
    return post_processor


def thresholds(post_processor: ClipSamPostProcessor) -> tuple[float, float]:
    return post_processor.image_threshold.item(), post_processor.pixel_threshold.item()


@pytest.mark.parametrize("labels", [None, [0, 0, 0, 0], [1, 1, 1, 1]])
def test_thresholds_of_references_stay_unless_both_labels_say_others(labels: list[int] | None) -> None:
    post_processor = ClipSamPostProcessor()
    post_processor.use_thresholds(0.4, 0.7)
    assert thresholds(post_processor) == pytest.approx((0.4, 0.7))
    assert thresholds(validated(post_processor, labels)) == pytest.approx((0.4, 0.7))
    assert not post_processor.calibrated


def test_both_labels_replace_the_thresholds_of_references_for_good() -> None:
    post_processor = ClipSamPostProcessor()
    post_processor.use_thresholds(0.9, 0.9)
    validated(post_processor, [0, 0, 1, 1])
    assert post_processor.image_threshold.item() == pytest.approx(0.25)
    post_processor.use_thresholds(0.9, 0.9)
    assert post_processor.image_threshold.item() == pytest.approx(0.25)


def test_a_checkpoint_says_whether_labels_have_spoken(tmp_path) -> None:
    for labels in ([0, 0, 1, 1], [0, 0, 0, 0]):
        torch.save(validated(ClipSamPostProcessor(), labels).checkpoint_config(), tmp_path / "config.pt")
        other = ClipSamPostProcessor()
        other.load_checkpoint_config(torch.load(tmp_path / "config.pt", weights_only=True))
        assert other.calibrated == (len(set(labels)) == 2)


# ---------------------------------------------------------------- what is printed is what is decided


def scored(post_processor: ClipSamPostProcessor, scores: list[float]) -> tuple[list[float], list[bool]]:
    given = InferenceBatch(pred_score=torch.tensor(scores), anomaly_map=torch.zeros(len(scores), 1, 1))
    result = post_processor(given)
    image_batch = ImageBatch(image=torch.rand(len(scores), 3, 2, 2), **given._asdict())
    post_processor.on_predict_batch_end(None, None, image_batch)
    assert torch.equal(image_batch.pred_score, result.pred_score)
    assert torch.equal(image_batch.pred_label, result.pred_label)
    return [round(score, 4) for score in result.pred_score.tolist()], result.pred_label.tolist()


def test_scores_have_four_decimals_and_never_cross_the_threshold() -> None:
    found = scored(ClipSamPostProcessor(), [0.123449, 0.49999, 0.5, 0.50001, 0.5312499])
    assert found == ([0.1234, 0.5, 0.5, 0.5001, 0.5312], [False, False, False, True, True])


def test_a_threshold_from_the_table_gives_the_verdicts_of_the_table() -> None:
    torch.manual_seed(0)
    raw = torch.rand(500).tolist()
    printed, _ = scored(ClipSamPostProcessor(), raw)
    for threshold in printed[:100]:
        again, verdicts = scored(ClipSamPostProcessor(image_sensitivity=1 - threshold), raw)
        assert again == printed
        assert verdicts == [score > threshold for score in printed]


# ---------------------------------------------------------------- outlines

MASK = torch.tensor([[1, 1, 0, 0, 0, 1], [1, 1, 0, 1, 0, 0]], dtype=torch.bool)
"""What SAM says, which the map overrules."""
MAP = torch.tensor([[0.9, 0.1, 0.6, 0.9, 0.9, 0.7], [0.7, 0.2, 0.3, 0.4, 0.1, 0.2]])


def decide(post_processor: ClipSamPostProcessor, score: float = 0.8, values: torch.Tensor = MAP) -> torch.Tensor:
    """Give the mask of one picture, which must be the same in a pass and in an export."""
    given = InferenceBatch(pred_score=torch.tensor([score]), anomaly_map=values[None], pred_mask=MASK[None])
    result = post_processor(given)
    for hook in (post_processor.on_test_batch_end, post_processor.on_predict_batch_end):
        again = ImageBatch(image=torch.rand(1, 3, 2, 6), **given._asdict())
        hook(None, None, again)
        assert torch.equal(torch.as_tensor(again.pred_mask), result.pred_mask)
        assert torch.equal(again.pred_label, result.pred_label)
    return result.pred_mask[0]


@pytest.mark.parametrize("value", [0.15, 0.35, 0.5, 0.65])
def test_the_outline_is_the_map_s(value: float) -> None:
    expected = value < MAP
    assert torch.equal(decide(ClipSamPostProcessor(pixel_threshold=value)), expected)
    assert torch.equal(decide(ClipSamPostProcessor(pixel_sensitivity=1 - value)), expected)
    assert torch.equal(decide(ClipSamPostProcessor(pixel_sensitivity=1 - value, enable_normalization=False)), expected)
    referred = ClipSamPostProcessor()
    referred.use_thresholds(0.5, value)
    assert torch.equal(decide(referred), expected)


def test_a_lower_threshold_makes_outlines_grow() -> None:
    outlines = [decide(ClipSamPostProcessor(pixel_threshold=value)) for value in (0.95, 0.8, 0.5, 0.25, 0.05)]
    for small, large in pairwise(outlines):
        assert (large | small).equal(large)
    assert [int(mask.sum()) for mask in outlines] == [3, 3, 6, 8, 12]


def test_a_defective_picture_has_an_outline() -> None:
    """Where the map passes nowhere, the hottest place is outlined: what has 0.9 of the highest value."""
    weak = MAP / 2
    assert torch.equal(decide(ClipSamPostProcessor(), values=weak), MAP >= 0.81)
    assert not decide(ClipSamPostProcessor(), score=0.3, values=weak).any()
    assert not decide(ClipSamPostProcessor(), values=torch.zeros_like(MAP)).any()  # there is no hottest place


def test_a_good_part_has_an_empty_mask() -> None:
    assert not decide(ClipSamPostProcessor(), score=0.2).any()
    assert not decide(ClipSamPostProcessor(image_threshold=0.85)).any()
    assert not decide(ClipSamPostProcessor(image_sensitivity=0.1)).any()
    assert torch.equal(decide(ClipSamPostProcessor(keep_good_masks=True), score=0.2), MAP > 0.5)


def test_without_thresholding_the_mask_is_the_model_s() -> None:
    given = InferenceBatch(pred_score=torch.tensor([0.1]), anomaly_map=MAP[None], pred_mask=MASK[None])
    assert torch.equal(ClipSamPostProcessor(enable_thresholding=False)(given).pred_mask[0], MASK)


def test_a_label_that_is_given_stays() -> None:
    """The refiner of an export in two parts does not know the image score."""
    given = InferenceBatch(
        pred_score=torch.tensor([0.1]),
        pred_label=torch.tensor([True]),
        anomaly_map=MAP[None],
        pred_mask=MASK[None],
    )
    result = ClipSamPostProcessor()(given)
    assert result.pred_label.tolist() == [True]
    assert torch.equal(result.pred_mask[0], MAP > 0.5)


def parts(*kept: int) -> torch.Tensor:
    """Keep some of the two connected parts of the map above 0.5: that of 2 pixels, and that of 4."""
    mask = MAP > 0.5
    if 0 not in kept:
        mask[:, :2] = False
    if 1 not in kept:
        mask[:, 2:] = False
    return mask


@pytest.mark.parametrize(("min_area", "kept"), [(80, (0, 1)), (81, (1,)), (160, (1,)), (161, ())])
def test_least_area_is_in_pixels_of_the_file(tmp_path: Path, min_area: int, kept: tuple[int, ...]) -> None:
    """A map of 2 x 6 pixels, and a file of 48 x 10: 40 of its pixels are one of the map's."""
    Image.new("RGB", (48, 10)).save(tmp_path / "part.png")
    post_processor = ClipSamPostProcessor(min_area=min_area)
    given = InferenceBatch(pred_score=torch.tensor([0.8]), anomaly_map=MAP[None], pred_mask=MASK[None])
    image_batch = ImageBatch(image=torch.rand(1, 3, 64, 64), image_path=[str(tmp_path / "part.png")], **given._asdict())
    post_processor.on_predict_batch_end(None, None, image_batch)
    assert torch.equal(torch.as_tensor(image_batch.pred_mask)[0], parts(*kept))
    assert torch.equal(post_processor(given, (10, 48)).pred_mask[0], parts(*kept))


def test_least_area_without_a_file_is_in_pixels_of_the_image() -> None:
    given = InferenceBatch(pred_score=torch.tensor([0.8]), anomaly_map=MAP[None], pred_mask=MASK[None])
    for paths in (None, ["gone.png"]):
        for min_area, kept in ((80, (0, 1)), (81, (1,))):
            image_batch = ImageBatch(image=torch.rand(1, 3, 10, 48), image_path=paths, **given._asdict())
            ClipSamPostProcessor(min_area=min_area).on_predict_batch_end(None, None, image_batch)
            assert torch.equal(torch.as_tensor(image_batch.pred_mask)[0], parts(*kept))


# ---------------------------------------------------------------- thresholds by hand


def test_no_pass_changes_a_threshold_by_hand() -> None:
    post_processor = ClipSamPostProcessor(image_threshold=0.0, pixel_threshold=0.875)
    assert not post_processor.needs_calibration
    validated(post_processor, [0, 0, 1, 1])
    post_processor.use_thresholds(0.4, 0.7)
    post_processor.load_state_dict(calibrated().state_dict())
    assert thresholds(post_processor) == (0.0, 0.875)
    assert (post_processor.image_min, post_processor.image_max) == (0, 1)
    post_processor = validated(ClipSamPostProcessor(pixel_threshold=0.875), [0, 0, 1, 1])
    assert post_processor.needs_calibration
    assert thresholds(post_processor) == pytest.approx((0.25, 0.875))  # the other one is calibrated all the same


def test_a_threshold_by_hand_decides() -> None:
    result = ClipSamPostProcessor(image_threshold=0.75)(predictions())
    assert result.pred_label.tolist() == [False, False, False, True]
    assert result.pred_score.tolist() == [0.0, 0.25, 0.5, 0.75]  # as in all of anomalib, 0.5 is the threshold


def test_a_threshold_by_hand_reaches_a_checkpoint_and_its_reader(tmp_path: Path) -> None:
    torch.save(ClipSamPostProcessor(image_threshold=0.75).state_dict(), tmp_path / "state.pt")
    other = ClipSamPostProcessor()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert thresholds(other) == (0.75, 0.5)


def test_what_was_chosen_wins_over_a_checkpoint() -> None:
    config = ClipSamPostProcessor(image_sensitivity=0.8, pixel_sensitivity=0.7).checkpoint_config()
    other = ClipSamPostProcessor(image_sensitivity=0.3)
    other.load_checkpoint_config(config)
    assert (other.image_sensitivity, other.pixel_sensitivity) == (0.3, 0.7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_threshold": 1.5}, r"image_threshold is 1\.5, but scores and maps lie between 0 and 1"),
        ({"pixel_threshold": -0.1}, r"pixel_threshold is -0\.1"),
        ({"image_threshold": float("nan")}, "image_threshold is nan"),
        ({"min_area": -1}, "min_area is -1, but it is a number of pixels"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClipSamPostProcessor(**arguments)


# ---------------------------------------------------------------- in a graph


class Graph(torch.nn.Module):
    """What an export holds of the post-processor."""

    def __init__(self, post_processor: ClipSamPostProcessor) -> None:
        super().__init__()
        self.post_processor = post_processor

    def forward(self, image: torch.Tensor, score: torch.Tensor, anomaly_map: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = InferenceBatch(pred_score=score, anomaly_map=anomaly_map)
        result = self.post_processor(given, image.shape[-2:])
        return result.pred_label, result.pred_mask


def test_a_graph_decides_as_a_pass(tmp_path: Path) -> None:
    torch.manual_seed(0)
    noise = torch.nn.functional.avg_pool2d(torch.rand(5, 1, 34, 44), 5, stride=1)[:, 0]  # (5, 30, 40), ragged parts
    anomaly_map = ((noise - 0.5) * 4 + 0.3).clamp(0, 1)
    anomaly_map[3] = 0.1
    anomaly_map[3, 5:15, 5:15] = 0.5
    score = torch.tensor([0.2, 0.55, 0.7, 0.9, 0.95])
    graph = Graph(ClipSamPostProcessor(image_threshold=0.6, pixel_threshold=0.54, min_area=90)).eval()
    batch, height, width = (torch.export.Dim(name) for name in ("batch", "height", "width"))
    torch.onnx.export(
        graph,
        (torch.rand(2, 3, 8, 8), score[:2], anomaly_map[:2]),
        tmp_path / "post.onnx",
        dynamo=True,
        opset_version=18,
        optimize=False,
        input_names=["image", "score", "map"],
        output_names=["label", "mask"],
        dynamic_shapes=({0: batch, 2: height, 3: width}, {0: batch}, {0: batch}),
    )
    image = torch.rand(5, 3, 60, 120)  # 6 of its pixels are one of the map's
    label, mask = graph(image, score, anomaly_map)
    whole = anomaly_map > 0.54
    assert label.tolist() == [False, False, True, True, True]
    by_label = whole & label.view(-1, 1, 1)
    assert 0 < mask.sum() < by_label.sum() < whole.sum()  # each rule takes some away
    assert mask[3].any()  # and the hottest place is added
    assert not whole[3].any()
    names = {"image": image.numpy(), "score": score.numpy(), "map": anomaly_map.numpy()}
    session = onnxruntime.InferenceSession(tmp_path / "post.onnx", providers=["CPUExecutionProvider"])
    for found, expected in zip(session.run(["label", "mask"], names), (label, mask), strict=True):
        assert np.array_equal(found, expected.numpy())
    compiled = openvino.compile_model(tmp_path / "post.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    answer = compiled(names)
    assert np.array_equal(answer["mask"], mask.numpy())
