# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Which images a comparison takes, and which a model has seen before."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from anomalib import LearningType

from anomalib_clipsam.compare.run import (
    Measurement,
    choose,
    peak_memory,
    reset_peak_memory,
    seen_images,
    shown_images,
    spread,
)
from anomalib_clipsam.compare.table import TEST_BATCH


def dataset(good: int, defective: int) -> Any:
    """Files of 10 good and any number of defective images, as anomalib's data sets list them."""
    paths = [f"test/crack/{index:02}.png" for index in range(defective)]
    paths += [f"test/good/{index:02}.png" for index in range(good)]
    labels = [1] * defective + [0] * good
    return SimpleNamespace(samples=pd.DataFrame({"image_path": paths, "label_index": labels}))


@pytest.mark.parametrize(
    ("good", "defective", "count", "expected"),
    [
        (5, 5, 4, [0, 4, 5, 9]),
        (5, 5, 6, [0, 2, 4, 5, 7, 9]),
        (1, 7, 4, [0, 3, 6, 7]),  # too few good ones: more defective ones
        (7, 1, 4, [0, 1, 4, 7]),
        (2, 2, 100, [0, 1, 2, 3]),
        (0, 5, 3, [0, 2, 4]),
    ],
)
def test_half_of_the_images_are_defective_as_far_as_they_go(
    good: int, defective: int, count: int, expected: list[int]
) -> None:
    assert choose(dataset(good, defective), count) == expected


def test_images_of_each_kind_are_shown_evenly_over_the_files() -> None:
    assert shown_images(dataset(5, 3), 2) == {
        "test/good/00.png",
        "test/good/04.png",
        "test/crack/00.png",
        "test/crack/02.png",
    }
    assert shown_images(dataset(5, 3), 0) == set()
    assert list(spread(["a"], 1)) == ["a"]
    assert list(spread([], 3)) == []


def test_memory_of_a_run_on_the_cpu_is_that_of_the_process_where_there_is_a_gpu_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was 0, what was allocated on the GPU."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda device: 5e6 * (device.index or 1))
    reset_peak_memory()
    on_cpu = peak_memory(torch.device("cpu"))
    assert math.isnan(on_cpu) or on_cpu > 50
    assert peak_memory(torch.device("cuda", 2)) == 10


def test_times_wait_for_the_device_that_the_network_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = []
    monkeypatch.setattr("torch.accelerator.synchronize", waited.append)
    measurement = Measurement(dataset(1, 1), 16)
    for device in ("cpu", "meta"):  # no other device is always there
        network = torch.nn.Linear(2, 2, device=device).eval()
        measurement.watch(network)
        network(torch.rand(3, 2, device=device))
        network(torch.rand(3, 2, device=device))
    assert waited == [torch.device("meta")] * 5
    assert [images for _, images in measurement.seconds] == [3, 3, 3, 3]


def test_scores_come_to_the_cpu_before_they_are_doubles() -> None:
    """MPS has no doubles; neither has this tensor, unless it is on the CPU."""

    class Single(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
            if func is torch.Tensor.double:
                pytest.fail("double() on the device")
            result = super().__torch_function__(func, types, args, kwargs or {})
            return result.as_subclass(torch.Tensor) if func is torch.Tensor.cpu else result

    measurement = Measurement(dataset(1, 1), 16)
    scores = torch.tensor([0.25, 0.5]).as_subclass(Single)
    paths = ["test/good/00.png", "test/crack/00.png"]
    measurement.mask = lambda _path: None
    outputs = SimpleNamespace(anomaly_map=None, pred_score=scores, gt_label=torch.tensor([0, 1]), image_path=paths)
    measurement.on_test_batch_end(None, SimpleNamespace(post_processor=None), outputs, None, 0)
    assert measurement.scores == [0.25, 0.5]


@pytest.mark.parametrize(
    ("about", "seen"),
    [
        ({"learning_type": LearningType.ZERO_SHOT}, 0),
        ({"learning_type": LearningType.FEW_SHOT, "k_shot": 4}, 4),
        ({"learning_type": LearningType.ONE_CLASS}, 7),
        ({"learning_type": LearningType.ZERO_SHOT, "compares_batch": True}, TEST_BATCH),
    ],
)
def test_what_a_model_has_seen_is_counted_and_a_batch_is_marked(about: dict[str, Any], seen: int) -> None:
    assert seen_images(SimpleNamespace(**about), SimpleNamespace(train_data=range(7))) == seen
