# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""A picture unlike every good part is never good, and a frame without structure is never good, either."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anomalib_clipsam import ClipSam
from anomalib_clipsam.cli import main
from anomalib_clipsam.drawn_parts.drawing import draw_part
from anomalib_clipsam.references.judge import SURE


def parts(number: int) -> list[np.ndarray]:
    """Draw a good part once, and move it a little for each picture; a sensor adds noise."""
    rng = np.random.default_rng(3)
    part, _ = draw_part("leather", rng)
    moved = (np.roll(part, rng.integers(-3, 4, 2), (0, 1)).astype(float) for _ in range(number))
    return [np.clip(picture + rng.normal(0, 2, picture.shape), 0, 255).astype(np.uint8) for picture in moved]


def frames(part: np.ndarray) -> dict[str, np.ndarray]:
    """What a line shows when no part is there, or not all of it."""
    rng = np.random.default_rng(4)
    half = part.copy()
    half[:, : part.shape[1] * 6 // 10] = 0
    other, _ = draw_part("key", rng)
    return {
        "black": np.zeros_like(part),
        "white": np.full_like(part, 255),
        "grey": np.full_like(part, 128),
        "noise": np.clip(rng.normal(6, 3, part.shape), 0, 255).astype(np.uint8),
        "half": half,
        "other": other,
    }


def prepared(pictures: list[np.ndarray], model: ClipSam) -> torch.Tensor:
    whole = [torch.from_numpy(picture.copy()).permute(2, 0, 1)[None] / 255 for picture in pictures]
    return torch.cat([model.pre_processor(picture) for picture in whole])


@pytest.fixture(scope="module")
def model() -> ClipSam:
    built = ClipSam(weights="lite", k_shot=4).eval()
    good = prepared(parts(4), built)
    built.set_references(good)
    return built


def test_what_is_unlike_every_good_part_is_never_good(model: ClipSam) -> None:
    good = parts(6)
    unlike = frames(good[0])
    stages = model.model.stages(prepared([*unlike.values(), *good[4:]], model))
    assert dict(zip(unlike, stages.unlike.tolist(), strict=False)) == dict.fromkeys(unlike, True)
    assert (stages.score[: len(unlike)] == SURE).all()
    assert not stages.unlike[len(unlike) :].any()
    decided = model.post_process(stages.predictions, (256, 256))
    assert decided.pred_label[: len(unlike)].all()
    assert decided.pred_mask[: len(unlike)].flatten(1).any(dim=1).all()


def test_without_a_reference_a_frame_without_structure_is_never_good() -> None:
    alone, (part,) = ClipSam(weights="lite", refine=False).eval(), parts(1)
    shown = [frames(part)[name] for name in ("black", "white", "grey", "noise")]
    score = alone.model(prepared([*shown, part], alone)).pred_score
    assert (score[:4] == SURE).all()
    assert score[4] < SURE


def test_the_command_says_why(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for folder, pictures in (("good", parts(4)), ("tested", [parts(5)[4], *frames(parts(1)[0]).values()])):
        (tmp_path / folder).mkdir()
        for number, picture in enumerate(pictures):
            Image.fromarray(picture).save(tmp_path / folder / f"{number}.png")
    options = ["--weights", "lite", "--good", str(tmp_path / "good"), "--quiet", "--accelerator", "cpu"]
    main(["predictions", str(tmp_path / "tested"), "--to", str(tmp_path / "table.csv"), *options])
    capsys.readouterr()
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["reason"] for row in rows[1:]] == 6 * ["unlike every good part"]
    assert {row["label"] for row in rows[1:]} == {"defective"}
    assert rows[0]["reason"] != "unlike every good part"
