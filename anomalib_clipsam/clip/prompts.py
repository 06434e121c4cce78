# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The sentences that CLIP is asked: states of a part times templates of a photo.

The default ensemble is that of anomalib's WinCLIP. It stands here too, so that printing it does not import all of
anomalib's models. A YAML file replaces all or some of it::

    normal: ["{}", "flawless {}"]
    abnormal: ["bent {}", "{} with a missing screw"]
    templates: ["a photo of a {}."]

Reference:
    Jeong et al., "WinCLIP: Zero-/Few-Shot Anomaly Classification and Segmentation", https://arxiv.org/abs/2303.14814
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path

import yaml

from anomalib_clipsam.errors.errors import UserFileNotFoundError, UserValueError

NORMAL_STATES = (
    "{}",
    "flawless {}",
    "perfect {}",
    "unblemished {}",
    "{} without flaw",
    "{} without defect",
    "{} without damage",
)
ANOMALOUS_STATES = ("damaged {}", "{} with flaw", "{} with defect", "{} with damage")
TEMPLATES = (
    "a cropped photo of the {}.",
    "a close-up photo of a {}.",
    "a close-up photo of the {}.",
    "a bright photo of a {}.",
    "a bright photo of the {}.",
    "a dark photo of the {}.",
    "a dark photo of a {}.",
    "a jpeg corrupted photo of the {}.",  # twice in anomalib
    "a blurry photo of the {}.",
    "a blurry photo of a {}.",
    "a photo of a {}.",
    "a photo of the {}.",
    "a photo of a small {}.",
    "a photo of the small {}.",
    "a photo of a large {}.",
    "a photo of the large {}.",
    "a photo of the {} for visual inspection.",
    "a photo of a {} for visual inspection.",
    "a photo of the {} for anomaly detection.",
    "a photo of a {} for anomaly detection.",
)


def read_yaml(path: Path, what: str) -> object:
    """Read a YAML file that a user wrote.

    Args:
        path (Path): The file.
        what (str): What it is, for messages.

    Returns:
        object: Its content.

    Raises:
        ValueError: If it is not YAML, or has aliases.
    """
    try:
        text = path.read_text(encoding="utf-8")
        # a few lines of them stand for lists of gigabytes
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            msg = f"The {what} '{path}' has YAML aliases, such as *name. Write every entry out."
            raise UserValueError(msg)
        return yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        msg = f"The {what} '{path}' is not readable as YAML: {error}. Correct the file."
        raise UserValueError(msg) from error


@dataclass(frozen=True)
class PromptEnsemble:
    """States and templates with ``{}`` where the class name, or the state, goes. What is listed twice counts once.

    Args:
        normal (tuple[str, ...]): States of a flawless part. Defaults to WinCLIP's seven.
        abnormal (tuple[str, ...]): States of a damaged part. Defaults to WinCLIP's four.
        templates (tuple[str, ...]): Sentences that a state is put into. Defaults to WinCLIP's twenty.

    Raises:
        ValueError: If a list is empty or an entry has not exactly one ``{}``.
    """

    normal: tuple[str, ...] = NORMAL_STATES
    abnormal: tuple[str, ...] = ANOMALOUS_STATES
    templates: tuple[str, ...] = TEMPLATES

    def __post_init__(self) -> None:
        """Check every entry, and drop repetitions."""
        for name in (f.name for f in fields(self)):
            entries = getattr(self, name)
            if not entries:
                msg = f"The prompt ensemble has no '{name}' entry. Give at least one, such as '{{}}'."
                raise UserValueError(msg)
            for entry in entries:
                if not isinstance(entry, str) or entry.count("{}") != 1:
                    msg = (
                        f"Prompt entry {entry!r} under '{name}' must be a text with exactly one '{{}}', "
                        "the place of the class name or state. Correct the entry."
                    )
                    raise UserValueError(msg)
            object.__setattr__(self, name, tuple(dict.fromkeys(entries)))  # the class is frozen

    @classmethod
    def from_file(cls, path: str | Path) -> PromptEnsemble:
        """Read an ensemble from a YAML file; what the file leaves out stays at its default.

        Args:
            path (str | Path): File with any of the lists ``normal``, ``abnormal`` and ``templates``.

        Returns:
            PromptEnsemble: The ensemble.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is not YAML of that form.
        """
        path = Path(path)
        if not path.is_file():
            msg = f"There is no prompt file '{path}'. Give the path of a YAML file, or leave `prompts` out."
            raise UserFileNotFoundError(msg)
        names = [f.name for f in fields(cls)]
        content = read_yaml(path, "prompt file")
        if not isinstance(content, dict) or not content or not set(content) <= set(names):
            msg = f"The prompt file '{path}' must map some of {names} to lists of texts. Correct its keys."
            raise UserValueError(msg)
        for name, entries in content.items():
            if not isinstance(entries, list):
                msg = (
                    f"'{name}' in the prompt file '{path}' must be a list of texts. Write one entry a line, after '- '."
                )
                raise UserValueError(msg)  # the file's content is at fault, not an argument's type
        return cls(**{name: tuple(entries) for name, entries in content.items()})

    def sentences(self, class_name: str) -> tuple[list[str], list[str]]:
        """Put a class name into all states and these into all templates.

        Args:
            class_name (str): Name of the part.

        Returns:
            tuple[list[str], list[str]]: Sentences about a normal and about an abnormal part.
        """

        def fill(states: tuple[str, ...]) -> list[str]:
            named = [state.replace("{}", class_name) for state in states]
            return [template.replace("{}", state) for state in named for template in self.templates]

        return fill(self.normal), fill(self.abnormal)

    def to_yaml(self, class_name: str | None = None) -> str:
        """Write the ensemble out.

        Args:
            class_name (str | None): Name of the part, to be put into every sentence. Defaults to ``None``, which keeps
                states and templates apart, as a prompt file has them.

        Returns:
            str: YAML: the prompt file, or the lists ``normal`` and ``abnormal`` of whole sentences.

        Raises:
            ValueError: If the class name is empty.
        """
        if class_name is not None and not class_name.strip():
            msg = "The class name is empty. Name the part, such as 'bottle', or leave the class name out."
            raise UserValueError(msg)
        if class_name is None:
            content = {key: list(entries) for key, entries in asdict(self).items()}
        else:
            content = dict(zip(("normal", "abnormal"), self.sentences(class_name), strict=True))
        return yaml.safe_dump(content, allow_unicode=True, sort_keys=False, width=1000)
