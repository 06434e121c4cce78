# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""SAM's outline for the maps of any model of anomalib."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from anomalib import LearningType
from anomalib.data import Avenue, ImageBatch, InferenceBatch
from anomalib.engine import Engine
from anomalib.models.components import AnomalibModule
from anomalib.post_processing import PostProcessor
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import Trainer
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import CenterCrop, Compose, Normalize, Resize

from anomalib_clipsam import ClipSam, SamPostProcessor
from anomalib_clipsam.sam_post_processor.post_processor import REFINED_THRESHOLD
from anomalib_clipsam.sam_post_processor.scale import Scale

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SIZE = 96


class Darkness(nn.Module):
    """Distances of what is dark, blurred as other models blur them."""

    def forward(self, image: torch.Tensor) -> InferenceBatch:
        darkness = 40 * (1 - image.mean(dim=1, keepdim=True))
        blurred = nn.functional.avg_pool2d(nn.functional.pad(darkness, [12] * 4, mode="replicate"), 25, stride=1)
        return InferenceBatch(pred_score=blurred.amax(dim=(1, 2, 3)) ** 2, anomaly_map=blurred)


class Dark(AnomalibModule):
    """A zero-shot model whose scores and maps are no probabilities."""

    learning_type = LearningType.ZERO_SHOT
    trainer_arguments: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"evaluator": False, "visualizer": False, **kwargs})
        self.model = Darkness()

    def validation_step(self, batch: ImageBatch, *_: Any, **__: Any) -> ImageBatch:
        return batch.update(**self.model(batch.image)._asdict())

    def configure_optimizers(self) -> None:
        return None

    @staticmethod
    def configure_post_processor() -> PostProcessor:
        return PostProcessor()

    @staticmethod
    def configure_pre_processor(image_size: tuple[int, int] | None = None) -> PreProcessor:
        del image_size
        return PreProcessor(Compose([Resize((SIZE, SIZE), antialias=True), Normalize(MEAN, STD)]))


def refined_by(**kwargs: Any) -> SamPostProcessor:
    return SamPostProcessor(weights="lite", **kwargs)


def draw(defective: bool, seed: int = 0) -> np.ndarray:
    """Draw a light plate, with a dark square if it is defective."""
    image = np.random.default_rng(seed).normal(190, 3, (200, 300, 3)).clip(0, 255)
    if defective:
        image[60:120, 180:250] = 30
    return image.astype(np.uint8)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    paths = [tmp_path / f"{index}.png" for index in range(4)]
    for index, path in enumerate(paths):
        Image.fromarray(draw(index >= 2, index)).save(path)
    return [str(path) for path in paths]


def read(paths: list[str], index: int) -> dict[str, Any]:
    """Read a picture with label and mask: two good ones and two defective ones."""
    image = torch.tensor(np.asarray(Image.open(paths[index]))).permute(2, 0, 1) / 255
    mask = torch.zeros(200, 300, dtype=torch.bool)
    mask[60:120, 180:250] = index >= 2
    return {"image": image, "gt_mask": mask, "gt_label": torch.tensor(index >= 2), "image_path": paths[index]}


def collate(items: list[dict[str, Any]]) -> ImageBatch:
    stacked = {key: torch.stack([item[key] for item in items]) for key in ("image", "gt_mask", "gt_label")}
    return ImageBatch(**stacked, image_path=[item["image_path"] for item in items])


def loader(paths: list[str]) -> DataLoader:
    items = [read(paths, index) for index in range(len(paths))]
    return DataLoader(items, batch_size=3, collate_fn=collate)


QUIET = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}


def predicted(model: AnomalibModule, images: torch.Tensor, paths: list[str] | None = None) -> ImageBatch:
    """Pre-process and predict as in a pass."""
    batch = ImageBatch(image=model.pre_processor.transform(images), image_path=paths)
    return batch.update(**model.model(batch.image)._asdict())


def images_of(paths: list[str]) -> torch.Tensor:
    return torch.stack([read(paths, index)["image"] for index in range(len(paths))])


def f1(mask: torch.Tensor, truth: torch.Tensor) -> float:
    return float(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))


def test_scale_maps_the_threshold_to_a_half_and_back() -> None:
    scale = Scale(*(torch.tensor(value).view(1, 1, 1) for value in (10.0, 20.0, 1.0)))
    maps = torch.tensor([[[-10.0, 0.0, 10.0, 20.0]]])
    assert scale.to_unit(maps).tolist() == [[[-0.5, 0.0, 0.5, 1.0]]]
    assert scale.from_unit(scale.to_unit(maps)).equal(maps)


def test_values_above_the_calibrated_range_stay_apart() -> None:
    post_processor = refined_by()
    post_processor._pixel_threshold.fill_(10)
    post_processor.pixel_min.fill_(0)
    post_processor.pixel_max.fill_(20)
    maps = torch.tensor([[[0.0, 10.0, 20.0, 30.0]], [[0.0, 10.0, 15.0, 20.0]]])
    scale = post_processor._scale(maps)
    assert scale.to_unit(maps).tolist() == [[[0.0, 0.5, 0.75, 1.0]], [[0.0, 0.5, 0.75, 1.0]]]
    assert scale.from_unit(scale.to_unit(maps)).equal(maps)


def test_without_a_calibration_a_map_spans_from_its_median_to_its_maximum() -> None:
    maps = torch.tensor([[[1.0, 2.0, 2.0, 2.0, 4.0]], [[3.0, 3.0, 3.0, 3.0, 3.0]]])
    unit = refined_by()._scale(maps).to_unit(maps)
    assert unit.tolist() == [[[-0.5, 0.0, 0.0, 0.0, 1.0]], [[0.0] * 5]]


def test_the_threshold_of_refined_maps_becomes_a_half_and_order_stays() -> None:
    post_processor = refined_by()
    post_processor.refined_threshold = 0.2
    settled = post_processor._recentre_threshold(torch.tensor([-0.2, 0.0, 0.1, 0.2, 0.6, 1.0]))
    assert settled.tolist() == pytest.approx([-0.5, 0.0, 0.25, 0.5, 0.75, 1.0])


def test_sam_sharpens_a_blurred_map_and_leaves_scores_alone(files: list[str], tmp_path: Path) -> None:
    plain, model = Dark(), Dark(post_processor=refined_by())
    for each in (plain, model):
        trainer = Trainer(**QUIET, enable_checkpointing=False, default_root_dir=tmp_path)
        trainer.validate(each, loader(files), verbose=False)
        predictions = trainer.predict(each, loader(files))
        each.found = ImageBatch.collate([item for batch in predictions for item in batch])
    truth = torch.stack([read(files, index)["gt_mask"] for index in range(4)])
    truth = nn.functional.interpolate(truth[:, None].float(), (SIZE, SIZE), mode="nearest-exact")[:, 0] > 0
    assert f1(model.found.pred_mask, truth) > f1(plain.found.pred_mask, truth) + 0.03
    assert model.found.pred_score.equal(plain.found.pred_score)
    assert model.found.pred_label.equal(plain.found.pred_label)
    for name in ("image_threshold", "pixel_threshold", "pixel_min", "pixel_max"):
        assert getattr(model.post_processor, name) == getattr(plain.post_processor, name), name
    assert model.found.anomaly_map.amin() >= 0
    assert model.found.anomaly_map.amax() <= 1


def test_sam_sees_what_has_an_extreme_region_and_that_once(files: list[str], tmp_path: Path) -> None:
    """Though the Engine validates a zero-shot model on the very images that it then tests."""
    model, seen = Dark(post_processor=refined_by()), []
    encoder = model.post_processor.refiner.sam.image_encoder
    encoder.register_forward_pre_hook(lambda _module, arguments: seen.append(len(arguments[0])))
    Engine(**QUIET, default_root_dir=tmp_path).test(model, dataloaders=loader(files), verbose=False)
    assert seen == [1, 1]  # the two defective ones, which came in two batches
    assert model.post_processor._store.kept == {}  # the run is over
    assert model.post_processor.images_seen == 0


def test_a_checkpoint_is_that_of_anomalibs_own_post_processor() -> None:
    plain, model = PostProcessor(), refined_by()
    plain._pixel_threshold.fill_(7.0)
    model.refined_threshold = 0.3
    assert list(model.state_dict()) == list(plain.state_dict())
    before = copy.deepcopy(model.refiner.state_dict())
    model.load_state_dict(plain.state_dict())
    model.load_checkpoint_config(plain.checkpoint_config())
    assert model._pixel_threshold == 7.0
    assert model.refined_threshold == REFINED_THRESHOLD
    assert all(value.equal(before[name]) for name, value in model.refiner.state_dict().items())
    assert before
    model.refined_threshold = 0.3
    plain.load_state_dict(model.state_dict())
    plain.load_checkpoint_config(model.checkpoint_config())
    other = refined_by()
    other.load_checkpoint_config(model.checkpoint_config())
    assert other.refined_threshold == 0.3


def test_forward_gives_what_a_pass_gives(files: list[str]) -> None:
    model = Dark(post_processor=refined_by()).eval()
    images = nn.functional.interpolate(images_of(files)[2:], (SIZE, SIZE))  # anomalib's exports resize in another way
    expected = predicted(model, images)
    raw = expected.anomaly_map.clone()
    model.post_processor.refine_batch(model, expected)
    model.post_processor.post_process_batch(expected)
    found = model(images)
    assert found.anomaly_map.shape == (2, 1, SIZE, SIZE)
    assert torch.allclose(found.anomaly_map[:, 0], expected.anomaly_map, atol=0.3)  # SAM sees images of 8 bits there
    assert not torch.allclose(raw, expected.anomaly_map, atol=3)
    assert model.post_processor._given is None


def test_an_export_holds_sam(files: list[str]) -> None:
    model = Dark(post_processor=refined_by()).eval()
    for name, value in (("_pixel_threshold", 20.0), ("_image_threshold", 400.0), ("pixel_min", 5.0)):
        getattr(model.post_processor, name).fill_(value)
    for name in ("pixel_max", "image_max"):
        getattr(model.post_processor, name).fill_(35.0)
    model.post_processor.image_min.fill_(0.0)
    images = images_of(files)[2:3]
    graph = torch.export.export(model, (images,), strict=False).module()
    expected, found = model(images), graph(images)
    assert torch.allclose(found.anomaly_map, expected.anomaly_map, atol=1e-4)
    assert expected.pred_mask.any()
    plain = Dark().eval()
    plain.post_processor.load_state_dict(model.post_processor.state_dict())
    assert not torch.allclose(plain(images).anomaly_map, expected.anomaly_map, atol=0.1)


def test_sam_is_shown_the_file_where_the_model_saw_less_of_it(files: list[str]) -> None:
    model = Dark(post_processor=refined_by())
    path = files[2]
    whole = torch.tensor(np.asarray(Image.open(path).resize((256, 256), Image.Resampling.BILINEAR))).permute(2, 0, 1)

    def view(image: torch.Tensor, path: str | None) -> torch.Tensor:
        seen = (image * 255).round().byte()
        return model.post_processor._view(path, seen, (SIZE, SIZE))

    small = Resize((SIZE, SIZE), antialias=True)(images_of(files)[2])
    enlarged = nn.functional.interpolate((small[None] * 255).round() / 255, (256, 256), mode="bilinear", antialias=True)
    assert (view(small, path)[0] * 255 - whole).abs().max() < 2
    assert not torch.allclose(view(small, path), enlarged, atol=0.05)
    for changed in (small.flip(-1), CenterCrop(64)(small), small * 0.8):
        assert view(changed, path).equal(view(changed, None)), "a changed picture is no longer its file"
    assert view(small, None).equal(view(small, str(Path(path).with_name("gone.png"))))
    assert torch.allclose(view(small, None), enlarged)


def test_a_model_that_crops_keeps_its_geometry(files: list[str]) -> None:
    cropping = PreProcessor(Compose([Resize((128, 128)), CenterCrop(SIZE), Normalize(MEAN, STD)]))
    model = Dark(pre_processor=cropping, post_processor=refined_by())
    batch = predicted(model, images_of(files), files)
    shown = []
    encode = model.post_processor.refiner.encode
    model.post_processor.refiner.encode = lambda image: shown.append(image) or encode(image)
    model.post_processor.refine_batch(model, batch)
    cropped = CenterCrop(SIZE)(Resize((128, 128))(images_of(files)))[2:]
    expected = nn.functional.interpolate(cropped, (256, 256), mode="bilinear", antialias=True)
    assert torch.allclose(torch.cat(shown)[-2:], expected, atol=0.01)


def test_a_batch_is_refined_once_and_its_stages_can_be_asked_for(files: list[str]) -> None:
    model = Dark(post_processor=refined_by())
    batch = predicted(model, images_of(files), files)
    raw = batch.anomaly_map.clone()
    model.post_processor.refine_batch(model, batch)
    once = batch.anomaly_map.clone()
    model.post_processor.refine_batch(model, batch)
    assert batch.anomaly_map.equal(once)
    assert not once.equal(raw)
    stages = model.post_processor.stages_of(model, batch.image[2:3], files[2])
    unit = model.post_processor._scale(raw[2:3]).to_unit(raw[2:3])
    assert stages.anomaly_map.equal(unit.clamp(0, 1))
    assert stages.prompts.labels.eq(1).any()
    with pytest.raises(ValueError, match="not of the batch that was refined last"):
        model.post_processor.stages_of(model, torch.zeros(1, 3, SIZE, SIZE), None)


def test_a_seed_gives_the_same_model_with_and_without_sam() -> None:
    torch.manual_seed(3)
    refined_by()
    after = torch.rand(2)
    torch.manual_seed(3)
    assert after.equal(torch.rand(2))


def test_sam_does_not_learn_and_copies_hold_no_pictures(files: list[str]) -> None:
    model = Dark(post_processor=refined_by()).train()
    assert model.post_processor.training
    assert not any(module.training for module in model.post_processor.refiner.modules())
    assert not any(value.requires_grad for value in model.parameters())
    model.post_processor.refine_batch(model, predicted(model, images_of(files), files))
    assert model.post_processor._store.kept
    copied = copy.deepcopy(model)
    assert copied.post_processor._done is None
    assert copied.post_processor._store.kept == {}
    assert torch.allclose(copied.eval()(images_of(files)).anomaly_map, model.eval()(images_of(files)).anomaly_map)


def test_a_model_without_maps_is_refused() -> None:
    model = Dark(post_processor=refined_by())
    batch = ImageBatch(image=torch.rand(2, 3, 8, 8), pred_score=torch.rand(2))
    with pytest.raises(ValueError, match=r"Dark gives scores of whole images and no maps.*such as Patchcore\."):
        model.post_processor.on_validation_batch_end(None, model, batch)
    with pytest.raises(ValueError, match="no maps"):
        model.post_processor.refine_batch(model, batch)


def test_maps_of_other_proportions_are_refused() -> None:
    model = Dark(post_processor=refined_by())
    batch = ImageBatch(image=torch.rand(2, 3, 8, 8), anomaly_map=torch.rand(2, 8, 16), pred_score=torch.rand(2))
    with pytest.raises(ValueError, match="maps of 8 x 16 pixels for images of 8 x 8"):
        model.post_processor.refine_batch(model, batch)


def test_images_that_are_no_rgb_are_refused() -> None:
    model = Dark(pre_processor=False, post_processor=refined_by())
    batch = ImageBatch(image=torch.rand(2, 3, 8, 8) * 255, anomaly_map=torch.rand(2, 8, 8), pred_score=torch.rand(2))
    with pytest.raises(ValueError, match=r"SAM needs RGB in \[0, 1\]"):
        model.post_processor.refine_batch(model, batch)


def test_predictions_without_images_are_refused() -> None:
    with pytest.raises(ValueError, match="Call the model that it belongs to"):
        refined_by()(InferenceBatch(anomaly_map=torch.rand(1, 8, 8)))


def test_clipsam_and_videos_are_refused_before_the_pass() -> None:
    post_processor = refined_by()
    clip_sam = ClipSam(weights="lite", post_processor=post_processor)
    with pytest.raises(ValueError, match="ClipSam refines its maps with SAM itself"):
        post_processor.setup(SimpleNamespace(datamodule=None), clip_sam, "test")
    with pytest.raises(ValueError, match="Avenue gives videos, and SamPostProcessor refines maps of single pictures"):
        post_processor.setup(SimpleNamespace(datamodule=Avenue()), Dark(), "test")
    with pytest.raises(ValueError, match="'bf16-true' converts SAM's weights"):
        post_processor.setup(SimpleNamespace(datamodule=None, precision="bf16-true"), Dark(), "test")


def test_a_command_line_that_would_export_without_sam_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["anomalib", "export", "--model", "Padim"])
    assert Dark(post_processor=refined_by())
    monkeypatch.setattr("sys.argv", ["anomalib", "export", "--model", "Padim", "--ckpt_path=model.ckpt"])
    assert Dark()
    with pytest.raises(ValueError, match=r"SAM would be lost\. Export in Python: Dark\.load_from_checkpoint"):
        Dark(post_processor=refined_by())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": "sam"}, "Unknown weights 'sam'"),
        ({"ppg": {"points": 3}}, "ppg has no 'points'"),
        ({"fusion": {"weight": 2.0}}, "it is the mask's share"),
    ],
)
def test_unknown_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamPostProcessor(**{"weights": "lite", **arguments})
