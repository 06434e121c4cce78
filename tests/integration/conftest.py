# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Small data for the commands: drawn parts in a folder of their own, and a way to run anomalib's command line."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from anomalib.cli import AnomalibCLI

from anomalib_clipsam.drawn_parts.drawing import draw_part


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with ``good``, ``defect`` and ``mask``, four drawn capsules each."""
    root = tmp_path_factory.mktemp("parts")
    for folder in ("good", "defect", "mask"):
        (root / folder).mkdir()
    for index in range(4):
        good, _ = draw_part("capsule", np.random.default_rng(index))
        defective, mask = draw_part("capsule", np.random.default_rng(index), "crack")
        for path, image in (
            (root / "good" / f"{index}.png", good[..., ::-1]),
            (root / "defect" / f"{index}.png", defective[..., ::-1]),
            (root / "mask" / f"{index}.png", mask.astype(np.uint8) * 255),
        ):
            assert cv2.imwrite(str(path), image)
    return root


@pytest.fixture
def anomalib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., AnomalibCLI]:
    """Run a command of anomalib's in an empty folder, and give its command line object."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> AnomalibCLI:
        level = logging.getLogger().level
        try:
            return AnomalibCLI([str(argument) for argument in arguments])
        finally:
            logging.getLogger().setLevel(level)

    return run


@pytest.fixture
def folder_arguments(parts: Path) -> list[str]:
    """Arguments of anomalib's ``Folder`` data module on the drawn capsules, validated on what is tested."""
    return [
        "--data=Folder",
        "--data.name=parts",
        f"--data.root={parts}",
        "--data.normal_dir=good",
        "--data.abnormal_dir=defect",
        "--data.normal_test_dir=good",
        "--data.mask_dir=mask",
        "--data.val_split_mode=same_as_test",
        "--data.eval_batch_size=3",
        "--data.num_workers=0",
    ]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Start a browser, where there is one.

    It needs playwright, which the extra ``dev`` brings, and a Chromium: the program that the variable
    ``ANOMALIB_CLIPSAM_CHROMIUM`` names, Debian's ``chromium``, or the one of ``playwright install chromium``.
    """
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        try:
            program = os.environ.get("ANOMALIB_CLIPSAM_CHROMIUM") or shutil.which("chromium")
            started = playwright.chromium.launch(
                executable_path=program, args=["--no-sandbox", "--headless=shell", "--no-zygote"]
            )
        except api.Error as error:
            pytest.skip(f"there is no Chromium: {str(error).splitlines()[0]}")
        yield started
        started.close()
