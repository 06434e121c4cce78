# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Arguments as they were given in Python: of the types and names that are annotated, or a sentence that says so.

On the command line jsonargparse sees to both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args, get_type_hints, is_typeddict

FILES = ("prompts", "adapters", "clip_weights", "sam_weights")
"""Arguments that name a file: a ``Path`` does too."""


def check_types(annotated: Any, values: dict[str, Any]) -> None:
    """Refuse values of another type than is annotated.

    Args:
        annotated (Any): A function or a ``TypedDict``.
        values (dict[str, Any]): Values by name; others than those annotated are not looked at.

    Raises:
        TypeError: If one is of another type.
    """
    for name, hint in get_type_hints(annotated).items():
        if name not in values:
            continue
        types = [dict if is_typeddict(kind) else kind for kind in get_args(hint) or (hint,)]
        allowed = (*types, *([int] if float in types else []), *([Path] if name in FILES else []))
        value = values[name]
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in types):
            names = " or ".join("None" if kind is type(None) else kind.__name__ for kind in types)
            msg = f"{name} is {value!r}, but must be of the type {names}. Give such a value, or leave {name} out."
            raise TypeError(msg)


def group(given: dict[str, Any] | None, annotated: Any, name: str) -> dict[str, Any]:
    """Check a group of arguments.

    Args:
        given (dict[str, Any] | None): Values by name; ``None`` for none.
        annotated (Any): The ``TypedDict`` that it has to fit.
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
        msg = f"{name} has no '{unknown[0]}'. Choose of {', '.join(names)}."
        raise ValueError(msg)
    check_types(annotated, given)
    return given
