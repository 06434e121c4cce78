# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Which images a comparison takes, and which a model has seen before."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from anomalib import LearningType

from anomalib_clipsam.compare.run import choose, seen_images, shown_images, spread
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
