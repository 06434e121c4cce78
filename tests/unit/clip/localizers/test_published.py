# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Published maps: equal to what their own code gave for random weights, see tests/data/README.md."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from anomalib_clipsam.clip import LearnedPrompts, PromptEnsemble, build_clip
from anomalib_clipsam.clip.build import CARRIED_CONFIGS
from anomalib_clipsam.clip.localizers import (
    LOCALIZERS,
    AnomalyClipLocalizer,
    AprilGanLocalizer,
    CraneLocalizer,
    build_adapters,
)
from anomalib_clipsam.clip.localizers.learned import LearnedPromptLocalizer, gaussian_matrix

if TYPE_CHECKING:
    from open_clip import CLIP

pytestmark = pytest.mark.open_clip

DATA = Path(__file__).parents[3] / "data"
SIZE, TRAINED, BLOCKS = 182, 112, 12
"""Side of the images, side that the position embedding is for, and number of blocks."""
CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": TRAINED, "layers": BLOCKS, "width": 64, "head_width": 32, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 8, "width": 32, "heads": 2, "layers": BLOCKS},
}
LEARNED = {"anomaly_clip": (AnomalyClipLocalizer, 1e-5), "crane": (CraneLocalizer, 2e-5)}
"""Name -> class, and tolerance of the tests."""


def read(name: str) -> dict[str, torch.Tensor]:
    return {
        key: value.float() if value.dtype == torch.float16 else value
        for key, value in load_file(DATA / f"{name}.safetensors").items()
    }


@pytest.fixture(scope="module")
def golden() -> dict[str, dict[str, torch.Tensor]]:
    return {name: read(name) for name in ("april_gan", "anomaly_clip", "crane")}


def golden_clip(values: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, quick_gelu: bool = True) -> CLIP:
    monkeypatch.setitem(CARRIED_CONFIGS, "demo", CONFIG)
    clip = build_clip("demo", quick_gelu)
    weights = {key: value for key, value in values.items() if key in clip.state_dict()}
    missing, _ = clip.load_state_dict(weights, strict=False)
    assert all(
        key.startswith(("token_embedding", "logit_scale", "transformer", "positional", "ln_", "text_"))
        for key in missing
    )
    return clip.requires_grad_(requires_grad=False)


def content(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    prefix = "prompt_learner."
    return {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}


def learned(
    name: str, values: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, **kwargs: int
) -> LearnedPromptLocalizer:
    clip = golden_clip(values, monkeypatch)
    prompts = LearnedPrompts.from_published({"prompt_learner": content(values)}, clip)
    localizer = LEARNED[name][0](clip, PromptEnsemble(), SIZE, prompts, **kwargs)
    localizer.set_class_name("anything")
    return localizer


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert expected.std() > 10 * tolerance
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


# ---------------------------------------------------------------- APRIL-GAN


def april_gan(golden: dict, monkeypatch: pytest.MonkeyPatch, quick_gelu: bool = True) -> AprilGanLocalizer:
    values = golden["april_gan"]
    adapters = {key.removeprefix("adapters."): value for key, value in values.items() if key.startswith("adapters.")}
    clip = golden_clip(values, monkeypatch, quick_gelu)
    localizer = AprilGanLocalizer(clip, PromptEnsemble(), SIZE, build_adapters(adapters, width=64, embed_dim=32))
    localizer._use_text(values["input.text"])
    return localizer.requires_grad_(requires_grad=False)


def test_april_gan_map_and_score(golden: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    values, localizer = golden["april_gan"], april_gan(golden, monkeypatch)
    assert localizer.taps == (3, 6, 9, 12)
    anomaly_map, score = localizer(values["input.images"])
    close(anomaly_map, values["expected.zero_shot_map"], 1e-5)
    close(score, values["expected.image_score"], 1e-5)


def test_april_gan_logits(golden: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    values, localizer, seen = golden["april_gan"], april_gan(golden, monkeypatch), []

    def record(tokens: torch.Tensor, text: torch.Tensor, scale: float, *_: object) -> torch.Tensor:
        seen.append(scale * nn.functional.normalize(tokens, dim=-1) @ text.T)
        return torch.zeros(len(tokens), SIZE, SIZE)

    monkeypatch.setattr("anomalib_clipsam.clip.localizers.april_gan.text_anomaly_map", record)
    localizer(values["input.images"])
    close(torch.stack(seen, dim=1), values["expected.zero_shot_logits"], 2e-4)


def test_april_gan_score_does_not_depend_on_what_clip_learnt(golden: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    values, localizer = golden["april_gan"], april_gan(golden, monkeypatch)
    localizer.clip.logit_scale.fill_(math.log(7.0))
    close(localizer(values["input.images"])[1], values["expected.image_score"], 1e-5)


def test_plain_gelu_is_seen(golden: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the tests above would notice the other activation."""
    values = golden["april_gan"]
    anomaly_map, score = april_gan(golden, monkeypatch, quick_gelu=False)(values["input.images"])
    assert (anomaly_map - values["expected.zero_shot_map"]).abs().max() > 5e-3
    assert (score - values["expected.image_score"]).abs().max() > 1e-3


# ---------------------------------------------------------------- AnomalyCLIP and Crane


@pytest.mark.parametrize("name", LEARNED)
def test_text_features(golden: dict, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    values = golden[name]
    close(learned(name, values, monkeypatch).text, values["expected.text_features"], LEARNED[name][1])


@pytest.mark.parametrize("name", LEARNED)
def test_patch_tokens_and_maps(golden: dict, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    values, tolerance, localizer = golden[name], LEARNED[name][1], learned(name, golden[name], monkeypatch)
    assert localizer.second_blocks == 9
    seen = {}
    for step in ("patch_tokens", "enlarge", "smooth"):

        def record(given: torch.Tensor, step: str = step, run: object = getattr(localizer, step)) -> torch.Tensor:
            seen[step] = run(given)
            return seen[step]

        monkeypatch.setattr(localizer, step, record)
    anomaly_map, score = localizer(values["input.images"])
    close(seen["patch_tokens"], values["expected.patch_tokens"], tolerance)
    close(seen["enlarge"], values["expected.map"], tolerance)
    close(anomaly_map, values["expected.map_smoothed"], tolerance)
    assert seen["smooth"] is anomaly_map
    close(score, values["expected.image_score"], tolerance)


def test_crane_pools_the_patches(golden: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    values = golden["crane"]
    pooled = CraneLocalizer.pool(values["expected.patch_tokens"], values["expected.patch_probability"])
    close(pooled, values["expected.pooled"], 2e-5)


@pytest.mark.parametrize("name", ["april_gan", *LEARNED])
def test_position_embedding(golden: dict, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    values = golden[name]
    localizer = april_gan(golden, monkeypatch) if name == "april_gan" else learned(name, values, monkeypatch)
    expected = values["expected.positional_embedding_resized"]
    torch.testing.assert_close(localizer._position_embedding(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("second_blocks", [8, 10])
def test_length_of_the_second_path_is_seen(
    golden: dict, monkeypatch: pytest.MonkeyPatch, name: str, second_blocks: int
) -> None:
    values, localizer = golden[name], learned(name, golden[name], monkeypatch, second_blocks=second_blocks)
    assert (localizer(values["input.images"])[0] - values["expected.map_smoothed"]).abs().max() > 0.1


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("size", [(100, 150), (300, 182)])
def test_map_has_the_size_of_the_image(
    golden: dict, monkeypatch: pytest.MonkeyPatch, name: str, size: tuple[int, int]
) -> None:
    anomaly_map, score = learned(name, golden[name], monkeypatch)(torch.rand(2, 3, *size))
    assert (anomaly_map.shape, score.shape) == ((2, *size), (2,))
    assert anomaly_map.amin() >= 0
    assert anomaly_map.amax() <= 1


@pytest.mark.parametrize("name", LEARNED)
def test_class_name_is_not_used_and_this_is_said_once(
    golden: dict, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    with caplog.at_level(logging.INFO):
        localizer = learned(name, golden[name], monkeypatch)
        before = localizer.text.clone()
        localizer.set_class_name("bolt")
    assert torch.equal(localizer.text, before)
    assert [record.message for record in caplog.records].count(
        "The prompts of this localizer were learned and name no class: the class name is not used."
    ) == 1


def test_other_prompts_give_another_text(golden: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    localizer = learned("crane", golden["crane"], monkeypatch)
    localizer.use_learned({"prompt_learner": content(golden["anomaly_clip"])})
    localizer.set_class_name("anything")
    assert (localizer.text - golden["crane"]["expected.text_features"]).abs().max() > 0.01


def test_dense_has_nothing_to_learn(golden: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    localizer = LOCALIZERS["dense"](golden_clip(golden["crane"], monkeypatch), PromptEnsemble(), SIZE)
    with pytest.raises(TypeError, match="DenseLocalizer has no learned weights"):
        localizer.use_learned({})


def test_prompts_of_ones_own_are_refused(
    golden: dict, monkeypatch: pytest.MonkeyPatch, ensemble: PromptEnsemble
) -> None:
    clip = golden_clip(golden["crane"], monkeypatch)
    prompts = LearnedPrompts.from_published(content(golden["crane"]), clip)
    with pytest.raises(ValueError, match=r"prompts were learned\. Leave `prompts` out"):
        CraneLocalizer(clip, ensemble, SIZE, prompts)


@pytest.mark.parametrize("second_blocks", [0, 13])
def test_number_of_second_blocks(golden: dict, monkeypatch: pytest.MonkeyPatch, second_blocks: int) -> None:
    with pytest.raises(ValueError, match=f"between 1 and 12, .* not {second_blocks}"):
        learned("crane", golden["crane"], monkeypatch, second_blocks=second_blocks)


def test_published_number_of_second_blocks(golden: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = LearnedPrompts(torch.zeros(2, 77, 768), torch.zeros(2).long(), torch.zeros(8, 4, 768))
    with torch.device("meta"):
        large = build_clip("ViT-L-14-336", quick_gelu=True)
    assert CraneLocalizer(large, PromptEnsemble(), 518, prompts).second_blocks == 19


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ctx_pos": None}, "'ctx_neg' is"),
        ({"ctx_neg": torch.zeros(1, 1, 11, 32)}, r"'ctx_neg' is \(1, 1, 11, 32\)"),
        ({"token_prefix_pos": torch.zeros(1, 1, 1, 31)}, "'token_prefix_pos' is"),
        ({"compound_prompts_text.3": torch.zeros(5, 32)}, "'compound_prompts_text.3' is"),
        ({"more": torch.zeros(1)}, "'more' is"),
        ({f"compound_prompts_text.{i}": torch.zeros(4, 32) for i in range(12)}, "there are 12 deep prompts"),
        ({"tokenized_prompts_neg": "text"}, r"'tokenized_prompts_neg' is \(\)"),
    ],
)
def test_learned_prompts_that_do_not_fit(
    golden: dict, monkeypatch: pytest.MonkeyPatch, change: dict[str, torch.Tensor | None], reason: str
) -> None:
    entries = {key: value for key, value in {**content(golden["crane"]), **change}.items() if value is not None}
    clip = golden_clip(golden["crane"], monkeypatch)
    with pytest.raises(ValueError, match=f"do not fit this CLIP, .* 12 blocks of 32: .*{reason}"):
        LearnedPrompts.from_published(entries, clip)


def test_what_anomaly_clip_does_not_use_is_ignored(golden: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    clip, entries = golden_clip(golden["crane"], monkeypatch), content(golden["crane"])
    more = {
        "compound_prompt_projections.0.weight": torch.zeros(896, 32),
        "compound_prompt_projections.0.bias": torch.zeros(896),
    }
    texts = [LearnedPrompts.from_published(given, clip).encode(clip) for given in (entries, {**entries, **more})]
    assert torch.equal(*texts)


@pytest.mark.parametrize("size", [1, 5, 16, 60])
def test_gaussian_is_scipys(size: int) -> None:
    from scipy.ndimage import gaussian_filter

    image = torch.rand(size, size + 3)
    rows, columns = gaussian_matrix(size, 4.0), gaussian_matrix(size + 3, 4.0)
    expected = torch.from_numpy(gaussian_filter(image.numpy(), sigma=4, mode="reflect"))
    torch.testing.assert_close(rows @ image @ columns.T, expected, atol=1e-6, rtol=0)
