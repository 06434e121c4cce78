# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Arguments as they are given in Python: what passes, and the sentence for what does not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypedDict

import pytest
from omegaconf import OmegaConf

from anomalib_clipsam.arguments import check_types, group, plain


class Settings(TypedDict, total=False):
    """A group as those of PPG, CPS and fusion."""

    share: float
    count: int
    mode: str


def annotated(
    count: int = 1,
    share: float = 0.5,
    on: bool = True,
    name: str | None = None,
    prompts: str | None = None,
    settings: Settings | None = None,
) -> None:
    """Take one argument of each type."""


def test_containers_of_omegaconf_become_pythons_own() -> None:
    given = {"share": 0.5, "taps": [1, 2], "inner": {"mode": "gate"}, "none": None}
    made = plain(OmegaConf.create(given))
    assert made == given
    assert [type(made), type(made["taps"]), type(made["inner"])] == [dict, list, dict]
    assert plain((1, 2)) == (1, 2)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"count": 2, "share": 0.25, "on": False, "name": "nut", "settings": {"share": 1.0}},
        {"share": 1},  # a whole number is a number
        {"name": None, "settings": None},
        {"prompts": Path("prompts.yaml")},
        {"self": object(), "another": object()},  # not annotated
    ],
)
def test_values_of_the_annotated_types_pass(values: dict[str, Any]) -> None:
    check_types(annotated, values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 1.0}, "count is 1.0, but must be of the type int. Give such a value, or leave count out."),
        ({"count": True}, "count is True, but must be of the type int. Give such a value, or leave count out."),
        ({"share": True}, "share is True, but must be of the type float. Give such a value, or leave share out."),
        ({"share": "0.5"}, "share is '0.5', but must be of the type float. Give such a value, or leave share out."),
        ({"on": 1}, "on is 1, but must be of the type bool. Give such a value, or leave on out."),
        ({"on": None}, "on is None, but must be of the type bool. Give such a value, or leave on out."),
        ({"name": 7}, "name is 7, but must be of the type str or None. Give such a value, or leave name out."),
        ({"settings": [1]}, "settings is [1], but must be of the type dict or None. Give such a value,"),
        ({"count": 1, "name": b""}, "name is b'', but must be of the type str or None."),
    ],
)
def test_value_of_another_type_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        check_types(annotated, values)


def test_path_is_for_arguments_that_name_a_file() -> None:
    with pytest.raises(TypeError, match=r"name is .*Path\('nut'\), but must be of the type str or None"):
        check_types(annotated, {"name": Path("nut")})


@pytest.mark.parametrize("given", [None, {}])
def test_group_may_be_left_out(given: dict | None) -> None:
    assert group(given, Settings, "settings") == {}


def test_group_gives_a_copy_of_what_was_given() -> None:
    given = {"share": 0.25, "count": 3}
    checked = group(given, Settings, "settings")
    assert checked == given
    assert checked is not given


def test_group_refuses_unknown_names() -> None:
    with pytest.raises(ValueError, match=re.escape("ppg has no 'shares'. Choose one of share, count, mode.")):
        group({"share": 0.5, "shares": 0.5}, Settings, "ppg")


def test_group_refuses_other_types() -> None:
    with pytest.raises(TypeError, match=re.escape("mode is 1, but must be of the type str.")):
        group({"mode": 1}, Settings, "fusion")
