# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The judges on small tensors: distances, calibrated and joined with the text; pictures collected and recalled."""

from __future__ import annotations

import logging
import math
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import torch

from anomalib_clipsam.references import (
    BatchJudge,
    BatchReference,
    FewShotJudge,
    FewShotReference,
    Judge,
    SelfJudge,
    TiledBatchJudge,
    build_judge,
    picture_key,
    quarter_turns,
    smooth_scores,
)
from anomalib_clipsam.references.bounds import image_level, pixel_level
from anomalib_clipsam.references.distances import batch
from anomalib_clipsam.references.distances.features import patches_of
from anomalib_clipsam.references.judge import HALO, Answer, Levels, Thresholds, View, reasons

if TYPE_CHECKING:
    from collections.abc import Iterator

GRID, SIZE = (3, 4), (6, 8)


def localizer(**more: object) -> SimpleNamespace:
    """What a judge asks of a localizer."""
    about = {"joins_taps": False, "reference_sigma": 0.0, "usual_self_distance": None, "depth": 12}
    return SimpleNamespace(reference_taps=(3, 6, 9, 12), **{**about, **more})


def judge_of(references: str = "none", k_shot: int = 0, known: tuple | None = None, **options: object) -> Judge:
    return build_judge(localizer(usual_self_distance=known), references, k_shot, options)


def views(number: int, seed: int = 0) -> View:
    """Text maps, text scores and two taps of some pictures."""
    generator = torch.Generator().manual_seed(seed)
    shared = [torch.randn(1, channels, *GRID, generator=generator) for channels in (5, 7)]
    taps = tuple(tap + 0.3 * torch.randn(number, *tap.shape[1:], generator=generator) for tap in shared)
    return View(torch.rand(number, *SIZE, generator=generator), torch.rand(number, generator=generator), taps)


def one(looked: View, index: int) -> View:
    """The look at one of several pictures."""
    return View(
        looked[0][index : index + 1],
        looked[1][index : index + 1],
        tuple(tap[index : index + 1] for tap in looked[2]),
    )


def collect(judge: BatchJudge, looked: tuple, count: int | None = None, per_batch: int = 2) -> list[str]:
    """Collect pictures in batches, as a pass does."""
    number = len(looked[0])
    keys = [f"picture {index}" for index in range(number)]
    judge.begin(number if count is None else count)
    for first in range(0, number, per_batch):
        part = slice(first, first + per_batch)
        judge.collect(keys[part], looked[0][part], looked[1][part], tuple(tap[part] for tap in looked[2]))
    return keys


def test_no_reference_is_no_judge() -> None:
    assert judge_of("none") is None


@pytest.mark.parametrize(
    ("references", "k_shot", "kind"), [("self", 0, SelfJudge), ("batch", 0, BatchJudge), ("self", 2, FewShotJudge)]
)
def test_good_parts_go_before_the_pair_s_own_reference(references: str, k_shot: int, kind: type) -> None:
    assert type(judge_of(references, k_shot)) is kind


@pytest.mark.parametrize("known", [(0.1, 0.3), None])
def test_text_and_reference_meet_as_probabilities_in_the_stated_shares(known: tuple | None) -> None:
    judge = judge_of("self", known=known, text_share=0.25, text_score_share=0.5, peak_share=0.0)
    text_map, text_score, taps = views(2)
    anomaly_map, score, _ = judge(text_map, text_score, taps)
    distance = judge.reference(taps, SIZE)
    if known is None:
        low, usual, high = (distance.flatten(1).quantile(q, dim=1).view(-1, 1, 1) for q in (0.25, 0.5, 0.75))
        limit = 6 * (high - low)
    else:
        usual, limit = torch.tensor(0.1), torch.tensor(0.2)
    excess = (distance - usual).clamp(min=0)
    probability = excess / (excess + limit)
    torch.testing.assert_close(anomaly_map, 0.25 * text_map + 0.75 * probability)
    torch.testing.assert_close(score, 0.5 * text_score + 0.5 * probability.flatten(1).amax(dim=1))


def test_raw_is_half_the_distance() -> None:
    looked = views(6)
    judge = judge_of("batch", raw=True, text_share=0.0, text_score_share=0.0, peak_share=0.0)
    anomaly_map, score, _ = judge(*looked)
    reference = BatchReference()
    distance = reference.to_map(reference.distances(looked[2]), SIZE)
    torch.testing.assert_close(anomaly_map, distance / 2)
    torch.testing.assert_close(score, distance.flatten(1).amax(dim=1) / 2)


# ---------------------------------------------------------------- good parts


class Viewer:
    """Looks at pictures: each column of 2 pixels is a view, and picture or tile i is all i; a tile at a time.

    The map of a picture is that of its tiles side by side, its score their highest.
    """

    def __init__(self, looked: tuple) -> None:
        self.looked, self.seen = looked, []

    def count_views(self, image: torch.Tensor) -> int:
        return image.shape[-1] // 2

    def views(self, image: torch.Tensor) -> Iterator[tuple]:
        if image.unique().tolist() == [0.5]:  # the empty frame
            yield View(torch.zeros(1, *SIZE), torch.zeros(1), tuple(torch.ones_like(tap[:1]) for tap in self.looked[2]))
            return
        for column in range(0, image.shape[-1], 2):
            self.seen.append(int(image[0, 0, 0, column]))
            yield one(self.looked, self.seen[-1])

    def join(self, image: torch.Tensor, answers: Iterator[Answer]) -> Answer:
        maps, scores, _ = zip(*answers, strict=True)
        assert len(maps) == self.count_views(image)
        return Answer(torch.cat(maps, dim=2), torch.cat(scores).amax(dim=0, keepdim=True))


def learn(judge: FewShotJudge, looked: tuple) -> torch.Tensor:
    """Show good parts, whose looks are given; picture i is all i."""
    images = torch.arange(len(looked[0])).float().view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    viewer = Viewer(looked)
    judge.learn(images, viewer)
    assert viewer.seen == list(range(len(looked[0])))  # once each
    return images


def levelled(judge: FewShotJudge, good: View, distance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps and scores of good parts, each with the text measured against that of the others."""
    scores, combination = [], judge.combination
    kept = combination.text_score_level
    for part in range(len(distance)):
        others = [score for place, score in enumerate(good[1]) if place != part]
        combination.text_score_level = min(max(float(torch.stack(others).amax()), 0.1), 0.99)
        maps, found = combination(*good[:2], judge.calibration(distance))
        scores.append(found[part])
    combination.text_score_level = kept
    return maps, torch.stack(scores)


def left_out(judge: FewShotJudge, looked: tuple, others: list[int], place: int) -> torch.Tensor:
    """The map of distances of a look to some others."""
    reference = FewShotReference()
    reference.memorise(tuple(tap[others] for tap in looked[2]))
    return reference(one(looked, place)[2], SIZE)


def test_good_parts_say_what_becomes_the_threshold() -> None:
    judge, good = judge_of(k_shot=4), views(4)
    learn(judge, good)
    distance = torch.cat([left_out(judge, good, [i for i in range(4) if i != part], part) for part in range(4)])
    assert judge.calibration.half_point == distance.amax()
    assert judge.max_median_distance == distance.flatten(1).median(dim=1).values.amax()
    assert judge.combination.text_level == pytest.approx(pixel_level([good.map]))
    assert judge.combination.text_score_level == pytest.approx(min(good.score.amax().item(), 0.99))
    maps, scores = levelled(judge, good, distance)
    assert judge.levels == Levels(pytest.approx(image_level(scores)), pytest.approx(pixel_level([maps])), HALO)
    assert judge.thresholds == Thresholds(0.5, 0.5)
    half = judge_of(k_shot=4, passing_share=0.5)
    learn(half, good)
    assert half.levels.image == pytest.approx(scores.sort().values[1].item())


def test_few_false_alarms_are_wished_by_a_higher_level() -> None:
    levels = []
    for wished in (0.4, 0.15, 0.05):
        judge = build_judge(localizer(), "none", 4, {}, false_alarms=wished)
        learn(judge, views(4))
        levels.append(judge.levels.image)
    assert levels == sorted(set(levels))
    with pytest.raises(ValueError, match=r"false_alarms is 0\.6, but it is a share"):
        build_judge(localizer(), "none", 4, {}, false_alarms=0.6)


def test_the_level_becomes_0_5_and_what_is_unlike_every_good_part_is_never_good() -> None:
    judge, good = judge_of(k_shot=4), views(4)
    learn(judge, good)
    given = Answer(torch.full((2, *SIZE), judge.levels.pixel), torch.full((2,), judge.levels.image))
    finished = judge.finish(given._replace(unlike=torch.tensor([False, True])))
    torch.testing.assert_close(finished.map, torch.full((2, *SIZE), 0.5))
    assert finished.score.tolist() == [pytest.approx(0.5), 1.0]
    sure = judge.finish(Answer(given.map, torch.ones(2), torch.tensor([False, False])))
    assert sure.score.amax() < 1  # nothing else has that score
    assert reasons(torch.tensor([0.999999, 1.0]), judge) == ["", "unlike every good part"]
    assert reasons(torch.tensor([1.0]), None) == ["a frame without structure"]


def test_an_empty_frame_is_unlike_good_parts_that_are_like_each_other() -> None:
    judge = judge_of(k_shot=3)
    learn(judge, views(3))
    blank = tuple(torch.ones(1, channels, *GRID) for channels in (5, 7))
    empty = judge.reference(blank, SIZE).median().item()
    assert judge.unlike_distance == pytest.approx(math.sqrt(judge.max_median_distance * empty), rel=1e-4)
    assert judge(torch.zeros(1, *SIZE), torch.zeros(1), blank).unlike.tolist() == [True]


def test_copies_among_good_parts_count_once(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    good, pictures = views(3), torch.rand(3, 3, 64, 64)
    noisy = (pictures[1] + 0.004 * torch.randn(3, 64, 64)).clamp(0, 1)

    class Named(Viewer):
        def count_views(self, image: torch.Tensor) -> int:
            return 1

        def views(self, image: torch.Tensor) -> Iterator[tuple]:
            if image.unique().tolist() == [0.5]:
                yield from super().views(image)
                return
            self.seen.append(int((pictures - image).abs().flatten(1).mean(dim=1).argmin()))
            yield one(self.looked, self.seen[-1])

    judge, viewer = judge_of(k_shot=5), Named(good)
    with caplog.at_level(logging.WARNING, "anomalib_clipsam"):
        judge.learn([pictures[0], pictures[0], pictures[1], pictures[2], noisy], viewer)
    assert "these show the same as an earlier one: number 2, 5. They do not count, and 3 are left" in caplog.text
    assert (judge.copies, viewer.seen, len(judge.sources)) == ((1, 4), [0, 1, 2], 5)
    three = judge_of(k_shot=3)
    three.learn(list(pictures), Named(good))
    assert judge.levels == three.levels
    assert judge.reference.size == three.reference.size


def test_a_checkpoint_of_an_earlier_version_shifts_nothing() -> None:
    judge, good = judge_of(k_shot=3), views(3)
    learn(judge, good)
    state, other = judge.state(), judge_of(k_shot=3)
    other.restore(state)
    found, expected = (one.finish(one(*views(2, seed=3))) for one in (other, judge))
    torch.testing.assert_close(found.map, expected.map, atol=5e-3, rtol=0)  # patches are kept in half precision
    torch.testing.assert_close(found.score, expected.score, atol=5e-3, rtol=0)
    for name in ("levels", "text", "unlike"):
        del state[name]
    other.restore(state)
    assert other.levels == Levels(0.5, 0.5, 0.0)
    assert other.unlike_distance == 2 * judge.max_median_distance
    assert (other.combination.text_level, other.combination.text_score_level) == (0.5, 0.5)


def test_a_part_in_tiles_is_judged_as_a_whole_by_the_other_parts_and_none_of_its_own_tiles_helps() -> None:
    """Parts of two tiles, one tile and three tiles."""
    good = views(6)
    parts = [torch.tensor(tiles).repeat_interleave(2).expand(3, 2, -1).float() for tiles in ([0, 1], [2], [3, 4, 5])]
    judge, viewer = judge_of(k_shot=3), Viewer(good)
    judge.learn(parts, viewer)
    assert viewer.seen == [0, 1, 2, 3, 4, 5, 0, 1, 3, 4, 5]  # features of tiles are not kept
    assert judge.reference.size == 6 * 12
    owners = [0, 0, 1, 2, 2, 2]
    distance = torch.cat(
        [left_out(judge, good, [i for i in range(6) if owners[i] != owner], tile) for tile, owner in enumerate(owners)]
    )
    torch.testing.assert_close(judge.calibration.half_point, distance.amax())
    text = [good.score[:2].amax(), good.score[2], good.score[3:].amax()]  # that of the highest tile
    by_part = []
    for part, tiles in enumerate(([0, 1], [2], [3, 4, 5])):
        others = torch.stack([score for place, score in enumerate(text) if place != part])
        judge.combination.text_score_level = min(max(float(others.amax()), 0.1), 0.99)
        maps, scores = judge.combination(*good[:2], judge.calibration(distance))
        by_part.append(scores[tiles].amax())
    assert judge.levels.pixel == pytest.approx(pixel_level([maps]), rel=1e-4)
    assert judge.levels.image == pytest.approx(image_level(torch.stack(by_part)), rel=1e-4)
    strict = judge_of(k_shot=3, passing_share=0.3)
    strict.learn(parts, Viewer(good))
    assert strict.levels.image == pytest.approx(min(by_part).item(), rel=1e-4)


def test_what_was_learnt_of_some_parts_counts_for_nothing_where_another_cannot_be_read() -> None:
    judge, good = judge_of(k_shot=2), views(2)
    images = learn(judge, good)

    class Broken(list):
        def __iter__(self) -> Iterator[torch.Tensor]:
            yield self[0]
            raise OSError

    with pytest.raises(OSError, match=r"^$"):
        judge.learn(Broken(images), Viewer(good))
    assert judge.sources == ()
    learn(judge, good)
    assert len(judge.sources) == 2
    judge.forget()
    assert (judge.sources, judge.reference.size) == ((), 0)


def test_parts_share_the_memory_equally_and_so_do_the_tiles_of_a_part() -> None:
    good = views(5)
    parts = [torch.tensor(tiles).repeat_interleave(2).expand(3, 2, -1).float() for tiles in ([0, 1, 2, 3], [4])]
    judge = judge_of(k_shot=2, memory_limit=20)
    judge.learn(parts, Viewer(good))
    owned = judge.reference.memory[0].split([2, 2, 2, 2, 10])
    for tile, patches in enumerate(owned):
        own = torch.nn.functional.normalize(one(good, tile)[2][0].flatten(2).mT[0], dim=1)
        assert all((own - patch).abs().amax(dim=1).amin() < 1e-6 for patch in patches)


def test_a_single_part_in_tiles_is_judged_within_each_tile() -> None:
    good = views(2)
    judge = judge_of(k_shot=1)
    judge.learn([torch.tensor([0, 0, 1, 1]).expand(3, 2, -1).float()], Viewer(good))
    within = judge.reference.distances_within(good[2])
    torch.testing.assert_close(judge.calibration.half_point, judge.reference.to_map(within, SIZE).amax())


def test_a_good_part_is_at_distance_0_and_a_foreign_one_is_unlike_nearly_everywhere() -> None:
    judge, good = judge_of(k_shot=3, text_share=0.0), views(3)
    learn(judge, good)
    answer = judge(*one(good, 1))
    assert answer.map.amax() < 1e-5
    assert answer.unlike.tolist() == [False]
    assert judge(*views(2, seed=9)).unlike.tolist() == [True, True]


def test_pictures_are_named_by_their_hashes() -> None:
    judge = judge_of(k_shot=2)
    images = learn(judge, views(2))
    assert judge.sources == tuple(picture_key(image) for image in images)
    assert len(set(judge.sources)) == 2
    assert all(len(source) == 64 for source in judge.sources)


def test_no_rotated_copy_of_a_part_helps_to_judge_it() -> None:
    shown = []

    def looks_at(image: torch.Tensor) -> list[View]:
        shown.append(image)
        return [View(torch.zeros(1, *SIZE), torch.zeros(1), (image,))]

    viewer = SimpleNamespace(count_views=len, views=looks_at, join=lambda _, answers: next(iter(answers)))
    judge, parts = judge_of(k_shot=2, rotate=True), torch.rand(2, 3, 4, 6)
    judge.learn(parts, viewer)
    assert judge.reference.memory[0].shape == (8 * 24, 3)
    assert torch.equal(shown[1], torch.rot90(shown[0], 1, dims=(-2, -1)))
    assert torch.equal(shown[1][0, :, 0], parts[0, ..., -1])  # counterclockwise: the last column is the first row
    others = FewShotReference()
    for turned in quarter_turns(parts[1:]):
        others.memorise((turned,))
    first = others((parts[:1],), SIZE)
    assert first.amax() > 1e-3
    assert judge.calibration.half_point >= first.amax()


# ---------------------------------------------------------------- the batch


def test_collected_pictures_get_the_answers_of_one_whole_batch() -> None:
    looked = views(7)
    judge, whole = judge_of("batch"), judge_of("batch")
    keys = collect(judge, looked)
    assert judge.recall(keys, torch.device("cpu")) is None
    judge.judge()
    anomaly_map, score, unlike = judge.recall(keys[2:4], torch.device("cpu"))
    assert anomaly_map.dtype == torch.float32
    for name in ("text_level", "text_score_level"):
        setattr(whole.combination, name, getattr(judge.combination, name))
    whole.levels, whole.unlike_distance = judge.levels, judge.unlike_distance
    expected_map, expected_score, expected_unlike = whole.finish(whole(*looked))
    torch.testing.assert_close(anomaly_map, expected_map[2:4], atol=5e-3, rtol=0)  # kept in half precision
    torch.testing.assert_close(score, expected_score[2:4], atol=5e-3, rtol=0)
    assert torch.equal(unlike, expected_unlike[2:4])
    assert judge.recall(["another", keys[0]], torch.device("cpu")) is None


def test_a_share_of_the_batch_passes_its_thresholds() -> None:
    judge = judge_of("batch", passing_share=0.5)
    keys = collect(judge, views(8))
    judge.judge()
    _, scores, _ = judge.recall(keys, torch.device("cpu"))
    assert int((scores <= 0.5 + 1e-6).sum()) == 4
    assert judge.thresholds == Thresholds(0.5, 0.5)


def test_thresholds_of_a_batch_are_0_5_unless_distances_stay_as_they_are() -> None:
    fitted, raw = judge_of("batch"), judge_of("batch", raw=True)
    for judge in (fitted, raw):
        keys = collect(judge, views(10))
        assert judge.thresholds is None
        judge.judge()
    assert fitted.thresholds == Thresholds(image=0.5, pixel=0.5)
    assert fitted.levels.image not in (0.5, 1)
    _, scores, _ = raw.recall(keys, torch.device("cpu"))
    assert raw.thresholds.image == float(scores.sort().values[8])


def test_what_is_unlike_most_pictures_of_a_batch_is_never_good() -> None:
    looked = views(8)
    blank = tuple(torch.cat([tap, -torch.ones_like(tap[:1])]) for tap in looked.taps)
    judge = judge_of("batch")
    keys = collect(judge, View(torch.cat([looked.map, torch.zeros(1, *SIZE)]), torch.rand(9), blank))
    judge.judge()
    answer = judge.recall(keys, torch.device("cpu"))
    assert answer.unlike.tolist() == [False] * 8 + [True]
    assert answer.score[8] == 1
    assert reasons(answer.score, judge)[8] == "unlike most pictures"


def test_what_is_kept_of_a_picture_is_half_precision_and_features_go_when_they_were_compared() -> None:
    judge = judge_of("batch")
    collect(judge, views(6))
    assert {grid.dtype for grids in judge._pool.values() for grid in grids} == {torch.float16}
    assert {entry[0].dtype for entry in judge._texts.values()} == {torch.float16}
    judge.judge()
    assert judge._pool == judge._distances == {}


def test_a_batch_beyond_the_bound_is_judged_in_subsets(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = views(17)
    compared = []

    def distances(self: BatchReference, kept: tuple, device: torch.device) -> torch.Tensor:
        compared.append(len(kept[0]))
        return torch.rand(len(kept[0]), 2, *GRID, device=device)

    monkeypatch.setattr(BatchReference, "distances", distances)
    monkeypatch.setattr(BatchReference, "parts", lambda *_: 3)
    judge = judge_of("batch")
    keys = collect(judge, looked, per_batch=1)
    judge.judge()
    assert compared == [6, 6, 5]
    assert judge.recall(keys, torch.device("cpu"))[0].shape == (17, *SIZE)
    compared.clear()
    collect(judge, looked, per_batch=8)  # the last subset would have one picture, which cannot be judged
    judge.judge()
    assert compared == [8, 9]


def test_pictures_that_come_twice_judge_once() -> None:
    judge = judge_of("batch")
    keys = collect(judge, views(6), count=8)
    assert judge.knows(keys[0])
    judge.skip(2)
    judge.judge()
    assert len(judge._answers) == 6


@pytest.mark.parametrize("moves", [True, False])
def test_a_camera_that_stands_still_is_told_of(caplog: pytest.LogCaptureFixture, moves: bool) -> None:
    looked, seen = views(6), iter(range(6))
    first, noise = torch.rand(3, 256, 256), torch.Generator().manual_seed(1)

    class Named(Viewer):
        def views(self, image: torch.Tensor) -> Iterator[tuple]:
            yield one(self.looked, next(seen))

    judge = judge_of("batch")
    judge.begin(6)
    (step,) = judge.steps(Named(looked)).values()
    for _ in range(6):
        picture = torch.rand(3, 256, 256) if moves else first + 0.01 * torch.randn(first.shape, generator=noise)
        if moves:  # a part at another place
            picture[:, :, : int(40 * torch.rand(()))] = 0
        step(picture[None].clamp(0, 1))
    with caplog.at_level(logging.WARNING, "anomalib_clipsam"):
        judge.judge()
    assert ("5 of 6 pictures show the same as an earlier one" in caplog.text) is not moves


def test_three_pictures_judge_themselves_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    looked = views(3)
    judge, alone = judge_of("batch"), judge_of("self")
    keys = collect(judge, looked)
    with caplog.at_level(logging.WARNING, "anomalib_clipsam"):
        judge.judge()
    assert "3 pictures are too few to judge each other, 5 are needed: each is judged by itself" in caplog.text
    expected = alone(*looked)
    for found, value in zip(judge.recall(keys, torch.device("cpu"))[:2], expected[:2], strict=True):
        torch.testing.assert_close(found, value, atol=5e-3, rtol=0)
    assert judge.thresholds is None
    for found, value in zip(judge_of("batch")(*looked)[:2], expected[:2], strict=True):
        assert torch.equal(found, value)


def test_pictures_that_look_alike_share_their_scores() -> None:
    looked, embedding = views(6), torch.nn.functional.normalize(torch.randn(6, 4), dim=1)
    found = {}
    for windows in ((), (1, 2)):
        judge = judge_of("batch", windows=list(windows), raw=True)  # so that nothing becomes 0.5
        keys = [str(index) for index in range(6)]
        judge.begin(6)
        judge.collect(keys, *looked, embedding)
        judge.judge()
        found[windows] = judge.recall(keys, torch.device("cpu"))
    torch.testing.assert_close(found[1, 2][1], smooth_scores(found[()][1], embedding, (1, 2)))
    assert torch.equal(found[1, 2][0], found[()][0])
    with pytest.raises(ValueError, match="gives no embedding of the image, which `windows` need"):
        judge.collect(keys, *looked)


def test_a_batch_that_was_judged_is_known_by_its_files_and_the_name() -> None:
    judge = judge_of("batch")
    collect(judge, views(5))
    judge.judge(("a", "b"), "bottle")
    assert judge.judged_already(("a", "b"), "bottle")
    assert not judge.judged_already(("a", "b"), "nut")
    assert not judge.judged_already(("a", "c"), "bottle")
    judge.begin(0)
    assert not judge.judged_already(("a", "b"), "bottle")
    collect(judge, views(5))
    judge.judge()
    assert not judge.judged_already(None, "")


# ---------------------------------------------------------------- the batch in tiles

TILES = [[0, 1], [2], [3, 4, 5], [6], [7, 8]]
"""Looks of the tiles of five pictures."""


def judge_tiles(judge: TiledBatchJudge, looked: tuple, tiles: list[list[int]] = TILES) -> list[str]:
    """Show pictures three times, as a pass does."""
    viewer = Viewer(looked)
    pictures = [torch.tensor(numbers).repeat_interleave(2).expand(1, 3, 2, -1).float() for numbers in tiles]
    keys = [f"picture {number}" for number in range(len(tiles))]
    judge.begin(len(tiles))
    for key, picture in zip(keys, pictures, strict=True):
        judge.sample(key, viewer.views(picture), viewer.count_views(picture))
    for key, picture in zip(keys, pictures, strict=True):
        judge.compare(key, viewer.views(picture), partial(viewer.join, picture))
    for key, picture in zip(keys, pictures, strict=True):
        judge.keep(key, viewer.join(picture, judge.answer(key, viewer.views(picture))))
    judge.judge()
    return keys


def test_every_tile_is_compared_with_the_other_pictures_and_none_of_its_own_tiles() -> None:
    """Where nothing is dropped, each answer is made of all patches of the others, and thresholds of the answers."""
    looked = views(9)
    judge = build_judge(localizer(joins_taps=True), "batch", 0, {"passing_share": 1.0}, in_tiles=True)
    keys = judge_tiles(judge, looked)
    reference = BatchReference(join=True)
    (joined,) = reference.features(looked[2])
    patches = patches_of(joined)  # (9, 12, 12)
    maps = []
    for numbers in TILES:
        others = [patches[other].flatten(0, 1) for other in TILES if other != numbers]
        nearest = torch.stack([torch.cdist(patches[numbers], other).amin(dim=-1) for other in others])
        grid = nearest.amin(dim=0)  # 30 % of four pictures are one
        maps.append(reference.to_map(grid.unflatten(1, GRID)[:, None], SIZE))
    pictures = [torch.cat(list(tiles), dim=1)[None] for tiles in maps]
    medians, peaks = (torch.stack(values) for values in zip(*((p.median(), p.amax()) for p in pictures), strict=True))
    usual = medians.median()
    torch.testing.assert_close(
        judge.calibration.typical, usual, atol=2e-3, rtol=0
    )  # patches are kept in half precision
    torch.testing.assert_close(judge.calibration.half_point, usual + 1.2 * (peaks.mean() - usual), atol=2e-3, rtol=0)
    scores = []
    for key, numbers, tiles in zip(keys, TILES, maps, strict=True):
        expected = judge.combination(looked[0][numbers], looked[1][numbers], judge.calibration(tiles))
        joined = Answer(torch.cat(list(expected[0]), dim=1)[None], expected[1].amax(dim=0, keepdim=True))
        found, finished = judge.recall([key], torch.device("cpu")), judge.finish(joined)
        torch.testing.assert_close(found.map, finished.map, atol=1e-2, rtol=0)
        torch.testing.assert_close(found.score, finished.score, atol=1e-2, rtol=0)
        scores.append(joined.score.item())
    assert judge.levels.image == pytest.approx(max(scores), abs=5e-3)
    assert judge._samples == judge._grids == {}


def test_pictures_of_one_tile_get_the_answers_of_a_batch_without_tiles() -> None:
    looked, whole = views(7), judge_of("batch")
    judge = build_judge(localizer(), "batch", 0, {}, in_tiles=True)
    keys = judge_tiles(judge, looked, [[number] for number in range(7)])
    others = collect(whole, looked)
    whole.judge()
    answers = (one.recall(names, torch.device("cpu")) for one, names in ((judge, keys), (whole, others)))
    for found, expected in list(zip(*answers, strict=True))[:2]:
        torch.testing.assert_close(found, expected, atol=1e-2, rtol=0)


def test_a_picture_keeps_a_bounded_number_of_patches_an_equal_share_of_each_tile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batch, "MOST_PATCHES", 9)
    _, _, taps = views(4)
    reference = BatchReference()
    kept = reference.sample(taps, 4, 2**20)
    assert [tuple(patches.shape) for patches in kept] == [(4 * 2, channels) for channels in (5, 5, 5, 7, 7, 7)]
    assert {patches.dtype for patches in kept} == {torch.float16}
    own = torch.nn.functional.normalize(batch.aggregate_neighbours(taps[0], 1).flatten(2).mT, dim=-1)
    for tile, patches in enumerate(kept[0].float().split(2)):
        assert torch.cdist(patches, own[tile]).amin(dim=1).amax() < 2e-3
    assert len(reference.sample(taps, 4, 2 * 36 * 5)[0]) == 4  # 36 channels of 2 bytes in all: 5 patches fit
    assert len(reference.sample(taps, 4, 0)[0]) == 4
    assert [torch.equal(*pair) for pair in zip(kept, reference.sample(taps, 4, 2**20), strict=True)] == 6 * [True]


def test_tiles_of_too_few_pictures_are_judged_by_themselves(caplog: pytest.LogCaptureFixture) -> None:
    looked, alone = views(9), judge_of("self")
    judge = build_judge(localizer(), "batch", 0, {}, in_tiles=True)
    with caplog.at_level(logging.WARNING, "anomalib_clipsam"):
        keys = judge_tiles(judge, looked, TILES[:4])
    assert caplog.text.count("4 pictures are too few to judge each other") == 1
    (anomaly_map,), (score,), _ = judge.recall(keys[2:3], torch.device("cpu"))
    expected = [alone(*one(looked, tile)) for tile in TILES[2]]
    torch.testing.assert_close(anomaly_map, torch.cat([tile.map[0] for tile in expected], dim=1), atol=1e-3, rtol=0)
    torch.testing.assert_close(score, max(tile.score for tile in expected)[0])
    assert judge.thresholds is None
    for found, value in zip(judge(*one(looked, 3))[:2], expected[0][:2], strict=True):  # one that was not collected
        assert torch.equal(found, value)


def test_scores_shared_by_whole_pictures_are_refused_in_tiles() -> None:
    with pytest.raises(ValueError, match="With tiles, leave them out"):
        build_judge(localizer(), "batch", 0, {"windows": [1, 2]}, in_tiles=True)


# ---------------------------------------------------------------- what is said about a judge


def test_settings_change_with_all_that_an_answer_depends_on() -> None:
    def company(number: int, **options: object) -> BatchJudge:
        judge = judge_of("batch", **options)
        collect(judge, views(number))
        judge.judge()
        return judge

    options = ({}, {"text_share": 0.25}, {"peak_share": 0.0}, {"raw": True})
    found = [company(7), *(company(6, **given) for given in options)]
    found += [judge_of("self"), judge_of("self", known=(0.1, 0.2))]
    for seed in (0, 1):
        found.append(judge_of(k_shot=2))
        learn(found[-1], views(2, seed))
    assert len({judge.settings() for judge in found}) == len(found)
    assert company(6).settings() == company(6).settings()
    assert judge_of("self").settings() == judge_of("self").settings()


@pytest.mark.parametrize(("depth", "taps"), [(12, [13]), (12, [0, 3]), (12, []), (0, [1])])
def test_taps_that_there_are_not_are_refused(depth: int, taps: list[int]) -> None:
    with pytest.raises(ValueError, match=r"taps is \[.*Name some of these, or leave `taps` out"):
        build_judge(localizer(depth=depth), "self", 0, {"taps": taps})


def test_taps_reach_the_localizer_in_their_order() -> None:
    named = localizer()
    build_judge(named, "self", 0, {"taps": [12, 6]})
    assert named.reference_taps == (6, 12)


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_share_outside_its_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="Choose above 0, 1 at most"):
        judge_of("batch", passing_share=share)
