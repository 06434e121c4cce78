# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""What our export adds to anomalib's, on small graphs; whole exports are in tests/integration."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from anomalib_clipsam import ClipSam
from anomalib_clipsam.export import onnx_file, openvino_file
from anomalib_clipsam.export.parts import LocalizerPart, RefinerPart
from anomalib_clipsam.sam import build_sam
from anomalib_clipsam.sam.encoder import BIAS_BYTES


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClipSam]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anomalib_clipsam.clip.text_cache.cache_folder", lambda: tmp_path_factory.mktemp("text"))
        yield ClipSam(weights="demo", class_name="capsule").eval()


def save(path: Path, nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]) -> Path:
    """Save a graph from ``input`` ``(B, 3, height, width)`` to ``output``."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["B", 3, "height", "width"])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", onnx_file.OPSET)]), path)
    return path


@pytest.mark.parametrize(("limit", "files"), [(2**31, 1), (100, 2)])
def test_one_file_up_to_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, files: int) -> None:
    monkeypatch.setattr(onnx_file, "ONE_FILE_BYTES", limit)
    constants = {"added": np.arange(3000, dtype=np.float32).reshape(3, 1000, 1)}
    path = save(tmp_path / "m.onnx", [helper.make_node("Add", ["input", "added"], ["output"])], constants)
    external = {"save_as_external_data": True, "location": "m.onnx.data", "size_threshold": 0}
    onnx.save(onnx.load(path), path, **external)
    onnx_file.finish_onnx(path, {"class_name": "capsule"})
    assert len(list(tmp_path.iterdir())) == files
    model = onnx.load(path)  # with its weights, from wherever they are
    assert [(row.key, row.value) for row in model.metadata_props] == [("class_name", "capsule")]
    np.testing.assert_array_equal(numpy_helper.to_array(model.graph.initializer[0]), constants["added"])


def test_parts_give_what_the_whole_gives(model: ClipSam) -> None:
    images = torch.rand(2, 3, 90, 130)
    images[1] = 0.5
    whole = model(images)
    score, label, _, clip_map, suspicious, local_mask = LocalizerPart(model)(images)
    anomaly_map, mask = RefinerPart(model)(images, clip_map)
    assert torch.equal(score, whole.pred_score)
    assert torch.equal(label, whole.pred_label)
    assert torch.equal(anomaly_map, whole.anomaly_map)
    assert local_mask.shape == mask.shape
    assert torch.equal(mask & label.view(-1, 1, 1), whole.pred_mask)
    assert torch.equal(suspicious, model.model.stages(model.pre_processor(images)).region.flatten(1).any(dim=1))


def test_metadata(model: ClipSam) -> None:
    model(torch.rand(1, 3, 20, 20))
    metadata = model.export_metadata()
    assert metadata["class_name"] == "capsule"
    assert json.loads(metadata["weights"]) == model.frozen_weights()
    assert json.loads(metadata["thresholds"]) == {
        "image_threshold": 0.5,
        "pixel_threshold": 0.5,
        "image_min": 0.0,
        "image_max": 1.0,
        "pixel_min": 0.0,
        "pixel_max": 1.0,
    }
    assert "size=[320, 320]" in json.loads(metadata["preprocessing"])["in_the_graph"]


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "openvino", "nncf"])
def test_missing_package(model: ClipSam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setattr(openvino_file, "module_available", lambda name: name != missing)
    with pytest.raises(ModuleNotFoundError, match=rf"needs {missing}\. Run: pip install {missing}$"):
        model.to_openvino(tmp_path, compression_type="int8")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"export_type": "torch"}, "Parts are exported to ONNX"),
        ({"export_type": "openvino", "compression_type": "int8_ptq"}, "Parts are exported to ONNX"),
        ({"export_type": "onnx", "compression_type": "fp16"}, "Parts are exported to ONNX"),
    ],
)
def test_parts_refuse(model: ClipSam, tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.to_parts(tmp_path, **arguments)


def test_types_are_named(tmp_path: Path) -> None:
    """A cast to the type of a tensor that comes of other nodes."""
    nodes = [
        helper.make_node("Shape", ["input"], ["shape"]),
        helper.make_node("CastLike", ["input", "shape"], ["whole"]),
        helper.make_node("CastLike", ["whole", "input"], ["output"]),
    ]
    path = save(tmp_path / "cast.onnx", nodes, {})
    onnx_file.finish_onnx(path, {})
    found = [(node.op_type, node.attribute[0].i) for node in onnx.load(path).graph.node if "Cast" in node.op_type]
    assert found == [("Cast", TensorProto.INT64), ("Cast", TensorProto.FLOAT)]
    image = np.array([[[[1.7]], [[-1.2]], [[0.5]]]], dtype=np.float32)
    (answer,) = onnxruntime.InferenceSession(path).run(None, {"input": image})
    assert answer.ravel().tolist() == [1, -1, 0]


@pytest.mark.parametrize("method", ["to_onnx", "to_openvino", "to_parts"])
def test_any_size_needs_a_resize(tmp_path: Path, method: str) -> None:
    model = ClipSam(weights="demo", pre_processor=False)
    with pytest.raises(ValueError, match="fix the size of the images by `input_size`"):
        getattr(model, method)(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_fixed_size(tmp_path: Path) -> None:
    """What some accelerators need; and without a pre-processor, the model's own way with what is not square."""
    model = ClipSam(weights="demo", class_name="capsule", refine=False, pre_processor=False).eval()
    path = model.to_onnx(tmp_path, input_size=(192, 120))
    session = onnxruntime.InferenceSession(path)
    assert session.get_inputs()[0].shape[1:] == [3, 192, 120]
    images = torch.rand(3, 3, 192, 120)
    names = [output.name for output in session.get_outputs()]
    answer = dict(zip(names, session.run(None, {"input": images.numpy()}), strict=True))
    expected = model(images)
    np.testing.assert_allclose(answer["anomaly_map"], expected.anomaly_map, atol=1e-3, rtol=0)
    np.testing.assert_allclose(answer["pred_score"], expected.pred_score, atol=1e-3, rtol=0)


def test_no_parts_without_sam(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no SAM to split off"):
        ClipSam(weights="demo", refine=False).to_parts(tmp_path)


def test_batch_size_stays_free_where_attention_is_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in SAM's published sizes; the small one is so small that all queries are attended at once."""
    attention = build_sam("demo").image_encoder.blocks[0].attn
    side = attention.rel_pos_h.shape[0] // 2 + 1
    row_bytes = attention.num_heads * side**3 * 4
    monkeypatch.setitem(BIAS_BYTES, "cpu", 4 * row_bytes)  # 4 rows of one, 2 of two
    tokens = torch.rand(2, side, side, attention.qkv.in_features)
    batch = torch.export.Dim("batch")
    graph = torch.export.export(attention, (tokens,), dynamic_shapes=({0: batch},)).module()
    for number in (1, 2, 3):
        some = torch.rand(number, *tokens.shape[1:])
        torch.testing.assert_close(graph(some), attention(some))
