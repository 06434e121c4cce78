# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""What earlier versions have written is still read, and says the same.

``tests/data/earlier`` was written by commit 7a520ce, with this file's :func:`write`: networks whose weights are whole
numbers of a seeded generator, so that every machine builds the same ones, and pictures made in the same way.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import open_clip
import pytest
import torch
from anomalib.data import Folder
from anomalib.engine import Engine
from PIL import Image

from anomalib_clipsam import ClipSam

EARLIER = Path(__file__).parents[1] / "data" / "earlier"
CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 3, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
GIVEN = {"clip_architecture": "earlier", "weights": "lite", "sam_architecture": "lite", "clip_size": 64, "map_size": 64}


def weights_in(folder: Path) -> dict[str, str]:
    """Write the networks' weights, and name them as ClipSam's arguments."""
    from anomalib_clipsam.clip import build_clip
    from anomalib_clipsam.sam import build_sam

    (folder / "earlier.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    open_clip.add_model_config(folder / "earlier.json")
    generator = np.random.default_rng(0)
    files = {}
    for name, network in (("clip", build_clip("earlier", quick_gelu=False)), ("sam", build_sam("lite"))):
        state = {
            key: torch.from_numpy(generator.integers(-64, 64, value.shape)).to(value.dtype) / 512
            if value.is_floating_point() and not ((value == 0) | (value == 1)).all()  # random ones
            else value
            for key, value in network.state_dict().items()
        }
        files[f"{name}_weights"] = str(folder / f"{name}.pt")
        torch.save(state, files[f"{name}_weights"])
    return files


def pictures_in(folder: Path) -> Path:
    """Draw good and defective pictures of a part: coarse noise, and a bright patch."""
    for label in ("good", "defect"):
        (folder / label).mkdir(parents=True)
        for index in range(3):
            pixels = (
                np.random.default_rng(index).integers(90, 120, (12, 9, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
            )
            if label == "defect":
                pixels[20 + 10 * index : 50 + 10 * index, 12:40] = 250
            Image.fromarray(pixels).save(folder / label / f"{index}.png")
    return folder


def read(path: Path) -> torch.Tensor:
    """Read a picture as ``(1, 3, height, width)`` in [0, 1]."""
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None].float() / 255


def answer(model: ClipSam, parts: Path) -> dict[str, torch.Tensor]:
    """Score, map and mask of a picture, before thresholds."""
    return model.model(model.pre_processor(read(parts / "defect" / "1.png")))._asdict()


def write(folder: Path, scratch: Path) -> None:
    """Write what the tests below read. Only of use with an earlier version of the package."""
    folder.mkdir(parents=True)
    files, parts = weights_in(scratch), pictures_in(scratch / "parts")
    data = Folder("parts", "good", parts, "defect", "good", val_split_mode="same_as_test", num_workers=0)
    for name, arguments in (("text", {}), ("good_parts", {"k_shot": 2, "few_shot_source": str(parts / "good")})):
        model = ClipSam(**GIVEN, **files, **arguments, class_name="part")
        Engine(default_root_dir=scratch / name, accelerator="cpu").test(model=model, datamodule=data)
        (checkpoint,) = (scratch / name).rglob("*.ckpt")
        (folder / f"{name}.ckpt").write_bytes(checkpoint.read_bytes())
        model.eval()
        torch.save(answer(model, parts), folder / f"{name}.answer.pt")
    model = ClipSam(**GIVEN, **files, class_name="part", refine=False).eval()
    model.to_onnx(scratch)
    (folder / "text.onnx").write_bytes((scratch / "weights" / "onnx" / "model.onnx").read_bytes())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The networks' weights, built anew."""
    return weights_in(tmp_path_factory.mktemp("networks"))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures, drawn anew."""
    return pictures_in(tmp_path_factory.mktemp("pictures"))


@pytest.mark.parametrize("name", ["text", "good_parts"])
def test_a_checkpoint_is_read_and_says_the_same(name: str, files: dict[str, str], parts: Path) -> None:
    loaded = ClipSam.load_from_checkpoint(EARLIER / f"{name}.ckpt", map_location="cpu", **files).eval()
    assert loaded.post_processor.calibrated
    thresholds = torch.load(EARLIER / f"{name}.ckpt", weights_only=True)["state_dict"]
    assert all(loaded.state_dict()[key] == value for key, value in thresholds.items())
    found = answer(loaded, parts)
    for key, expected in torch.load(EARLIER / f"{name}.answer.pt", weights_only=True).items():
        torch.testing.assert_close(found[key], expected, atol=3e-3, rtol=0)  # patches are kept in half precision


def test_an_export_runs_and_says_the_same(files: dict[str, str], parts: Path) -> None:
    session = onnxruntime.InferenceSession(EARLIER / "text.onnx")
    picture = read(parts / "defect" / "2.png")
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(names, {"input": picture.numpy()}), strict=True))
    expected = ClipSam(**GIVEN, **files, class_name="part", refine=False).eval()(picture)
    assert found["anomaly_map"].max() > 0.1
    for name, values in expected._asdict().items():
        torch.testing.assert_close(torch.from_numpy(found[name]), values, atol=1e-5, rtol=0)
