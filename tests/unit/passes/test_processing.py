# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""anomalib's pre- and post-processor."""

import pytest
import torch
from anomalib.data import ImageBatch, InferenceBatch
from torch.nn import functional as F  # noqa: N812

from anomalib_clipsam.passes.processing import ClipSamPostProcessor, ClipSamPreProcessor

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
    assert result.pred_mask[0, 0].tolist() == [False, False, False, True, True]


def test_without_calibration_a_batch_gets_labels_and_masks() -> None:
    given = predictions()
    image_batch = ImageBatch(image=torch.rand(4, 3, 2, 5), **given._asdict())
    ClipSamPostProcessor().on_predict_batch_end(None, None, image_batch)
    assert torch.equal(image_batch.pred_score, given.pred_score)
    assert torch.equal(torch.as_tensor(image_batch.anomaly_map), given.anomaly_map)
    assert image_batch.pred_label.tolist() == [False, False, True, True]
    assert image_batch.pred_mask[0, 0].tolist() == [False, False, False, True, True]


def test_mask_of_the_model_is_kept() -> None:
    mask = torch.rand(4, 2, 5) > 0.5
    assert torch.equal(ClipSamPostProcessor()(predictions(mask)).pred_mask, mask)
    image_batch = ImageBatch(image=torch.rand(4, 3, 2, 5), **predictions(mask)._asdict())
    ClipSamPostProcessor().on_test_batch_end(None, None, image_batch)
    assert torch.equal(torch.as_tensor(image_batch.pred_mask), mask)


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
