# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The three kinds of reference on small tensors, against naive loops."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from anomalib_clipsam.references import BatchReference, FewShotReference, SelfReference
from anomalib_clipsam.references.distances.batch import smooth_scores


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / a.norm() / b.norm())


# the picture itself


def test_self_reference_is_one_less_the_mean_cosine_to_the_most_similar_patches() -> None:
    tap = torch.randn(2, 3, 2, 5)
    patches = tap.flatten(2).transpose(1, 2)
    expected = torch.zeros(2, 10)
    for b in range(2):
        for p in range(10):
            alike = sorted((cosine(patches[b, p], other) for other in patches[b]), reverse=True)
            expected[b, p] = 1 - sum(alike[:3]) / 3
    torch.testing.assert_close(SelfReference(share=0.3).distances((tap,)), expected.view(2, 1, 2, 5))


def test_a_picture_is_not_compared_with_its_neighbours_in_the_batch() -> None:
    taps = (torch.randn(3, 4, 5, 6), torch.randn(3, 2, 5, 6))
    reference = SelfReference()
    together = reference(taps, (10, 12))
    for i in range(3):
        torch.testing.assert_close(reference(tuple(tap[i : i + 1] for tap in taps), (10, 12))[0], together[i])


@pytest.mark.parametrize("share", [0.0, 1.5, float("nan")])
def test_a_share_outside_its_range_is_refused(share: float) -> None:
    for kind in (SelfReference, BatchReference):
        with pytest.raises(ValueError, match="Choose a number above 0, 1 at most"):
            kind(share=share)


# a few good parts


def test_few_shot_reference_is_one_less_the_cosine_to_the_nearest_patch_of_any_good_part() -> None:
    good, tap = torch.randn(3, 4, 2, 3), torch.randn(2, 4, 2, 3)
    reference = FewShotReference()
    reference.memorise((good,))
    memory = good.flatten(2).transpose(1, 2).flatten(0, 1)
    patches = tap.flatten(2).transpose(1, 2)
    expected = [[1 - max(cosine(patch, other) for other in memory) for patch in picture] for picture in patches]
    torch.testing.assert_close(reference.distances((tap,)), torch.tensor(expected).view(2, 1, 2, 3))


def test_a_good_part_is_at_distance_0_itself_and_left_out_it_is_judged_by_the_others() -> None:
    good = torch.randn(3, 8, 3, 4)
    reference = FewShotReference()
    spans = []
    for part in good.split(1):
        spans.append(slice(reference.size, reference.size + 12))
        reference.memorise((part,))
    assert reference.size == 36
    assert reference.distances((good,)).max() < 1e-5
    for part, span in enumerate(spans):
        others = FewShotReference()
        others.memorise((good[[i for i in range(3) if i != part]],))
        left_out = reference.distances((good[part : part + 1],), without=span)
        torch.testing.assert_close(left_out, others.distances((good[part : part + 1],)))


def test_a_single_part_is_judged_by_its_own_patches_that_are_not_near() -> None:
    tap = torch.randn(2, 6, 4, 12)
    within = FewShotReference.distances_within((tap,))
    expected = torch.zeros(2, 1, 4, 12)
    for picture, row, column in product(range(2), range(4), range(12)):
        far = [cosine(tap[picture, :, row, column], tap[picture, :, r, c]) for r in range(4) for c in range(12)
               if max(abs(r - row), abs(c - column)) > 3]  # fmt: skip
        expected[picture, 0, row, column] = 1 - max(far)
    torch.testing.assert_close(within, expected)


def test_a_large_memory_is_bounded_by_patches_of_each_look_that_are_far_apart_the_same_every_time() -> None:
    good = torch.randn(4, 6, 5, 5)
    good[0, :, :, 1:] = good[0, :, :1, :1]  # many equal patches, five others
    whole, bounded, again = FewShotReference(), FewShotReference(memory_limit=30), FewShotReference(memory_limit=30)
    state = torch.get_rng_state()
    for reference in (whole, bounded, again):
        reference.memorise((good,))
    assert torch.equal(torch.get_rng_state(), state)
    assert [reference.size for reference in (whole, bounded)] == [100, 28]
    assert torch.equal(bounded.memory[0], again.memory[0])
    picked, others = bounded.memory[0].split([7, 21])
    assert all((whole.memory[0][25:] == patch).all(dim=1).any() for patch in others)
    assert bounded.distances((good[:1],)).max() < 1e-5  # none of the five is lost
    assert len(picked.unique(dim=0)) == 5
    few = FewShotReference(memory_limit=2)
    few.memorise((good,))
    assert few.size == 4  # each look has one at least


def test_a_stored_memory_gives_the_same_map_and_the_state_dict_stays_without_it() -> None:
    taps = (torch.randn(2, 5, 3, 4), torch.randn(2, 6, 3, 4))
    first, second = FewShotReference(), FewShotReference()
    first.memorise(tuple(tap[:1] for tap in taps))
    second.set_memory(first.memory)
    assert not first.state_dict()
    assert [tuple(patches.shape) for patches in second.memory] == [(12, 5), (12, 6)]
    torch.testing.assert_close(second(taps, (6, 8)), first(taps, (6, 8)))
    second.set_memory(tuple(patches.half() for patches in first.memory))
    torch.testing.assert_close(second(taps, (6, 8)), first(taps, (6, 8)), atol=2e-3, rtol=0)


def test_without_a_good_part_there_is_no_map() -> None:
    with pytest.raises(RuntimeError, match="No good part is known"):
        FewShotReference()((torch.rand(1, 2, 3, 3),), (6, 6))
    with pytest.raises(ValueError, match="memory_limit is 0"):
        FewShotReference(memory_limit=0)


@pytest.mark.parametrize("kind", ["self", "few_shot"])
def test_one_picture_at_a_time_references_export_to_the_same_map(kind: str) -> None:
    taps = (torch.rand(1, 5, 8, 12), torch.rand(1, 7, 4, 6))
    reference = SelfReference(join=True, sigma=4) if kind == "self" else FewShotReference(join=True, sigma=4)
    if kind == "few_shot":
        reference.memorise(tuple(torch.rand(2, *tap.shape[1:]) for tap in taps))
    exported = torch.export.export(reference, (taps, (32, 48)))
    torch.testing.assert_close(exported.module()(taps, (32, 48)), reference(taps, (32, 48)))


# the unlabelled batch


def test_joined_batch_reference_is_the_mean_distance_to_the_nearest_patches_of_the_most_alike_pictures() -> None:
    tap = torch.randn(8, 4, 2, 3)
    patches = torch.nn.functional.normalize(tap.flatten(2).transpose(1, 2), dim=-1)
    expected = torch.zeros(8, 6)
    for i in range(8):
        for p in range(6):
            nearest = sorted(float((patches[i, p] - patches[j]).norm(dim=1).min()) for j in range(8) if j != i)
            expected[i, p] = sum(nearest[:2]) / 2  # floor(0.3 * 7)
    torch.testing.assert_close(BatchReference(join=True).distances((tap,)), expected.view(8, 1, 2, 3))


def test_fewer_than_5_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match=r"4 pictures are too few .* choose references='self'"):
        BatchReference().distances((torch.rand(4, 2, 3, 3),))


def test_kept_features_of_any_scale_are_finite() -> None:
    tap = torch.randn(6, 3, 4, 4)
    batch = BatchReference()
    (kept,) = batch.keep((1e6 * tap,))
    assert kept.dtype == torch.float16
    assert kept.isfinite().all()
    torch.testing.assert_close(batch.distances((kept,)), batch.distances((tap,)), atol=2e-3, rtol=0)


def test_a_batch_is_divided_into_as_few_subsets_as_fit() -> None:
    taps = (torch.rand(1, 10, 4, 5),)
    batch = BatchReference()
    bytes_of = {size: size * 200 * (2 + 12) + 4 * 20 * size**2 for size in (6, 7, 20)}
    assert batch.parts(20, taps, bytes_of[20]) == 1
    assert batch.parts(20, taps, bytes_of[20] - 1) == 2
    assert batch.parts(20, taps, bytes_of[7]) == 3
    with pytest.raises(ValueError, match="in subsets of 5 or more"):
        batch.parts(20, taps, bytes_of[6] // 2)


def test_neighbouring_pictures_share_scores_by_their_likeness() -> None:
    embeddings = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]), dim=1)
    scores = torch.tensor([2.0, 4.0, 3.0])  # scaled: 0, 1, 0.5
    root = 0.5**0.5
    expected = torch.tensor([root / (1 + root), 1 / (1 + root), (0.5 + root) / (1 + root)])
    result = smooth_scores(scores, embeddings, (2,))
    # picture 1 is as like to 0 as to 2: either may share
    torch.testing.assert_close(result[[0, 2]], expected[[0, 2]])
    torch.testing.assert_close(smooth_scores(scores, embeddings, (1,)), torch.tensor([0.0, 1.0, 0.5]))
    for windows in ((), (0,), (4,)):
        with pytest.raises(ValueError, match="do not fit a batch of 3 pictures"):
            smooth_scores(scores, embeddings, windows)


def test_an_even_neighbourhood_is_refused() -> None:
    with pytest.raises(ValueError, match="odd side"):
        BatchReference(sizes=(1, 2))
