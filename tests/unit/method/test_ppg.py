# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Point prompts on maps of 4 x 8 pixels in a frame of 16: a map pixel is 128 px of the canvas, 2 px of the frame."""

import math

import pytest
import torch

from anomalib_clipsam.method.ppg import PointPromptGenerator, PointPrompts, pick_ranked, pick_spaced

PIXEL = 128
"""Pixels of the 1024 px canvas that one pixel of a map 8 wide makes up."""

MAP = torch.tensor(
    [
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 0.9, 0.8, 0.0, 0.0, 0.0, 0.7, 0.0],
        [0.0, 0.6, 0.85, 0.0, 0.0, 0.75, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    ],
)
FEATURES = torch.ones(1, 2, 8, 8)


def generator(**arguments: object) -> PointPromptGenerator:
    return PointPromptGenerator(
        **{
            "frame_size": 16,
            "min_score": 0.5,
            "region_ratio": 0.5,
            "num_positives": 3,
            "num_negatives": 3,
            "interval": 50.0,
            **arguments,
        }
    )


def in_frame(*points: tuple[int, int]) -> list[list[float]]:
    """Centres of map pixels x, y in the frame, whose pixels are half as large: 0.5 and 2.5 and so on."""
    return [[2 * x + 0.5, 2 * y + 0.5] for x, y in points]


def positives(prompts: PointPrompts, count: int) -> tuple[list, list]:
    return prompts.coords[0, :count].tolist(), prompts.labels[0, :count].tolist()


# ---------------------------------------------------------------- region


def region(values: list[float], min_score: float, region_ratio: float) -> list[bool]:
    found = generator(min_score=min_score, region_ratio=region_ratio).extreme_region(torch.tensor([[values]]))
    return found[0, 0].tolist()


def test_region_must_reach_the_floor() -> None:
    assert region([0.49, 0.5, 0.51], 0.5, 0.0) == [False, True, True]


def test_region_must_reach_the_share_of_the_maximum() -> None:
    assert region([0.39, 0.4, 0.8], 0.0, 0.5) == [False, True, True]


@pytest.mark.parametrize(
    ("min_score", "region_ratio", "expected"),
    [
        (0.5, 0.5, [False, True, True]),  # the floor decides: 0.5 > 0.4
        (0.2, 0.75, [False, True, True]),  # the share decides: 0.6 > 0.2
        (0.61, 0.75, [False, False, True]),
        (0.2, 0.8, [False, False, True]),
        (0.81, 0.0, [False, False, False]),
    ],
)
def test_region_needs_both(min_score: float, region_ratio: float, expected: list[bool]) -> None:
    assert region([0.45, 0.6, 0.8], min_score, region_ratio) == expected


def test_black_map_has_no_region_whatever_the_thresholds() -> None:
    assert region([0.0, 0.0], 0.0, 0.0) == [False, False]


def test_each_image_has_its_own_maximum() -> None:
    found = generator(min_score=0.1, region_ratio=0.9).extreme_region(torch.tensor([[[0.2, 0.19]], [[0.8, 0.5]]]))
    assert found.tolist() == [[[True, True]], [[True, False]]]


@pytest.mark.parametrize("spacing", ["distance", "rank"])
def test_no_region_no_points(spacing: str) -> None:
    prompts = generator(spacing=spacing, min_score=0.95)(MAP[None], FEATURES)
    assert prompts.labels.tolist() == [[-1] * 6]
    assert prompts.coords.tolist() == [[[0.0, 0.0]] * 6]
    assert prompts.peak.tolist() == [0.0]
    assert not prompts.ring.any()
    assert torch.isfinite(prompts.similarity).all()


# ---------------------------------------------------------------- positives


@pytest.mark.parametrize(
    ("distance", "expected"),
    [
        (1.0, [(1, 1), (2, 2), (2, 1)]),  # all may be neighbours: simply the best
        (1.4, [(1, 1), (2, 2), (5, 2)]),  # (2, 1) is 1 away from both
        (2.0, [(1, 1), (5, 2)]),  # (6, 1) is 1.41 away from (5, 2)
        (4.0, [(1, 1), (5, 2)]),
        (4.2, [(1, 1), (6, 1)]),  # (5, 2) is 4.12 away, (6, 1) is 5
        (5.0, [(1, 1), (6, 1)]),  # as far as asked for is far enough
        (5.1, [(1, 1)]),
        (400.0, [(1, 1)]),
    ],
)
def test_positives_by_distance(distance: float, expected: list[tuple[int, int]]) -> None:
    prompts = generator(interval=distance * PIXEL)(MAP[None], FEATURES)
    missing = 3 - len(expected)
    assert positives(prompts, 3) == (
        in_frame(*expected) + [[0.0, 0.0]] * missing,
        [1] * len(expected) + [-1] * missing,
    )
    assert prompts.peak.item() == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        (1, [(1, 1), (2, 2), (2, 1)]),
        (2, [(1, 1), (2, 1), (6, 1)]),
        (3, [(1, 1), (5, 2)]),
        (5, [(1, 1), (1, 2)]),
        (6, [(1, 1)]),
        (100, [(1, 1)]),
    ],
)
def test_positives_by_rank(every: int, expected: list[tuple[int, int]]) -> None:
    prompts = generator(spacing="rank", interval=every * PIXEL**2)(MAP[None], FEATURES)
    missing = 3 - len(expected)
    assert positives(prompts, 3) == (
        in_frame(*expected) + [[0.0, 0.0]] * missing,
        [1] * len(expected) + [-1] * missing,
    )


def test_rank_steps_by_at_least_one() -> None:
    prompts = generator(spacing="rank", interval=1)(MAP[None], FEATURES)
    assert positives(prompts, 3)[0] == in_frame((1, 1), (2, 2), (2, 1))


def test_low_scores_outside_the_region_are_no_points() -> None:
    prompts = generator(region_ratio=0.9, interval=PIXEL)(MAP[None], FEATURES)  # 0.81 and more
    assert positives(prompts, 3) == ([*in_frame((1, 1), (2, 2)), [0.0, 0.0]], [1, 1, -1])


@pytest.mark.parametrize("pick", [pick_spaced, pick_ranked])
def test_pick_more_than_there_are_pixels(pick) -> None:
    scores = torch.tensor([[[0.1, 0.3, 0.2]]])
    assert pick(scores, scores > 0.15, 5, 1).tolist() == [[1, 2, -1, -1, -1]]
    assert pick(scores, scores > 1, 2, 1).tolist() == [[-1, -1]]
    assert pick(scores, scores > 0, 0, 1).shape == (1, 0)


@pytest.mark.parametrize("pick", [pick_spaced, pick_ranked])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_scores_that_are_not_finite_give_no_index_outside_the_map(pick, value) -> None:
    """On a GPU, such an index ends the process."""
    scores = torch.tensor([[[0.1, value, 0.2], [0.4, 0.3, 0.5]], [[0.1, 0.6, 0.2], [0.4, 0.3, 0.5]]])
    picked = pick(scores, scores > -1, 2, 1)
    picked_nan = pick(scores, torch.ones(2, 2, 3, dtype=torch.bool), 2, 1)
    for index in (picked, picked_nan):
        assert index[1].tolist() == [1, 5]
        assert ((index >= -1) & (index < 6)).all()


def test_features_that_are_not_finite_give_no_negatives() -> None:
    features = FEATURES.clone()
    features[0, 0, 3, 3] = torch.inf
    prompts = generator()(MAP[None], features)
    assert prompts.labels[0, :3].tolist() == [1, 1, 1]
    assert (prompts.coords >= 0).all()
    assert (prompts.coords <= 16).all()


def test_equal_scores_are_different_points() -> None:
    """A plateau, and a distance of less than a pixel: no pixel is picked twice."""
    scores = torch.ones(1, 2, 3)
    assert sorted(pick_spaced(scores, scores > 0, 6, 0.01)[0].tolist()) == [0, 1, 2, 3, 4, 5]
    assert sorted(pick_ranked(scores, scores > 0, 6, 1)[0].tolist()) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("seed", range(5))
def test_rounding_does_not_choose_among_equal_scores(seed) -> None:
    """What other runtimes round otherwise, in plateaus such as an upsampled coarse grid has."""
    torch.manual_seed(seed)
    plateaus = torch.rand(1, 3, 3).repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
    noisy = plateaus + 2e-7 * torch.randn_like(plateaus)
    picked = pick_spaced(noisy, plateaus >= 0, 6, 6)
    assert picked.tolist() == pick_spaced(plateaus, plateaus >= 0, 6, 6).tolist()
    assert picked[0, 0] == plateaus[0].argmax()  # the first pixel of the best cell


def test_a_higher_score_wins_wherever_it_is() -> None:
    scores = torch.full((1, 300, 500), 0.9)
    scores[0, 299, 499] += 1e-4
    assert pick_spaced(scores, scores > 0, 2, 1).tolist() == [[299 * 500 + 499, 0]]


@pytest.mark.parametrize(
    ("size", "frame", "pixel", "expected"),
    [
        ((4, 8), 16, (5, 2), (10.5, 4.5)),  # frame twice as fine: the centre of pixel 5 lies between pixels 10 and 11
        ((8, 4), 16, (2, 5), (4.5, 10.5)),
        ((4, 8), 8, (5, 2), (5.0, 2.0)),
        ((4, 8), 24, (5, 2), (16.0, 7.0)),  # three times as fine: pixel 16 is the middle one of 15, 16, 17
        ((4, 8), 4, (5, 2), (2.25, 0.75)),
        ((3, 6), 1024, (0, 0), (1024 / 12 - 0.5, 1024 / 12 - 0.5)),
        ((3, 6), 1024, (5, 2), (1024 * 11 / 12 - 0.5, 1024 * 5 / 12 - 0.5)),
    ],
)
def test_centre_of_a_pixel_stays_its_centre(
    size: tuple[int, int],
    frame: int,
    pixel: tuple[int, int],
    expected: tuple[float, float],
) -> None:
    anomaly_map = torch.zeros(1, *size)
    anomaly_map[0, pixel[1], pixel[0]] = 0.9
    prompts = PointPromptGenerator(frame)(anomaly_map, FEATURES)
    assert prompts.coords[0, 0].tolist() == pytest.approx(expected, abs=1e-4)


# ---------------------------------------------------------------- ring


def test_ring_is_the_dilation_less_the_region() -> None:
    found = torch.zeros(2, 5, 7, dtype=torch.bool)
    found[0, 2, 2:4] = True  # inside
    found[1, 0, 6] = True  # in a corner
    ring = generator(kernel_size=25).ring(found)  # a kernel that is less than a pixel becomes 3 x 3
    assert ring[0].int().tolist() == [
        [0, 0, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 1, 0, 0],
        [0, 1, 0, 0, 1, 0, 0],
        [0, 1, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
    ]
    assert ring[1].int().tolist() == [
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1, 1],
        [0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
    ]


def test_ring_scales_with_the_map() -> None:
    """On the canvas itself a kernel of 25 reaches 12 px; on a map a quarter as large, 3; the longer side counts."""
    for size, radius in (((16, 1024), 12), ((1024, 16), 12), ((9, 256), 3), ((9, 300), 4)):
        found = torch.zeros(1, *size, dtype=torch.bool)
        found[0, size[0] // 2, size[1] // 2] = True
        across = generator(kernel_size=25).ring(found)[0].any(dim=0 if size[1] > size[0] else 1)
        assert across.sum() == 2 * radius + 1
    wide = torch.zeros(1, 5, 7, dtype=torch.bool)
    wide[0, 2, 3] = True
    assert generator(kernel_size=587).ring(wide)[0].int().tolist() == [
        [0, 1, 1, 1, 1, 1, 0],
        [0, 1, 1, 1, 1, 1, 0],
        [0, 1, 1, 0, 1, 1, 0],
        [0, 1, 1, 1, 1, 1, 0],
        [0, 1, 1, 1, 1, 1, 0],
    ]


# ---------------------------------------------------------------- negatives

ANGLES = {(2, 0): 80, (3, 0): 75, (4, 0): 70, (2, 1): 60, (4, 1): 50, (2, 2): 40, (3, 2): 30, (4, 2): 20, (3, 1): 0}
"""Direction of SAM's feature at the positive point (3, 1) and at its eight neighbours, in degrees."""


def angular_features() -> torch.Tensor:
    """Features of those directions on an 8 x 8 grid, of any length, and opposite to the positive's elsewhere."""
    features = torch.tensor([-1.0, 0.0]).view(1, 2, 1, 1).repeat(1, 1, 8, 8)
    for i, ((x, y), angle) in enumerate(ANGLES.items()):
        direction = torch.tensor([math.cos(math.radians(angle)), math.sin(math.radians(angle))])
        features[0, :, y, x] = direction * (1 + 3 * (i % 3))
    return features


def single() -> torch.Tensor:
    anomaly_map = torch.zeros(1, 4, 8)
    anomaly_map[0, 1, 3] = 0.9
    return anomaly_map


def test_similarity_is_the_cosine() -> None:
    similarity = generator()(single(), angular_features()).similarity
    assert similarity.shape == (1, 4, 8)
    for (x, y), angle in ANGLES.items():
        assert similarity[0, y, x].item() == pytest.approx(math.cos(math.radians(angle)), abs=1e-6)
    assert similarity[0, 3, 7].item() == pytest.approx(-1)


@pytest.mark.parametrize(
    ("negatives", "distance", "expected"),
    [
        ("least_similar", 1, [(2, 0), (3, 0), (4, 0)]),
        ("least_similar", 2, [(2, 0), (4, 0), (2, 2)]),  # (2, 1) and (4, 1) lie next to the first two
        ("least_similar", 2.5, [(2, 0), (4, 2)]),
        ("most_similar", 1, [(4, 2), (3, 2), (2, 2)]),
        ("most_similar", 2, [(4, 2), (2, 2), (4, 0)]),
        ("most_similar", 2.5, [(4, 2), (2, 0)]),
    ],
)
def test_negatives_by_similarity(negatives: str, distance: float, expected: list[tuple[int, int]]) -> None:
    prompts = generator(negatives=negatives, interval=distance * PIXEL)(single(), angular_features())
    missing = 3 - len(expected)
    assert prompts.coords[0].tolist() == [
        *in_frame((3, 1)),
        [0.0, 0.0],
        [0.0, 0.0],
        *in_frame(*expected),
        *[[0.0, 0.0]] * missing,
    ]
    assert prompts.labels[0].tolist() == [1, -1, -1, *[0] * len(expected), *[-1] * missing]


def test_negatives_by_rank() -> None:
    prompts = generator(spacing="rank", interval=3 * PIXEL**2)(single(), angular_features())
    assert prompts.coords[0, 3:].tolist() == in_frame((2, 0), (2, 1), (3, 2))
    assert prompts.labels[0].tolist() == [1, -1, -1, 0, 0, 0]


def test_no_ring_no_negatives() -> None:
    """A region that fills the map."""
    prompts = generator()(torch.full((1, 4, 8), 0.9), FEATURES)
    assert prompts.labels[0, 0] == 1
    assert prompts.labels[0, 3:].tolist() == [-1, -1, -1]
    assert prompts.coords[0, 3:].tolist() == [[0.0, 0.0]] * 3


def test_negatives_turned_off() -> None:
    prompts = generator(num_negatives=0, num_positives=2, interval=PIXEL)(MAP[None], FEATURES)
    assert prompts.labels.tolist() == [[1, 1]]


def test_reference_is_the_mean_of_normalised_features() -> None:
    """Two positives on features of very different length count alike; what is no point does not count."""
    features = torch.zeros(1, 2, 2, 2)
    features[0, :, 0, 0] = torch.tensor([100.0, 0.0])
    features[0, :, 1, 1] = torch.tensor([0.0, 0.1])
    features[0, :, 0, 1] = torch.tensor([-3.0, 3.0])
    coords = torch.tensor([[[3.0, 3.0], [12.0, 12.0], [12.0, 0.0]]])  # frame of 16: cells of 8
    half = math.sqrt(0.5)
    similarity = generator().similarity(features, coords, torch.tensor([[1, 1, -1]]))
    expected = torch.tensor([[[half, 0.0], [0.0, half]]])  # a zero feature has no direction
    torch.testing.assert_close(similarity, expected, atol=1e-6, rtol=0)
    similarity = generator().similarity(features, coords, torch.tensor([[1, -1, 0]]))
    torch.testing.assert_close(similarity, torch.tensor([[[1.0, -half], [0.0, 0.0]]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("x", "cell"), [(-0.5, 0), (7.4, 0), (7.5, 1), (8.0, 1), (15.4, 1), (15.5, 1)])
def test_point_takes_the_feature_of_its_cell(x: float, cell: int) -> None:
    """A frame of 16 pixels in two cells: the border lies between pixels 7 and 8."""
    features = torch.eye(2).view(1, 2, 1, 2).expand(-1, -1, 2, -1)
    similarity = generator().similarity(features, torch.tensor([[[x, 0.0]]]), torch.tensor([[1]]))
    assert similarity[0, 0].tolist() == [float(cell == 0), float(cell == 1)]


def test_similarity_of_the_padding_is_left_out() -> None:
    """A map twice as wide as high sees the upper half of the frame, bilinearly."""
    features = torch.tensor([1.0, 1.0, -1.0, -1.0]).view(1, 1, 4, 1).expand(-1, -1, -1, 4)
    anomaly_map = torch.zeros(1, 4, 8)
    anomaly_map[0, 0, 0] = 1
    similarity = generator()(anomaly_map, features).similarity
    # rows of 8 pixels over 4 cells have their centres at -0.25, 0.25, 0.75, 1.25 and so on
    torch.testing.assert_close(similarity[0, :, 0], torch.tensor([1.0, 1.0, 1.0, 0.5]))


# ---------------------------------------------------------------- batches, arguments


@pytest.mark.parametrize("spacing", ["distance", "rank"])
def test_batch_equals_one_at_a_time(spacing: str) -> None:
    maps, features = torch.rand(4, 12, 9), torch.randn(4, 8, 6, 6)
    maps[1] *= 0.4  # nothing extreme
    maps[2, :, :] = 0.95  # all extreme
    generate = generator(spacing=spacing, interval=150)
    together = generate(maps, features)
    assert (together.coords.shape, together.labels.shape) == ((4, 6, 2), (4, 6))
    assert [labels.max().item() for labels in together.labels] == [1, -1, 1, 1]
    for i in range(4):
        alone = generate(maps[i : i + 1], features[i : i + 1])
        for name in ("coords", "labels", "ring", "peak"):
            assert torch.equal(getattr(together, name)[i : i + 1], getattr(alone, name))
        torch.testing.assert_close(together.similarity[i : i + 1], alone.similarity)


def test_points_lie_where_they_are_said_to() -> None:
    """Positives in the region, negatives in the ring, on many random maps."""
    maps, features = torch.rand(30, 10, 16), torch.randn(30, 4, 8, 8)
    generate = generator(min_score=0.9, interval=2 * 64)
    prompts = generate(maps, features)
    found = generate.extreme_region(maps)
    columns, rows = ((prompts.coords[..., i] + 0.5).long() for i in (0, 1))  # frame and map have one size
    image = torch.arange(30).unsqueeze(1).expand_as(rows)
    for label, allowed in ((1, found), (0, prompts.ring)):
        chosen = prompts.labels == label
        assert chosen.sum() > 60
        assert allowed[image[chosen], rows[chosen], columns[chosen]].all()
    assert set(prompts.labels[:, :3].unique().tolist()) <= {1, -1}
    assert set(prompts.labels[:, 3:].unique().tolist()) <= {0, -1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_score": -0.1}, "min_score is -0.1"),
        ({"min_score": 1.1}, "min_score is 1.1"),
        ({"min_score": float("nan")}, "min_score is nan"),
        ({"region_ratio": -1}, "region_ratio is -1"),
        ({"region_ratio": 80}, "region_ratio is 80"),
        ({"num_positives": 0}, "num_positives is 0"),
        ({"num_positives": -1}, "num_positives is -1"),
        ({"num_negatives": -1}, "num_negatives -1"),
        ({"interval": 0}, "interval is 0"),
        ({"interval": -400.0}, "interval is -400.0"),
        ({"interval": float("nan")}, "interval is nan"),
        ({"interval": float("inf")}, "interval is inf"),
        ({"kernel_size": 24}, "kernel_size is 24"),
        ({"kernel_size": 1}, "kernel_size is 1"),
        ({"kernel_size": 0}, "kernel_size is 0"),
        ({"kernel_size": -3}, "kernel_size is -3"),
        ({"spacing": "random"}, "Unknown spacing 'random'. Choose one of distance, rank"),
        ({"negatives": ""}, "Unknown negatives ''. Choose one of least_similar, most_similar"),
    ],
)
def test_wrong_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PointPromptGenerator(**arguments)
