# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""anomalib's pre- and post-processor."""

from __future__ import annotations

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
    assert post_processor.image_threshold.item() == pytest.approx(0.3)
    assert post_processor.pixel_threshold.item() == pytest.approx(0.4)
    assert (post_processor.image_min.item(), post_processor.image_max.item()) == pytest.approx((0.1, 0.6))
    assert (post_processor.pixel_min.item(), post_processor.pixel_max.item()) == pytest.approx((0.0, 0.5))
    result = post_processor(
        InferenceBatch(pred_score=torch.tensor([0.1, 0.4]), anomaly_map=torch.full((2, 1, 1), 0.45))
    )
    assert result.pred_score.tolist() == pytest.approx([0.1, 0.7])  # (score - threshold) / range + 0.5
    assert result.pred_label.tolist() == [False, True]
    assert result.anomaly_map[0].item() == pytest.approx(0.6)


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
    assert post_processor.image_threshold.item() == pytest.approx(0.3)
    post_processor.use_thresholds(0.9, 0.9)
    assert post_processor.image_threshold.item() == pytest.approx(0.3)


def test_a_checkpoint_says_whether_labels_have_spoken(tmp_path) -> None:
    for labels in ([0, 0, 1, 1], [0, 0, 0, 0]):
        torch.save(validated(ClipSamPostProcessor(), labels).checkpoint_config(), tmp_path / "config.pt")
        other = ClipSamPostProcessor()
        other.load_checkpoint_config(torch.load(tmp_path / "config.pt", weights_only=True))
        assert other.calibrated == (len(set(labels)) == 2)


# ---------------------------------------------------------------- masks of the model

MASK = torch.tensor([[1, 1, 0, 0, 0, 1], [1, 1, 0, 1, 0, 0]], dtype=torch.bool)
"""Three parts, of 4, 1 and 1 pixels."""
MAP = torch.tensor([[0.9, 0.1, 0.9, 0.9, 0.9, 0.7], [0.7, 0.7, 0.9, 0.4, 0.9, 0.9]])
"""Means 0.6, 0.4 and 0.7 in these."""


def decide(post_processor: ClipSamPostProcessor, score: float = 0.8, mask: torch.Tensor | None = MASK) -> torch.Tensor:
    """Give the mask of one picture, which must be the same in a pass and in an export."""
    given = InferenceBatch(
        pred_score=torch.tensor([score]), anomaly_map=MAP[None], pred_mask=None if mask is None else mask[None]
    )
    result = post_processor(given)
    for hook in (post_processor.on_test_batch_end, post_processor.on_predict_batch_end):
        again = ImageBatch(image=torch.rand(1, 3, 2, 6), **given._asdict())
        hook(None, None, again)
        assert torch.equal(torch.as_tensor(again.pred_mask), result.pred_mask)
        assert torch.equal(again.pred_label, result.pred_label)
    return result.pred_mask[0]


def parts(*kept: int) -> torch.Tensor:
    """Keep some of the three parts: 0 the large one, 1 the lower one, 2 the one at the edge."""
    columns = [(0, 1), (3,), (5,)]
    mask = torch.zeros_like(MASK)
    for part in kept:
        mask[:, columns[part]] = MASK[:, columns[part]]
    return mask


def test_a_part_of_the_mask_stays_where_the_mean_of_the_map_passes() -> None:
    assert torch.equal(decide(ClipSamPostProcessor()), parts(0, 2))


@pytest.mark.parametrize(("value", "kept"), [(0.35, (0, 1, 2)), (0.65, (2,)), (0.75, ())])
def test_sensitivity_and_threshold_move_masks(value: float, kept: tuple[int, ...]) -> None:
    assert torch.equal(decide(ClipSamPostProcessor(pixel_threshold=value)), parts(*kept))
    assert torch.equal(decide(ClipSamPostProcessor(pixel_sensitivity=1 - value)), parts(*kept))
    assert torch.equal(
        decide(ClipSamPostProcessor(pixel_sensitivity=1 - value, enable_normalization=False)), parts(*kept)
    )
    referred = ClipSamPostProcessor()
    referred.use_thresholds(0.5, value)
    assert torch.equal(decide(referred), parts(*kept))


def test_calibration_moves_masks() -> None:
    assert calibrated().pixel_threshold.item() == pytest.approx(0.4)
    post_processor = calibrated()
    post_processor._pixel_threshold.fill_(0.65)  # what other labels would have said
    assert torch.equal(decide(post_processor), parts(2))


def test_a_mean_beyond_the_calibrated_range_is_not_that_of_clamped_pixels() -> None:
    """Normalised maps are clamped to [0, 1]: here the part's pixels would be 0.5 and 1, and its mean passes."""
    post_processor = calibrated()  # threshold 0.4, range 0.5
    mask = torch.zeros(1, 2, 6, dtype=torch.bool)
    mask[0, 0, 1:3] = True  # 0.1 and 0.9 of the map
    post_processor._pixel_threshold.fill_(0.45)
    given = InferenceBatch(pred_score=torch.tensor([0.8]), anomaly_map=MAP[None], pred_mask=mask)
    assert post_processor(given).pred_mask.sum() == 2  # mean 0.5


@pytest.mark.parametrize("mask", [MASK, None])
def test_a_good_part_has_an_empty_mask(mask: torch.Tensor | None) -> None:
    assert not decide(ClipSamPostProcessor(), score=0.2, mask=mask).any()
    assert not decide(ClipSamPostProcessor(image_threshold=0.85), mask=mask).any()
    assert not decide(ClipSamPostProcessor(image_sensitivity=0.1), mask=mask).any()
    expected = parts(0, 2) if mask is not None else MAP > 0.5
    assert torch.equal(decide(ClipSamPostProcessor(), mask=mask), expected)
    assert torch.equal(decide(ClipSamPostProcessor(keep_good_masks=True), score=0.2, mask=mask), expected)


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
    assert torch.equal(result.pred_mask[0], parts(0, 2))


@pytest.mark.parametrize(("min_area", "kept"), [(40, (0, 2)), (41, (0,)), (160, (0,)), (161, ())])
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
        for min_area, kept in ((40, (0, 2)), (41, (0,))):
            image_batch = ImageBatch(image=torch.rand(1, 3, 10, 48), image_path=paths, **given._asdict())
            ClipSamPostProcessor(min_area=min_area).on_predict_batch_end(None, None, image_batch)
            assert torch.equal(torch.as_tensor(image_batch.pred_mask)[0], parts(*kept))


def test_least_area_holds_for_masks_by_threshold() -> None:
    kept = decide(ClipSamPostProcessor(min_area=6, pixel_threshold=0.75), mask=None)
    assert torch.equal(kept, torch.tensor([[0, 0, 1, 1, 1, 0], [0, 0, 1, 0, 1, 1]], dtype=torch.bool))
    assert not decide(ClipSamPostProcessor(min_area=7, pixel_threshold=0.75), mask=None).any()


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
    assert thresholds(post_processor) == pytest.approx((0.3, 0.875))  # the other one is calibrated all the same


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
        given = InferenceBatch(pred_score=score, anomaly_map=anomaly_map, pred_mask=anomaly_map > 0.4)
        result = self.post_processor(given, image.shape[-2:])
        return result.pred_label, result.pred_mask


def test_a_graph_decides_as_a_pass(tmp_path: Path) -> None:
    torch.manual_seed(0)
    noise = torch.nn.functional.avg_pool2d(torch.rand(5, 1, 34, 44), 5, stride=1)[:, 0]  # (5, 30, 40), ragged parts
    anomaly_map = ((noise - 0.5) * 4 + 0.3).clamp(0, 1)
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
    whole = anomaly_map > 0.4
    assert label.tolist() == [False, False, True, True, True]
    areas, means = (
        ClipSamPostProcessor(image_threshold=0.6, **one) for one in ({"min_area": 90}, {"pixel_threshold": 0.54})
    )
    decided = [whole & label.view(-1, 1, 1), *(Graph(one)(image, score, anomaly_map)[1] for one in (areas, means))]
    assert all(0 < mask.sum() < other.sum() < whole.sum() for other in decided)  # each rule takes some away
    names = {"image": image.numpy(), "score": score.numpy(), "map": anomaly_map.numpy()}
    session = onnxruntime.InferenceSession(tmp_path / "post.onnx", providers=["CPUExecutionProvider"])
    for found, expected in zip(session.run(["label", "mask"], names), (label, mask), strict=True):
        assert np.array_equal(found, expected.numpy())
    compiled = openvino.compile_model(tmp_path / "post.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    answer = compiled(names)
    assert np.array_equal(answer["mask"], mask.numpy())
