# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Prompt ensembles."""

from pathlib import Path

import pytest
from anomalib.models.image.winclip.prompting import create_prompt_ensemble

from anomalib_clipsam.clip import PromptEnsemble, encode_ensemble

pytestmark = pytest.mark.open_clip


@pytest.mark.parametrize("class_name", ["object", "metal nut"])
def test_default_is_that_of_winclip(class_name: str) -> None:
    """But for the template that anomalib lists twice."""
    normal, abnormal = PromptEnsemble().sentences(class_name)
    assert (normal, abnormal) == tuple(list(dict.fromkeys(asked)) for asked in create_prompt_ensemble(class_name))
    assert (len(normal), len(abnormal)) == (7 * 20, 4 * 20)
    assert normal[0] == f"a cropped photo of the {class_name}."
    assert abnormal[-1] == f"a photo of a {class_name} with damage for anomaly detection."


def test_what_is_listed_twice_counts_once() -> None:
    twice = PromptEnsemble(normal=("{}", "{}"), abnormal=("bent {}",), templates=("a {}.", "the {}!", "a {}."))
    assert twice == PromptEnsemble(normal=("{}",), abnormal=("bent {}",), templates=("a {}.", "the {}!"))


def test_every_state_is_put_into_every_template() -> None:
    ensemble = PromptEnsemble(normal=("{}", "good {}"), abnormal=("bent {}",), templates=("a {}.", "the {}!"))
    assert ensemble.sentences("nut") == (
        ["a nut.", "the nut!", "a good nut.", "the good nut!"],
        ["a bent nut.", "the bent nut!"],
    )


@pytest.mark.parametrize(
    "class_name", ["{}", "{0}", "{", "a }{ b", "{name}", "'nut\"", "%s", "\\1", "Schraube ø", "螺丝", ""]
)
def test_class_names_are_taken_as_they_are(class_name: str) -> None:
    ensemble = PromptEnsemble(normal=("{}",), abnormal=("bent {}",), templates=("a {}.",))
    assert ensemble.sentences(class_name) == ([f"a {class_name}."], [f"a bent {class_name}."])


def test_braces_around_text_in_an_entry_are_text() -> None:
    ensemble = PromptEnsemble(normal=("{x} {}",), abnormal=("{} {0}",), templates=("{y} {}",))
    assert ensemble.sentences("nut") == (["{y} {x} nut"], ["{y} nut {0}"])


def test_file_replaces_all(tmp_path: Path) -> None:
    path = tmp_path / "prompts.yaml"
    path.write_text(
        "normal: ['{}']\nabnormal:\n  - 'bent {}'\n  - '{} with a missing screw'\ntemplates: ['photo: {}']\n",
        encoding="utf-8",
    )
    assert PromptEnsemble.from_file(str(path)) == PromptEnsemble(
        normal=("{}",),
        abnormal=("bent {}", "{} with a missing screw"),
        templates=("photo: {}",),
    )


@pytest.mark.parametrize("name", ["normal", "abnormal", "templates"])
def test_what_a_file_leaves_out_stays_at_its_default(tmp_path: Path, name: str) -> None:
    path = tmp_path / "prompts.yaml"
    path.write_text(f"{name}: ['größere {{}}']", encoding="utf-8")
    assert PromptEnsemble.from_file(path) == PromptEnsemble(**{name: ("größere {}",)})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "must map some of"),
        ("{}", "must map some of"),
        ("- '{}'", "must map some of"),
        ("only text", "must map some of"),
        ("normal: ['{}']\nstates: ['{}']", "must map some of"),
        ("1: ['{}']", "must map some of"),
        ("normal: '{}'", "'normal' in the prompt file .* must be a list"),
        ("abnormal: {a: '{}'}", "'abnormal' in the prompt file .* must be a list"),
        ("templates:", "'templates' in the prompt file .* must be a list"),
        ("normal: []", "has no 'normal' entry"),
        ("templates: []", "has no 'templates' entry"),
        ("abnormal: [bent]", "'bent' under 'abnormal' must be a text with exactly one '{}'"),
        ("abnormal: ['{} and {}']", "under 'abnormal' must be a text with exactly one"),
        ("templates: [7]", "7 under 'templates' must be a text"),
        ("normal: [null]", "None under 'normal' must be a text"),
        ("normal: ['{}'", "is not readable as YAML"),
        ("normal: !!python/object/apply:os.system ['true']", "is not readable as YAML"),
    ],
)
def test_wrong_file(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "prompts.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        PromptEnsemble.from_file(path)


@pytest.mark.parametrize("entry", ["&a{} [{}]", "&a{} {{<<: [{}]}}"], ids=["nested", "merged"])
def test_aliases_are_refused(tmp_path: Path, entry: str) -> None:
    """Nine of nine of nine: the file has 3 kB, and a message or a merge of it would have 9**30 entries."""
    first = {"[": "&a0 [x, x]", "{": "&a0 {x: x}"}[entry[5]]
    rest = [entry.format(level, ", ".join([f"*a{level - 1}"] * 9)) for level in range(1, 30)]
    path = tmp_path / "prompts.yaml"
    path.write_text("templates:\n" + "".join(f"- {each}\n" for each in [first, *rest]) + "normal: [*a29]\n")
    with pytest.raises(ValueError, match=r"prompts\.yaml' has YAML aliases, such as \*name\. Write every entry out\."):
        PromptEnsemble.from_file(path)


def test_file_in_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "prompts.yaml"
    path.write_bytes("normal: ['größere {}']".encode("latin-1"))
    with pytest.raises(ValueError, match="is not readable as YAML"):
        PromptEnsemble.from_file(path)


@pytest.mark.parametrize("name", ["nothing.yaml", "."])
def test_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match="There is no prompt file"):
        PromptEnsemble.from_file(tmp_path / name)


def test_encoding_is_the_normalised_mean_of_normalised_embeddings(clip, ensemble: PromptEnsemble) -> None:
    from open_clip.tokenizer import tokenize

    text = encode_ensemble(clip, ensemble, "nut")
    first, second, broken = (
        clip.encode_text(tokenize([f"a photo of a {state}."]))[0] for state in ("nut", "flawless nut", "broken nut")
    )
    mean = first / first.norm() / 2 + second / second.norm() / 2
    assert text.shape == (2, clip.text_projection.shape[1])
    assert (text[0] - mean / mean.norm()).abs().max() < 1e-5
    assert (text[1] - broken / broken.norm()).abs().max() < 1e-5
    assert (text[0] - text[1]).abs().max() > 1e-3
