# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The way of an image, with SAM of random weights and, mostly, a localizer whose map is the image's red channel."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING
from unittest.mock import patch

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor
from torch import nn
from torch.nn import functional as F  # noqa: N812

from anomalib_clipsam.clip import PromptEnsemble, build_clip
from anomalib_clipsam.clip.learned_prompts import LearnedPrompts
from anomalib_clipsam.clip.localizers import (
    LOCALIZERS,
    AprilGanLocalizer,
    DenseLocalizer,
    FeaturePyramid,
    Localizer,
    PyramidLocalizer,
)
from anomalib_clipsam.compute.precision import PRECISIONS
from anomalib_clipsam.errors.errors import NotFiniteError
from anomalib_clipsam.method.checks import check_images
from anomalib_clipsam.method.cps import EMPTY_LOGIT, CascadedPrompts
from anomalib_clipsam.method.fusion import FUSIONS, Fusion
from anomalib_clipsam.method.ppg import PointPromptGenerator
from anomalib_clipsam.method.stages import ClipSamStages
from anomalib_clipsam.sam import build_sam
from anomalib_clipsam.torch_model import ClipSamModel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from open_clip import CLIP
    from segment_anything.modeling import Sam

    from tests.unit.conftest import FakeCuda

    Build = Callable[..., ClipSamModel]

FRAME, MAP, POINTS = 192, 48, 6


class RedLocalizer(Localizer):
    """S_a is the red channel, the global score the mean of the green one."""

    def __init__(self) -> None:
        super().__init__(PromptEnsemble())
        self.image_size = 1  # sees every map at its own size
        self.names: list[str] = []

    @classmethod
    def build(cls, *_arguments: object, **_named: object) -> RedLocalizer:
        return cls()

    def _encode_text(self, class_name: str) -> torch.Tensor:
        self.names.append(class_name)
        return torch.zeros(2, 1)

    def _use_text(self, text: torch.Tensor) -> None:
        pass

    def _localize(self, image: torch.Tensor, tapped: bool) -> tuple:
        taps = (F.avg_pool2d(image, 4),) if tapped else ()
        return image[:, 0], image[:, 1].mean(dim=(1, 2)), taps


@pytest.fixture
def build(sam: Sam) -> Build:
    """Build a model; arguments go to its parts."""

    def build(localizer: Localizer | None = None, map_size: int = MAP, **arguments: object) -> ClipSamModel:
        parts = {"multimask": False, "box": "mask", "passes": 3, **arguments}
        cascade = CascadedPrompts(sam, *(parts.pop(name) for name in ("multimask", "box", "passes")))
        fusion = Fusion(parts.pop("fusion", "weighted"), 0.5)
        return ClipSamModel(
            localizer or RedLocalizer(),
            map_size,
            PointPromptGenerator(FRAME, **{"min_score": 0.6, "num_positives": 3, "num_negatives": 3, **parts}),
            cascade,
            fusion,
        ).eval()

    return build


def picture(height: int = FRAME, width: int = FRAME, peak: float = 0.9) -> torch.Tensor:
    """Soft noise ``(1, 3, height, width)`` whose red channel reaches up to about ``peak``."""
    image = F.interpolate(torch.rand(1, 3, 5, 6), (height, width), mode="bilinear")
    image[:, 0] *= peak / image[:, 0].amax()
    return image


def mixed() -> torch.Tensor:
    """Four images; the second and the fourth have no extreme region."""
    return torch.cat([picture(peak=peak) for peak in (0.9, 0.3, 0.8, 0.45)])


def equal(stages: ClipSamStages, other: ClipSamStages, at: slice, tolerance: float = 1e-5) -> None:
    """Assert that images of one batch equal all of another, in every stage."""
    for (name, many), (_, one) in zip(tensors(stages), tensors(other), strict=True):
        torch.testing.assert_close(
            many[at], one, atol=tolerance, rtol=1e-5, msg=lambda text, name=name: f"{name} {text}"
        )


def tensors(stages: object) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the stages, by its name."""
    for name, value in ((f.name, getattr(stages, f.name)) for f in fields(stages)):
        if is_dataclass(value):
            yield from tensors(value)
        elif isinstance(value, torch.Tensor):
            yield name, value


# ---------------------------------------------------------------- stages


@pytest.mark.parametrize(("size", "map_size"), [((192, 192), (48, 48)), ((96, 192), (24, 48)), ((230, 150), (48, 31))])
def test_fields_and_shapes_of_the_stages(build: Build, size: tuple[int, int], map_size: tuple[int, int]) -> None:
    image = torch.cat([picture(*size), picture(*size, peak=0.2)])
    stages = build().stages(image)
    logits = (2, 1, 96, 96)
    expected = {
        "anomaly_map": ((2, *map_size), torch.float32),
        "region": ((2, *map_size), torch.bool),
        "ring": ((2, *map_size), torch.bool),
        "similarity": ((2, *map_size), torch.float32),
        "logits_1": (logits, torch.float32),
        "logits_2": (logits, torch.float32),
        "box": ((2, 4), torch.float32),
        "logits_3": (logits, torch.float32),
        "iou": ((2,), torch.float32),
        "mask": ((2, *map_size), torch.bool),
        "fused_map": ((2, *map_size), torch.float32),
        "score": ((2,), torch.float32),
        "coords": ((2, POINTS, 2), torch.float32),
        "labels": ((2, POINTS), torch.int64),
        "peak": ((2,), torch.float32),
        "text_map": ((2, *map_size), torch.float32),
    }
    found = {name: (tuple(value.shape), value.dtype) for name, value in tensors(stages)}
    assert found == expected
    with pytest.raises(AttributeError):
        stages.score = None


@pytest.mark.parametrize("fusion", FUSIONS)
def test_stages_follow_from_each_other(build: Build, sam: Sam, fusion: str) -> None:
    """Each stage is what its module makes of the stages before."""
    model, image = build(fusion=fusion), torch.cat([picture(120, 192), picture(120, 192, peak=0.7)])
    stages = model.stages(image)
    small = F.interpolate(image, (30, 48), mode="bicubic", antialias=True).clamp(0, 1)
    torch.testing.assert_close(stages.anomaly_map, small[:, 0])
    torch.testing.assert_close(stages.score, (small[:, 1].mean(dim=(1, 2)) + small[:, 0].amax(dim=(1, 2))) / 2)
    assert torch.equal(stages.region, model.ppg.extreme_region(stages.anomaly_map))
    assert torch.equal(stages.prompts.ring, model.ppg.ring(stages.region))
    with torch.no_grad():
        features = sam.image_encoder(sam.preprocess(image * 255))
        prompts = model.ppg(stages.anomaly_map, features)
        output = model.cps(features, prompts, stages.anomaly_map)
    for name in ("coords", "labels", "ring", "similarity", "peak"):
        assert torch.equal(getattr(stages.prompts, name), getattr(prompts, name))
    for name in ("logits_1", "logits_2", "logits_3", "box", "iou"):
        assert torch.equal(getattr(stages.cascade, name), getattr(output, name))
    logits = F.interpolate(output.logits_3, (48, 48), mode="bilinear", align_corners=False)[:, 0, :30]
    assert torch.equal(stages.mask, logits > 0)
    fused = model.fusion(stages.anomaly_map, logits, prompts.peak, stages.cascade.iou)
    assert torch.equal(stages.fused_map, fused.clamp(0, 1))
    assert not torch.equal(stages.fused_map, stages.anomaly_map)


@pytest.mark.parametrize("size", [(120, 192), (192, 192), (192, 77)])
def test_features_are_those_of_the_predictor(build: Build, sam: Sam, size: tuple[int, int]) -> None:
    """An image of the frame's size, which needs no resampling, is padded and normalised as by segment_anything."""
    image = (torch.rand(1, 3, *size) * 255).round()
    predictor = SamPredictor(sam)
    predictor.set_torch_image(image, size)
    with torch.no_grad():
        assert (build().encode(image / 255) - predictor.features).abs().max() < 1e-4


def test_forward_is_the_stages_reduced(build: Build) -> None:
    model, image = build(), mixed()
    stages, batch = model.stages(image), model(image)
    assert torch.equal(batch.anomaly_map, stages.fused_map)
    assert torch.equal(batch.pred_mask, stages.mask)
    assert torch.equal(batch.pred_score, stages.score)
    assert batch.pred_label is None
    for values in (batch.anomaly_map, batch.pred_score):
        assert values.amin() >= 0
        assert values.amax() <= 1


def test_no_gradient_is_kept(build: Build) -> None:
    model = build()
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model(picture().requires_grad_()).anomaly_map.requires_grad


# ---------------------------------------------------------------- which images SAM is shown


def test_batch_equals_one_at_a_time(build: Build) -> None:
    model, image = build(), mixed()
    together = model.stages(image)
    assert together.region.flatten(1).any(dim=1).tolist() == [True, False, True, False]
    for i in range(4):
        equal(together, model.stages(image[i : i + 1]), slice(i, i + 1))


def test_image_without_a_region_is_left_blank(build: Build) -> None:
    stages = build(fusion="mask").stages(mixed())
    for i in (1, 3):
        assert stages.prompts.labels[i].tolist() == [-1] * POINTS
        assert stages.prompts.coords[i].abs().sum() == 0
        assert stages.cascade.box[i].tolist() == [0, 0, 0, 0]
        assert stages.cascade.iou[i] == 0
        assert not stages.mask[i].any()
        assert (stages.cascade.logits_3[i] == EMPTY_LOGIT).all()
        assert torch.equal(stages.fused_map[i], stages.anomaly_map[i])
    assert (stages.prompts.labels[[0, 2], 0] == 1).all()


@pytest.mark.parametrize(
    ("peaks", "shown"),
    [((0.9, 0.3, 0.8, 0.2), [2]), ((0.9, 0.8), [2]), ((0.3, 0.2, 0.1), []), ((0.3,), []), ((0.9,), [1])],
)
def test_image_without_a_region_is_not_shown_to_sam(
    build: Build,
    sam: Sam,
    peaks: tuple[float, ...],
    shown: list[int],
) -> None:
    model, seen = build(), []
    handle = sam.image_encoder.register_forward_hook(lambda _module, given, _result: seen.append(len(given[0])))
    stages = model.stages(torch.cat([picture(peak=peak) for peak in peaks]))
    handle.remove()
    assert seen == shown
    assert len(stages.score) == len(peaks)


# ---------------------------------------------------------------- other ways


def test_without_refinement_the_map_is_clips() -> None:
    model, image = ClipSamModel(RedLocalizer(), MAP), mixed()
    assert model.sam is None
    stages, batch = model.stages(image), model(image)
    assert torch.equal(batch.anomaly_map, stages.anomaly_map)
    assert batch.pred_mask is None
    given = {"anomaly_map", "fused_map", "score", "text_map"}
    assert {f.name for f in fields(stages) if getattr(stages, f.name) is not None} == given


@pytest.mark.parametrize("box", ["mask", "component"])
@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_images(build: Build, value: float, multimask: bool, box: str) -> None:
    model = build(box=box, multimask=multimask)
    batch = model(torch.full((2, 3, 70, 100), value))
    for values in (batch.anomaly_map, batch.pred_score):
        assert torch.isfinite(values).all()
        assert values.amin() >= 0
        assert values.amax() <= 1
    if value == 0:
        assert batch.anomaly_map.amax() == 0
        assert not batch.pred_mask.any()


class Broken(RedLocalizer):
    """Gives some values of its map or score for the last image of a batch, and of its tap."""

    def __init__(self, part: str, *values: float) -> None:
        super().__init__()
        self.part, self.values = part, values

    def _localize(self, image: torch.Tensor, tapped: bool) -> tuple:
        anomaly_map, score, taps = super()._localize(image, tapped)
        parts = {"map": anomaly_map.clone(), "score": score.clone()}
        for place, value in enumerate(self.values):
            parts[self.part][-1].view(-1)[place] = value
        return parts["map"], parts["score"], taps


def test_map_outside_its_range_is_clamped(build: Build) -> None:
    stages = build(Broken("map", 1.5, -0.5)).stages(picture())
    assert stages.anomaly_map[0, 0, :2].tolist() == [1.0, 0.0]
    assert torch.isfinite(stages.fused_map).all()


@pytest.mark.parametrize("part", ["map", "score"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_overflow_in_clip_is_no_verdict(build: Build, part: str, value: float) -> None:
    """It was score 0 and map 0, that is, good."""
    model = build(Broken(part, value))
    with pytest.raises(NotFiniteError, match=r"CLIP's map, computed in float32: NaN or .* at \[3\]. Check the weights"):
        model.stages(mixed())
    model.precision = "bf16"
    with pytest.raises(NotFiniteError, match=r"computed in bf16: .* Choose precision='float32'") as caught:
        model.stages(picture())
    assert caught.value.images == [0]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_overflow_in_sam_is_no_verdict(build: Build, sam: Sam, value: float) -> None:
    """It was an index outside the map, which ends the process on a GPU. Of four images, SAM sees two."""

    def overflow(_module: object, _given: object, features: torch.Tensor) -> torch.Tensor:
        features = features.clone()
        features[1, 0, 3, 2] = value
        return features

    handle = sam.image_encoder.register_forward_hook(overflow)
    try:
        with (
            torch.autocast("cpu", torch.bfloat16),
            pytest.raises(NotFiniteError, match=r"SAM's features, computed in bf16: NaN or .* images at \[2\]"),
        ):
            build().stages(mixed())
    finally:
        handle.remove()


def test_values_outside_an_image_are_clamped(build: Build) -> None:
    """As a bicubic resize makes them."""
    model, image = build(), picture()
    wide = torch.where(image > 0.7, image + 0.4, torch.where(image < 0.1, image - 0.4, image))
    equal(model.stages(wide), model.stages(wide.clamp(0, 1)), slice(None), 0)


def test_class_name_reaches_the_localizer_once(build: Build) -> None:
    model = build()
    image = picture(peak=0.1)
    model(image)
    model(image)
    model.set_class_name("bolt")
    model(image)
    assert model.localizer.names == ["object", "bolt"]


# ---------------------------------------------------------------- with CLIP, and exported


@pytest.fixture
def dense(clip: CLIP, ensemble: PromptEnsemble) -> DenseLocalizer:
    """The dense localizer on 64 px with text directions and a scale that make something of random weights."""
    generator = torch.Generator().manual_seed(5)
    text = F.normalize(torch.randn(2, 96, generator=generator), dim=-1)
    localizer = DenseLocalizer(clip, ensemble, 64)
    with patch.object(localizer, "_encode_text", return_value=text):
        localizer.set_class_name("object")
    return localizer


def export_case(build: Build, dense: DenseLocalizer) -> tuple[ClipSamModel, torch.Tensor, torch.Tensor]:
    """A model with a floor between the images' highest scores, so that one of the two has no region."""
    image = torch.cat([picture(), torch.rand(1, 3, FRAME, FRAME)])
    peaks = build(dense).stages(image).anomaly_map.amax(dim=(1, 2))
    return build(dense, min_score=peaks.mean().item(), num_positives=2, num_negatives=1), image, peaks


@pytest.mark.open_clip
def test_with_clip_a_batch_equals_one_at_a_time(build: Build, dense: DenseLocalizer) -> None:
    model, image, peaks = export_case(build, dense)
    assert (peaks[0] - peaks[1]).abs() > 1e-3
    together = model.stages(image)
    assert together.region.flatten(1).any(dim=1).sum() == 1
    for i in range(2):
        equal(together, model.stages(image[i : i + 1]), slice(i, i + 1), 1e-4)


@pytest.mark.open_clip
@pytest.mark.slow
def test_exported_program_gives_the_same(build: Build, dense: DenseLocalizer) -> None:
    """The whole forward in one graph, with an image that has no region; there SAM's answer about it is dropped."""
    model, image, _ = export_case(build, dense)
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(model, (image,), dynamic_shapes=shapes, strict=False).module()
    for given in (image, image.flip(0), image[:1], image[[0, 1, 0]]):
        exported, right = program(given), model(given)
        torch.testing.assert_close(exported.anomaly_map, right.anomaly_map, atol=1e-5, rtol=0)
        torch.testing.assert_close(exported.pred_score, right.pred_score, atol=1e-5, rtol=0)
        assert torch.equal(exported.pred_mask, right.pred_mask)


def test_small_map_does_not_blur_what_clip_sees(build: Build, dense: DenseLocalizer) -> None:
    """CLIP is shown the image at its own resolution, however small the maps are, and the map is averaged down."""
    model, image = build(dense), torch.rand(1, 3, FRAME, FRAME // 2)
    model.map_size = 20
    shown = []
    handle = dense.register_forward_pre_hook(lambda _, inputs: shown.append(tuple(inputs[0].shape)))
    anomaly_map, _ = model.localize(image)
    handle.remove()
    assert max(shown[0][-2:]) == dense.image_size
    assert anomaly_map.shape == (1, 20, 10)


# ---------------------------------------------------------------- compiled, and on a GPU


@pytest.mark.slow
def test_compiles_to_one_graph(build: Build, dense: DenseLocalizer) -> None:
    """Once the text is encoded. SAM sees every image there, and its answer about one without a region is dropped."""
    model, image, _ = export_case(build, dense)
    image = image[..., :96, :]
    expected = model(image)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for name, value in compiled(image)._asdict().items():
        if value is not None:
            torch.testing.assert_close(value, getattr(expected, name), atol=1e-5, rtol=0)


def test_compiles_to_one_graph_in_bf16(dense: DenseLocalizer) -> None:
    """Whether the device has it is not asked in the graph, which that would break."""
    model, image = ClipSamModel(dense, MAP, precision="bf16").eval(), picture(96, FRAME)
    expected = model(image)
    torch.compiler.reset()
    found = torch.compile(model, fullgraph=True, backend="eager")(image)
    torch.testing.assert_close(found.anomaly_map, expected.anomaly_map, atol=0.02, rtol=0)


def build_small(name: str) -> Localizer:
    """Build a localizer of each kind on a small CLIP of its architecture, with random weights."""
    clip = build_clip("lite" if name == "pyramid" else "demo", quick_gelu=False)
    ensemble = PromptEnsemble()
    if name == "april_gan":
        return AprilGanLocalizer(clip, ensemble, 64, nn.ModuleList(nn.Linear(160, 96) for _ in range(4)))
    if name in ("anomaly_clip", "crane"):
        prompts = LearnedPrompts(torch.rand(2, 77, 48), torch.zeros(2, dtype=torch.long), torch.rand(1, 4, 48))
        return LOCALIZERS[name](clip, ensemble, 64, prompts)
    if name == "pyramid":
        with patch.object(PyramidLocalizer, "to"):  # a layout is nothing that tensors without values can change to
            return PyramidLocalizer(clip, ensemble, 64, FeaturePyramid((16, 24, 40, 112, 320), 96, 8, 8, 6))
    if name == "winclip":
        with patch("open_clip.create_model_and_transforms", return_value=(clip, None, None)):
            return LOCALIZERS[name](ensemble)
    return LOCALIZERS[name](clip, ensemble, 64)


ON_A_GPU = (
    ("float32", (96, FRAME), 2),
    ("bf16", (FRAME, 80), 1),
    ("fp16", (FRAME, FRAME), 2),
    ("float32", (FRAME, 80), 0),
)
"""Precision, height and width, and how many of two images SAM is shown."""
WAIT = "aten._local_scalar_dense.default"
"""How the operation is called that reads a value."""


@pytest.mark.open_clip
@pytest.mark.parametrize("name", LOCALIZERS)
def test_runs_on_a_gpu(fake_cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """With one localizer as far as SAM: what comes after the map does not depend on whose map it is."""
    base = "anomalib_clipsam.clip.localizers.base"
    for function, answer in (("hash_weights", "hash"), ("load_text", None), ("save_text", None)):
        monkeypatch.setattr(f"{base}.{function}", lambda *_, answer=answer: answer)  # these read values
    refine = name == "dense"
    with torch.device("cuda"):
        try:
            localizer = build_small(name)
        except ImportError:
            pytest.skip("needs open_clip_torch<2.26.1")
        generator = PointPromptGenerator(FRAME, num_positives=2, num_negatives=1)
        parts = (generator, CascadedPrompts(build_sam("demo"), box="component"), Fusion()) if refine else ()
        model = ClipSamModel(localizer, MAP, *parts).eval()
    for module in model.modules():  # segment_anything makes some on the CPU, whatever the default device
        for buffer_name, buffer in module.named_buffers(recurse=False):
            setattr(module, buffer_name, buffer.to("cuda"))
    computed_in = []
    for encoder in (localizer, model.sam.image_encoder) if refine else (localizer,):
        first = next(module for module in encoder.modules() if isinstance(module, nn.Conv2d))
        first.register_forward_hook(lambda _, __, result: computed_in.append(result.dtype))
    assert localizer.text_of("object").device.type == "cpu"
    localizer.set_class_name("object")
    for precision, size, found in ON_A_GPU:
        dtype = PRECISIONS[precision] or torch.float32
        model.precision, fake_cuda.found = precision, found
        fake_cuda.waits.clear()
        computed_in.clear()
        stages = model.stages(torch.rand(2, 3, *size, device="cuda"))
        shown = refine and found > 0
        # Is the image finite, is the map; which images are shown to SAM; are its features finite.
        waits = [WAIT, WAIT, *["aten.nonzero.default"] * refine, *[WAIT] * shown]
        assert [wait for wait in fake_cuda.waits if name != "winclip" or wait == WAIT] == waits  # anomalib has its own
        assert computed_in == [torch.float32 if name == "winclip" else dtype, *[dtype] * shown]
        shape = (2, *(MAP * side // max(size) for side in size))
        assert stages.fused_map.shape == shape
        for part, value in tensors(stages):
            assert value is None or value.is_cuda, part
            assert value is None or value.dtype in (torch.float32, torch.bool, torch.long), part


# ---------------------------------------------------------------- tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_images(dtype: torch.dtype) -> None:
    check_images(torch.rand(2, 3, 1, 5).to(dtype))


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(1, 3, 4, 5, dtype=torch.uint8), TypeError, r"are torch.uint8. Give floats .*`images / 255`"),
        (np.zeros((1, 3, 4, 5)), TypeError, "The images are ndarray. Give floats"),
        (torch.rand(3, 4, 5), ValueError, r"have the shape \(3, 4, 5\). Give .*, such as `image.unsqueeze\(0\)`"),
        (torch.rand(4, 5), ValueError, r"shape \(4, 5\)"),
        (torch.rand(1, 1, 4, 5), ValueError, r"shape \(1, 1, 4, 5\)"),
        (torch.rand(1, 4, 4, 5), ValueError, r"shape \(1, 4, 4, 5\)"),
        (torch.rand(1, 4, 5, 3), ValueError, r"shape \(1, 4, 5, 3\)"),
        (torch.rand(0, 3, 4, 5), ValueError, r"shape \(0, 3, 4, 5\)"),
        (torch.rand(1, 3, 0, 5), ValueError, r"shape \(1, 3, 0, 5\)"),
    ],
)
def test_what_is_no_image(images: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_images(images)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite(value: float) -> None:
    images = torch.rand(3, 3, 4, 5)
    images[1, 2, 3, 4] = value
    with pytest.raises(ValueError, match=r"those at \[1\] hold NaN or infinite values"):
        check_images(images)


def test_values_of_other_ranges_are_refused() -> None:
    images = torch.rand(2, 3, 4, 5)
    images[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    cause = "divide 8-bit values by 255, and leave `Normalize` out of pre-processor and augmentations"
    for wrong, low, high in ((images * 255, "0", "255"), (images * 4 - 2, "-2", "2"), (images - 0.6, "-0.6", "0.4")):
        with pytest.raises(ValueError, match=rf"The images hold values from {low} to {high}\. .*{cause}"):
            check_images(wrong)


@pytest.mark.parametrize("antialias", [True, False])
def test_values_that_a_resize_makes_are_taken(antialias: bool) -> None:
    """Among all images of 5 x 5 black and white pixels, those go farthest that are the sign of a weight."""
    sign = torch.tensor([-1.0, 1.0, 1.0, -1.0]).repeat(1, 2)[:, :5]
    worst = (sign.T @ sign > 0).float().expand(1, 3, 5, 5)
    for image in (worst, 1 - worst):
        large = F.interpolate(image, (70, 90), mode="bicubic", antialias=antialias, align_corners=False)
        assert large.amin() < -0.27
        assert large.amax() > 1.27
        check_images(large)
