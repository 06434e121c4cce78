# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""What anomalib exports of ClipSam gives what the Engine gives, with anomalib's inferencers and without torch.

The thresholds are calibrated first, so that a graph without them would answer otherwise.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from anomalib.cli import AnomalibCLI
from anomalib.data import Folder
from anomalib.data.utils import read_image
from anomalib.deploy import OpenVINOInferencer, TorchInferencer
from anomalib.engine import Engine
from PIL import Image

from anomalib_clipsam import ClipSam
from anomalib_clipsam.drawn_parts.drawing import draw_part
from anomalib_clipsam.tiling.torch_model import join_scores

EXAMPLES = Path(__file__).parents[2] / "examples"
SHARED = Path(__file__).parents[3] / "shared" / "data"
FULL_PRECISION = {"INFERENCE_PRECISION_HINT": "f32"}
OUTPUTS = ("pred_score", "pred_label", "anomaly_map", "pred_mask")

Answer = dict[str, np.ndarray]
Predict = Callable[[Path], Answer]


@dataclass
class Pipeline:
    """A calibrated model, its checkpoint, and what the command line exported of it."""

    model: ClipSam
    checkpoint: Path
    root: Path
    answers: dict[Path, dict[Path, Answer]] = field(default_factory=dict)

    @property
    def onnx(self) -> Path:
        return self.root / "weights" / "onnx" / "model.onnx"

    def predicted(self, folder: Path) -> dict[Path, Answer]:
        """What ``Engine.predict`` gives for the pictures of a folder, computed once."""
        if folder not in self.answers:
            engine = Engine(default_root_dir=self.root / "predicted", accelerator="cpu")
            self.answers[folder] = {
                Path(path): {name: getattr(batch, name)[index].numpy() for name in OUTPUTS}
                for batch in engine.predict(model=self.model, data_path=folder)
                for index, path in enumerate(batch.image_path)
            }
        return self.answers[folder]


@pytest.fixture(scope="module")
def pipeline(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    """Calibrate on drawn capsules, and export to ONNX from the checkpoint: half a minute, for all tests."""
    root = tmp_path_factory.mktemp("exported")
    torch.set_num_threads(1)
    data = Folder("parts", "good", parts, "defect", "good", "mask", val_split_mode="same_as_test", num_workers=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anomalib_clipsam.clip.text_cache.cache_folder", lambda: root / "text")
        model = ClipSam(weights="demo", class_name="capsule")
        engine = Engine(default_root_dir=root, accelerator="cpu")
        engine.test(model=model, datamodule=data)
        (checkpoint,) = root.rglob("*.ckpt")
        command = ["--model=ClipSam", "--model.weights=demo", "--export_type=onnx", f"--ckpt_path={checkpoint}"]
        AnomalibCLI(["export", *command, f"--export_root={root}"])
        yield Pipeline(model, checkpoint, root)


def to_openvino(pipeline: Pipeline, root: Path, **arguments: object) -> Path:
    """Export by the Engine, from the graph that is there already: tracing it again would take half a minute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClipSam, "to_onnx", lambda *_: pipeline.onnx)
        return Engine(default_root_dir=root).export(pipeline.model, "openvino", export_root=root, **arguments)


@pytest.fixture(scope="module")
def openvino_file(pipeline: Pipeline) -> Path:
    return to_openvino(pipeline, pipeline.root)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn parts of several sizes, wide and tall, larger and smaller than the model's; and one that is plain grey."""
    folder = tmp_path_factory.mktemp("drawn")
    sizes = {"crack": (300, 200), "scratch": (150, 230), "stain": (192, 192), None: (90, 400)}
    for index, (defect, size) in enumerate(sizes.items()):
        image, _ = draw_part("capsule", np.random.default_rng(index), defect)
        Image.fromarray(image).resize(size, Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    Image.new("RGB", (100, 100), "grey").save(folder / "grey.png")
    return folder


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every eighth picture of magnetic tiles, of 40 sizes; docs/deploy.md has a command for all of them."""
    pictures = sorted((SHARED / "magnetic_tile").glob("*/*.jpg"))[::8]
    if not pictures:
        pytest.skip("the pictures of magnetic tiles are not here")
    folder = tmp_path_factory.mktemp("tiles")
    for path in pictures:
        shutil.copy(path, folder / f"{path.parent.name}_{path.name}")
    return folder


def assert_same(answers: dict[Path, Answer], predict: Predict, moved: float = 0.0) -> None:
    """Compare scores and labels, and maps and masks but for a share of pixels that may move.

    Where two candidates for a point are equal but for rounding, another runtime may take the other one, and SAM then
    moves a border.
    """
    assert answers
    for path, expected in answers.items():
        answer = predict(path)
        differs = np.abs(answer["anomaly_map"].squeeze() - expected["anomaly_map"])
        assert (differs > 1e-3).mean() <= moved, path
        np.testing.assert_allclose(answer["pred_score"].squeeze(), expected["pred_score"], atol=1e-3, rtol=0)
        assert bool(answer["pred_label"].squeeze()) == bool(expected["pred_label"])
        mask = answer["pred_mask"].squeeze().astype(bool)
        both, either = (mask & expected["pred_mask"]).sum(), (mask | expected["pred_mask"]).sum()
        assert both >= (0.99 - 2 * moved) * either, path


def read(path: Path) -> np.ndarray:
    return read_image(path, as_tensor=True).unsqueeze(0).numpy()


def in_onnx_runtime(path: Path) -> Callable[..., Answer]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda images, **more: dict(zip(names, session.run(None, {"input": images, **more}), strict=True))


def in_openvino(path: Path) -> Predict:
    """Predict with anomalib's own inferencer, which leaves ``openvino_cache`` where it is called."""
    inferencer = OpenVINOInferencer(path, device="CPU", config=FULL_PRECISION)

    def predict(picture: Path) -> Answer:
        batch = inferencer.predict(picture)
        return {name: np.asarray(getattr(batch, name)) for name in OUTPUTS}

    return predict


@pytest.mark.parametrize("pictures", ["drawn", "tiles"])
def test_torch(
    pipeline: Pipeline,
    pictures: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = Engine(default_root_dir=tmp_path).export(pipeline.model, "torch", export_root=tmp_path)
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    inferencer = TorchInferencer(path, device="cpu")

    def predict(picture: Path) -> Answer:
        batch = inferencer.predict(picture)
        return {name: getattr(batch, name).numpy() for name in OUTPUTS}

    assert_same(pipeline.predicted(request.getfixturevalue(pictures)), predict)
    metadata = torch.load(path, weights_only=False)["metadata"]
    assert metadata == pipeline.model.export_metadata()


@pytest.mark.slow
@pytest.mark.parametrize("pictures", ["drawn", "tiles"])
def test_onnx(pipeline: Pipeline, pictures: str, request: pytest.FixtureRequest) -> None:
    run = in_onnx_runtime(pipeline.onnx)
    assert_same(pipeline.predicted(request.getfixturevalue(pictures)), lambda path: run(read(path)))


@pytest.mark.slow
@pytest.mark.parametrize("pictures", ["drawn", "tiles"])
def test_openvino(
    pipeline: Pipeline,
    openvino_file: Path,
    pictures: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    answers = pipeline.predicted(request.getfixturevalue(pictures))
    assert_same(answers, in_openvino(openvino_file), moved=0.05)
    assert_same(answers, in_openvino(pipeline.onnx), moved=0.05)  # which anomalib's inferencer takes too
    model = openvino.Core().read_model(openvino_file)
    for key, value in pipeline.model.export_metadata().items():
        assert model.get_rt_info(["model_info", key]).astype(str) == value


@pytest.mark.slow
def test_one_file_with_its_metadata(pipeline: Pipeline) -> None:
    assert [path.name for path in pipeline.onnx.parent.iterdir()] == ["model.onnx"]
    kinds = {node.op_type for node in onnx.load(pipeline.onnx).graph.node}
    assert "CastLike" not in kinds  # ONNX Runtime warns of each
    metadata = onnxruntime.InferenceSession(pipeline.onnx).get_modelmeta().custom_metadata_map
    expected = pipeline.model.export_metadata()
    assert expected.items() <= metadata.items()
    assert metadata["class_name"] == "capsule"
    assert json.loads(metadata["thresholds"])["pixel_threshold"] != 0.5  # calibrated


@pytest.mark.slow
def test_batches_of_any_size(pipeline: Pipeline, drawn: Path) -> None:
    """An image's answer does not depend on its neighbours, though SAM is not asked about the grey one."""
    run = in_onnx_runtime(pipeline.onnx)
    size = (120, 160)
    images = np.stack(
        [
            np.asarray(Image.open(drawn / name).convert("RGB").resize(size), dtype=np.float32).transpose(2, 0, 1) / 255
            for name in ("2.png", "grey.png", "1.png")
        ]
    )
    together = run(images)
    assert not together["pred_mask"][1].any()
    assert together["pred_mask"][0].any()
    for index in range(3):
        alone = run(images[index : index + 1])
        for name in OUTPUTS:
            np.testing.assert_allclose(together[name][index], alone[name][0], atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("compression", "share", "tolerance"), [("fp16", 0.65, 0.03), ("int8", 0.5, 0.1)])
def test_smaller_weights(
    pipeline: Pipeline,
    drawn: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    compression: str,
    share: float,
    tolerance: float,
) -> None:
    """Rounded weights move scores a little; points and masks may jump, which docs/deploy.md tells of."""
    monkeypatch.chdir(tmp_path)
    path = to_openvino(pipeline, tmp_path, compression_type=compression)
    assert path.with_suffix(".bin").stat().st_size < share * pipeline.onnx.stat().st_size
    predict = in_openvino(path)
    for picture, expected in pipeline.predicted(drawn).items():
        assert abs(predict(picture)["pred_score"].squeeze() - expected["pred_score"]) < tolerance, picture


@pytest.mark.slow
def test_cnn_is_not_quantized(
    pipeline: Pipeline, folder_arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its convolutions, into which OpenVINO folds the norms, are not told from the decoder's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("anomalib_clipsam.export.mixin.ClipSamExport.to_onnx", lambda *_: pipeline.onnx)
    command = ["export", "--model=ClipSam", "--model.weights=demo", "--export_type=openvino"]
    with pytest.raises(ValueError, match="these image encoders have none"):
        AnomalibCLI([*command, "--compression_type=INT8_PTQ", f"--export_root={tmp_path}", *folder_arguments])
    assert not (tmp_path / "weights" / "openvino" / "model.xml").exists()


@pytest.mark.parametrize(
    ("compression", "message"),
    [("INT8_PTQ", "INT8_PTQ is calibrated on pictures"), ("INT8_ACQ", "Choose INT8_PTQ, which spares it")],
)
def test_an_export_that_cannot_be_done_is_an_error(
    anomalib: Callable[..., AnomalibCLI], tmp_path: Path, compression: str, message: str
) -> None:
    command = ["export", "--model=ClipSam", "--model.weights=demo", "--export_type=openvino"]
    with pytest.raises(ValueError, match=message):
        anomalib(*command, f"--compression_type={compression}")
    assert not list(tmp_path.rglob("*.xml"))


def run_example(name: str, *arguments: object) -> str:
    """Run an example as in an environment without torch and anomalib."""
    code = (
        "import runpy, sys; sys.modules.update(torch=None, anomalib=None, anomalib_clipsam=None); "
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", code, str(EXAMPLES / name), *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx_runtime.py", "openvino_runtime.py"])
def test_examples(pipeline: Pipeline, openvino_file: Path, drawn: Path, tmp_path: Path, name: str) -> None:
    path = pipeline.onnx if name == "onnx_runtime.py" else openvino_file
    printed = run_example(name, path, drawn / "0.png", tmp_path / "overlay.png")
    answer = in_onnx_runtime(pipeline.onnx)(read(drawn / "0.png"))
    area = round(answer["pred_mask"].mean() * 300 * 200)  # the picture has 300 x 200 pixels
    assert printed == f"capsule: defective, score {answer['pred_score'][0]:.4f}, mask {area} pixels\n"
    before, after = (np.asarray(Image.open(path)) for path in (drawn / "0.png", tmp_path / "overlay.png"))
    assert before.shape == after.shape
    share = (before != after).any(axis=-1).mean()
    assert share == pytest.approx(answer["pred_mask"].mean(), abs=0.01)


@pytest.mark.slow
def test_parts_give_what_the_whole_gives(pipeline: Pipeline, drawn: Path) -> None:
    paths = pipeline.model.to_parts(pipeline.root)
    localizer, refiner, whole = (in_onnx_runtime(path) for path in (*paths, pipeline.onnx))
    suspicious, asked = [], 0
    for path in sorted(drawn.iterdir()):
        images = read(path)
        answer = localizer(images)
        suspicious.append(bool(answer["suspicious"][0]))
        if suspicious[-1]:
            answer |= refiner(images, clip_map=answer["clip_map"])
        answer["pred_mask"] &= answer["pred_label"][:, None, None]
        asked += suspicious[-1] and bool(answer["pred_label"][0])
        for name, expected in whole(images).items():
            np.testing.assert_allclose(answer[name], expected, atol=1e-4, rtol=0)
    assert not all(suspicious)
    assert any(suspicious)
    printed = run_example("gate.py", *paths, *sorted(drawn.iterdir()))
    assert printed.splitlines()[-1] == f"SAM ran on {asked} of {len(suspicious)} pictures"
    assert_large_pictures_are_cut_alike(pipeline, *paths)


def assert_large_pictures_are_cut_alike(pipeline: Pipeline, localizer: Path, refiner: Path) -> None:
    """Run the example for large pictures, which cuts, blends and scores without torch, beside the model with tiles."""
    image = np.full((300, 1200, 3), 150, np.uint8) + np.random.default_rng(0).integers(0, 9, (300, 1200, 1), np.uint8)
    for step in range(30):
        image[140 + step // 2 : 145 + step // 2, 800 + step] = 20
    picture, overlay = pipeline.root / "large.png", pipeline.root / "overlay.png"
    Image.fromarray(image).save(picture)
    printed = run_example("tiles.py", localizer, refiner, picture, overlay)
    model = ClipSam(weights="demo", class_name="capsule", tiles="auto", refine=False).eval().model
    model.set_class_name("capsule")
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    anomaly_map = model.localize(tensor)[1].map
    scores = torch.cat([view.score for view in model.views(tensor)])
    post = pipeline.model.post_processor
    score, whole = (
        post._normalize(values.max(), post.image_min, post.image_max, post.image_threshold)
        for values in (scores, model.view_whole(tensor)[1])
    )
    expected = join_scores(score[None], anomaly_map, whole[None]).item()
    assert printed.startswith(f"{'defective' if expected > 0.5 else 'good'}, score ")
    assert float(printed.split()[2].rstrip(",")) == pytest.approx(expected, abs=0.01)
    assert f" {len(model.grid(tensor))} tiles, " in printed
    marked = np.argwhere((np.asarray(Image.open(overlay)) != image).any(axis=2))
    if expected > 0.5:
        assert ((marked >= (110, 770)) & (marked <= (190, 860))).all(axis=1).mean() > 0.8
