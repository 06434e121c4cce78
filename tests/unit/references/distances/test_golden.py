# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""References against what the published implementations of MuSc and APRIL-GAN computed from random weights and inputs.

``tests/data/*.safetensors`` holds data only. MuSc: 10 pictures, 4 taps, width 64, grid 13 x 13. APRIL-GAN: a tower of
12 blocks, 2 queries, 2 good parts.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.nn import functional as F  # noqa: N812

from anomalib_clipsam.clip import PromptEnsemble
from anomalib_clipsam.clip.build import run_block
from anomalib_clipsam.clip.localizers import AprilGanLocalizer, MuScLocalizer, build_adapters
from anomalib_clipsam.references import BatchReference, FewShotReference, build_judge, smooth_scores
from anomalib_clipsam.references.distances.batch import aggregate_neighbours, mutual_scores
from anomalib_clipsam.references.distances.features import patches_of

if TYPE_CHECKING:
    from open_clip import CLIP

DATA = Path(__file__).parents[3] / "data"
GRID, SIZE = (13, 13), (182, 182)


def load(name: str) -> dict[str, torch.Tensor]:
    tensors = load_file(DATA / name)
    return {key: value.float() if value.dtype == torch.float16 else value for key, value in tensors.items()}


@pytest.fixture(scope="module")
def musc() -> dict[str, torch.Tensor]:
    return load("musc.safetensors")


@pytest.fixture(scope="module")
def taps(musc: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """MuSc's tokens without the class token, as grids ``(10, 64, 13, 13)``."""
    return tuple(tap[:, 1:].transpose(1, 2).unflatten(2, GRID) for tap in musc["input.tokens"].unbind(dim=1))


def close(result: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(result, expected, atol=tolerance, rtol=0, check_dtype=False)


def test_neighbours_are_aggregated_as_published(musc: dict[str, torch.Tensor], taps: tuple[torch.Tensor, ...]) -> None:
    result = torch.stack(
        [torch.cat([aggregate_neighbours(tap[:1], size) for tap in taps]).flatten(2).mT for size in (1, 3, 5)]
    )
    close(result, musc["expected.lnamd_image_0"], 2e-5)


def test_mutual_scores_are_the_published_ones(musc: dict[str, torch.Tensor], taps: tuple[torch.Tensor, ...]) -> None:
    result = torch.stack(
        [
            torch.stack([mutual_scores(patches_of(aggregate_neighbours(tap, size))) for tap in taps])
            for size in (1, 3, 5)
        ]
    )
    close(result, musc["expected.patch_scores"], 5e-5)


def test_the_batch_s_maps_and_scores_are_the_published_ones(
    musc: dict[str, torch.Tensor], taps: tuple[torch.Tensor, ...]
) -> None:
    batch = BatchReference()
    distances = batch.distances(batch.features(taps))
    close(distances.mean(dim=1), musc["expected.grid"], 1e-5)
    maps = batch.to_map(distances, SIZE)
    close(maps[:4], musc["expected.map"], 1e-5)
    scores = maps.flatten(1).amax(dim=1)
    close(scores, musc["expected.image_score"], 1e-5)
    for windows, name in (((1, 2, 3), "1_2_3"), ((1, 8, 9), "1_8_9")):
        smoothed = smooth_scores(scores, musc["input.class_embedding"], windows)
        close(smoothed, musc[f"expected.image_score_rscin_{name}"], 1e-5)


def test_five_pictures_are_the_smallest_published_batch(
    musc: dict[str, torch.Tensor], taps: tuple[torch.Tensor, ...]
) -> None:
    distances = BatchReference().distances(tuple(tap[:5] for tap in taps))
    close(distances.mean(dim=1), musc["expected.grid_first_five"], 1e-5)


def test_features_kept_in_half_precision_cost_less_than_1e_4(
    musc: dict[str, torch.Tensor], taps: tuple[torch.Tensor, ...]
) -> None:
    batch = BatchReference()
    kept = [batch.keep(tuple(tap[i : i + 4] for tap in taps)) for i in (0, 4, 8)]
    joined = tuple(torch.cat(parts) for parts in zip(*kept, strict=True))
    assert {tap.dtype for tap in joined} == {torch.float16}
    close(batch.distances(joined).mean(dim=1), musc["expected.grid"], 1e-4)


def tower(quick_gelu: bool) -> CLIP:
    """The vision tower of APRIL-GAN's file."""
    import open_clip

    vision = {"image_size": 112, "layers": 12, "width": 64, "head_width": 32, "patch_size": 14}
    text = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 1, "layers": 1}
    clip = open_clip.CLIP(embed_dim=32, vision_cfg=vision, text_cfg=text, quick_gelu=quick_gelu)
    weights = {key: value for key, value in load("april_gan.safetensors").items() if key.startswith("visual.")}
    assert not clip.load_state_dict(weights, strict=False).unexpected_keys
    return clip.eval().requires_grad_(requires_grad=False)


@pytest.mark.open_clip
def test_features_and_embedding_are_those_of_musc_s_own_tower(musc: dict[str, torch.Tensor]) -> None:
    """Plain GELU, and the position embedding without antialiasing."""
    localizer = MuScLocalizer(tower(quick_gelu=False), PromptEnsemble(), 182)
    assert localizer.reference_taps == (3, 6, 9, 12)
    close(localizer._position_embedding(), musc["expected.tower_positional_embedding_resized"], 1e-6)
    _, _, taps = localizer.with_taps(load("april_gan.safetensors")["input.images"][:1])
    found = torch.stack([tap[0].flatten(1).T for tap in taps])
    close(found, musc["expected.tower_taps"][:, 1:], 5e-5)
    close(localizer.embedding[0], musc["expected.tower_class_embedding"].flatten(), 1e-5)


def test_a_judge_set_as_published_gives_musc_s_scores(
    musc: dict[str, torch.Tensor], taps: tuple[torch.Tensor, ...]
) -> None:
    """As ``configs/musc_mvtec_ad.yaml`` sets it, collected in batches, in half precision."""
    localizer = SimpleNamespace(joins_taps=False, reference_sigma=0.0, usual_self_distance=None)
    config = yaml.safe_load((DATA.parents[1] / "configs" / "musc_mvtec_ad.yaml").read_text())["model"]["init_args"]
    options = {name: value for name, value in config["reference_options"].items() if name != "taps"}
    assert config["reference_options"]["taps"] == [6, 12, 18, 24]
    judge = build_judge(localizer, config["references"], 0, options)
    keys = [str(index) for index in range(10)]
    judge.begin(10)
    for part in (slice(0, 4), slice(4, 8), slice(8, 10)):
        count = len(keys[part])
        embedding = musc["input.class_embedding"][part]
        judge.collect(keys[part], torch.rand(count, *SIZE), torch.rand(count), tuple(t[part] for t in taps), embedding)
    judge.judge()
    maps, scores, _ = judge.recall(keys, torch.device("cpu"))
    close(2 * maps[:4], musc["expected.map"], 1e-3)
    close(scores, musc["expected.image_score_rscin_1_2_3"], 2e-3)


@pytest.mark.open_clip
def test_few_shot_maps_are_april_gan_s_published_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    april_gan, clip = load("april_gan.safetensors"), tower(quick_gelu=True)
    adapters = {key.removeprefix("adapters."): value for key, value in april_gan.items() if key.startswith("adapters.")}
    adapters = build_adapters(adapters, 64, 32).requires_grad_(requires_grad=False)
    localizer = AprilGanLocalizer(clip, PromptEnsemble(), 182, adapters, (3, 6, 9, 12))
    localizer.text = april_gan["input.text"]
    position = clip.visual.positional_embedding
    patches = position[1:].T.unflatten(-1, (8, 8)).unsqueeze(0)
    patches = F.interpolate(patches, GRID, mode="bicubic", antialias=True, align_corners=False)
    position = torch.cat([position[:1], patches.flatten(2).squeeze(0).T])
    close(position, april_gan["expected.positional_embedding_resized"], 1e-6)
    monkeypatch.setattr(localizer, "_position_embedding", lambda: position)

    def taps_of(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        tokens, found = localizer._embed(images), []
        for index, block in enumerate(clip.visual.transformer.resblocks, start=1):
            tokens = run_block(block, tokens)
            if index in localizer.taps:
                found.append(tokens[:, 1:].transpose(1, 2).unflatten(2, GRID))
        return tuple(found)

    reference = FewShotReference()
    reference.memorise(taps_of(april_gan["input.reference_images"]))
    taps = taps_of(april_gan["input.images"])
    few_shot_map, text_map = reference(taps, SIZE), localizer(april_gan["input.images"])[0]
    close(reference.distances(taps), april_gan["expected.few_shot_grid"], 1e-5)
    close(4 * few_shot_map, april_gan["expected.few_shot_map"], 1e-5)  # published is the sum over four taps
    combined = 4 * (text_map + few_shot_map)
    close(combined, april_gan["expected.combined_map"], 5e-5)
    close(combined.flatten(1).amax(dim=1), april_gan["expected.combined_max"], 5e-5)
