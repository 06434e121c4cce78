# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Checks of arguments given in Python: their names and types must be those that are annotated.

On the command line, jsonargparse checks both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints, is_typeddict

from anomalib_clipsam.errors.errors import UserTypeError, UserValueError

FILES = ("prompts", "adapters", "clip_weights", "sam_weights", "few_shot_source")
"""Arguments that name a file: a ``Path`` does too."""


def plain(value: Any) -> Any:
    """Turn what OmegaConf makes of a file, as for `anomalib benchmark`, into Python's own kinds.

    Args:
        value (Any): Any value.

    Returns:
        Any: Mappings as ``dict``, sequences as ``list``, also within; tuples, and all else as it is.
    """
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | tuple):
        return [plain(entry) for entry in value]
    return value


def check_types(annotated: Any, values: dict[str, Any]) -> None:
    """Raise unless values have the annotated types.

    Args:
        annotated (Any): A function or a ``TypedDict``.
        values (dict[str, Any]): Values by name; those without an annotation are ignored.

    Raises:
        TypeError: If one is of another type.
    """
    for name, hint in get_type_hints(annotated).items():
        if name not in values:
            continue
        kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        types = [dict if is_typeddict(kind) else get_origin(kind) or kind for kind in kinds]
        allowed = (*types, *([int] if float in types else []), *([Path] if name in FILES else []))
        value = values[name]
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in types):
            names = " or ".join("None" if kind is type(None) else kind.__name__ for kind in types)
            msg = f"{name} is {value!r}, but must be of the type {names}. Give such a value, or leave {name} out."
            raise UserTypeError(msg)


def group(given: dict[str, Any] | None, annotated: Any, name: str) -> dict[str, Any]:
    """Check a group of arguments.

    Args:
        given (dict[str, Any] | None): Values by name; ``None`` for none.
        annotated (Any): The ``TypedDict`` that it must match.
        name (str): The group's name, for the message.

    Returns:
        dict[str, Any]: The values that were given.

    Raises:
        TypeError: If one is of another type.
        ValueError: If there is no argument of that name.
    """
    given = dict(given or {})
    names = list(annotated.__annotations__)
    unknown = [key for key in given if key not in names]
    if unknown:
        msg = f"{name} has no '{unknown[0]}'. Choose one of {', '.join(names)}."
        raise UserValueError(msg)
    check_types(annotated, given)
    return given
