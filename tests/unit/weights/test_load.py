# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""How a file of weights becomes a model. Nothing is fetched: a download fails a test."""

from __future__ import annotations

import json
import pickle
import struct
import traceback
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from anomalib_clipsam.clip import build_clip
from anomalib_clipsam.clip.build import CARRIED_CONFIGS
from anomalib_clipsam.compute.file_hashes import hash_file, hash_git_blob
from anomalib_clipsam.sam import build_sam
from anomalib_clipsam.weights import load, store
from anomalib_clipsam.weights.load import find_learned, load_adapters, load_clip, load_sam, read_state_dict
from anomalib_clipsam.weights.store import explicit_file
from anomalib_clipsam.weights.table import LEARNED, WeightFile, find_sam, get_weights, pair_files

SMALL_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1},
}
STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.tensor([1.0, -1.0])}


class RunsCode:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        """Say what to call."""
        return Path.touch, (self.path,)


class Holder(nn.Module):
    """A module that does nothing but hold others."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image


def torchscript(state_dict: dict[str, torch.Tensor], path: Path) -> Path:
    """Write a TorchScript archive with the given entries, as OpenAI's is."""
    root = Holder()
    for key, value in state_dict.items():
        *names, last = key.split(".")
        module = root
        for name in names:
            if name not in module._modules:
                module.add_module(name, Holder())
            module = module._modules[name]
        module.register_buffer(last, value.clone())
    torch.jit.trace(root, torch.zeros(1), check_trace=False).save(str(path))
    return path


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor] = STATE) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("by", ["name", "SHA-256", "git blob", "nothing"])
def test_learned_file_is_known_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    """Activation, and what it was trained on, do not depend on what a file is called."""
    path = tmp_path / "renamed.pth"
    torch.save({"trainable_linearlayer": STATE}, path)
    row = LEARNED["april_gan_visa"]
    hashes = {"SHA-256": {"sha256": hash_file(path)}, "git blob": {"git_blob": hash_git_blob(path)}}.get(by, {})
    row = replace(row, sources=(replace(row.sources[0], **hashes),))
    monkeypatch.setitem(LEARNED, row.name, row)
    expected = None if by == "nothing" else row
    assert find_learned(row.name if by == "name" else str(path)) == expected
    assert same(load_adapters(str(path))["trainable_linearlayer"])


def test_safetensors(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "a.safetensors")
    assert same(read_state_dict(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.bin", "a"])
@pytest.mark.parametrize("zipped", [True, False])
def test_state_dict(tmp_path: Path, name: str, zipped: bool) -> None:
    torch.save(STATE, tmp_path / name, _use_new_zipfile_serialization=zipped)
    assert same(read_state_dict(tmp_path / name))


def test_state_dict_of_a_training_checkpoint(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": STATE}, tmp_path / "a.pt")
    assert same(read_state_dict(tmp_path / "a.pt"))


def test_torchscript_is_opened_only_when_its_hash_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = torchscript(STATE, tmp_path / "a.pt")
    with pytest.raises(
        ValueError, match=r"a\.pt cannot be read: it is a TorchScript archive, and not the one that OpenAI"
    ):
        read_state_dict(path)
    monkeypatch.setattr(load, "OPENAI_CLIP", replace(load.OPENAI_CLIP, sha256=hash_file(path)))
    assert same(read_state_dict(path))


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_truncated_file(tmp_path: Path, name: str, share: float) -> None:
    path = tmp_path / name
    state = {"a": torch.rand(100)}
    save_file(state, path) if name.endswith("safetensors") else torch.save(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=rf"The weights file .*{name} cannot be read: .* Bring an undamaged file"):
        read_state_dict(path)


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_file_of_another_kind(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("<html>404 not found</html>")
    with pytest.raises(ValueError, match="cannot be read"):
        read_state_dict(tmp_path / name)


@pytest.mark.parametrize(
    ("header", "length"),
    [
        ({}, 2**62),  # a header of more bytes than any machine has
        ({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}, None),
        ({"a": {"dtype": "F32", "shape": [2**33, 2**33], "data_offsets": [0, 8]}}, None),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}, None),
        ({name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for name in "ab"}, None),
    ],
    ids=["length", "beyond the file", "overflow", "before the data", "overlap"],
)
def test_safetensors_header_that_lies(tmp_path: Path, header: dict, length: int | None) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", length or len(text)) + text + bytes(8))
    with pytest.raises(ValueError, match=r"a\.safetensors cannot be read: .* Bring an undamaged file"):
        read_state_dict(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("content", "kind"),
    [([torch.ones(2)], "list"), (torch.ones(2), "Tensor"), (7, "int"), ({"state_dict": [torch.ones(2)]}, "list")],
)
def test_content_that_is_no_state_dict(tmp_path: Path, content: object, kind: str) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=f"holds a {kind}, not a state dict"):
        read_state_dict(tmp_path / "a.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_with_code_is_not_run(tmp_path: Path, zipped: bool) -> None:
    victim, path = tmp_path / "victim", tmp_path / "a.pt"
    if zipped:
        torch.save({"a": RunsCode(victim)}, path)
    else:
        path.write_bytes(pickle.dumps({"a": RunsCode(victim)}))
    with pytest.raises(ValueError, match="cannot be read: Unsupported ") as raised:
        read_state_dict(path)
    assert not victim.exists()
    assert "weights_only" not in "".join(traceback.format_exception(raised.value))  # torch's advice how to run it
    pickle.loads(pickle.dumps(RunsCode(victim)))
    assert victim.exists()  # it does what it says where it is let


@pytest.fixture
def small_clip(monkeypatch: pytest.MonkeyPatch) -> WeightFile:
    """Make the demo's architecture a very small one; its row."""
    monkeypatch.setitem(CARRIED_CONFIGS, "demo", SMALL_CLIP)
    return WeightFile("small", "CLIP", "demo", 32, "MIT", (), quick_gelu=True)


def written(state_dict: dict[str, torch.Tensor], form: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write a state dict in one of the forms that CLIPs come in; the path."""
    if form == "safetensors":
        save_file(state_dict, folder / "clip.safetensors")
        return str(folder / "clip.safetensors")
    path = (
        folder / {"state dict": "clip.pt", "open_clip": "open_clip_pytorch_model.bin", "OpenAI": "clip-openai.pt"}[form]
    )
    if form == "OpenAI":
        sizes = {"input_resolution": 32, "context_length": 8, "vocab_size": 50}
        torchscript({**state_dict, **{key: torch.tensor(value) for key, value in sizes.items()}}, path)
        monkeypatch.setattr(load, "OPENAI_CLIP", replace(load.OPENAI_CLIP, sha256=hash_file(path)))
    else:
        torch.save({"state_dict": state_dict} if form == "open_clip" else state_dict, path)
    return str(path)


@pytest.mark.open_clip
@pytest.mark.parametrize("form", ["state dict", "open_clip", "safetensors", "OpenAI"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_clip_is_the_same_in_every_form(
    small_clip: WeightFile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
    dtype: torch.dtype,
) -> None:
    """Bit for bit, in float32, with the activation of the row, whatever the file is called."""
    original = build_clip("demo", quick_gelu=True)
    state_dict = {key: value.to(dtype) for key, value in original.state_dict().items()}
    original.load_state_dict(state_dict)
    loaded = load_clip(small_clip, written(state_dict, form, tmp_path, monkeypatch))
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert not loaded.training
    image, tokens = torch.rand(2, 3, 32, 32), torch.randint(50, (3, 8))
    with torch.no_grad():
        assert torch.equal(loaded.encode_image(image), original.encode_image(image))
        assert torch.equal(loaded.encode_text(tokens), original.encode_text(tokens))
        other = build_clip("demo", quick_gelu=False)
        other.load_state_dict(loaded.state_dict())
        assert not torch.equal(other.encode_image(image), original.encode_image(image))


@pytest.mark.parametrize("form", ["sam.pth", "sam.safetensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_sam_from_a_file(sam, tmp_path: Path, form: str, dtype: torch.dtype) -> None:
    state_dict = {key: value.to(dtype) for key, value in sam.state_dict().items()}
    save_file(state_dict, tmp_path / form) if form.endswith("tensors") else torch.save(state_dict, tmp_path / form)
    loaded = load_sam(replace(find_sam("lite"), architecture="demo"), str(tmp_path / form))
    assert not loaded.training
    assert same(loaded.state_dict(), {key: value.float() for key, value in state_dict.items()})


def test_carried_weights_load() -> None:
    clip, sam, adapters = pair_files("lite")
    for weights in (load_clip(clip).state_dict(), load_sam(sam).state_dict(), load_adapters(adapters.name)):
        assert weights
        assert all(torch.isfinite(value).all() for value in weights.values())


@pytest.mark.parametrize(
    ("change", "key", "found", "expected"),
    [
        ("missing", "iou_token.weight", "missing", r"\(1, 128\)"),
        ("surplus", "more", r"\(2,\)", "unknown"),
        ("shape", "iou_token.weight", r"\(1, 7\)", r"\(1, 128\)"),
        ("no tensor", "more", "str", "unknown"),
        ("key", "7", r"\(1,\)", "unknown"),
    ],
)
def test_file_that_does_not_fit(sam, tmp_path: Path, change: str, key: str, found: str, expected: str) -> None:
    state_dict = dict(sam.state_dict())
    token = next(name for name in state_dict if name.endswith("iou_token.weight"))
    if change == "missing":
        del state_dict[token]
    elif change == "key":
        state_dict[7] = torch.ones(1)
    else:
        more = {"surplus": ("more", torch.ones(2)), "shape": (token, torch.ones(1, 7)), "no tensor": ("more", "text")}
        state_dict.update([more[change]])
    torch.save(state_dict, tmp_path / "sam.pth")
    message = (
        rf"sam\.pth does not fit SAM 'demo': 1 of {len(sam.state_dict())} entries differ, such as '[a-z_.]*{key}' "
        rf"\(file: {found}, architecture: {expected}\)"
    )
    with pytest.raises(ValueError, match=message):
        load_sam(replace(find_sam("lite"), architecture="demo"), str(tmp_path / "sam.pth"))


def test_first_wrong_key_is_named(sam, tmp_path: Path) -> None:
    state_dict = {f"module.{key}": value for key, value in sam.state_dict().items()}
    torch.save(state_dict, tmp_path / "sam.pth")
    first = min({*state_dict, *sam.state_dict()})
    with pytest.raises(
        ValueError, match=rf"{2 * len(state_dict)} of {len(state_dict)} entries differ, such as '{first}'"
    ):
        load_sam(replace(find_sam("lite"), architecture="demo"), str(tmp_path / "sam.pth"))


def test_weights_of_another_model(sam, tmp_path: Path) -> None:
    torch.save(build_sam("demo").image_encoder.state_dict(), tmp_path / "encoder.pth")
    with pytest.raises(ValueError, match=r"does not fit CLIP 'demo'.*Name the architecture that the file was made for"):
        load_clip(replace(get_weights("lite").clip, architecture="demo"), str(tmp_path / "encoder.pth"))


def test_architecture_that_the_file_fits_is_named(sam, clip, tmp_path: Path) -> None:
    clip_row, sam_row = (replace(row, architecture="demo") for row in pair_files("lite")[:2])
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    torch.save(clip.state_dict(), tmp_path / "clip.pth")
    small = replace(clip_row, architecture="ViT-B-32")
    for read, row, file, name in (
        (load_clip, small, "clip.pth", "clip_architecture='demo'"),
        (load_clip, clip_row, "sam.pth", "sam_architecture='demo'"),
        (load_sam, sam_row, "clip.pth", "clip_architecture='demo'"),
    ):
        with pytest.raises(ValueError, match=rf"{file} does not fit .* It fits {name}\."):
            read(row, str(tmp_path / file))


@pytest.mark.parametrize("name", ["nothing.pth", "."])
def test_explicit_file_that_is_missing(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "urlopen", lambda *_args, **_kwargs: pytest.fail("a silent download"))
    row = get_weights("vit_b")
    with pytest.raises(
        FileNotFoundError, match=r"sam_weights='.*' is no file. Correct the path, or leave sam_weights out"
    ):
        load_sam(row.sam, str(tmp_path / name))
    with pytest.raises(FileNotFoundError, match=r"clip_weights='.*' is no file"):
        load_clip(replace(get_weights("lite").clip, architecture="demo"), str(tmp_path / name))
    with pytest.raises(FileNotFoundError, match=r"adapters='.*' is no file"):
        explicit_file(str(tmp_path / name), "adapters")
