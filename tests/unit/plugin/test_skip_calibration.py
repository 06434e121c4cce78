# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Passes that have nothing to calibrate, or nothing to calibrate on."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from anomalib.data import Folder
from lightning.pytorch import LightningDataModule

from anomalib_clipsam.plugin.post_processor import ClipSamPostProcessor
from anomalib_clipsam.plugin.skip_calibration import SkipCalibration


def folder(**subsets: object) -> Folder:
    data = Folder("parts", normal_dir="good", num_workers=0)
    vars(data).update(subsets)
    return data


def by_hand(val_metrics: tuple = ()) -> SimpleNamespace:
    post_processor = ClipSamPostProcessor(image_threshold=0.4, pixel_threshold=0.6)
    return SimpleNamespace(post_processor=post_processor, evaluator=SimpleNamespace(val_metrics=val_metrics))


MODEL = SimpleNamespace(post_processor=ClipSamPostProcessor(pixel_threshold=0.6), evaluator=None)
OTHER = SimpleNamespace(post_processor=None, evaluator=None)


class OwnLoader(Folder):
    """A user's data module that has no ``val_data``."""

    def val_dataloader(self) -> list:
        return [1]


@pytest.mark.parametrize("stage", ["validate", "fit"])
@pytest.mark.parametrize(
    ("data", "model", "reason"),
    [
        (folder(), MODEL, "no validation pictures (val_split_mode none)"),
        (folder(), OTHER, "no validation pictures (val_split_mode none)"),
        (folder(val_data=[1]), by_hand(), "both thresholds are set by hand"),
    ],
)
def test_pass_has_no_pictures_and_the_data_module_is_as_before_when_it_ends(
    caplog: pytest.LogCaptureFixture, stage: str, data: Folder, model: SimpleNamespace, reason: str
) -> None:
    before = dict(vars(data))
    for end in (lambda skip: skip.teardown(Mock(), model, stage), lambda skip: skip.on_exception(Mock(), model, None)):
        skip = SkipCalibration()
        with caplog.at_level(logging.INFO, logger="anomalib_clipsam"):
            skip.setup(SimpleNamespace(datamodule=data), model, stage)
        assert reason in caplog.text
        assert data.val_dataloader() == []
        end(skip)
        assert vars(data) == before
        caplog.clear()


@pytest.mark.parametrize(
    ("data", "model", "stage"),
    [
        (folder(val_data=[1]), MODEL, "validate"),  # one threshold is left to calibrate
        (folder(val_data=[1]), OTHER, "validate"),
        (folder(val_data=[1]), by_hand(val_metrics=("a metric",)), "validate"),
        (OwnLoader("parts", normal_dir="good"), MODEL, "validate"),
        (folder(), MODEL, "test"),
        (LightningDataModule(), MODEL, "validate"),
        (None, MODEL, "validate"),
    ],
)
def test_other_passes_are_left_alone(data: object, model: SimpleNamespace, stage: str) -> None:
    before = {} if data is None else dict(vars(data))
    SkipCalibration().setup(SimpleNamespace(datamodule=data), model, stage)
    assert before == ({} if data is None else vars(data))
