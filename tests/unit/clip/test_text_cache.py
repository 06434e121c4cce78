# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Text embeddings: one forward without padding, and none where they are on disk."""

from __future__ import annotations

import os
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from open_clip.tokenizer import tokenize
from safetensors.torch import save, save_file
from torch.nn import functional as F  # noqa: N812

from anomalib_clipsam.clip import PromptEnsemble, text_cache
from anomalib_clipsam.clip.build import encode_ensemble
from anomalib_clipsam.clip.localizers import DenseLocalizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from open_clip import CLIP


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of embeddings, not yet made."""
    monkeypatch.setattr(text_cache, "cache_folder", lambda: tmp_path / "text")
    return tmp_path / "text"


@pytest.fixture
def forwards(clip: CLIP, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of texts of every pass through the text tower."""
    calls = []
    handle = clip.token_embedding.register_forward_hook(lambda _, args, __: calls.append(len(args[0])))
    yield calls
    handle.remove()


def text_of(clip: CLIP, ensemble: PromptEnsemble, class_name: str = "bolt") -> torch.Tensor:
    localizer = DenseLocalizer(clip, ensemble, 32)
    localizer.set_class_name(class_name)
    return localizer.text


@pytest.mark.open_clip
@pytest.mark.parametrize("class_name", ["bolt", "metal nut with a very long name, and more", "Schraube, groß!"])
def test_ensemble_is_what_open_clip_encodes(clip: CLIP, class_name: str) -> None:
    """With all 77 tokens, one state at a time, as it was defined."""
    ensemble = PromptEnsemble()
    expected = []
    for sentences in ensemble.sentences(class_name):
        embeddings = F.normalize(clip.encode_text(tokenize(sentences)), dim=-1)
        expected.append(F.normalize(embeddings.mean(dim=0), dim=-1))
    assert torch.allclose(encode_ensemble(clip, ensemble, class_name), torch.stack(expected), atol=1e-6)
    assert not torch.allclose(expected[0], expected[1], atol=1e-3)


def test_one_forward_of_unique_prompts(clip: CLIP, forwards: list[int]) -> None:
    ensemble = PromptEnsemble(normal=("{}", "fine {}"), abnormal=("{}", "broken {}"), templates=("a {}.", "one {}."))
    encode_ensemble(clip, ensemble, "bolt")
    assert forwards == [6]


def test_no_forward_on_the_second_run(clip: CLIP, ensemble: PromptEnsemble, folder: Path, forwards: list[int]) -> None:
    first = text_of(clip, ensemble)
    second = text_of(clip, ensemble)
    assert len(forwards) == 1
    assert torch.equal(first, second)
    text_of(clip, ensemble, "nut")
    text_of(clip, PromptEnsemble(normal=("{}",), abnormal=("worn {}",), templates=("a {}.",)))
    assert len(forwards) == 3
    assert len(list(folder.iterdir())) == 3


def test_other_weights_have_other_embeddings(clip: CLIP, ensemble: PromptEnsemble, folder: Path) -> None:
    first = text_of(clip, ensemble)
    other = deepcopy(clip)
    other.ln_final.bias += 0.5
    assert not torch.allclose(text_of(other, ensemble), first, atol=1e-3)


@pytest.mark.parametrize("content", [b"", b"no safetensors"])
def test_damaged_file_is_made_anew(clip: CLIP, ensemble: PromptEnsemble, folder: Path, content: bytes) -> None:
    first = text_of(clip, ensemble)
    (file,) = folder.iterdir()
    file.write_bytes(content)
    assert torch.equal(text_of(clip, ensemble), first)
    assert file.stat().st_size > len(content)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:, :50],
        lambda text: text[0],
        lambda text: text.half(),
        lambda text: 2 * text,
        lambda text: text * torch.nan,
    ],
)
def test_what_is_no_text_is_made_anew(
    clip: CLIP, ensemble: PromptEnsemble, folder: Path, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    first = text_of(clip, ensemble)
    (file,) = folder.iterdir()
    save_file({"text": change(first).contiguous()}, file)
    assert torch.equal(text_of(clip, ensemble), first)
    assert torch.equal(text_cache.load_text(file.stem, 96), first)


def test_text_is_encoded_in_float32_under_autocast(clip: CLIP, ensemble: PromptEnsemble, folder: Path) -> None:
    """It was encoded in Lightning's precision, and kept as if in float32."""
    expected = text_of(clip, ensemble)
    for file in folder.iterdir():
        file.unlink()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(text_of(clip, ensemble), expected)


def test_planted_link_is_not_written_through(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # older releases of safetensors write where a link points to, newer ones do not
    monkeypatch.setattr(text_cache, "save_file", lambda tensors, path: Path(path).write_bytes(save(tensors)))
    victim, text = tmp_path / "victim", torch.eye(2, 5)
    victim.write_text("mine")
    folder.mkdir()
    for name in (f"key.{os.getpid()}.partial", "key.safetensors"):
        (folder / name).symlink_to(victim)
    text_cache.save_text("key", text)
    assert torch.equal(text_cache.load_text("key", 5), text)
    assert victim.read_text() == "mine"
    assert not (folder / "key.safetensors").is_symlink()


def test_disk_that_cannot_be_written(clip: CLIP, ensemble: PromptEnsemble, folder: Path) -> None:
    folder.write_text("a file where a folder should be")
    assert text_of(clip, ensemble).shape == (2, 96)


@pytest.mark.open_clip
def test_activation_has_embeddings_of_its_own(clip: CLIP, ensemble: PromptEnsemble, folder: Path) -> None:
    """The same weights run with another activation give another text."""
    from anomalib_clipsam.clip import build_clip

    other = build_clip("demo", quick_gelu=True)
    other.load_state_dict(clip.state_dict())
    plain, quick = text_of(clip, ensemble), text_of(other, ensemble)
    assert len(list(folder.iterdir())) == 2
    assert (plain - quick).abs().max() > 1e-4
    assert torch.equal(text_of(other, ensemble), quick)
