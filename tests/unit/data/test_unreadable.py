# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Picture files that a pass skips, and tensors that are no images."""

from __future__ import annotations

import logging
import os
import re
import struct
import subprocess
import threading
import warnings
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
import torch
from anomalib.data import Folder, PredictDataset
from anomalib.data.datasets import AnomalibDataset
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_clipsam.data import files
from anomalib_clipsam.data.files import count_pages, find_fault
from anomalib_clipsam.data.unreadable import PictureCheck, check_transform

if TYPE_CHECKING:
    from collections.abc import Iterator

PICTURE = Image.fromarray(np.arange(60 * 40 * 3, dtype=np.uint32).reshape(60, 40, 3).astype(np.uint8))


def bomb() -> bytes:
    """A few bytes that say they are a PNG file of 30,000 x 30,000 pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two pictures and an empty file."""
    for name in ("a.png", "c.jpg"):
        PICTURE.save(tmp_path / name)
    (tmp_path / "b.png").touch()
    return tmp_path


@pytest.fixture
def parts(tmp_path: Path) -> Folder:
    """A data module whose abnormal picture 1 has a mask of another size, and whose normal picture 2 is empty."""
    for name in ("good", "bad", "mask"):
        (tmp_path / name).mkdir()
        for index in range(3):
            PICTURE.save(tmp_path / name / f"{index}.png")
    (tmp_path / "good" / "2.png").write_bytes(b"")
    PICTURE.resize((20, 30)).save(tmp_path / "mask" / "1.png")
    data = Folder(
        name="parts",
        root=tmp_path,
        normal_dir="good",
        abnormal_dir="bad",
        normal_test_dir="good",
        mask_dir="mask",
        val_split_mode="same_as_test",
        num_workers=0,
    )
    data.setup()
    return data


def trainer_with(stage: str, source: Any, is_global_zero: bool = True) -> SimpleNamespace:
    name = {"validate": "val"}.get(stage, stage)
    loop = SimpleNamespace(_data_source=SimpleNamespace(instance=source, name=f"{name}_dataloader"))
    return SimpleNamespace(**{f"{stage}_loop": loop, "is_global_zero": is_global_zero})


def names(dataset: Any) -> list[str]:
    return [f"{path.parent.name}/{path.name}" for path in map(Path, dataset.samples.image_path)]


# ---------------------------------------------------------------- one file


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".tiff", ".ppm"])
def test_files_cut_off_anywhere(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"picture{suffix}"
    PICTURE.save(path)
    content = path.read_bytes()
    assert find_fault(path) is None
    for length in (0, 3, 20, len(content) // 2, len(content) - 40):
        path.write_bytes(content[:length])
        fault = find_fault(path)
        assert fault == "is empty" if length == 0 else fault.startswith(("is no picture", "cannot be read ("))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I"])
def test_modes_that_are_read(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("picture.jpg" if mode in {"CMYK", "YCbCr"} else "picture.tiff" if mode == "I" else "picture.png")
    PICTURE.convert("L" if mode.startswith("I") else "RGB").convert(mode).save(path)
    assert find_fault(path) is None


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        (np.full((4, 5), 256, np.uint16), r"holds values from 256 to 256 \(mode I;16\): save it with 8 bits a channel"),
        (np.full((4, 5), -1, np.int32), r"holds values from -1 to -1 \(mode I\)"),
        (np.full((4, 5), 0.5, np.float32), r"holds values from 0.5 to 0.5 \(mode F\)"),
        (np.full((4, 5), np.nan, np.float32), r"holds values from nan to nan \(mode F\)"),
    ],
)
def test_values_that_eight_bits_do_not_hold(tmp_path: Path, values: np.ndarray, fault: str) -> None:
    """The reader of anomalib would clip them: a grey picture of 16 bits would be all white."""
    Image.fromarray(values).save(tmp_path / "picture.tiff")
    assert re.match(fault, find_fault(tmp_path / "picture.tiff"))


@pytest.mark.parametrize("suffix", ["png", "tiff", "ppm"])
@pytest.mark.parametrize(("highest", "bits"), [(1023, 10), (4095, 12), (65535, None)])
def test_colours_of_fewer_bits_than_the_file_s_are_refused(
    tmp_path: Path, suffix: str, highest: int, bits: int | None
) -> None:
    """Pillow keeps the top byte of 16 bits: a stain on a part from a camera of 12 bits was scored as a black frame."""
    path, values = tmp_path / f"picture.{suffix}", np.full((8, 9, 3), highest // 2, np.uint16)
    values[2, 3] = highest
    assert cv2.imwrite(str(path), values)
    fault = find_fault(path)
    if bits is None:
        assert fault is None
    else:
        assert fault.startswith(f"has 16 bits a channel and no value above {highest}, as from a camera of {bits} bits")


def test_pages_that_nobody_looks_at_are_said(tmp_path: Path) -> None:
    """Three defective pages passed, since the first one was good."""
    PICTURE.save(tmp_path / "one.png")
    PICTURE.save(tmp_path / "shots.tiff", save_all=True, append_images=[PICTURE, PICTURE])
    PICTURE.save(tmp_path / "moving.png", save_all=True, append_images=[PICTURE.transpose(Image.Transpose.ROTATE_180)])
    assert [count_pages(tmp_path / name) for name in ("one.png", "shots.tiff", "moving.png", "none.png")] == [
        1,
        3,
        2,
        1,
    ]
    check = PictureCheck()
    check.leave_out(PredictDataset(tmp_path))
    (note,) = check.pages
    assert note.startswith("Of files with several pages, only the first page is scored.")
    assert note.endswith(f"{tmp_path / 'moving.png'} has 2; {tmp_path / 'shots.tiff'} has 3.")


def test_other_things_than_files(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "bomb.png").write_bytes(bomb())
    assert find_fault(tmp_path / "folder.png").startswith("cannot be read (")
    assert find_fault(tmp_path / "missing.png") == "cannot be read (No such file or directory)"
    assert "900000000 pixels" in find_fault(tmp_path / "bomb.png")


def test_masks(tmp_path: Path) -> None:
    picture, mask = tmp_path / "picture.jpg", tmp_path / "mask.png"
    PICTURE.resize((900, 700)).save(picture)  # reading a JPEG file at an eighth of its size must not mislead
    Image.fromarray(np.full((700, 900), 65535, np.uint16)).save(mask)
    assert find_fault(picture, mask) is None
    PICTURE.resize((700, 900)).save(mask)
    assert find_fault(picture, mask) == f"is 900 x 700 pixels, but its mask {mask} is 700 x 900"
    mask.write_bytes(b"")
    assert find_fault(picture, mask) == f"has a mask that cannot be used: {mask} is empty"


# ---------------------------------------------------------------- a stranger's file


@pytest.mark.parametrize("extension", IMG_EXTENSIONS)
def test_every_format_that_anomalib_lists_is_read(tmp_path: Path, extension: str) -> None:
    PICTURE.save(tmp_path / f"picture{extension}")
    assert find_fault(tmp_path / f"picture{extension}") is None


@pytest.mark.parametrize("kind", ["eps", "gif", "ico", "pdf"])
def test_other_formats_are_not_opened_whatever_the_file_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """PIL starts Ghostscript, a language of its own, for an EPS file."""
    PICTURE.save(tmp_path / "picture.png", format=kind)
    monkeypatch.setattr(subprocess, "Popen", lambda *_args, **_kwargs: pytest.fail("another program"))
    monkeypatch.setattr(subprocess, "check_call", lambda *_args, **_kwargs: pytest.fail("another program"))
    assert find_fault(tmp_path / "picture.png") == "is no picture in BMP, JPEG, PNG, PPM, TIFF or WEBP"


@pytest.mark.parametrize(("width", "sound"), [(150, True), (151, False)])
def test_pictures_of_more_pixels_than_pil_calls_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int, sound: bool
) -> None:
    """PIL itself warns of them, and refuses those of twice as many only."""
    Image.new("L", (width, 100)).save(tmp_path / "picture.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 15_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        fault = find_fault(tmp_path / "picture.png")
    refused = "has 15,100 pixels, more than the 15,000 of PIL.Image.MAX_IMAGE_PIXELS: save it smaller"
    assert fault == (None if sound else refused)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert find_fault(tmp_path / "picture.png") is None


@pytest.mark.parametrize(("large", "most"), [(10**6, 8), (2399, 1)])
def test_large_pictures_are_decoded_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: int, most: int
) -> None:
    """In one thread: memory that others have freed may stay theirs."""
    monkeypatch.setattr(files, "LARGE", large)
    for index in range(16):
        PICTURE.save(tmp_path / f"{index}.png")  # 2400 pixels
    decode, seen = files._decode, []
    together = threading.Barrier(most, timeout=20)

    def watched(image: Image.Image, mode: str) -> str | None:
        seen.append(threading.get_ident())
        together.wait()  # so many are inside at once, or this raises
        return decode(image, mode)

    monkeypatch.setattr(files, "_decode", watched)
    dataset = PredictDataset(tmp_path)
    PictureCheck().leave_out(dataset)
    assert len(dataset) == len(seen) == 16
    assert (len(set(seen)) == 1) == (most == 1)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "picture.png")
    assert find_fault(tmp_path / "picture.png") == "cannot be read (it is no file)"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_names_cannot_forge_lines_of_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    PICTURE.save(tmp_path / "a.png")
    (tmp_path / "b\nERROR all is lost\x1b[31m.png").touch()
    dataset, check = PredictDataset(tmp_path), PictureCheck()
    trainer = trainer_with("predict", DataLoader(dataset))
    check.setup(trainer, None, "predict")
    check.teardown(trainer, None, "predict")
    (message,) = caplog.messages
    assert message.splitlines()[1:] == [rf"{tmp_path}/b\nERROR all is lost\x1b[31m.png is empty"]
    (tmp_path / "a.png").unlink()
    with pytest.raises(ValueError, match=r"scored: .*/b\\nERROR all is lost\\x1b\[31m\.png is empty\. Fix"):
        PictureCheck().setup(trainer_with("predict", DataLoader(PredictDataset(tmp_path))), None, "predict")


# ---------------------------------------------------------------- a pass


def test_one_of_a_thousand(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for index in range(1000):
        Image.new("L", (2, 2)).save(tmp_path / f"{index:03}.png")
    (tmp_path / "500.png").write_bytes(b"no picture")
    dataset, check = PredictDataset(tmp_path), PictureCheck()
    trainer = trainer_with("predict", [DataLoader(dataset, collate_fn=dataset.collate_fn)])
    check.setup(trainer, None, "predict")
    assert len(dataset) == 999
    assert sum(batch.image.shape[0] for batch in trainer.predict_loop._data_source.instance[0]) == 999
    assert not caplog.records
    check.teardown(trainer, None, "predict")
    (record,) = caplog.records
    assert record.getMessage() == (
        f"1 of 1000 pictures were skipped. Fix these files to have them scored:\n{tmp_path / '500.png'} is no picture "
        "in BMP, JPEG, PNG, PPM, TIFF or WEBP"
    )
    assert len(dataset) == 1000


@pytest.mark.parametrize("wrap", [lambda loader: loader, lambda loader: [loader], lambda loader: (loader, loader)])
def test_loaders_and_lists_of_them(folder: Path, wrap: Any) -> None:
    dataset, check = PredictDataset(folder), PictureCheck()
    check.setup(trainer_with("predict", wrap(DataLoader(dataset))), None, "predict")
    assert [path.name for path in dataset.image_filenames] == ["a.png", "c.jpg"]
    check.restore()
    assert [path.name for path in dataset.image_filenames] == ["a.png", "b.png", "c.jpg"]


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_data_module(parts: Folder, stage: str) -> None:
    ours, other = (parts.val_data, parts.test_data) if stage == "validate" else (parts.test_data, parts.val_data)
    whole, check = names(ours), PictureCheck()
    assert len(whole) == 6
    check.setup(trainer_with(stage, parts), None, TrainerFn(stage))  # as Lightning names it
    assert names(ours) == ["bad/0.png", "bad/2.png", "good/0.png", "good/1.png"]
    assert names(other) == whole
    assert ours.task == "segmentation"
    assert [item.gt_label.item() for item in ours] == [1, 1, 0, 0]
    check.on_exception(None, None, KeyboardInterrupt())
    assert names(ours) == whole


def test_masks_are_looked_at_only_where_they_are_read(parts: Folder) -> None:
    parts.test_data.samples.attrs["task"] = "classification"
    PictureCheck().setup(trainer_with("test", parts), None, "test")
    assert "bad/1.png" in names(parts.test_data)


def test_no_picture_left(folder: Path) -> None:
    for index in range(7):
        (folder / f"{index}.png").touch()
    (folder / "a.png").unlink()
    (folder / "c.jpg").unlink()
    dataset = PredictDataset(folder)
    with pytest.raises(ValueError, match=r"No picture of 8 can be scored: .*0.png is empty; .*; and 3 more. Fix"):
        PictureCheck().setup(trainer_with("predict", DataLoader(dataset)), None, "predict")
    assert len(dataset) == 8


@pytest.mark.parametrize("kept", ["good", "bad"])
def test_one_label_only(parts: Folder, kept: str, caplog: pytest.LogCaptureFixture) -> None:
    """What is left of the data set counts, not what is in the folder."""
    missing = {"good": "abnormal", "bad": "normal"}[kept]
    for path in map(Path, parts.test_data.samples.image_path):
        if path.parent.name != kept:
            path.write_bytes(b"")
    check, trainer = PictureCheck(), trainer_with("test", parts)
    check.setup(trainer, None, "test")
    check.teardown(trainer, None, "test")
    assert caplog.messages[1].startswith(f"No test picture is labelled {missing}: AUROC, AP and F1 need")
    caplog.clear()
    check.setup(trainer_with("predict", parts), None, "predict")
    check.teardown(trainer, None, "predict")
    assert len(caplog.messages) == 1


def test_only_the_first_process_speaks(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset, check = PredictDataset(folder), PictureCheck()
    trainer = trainer_with("predict", DataLoader(dataset), is_global_zero=False)
    check.setup(trainer, None, "predict")
    assert len(dataset) == 2
    check.teardown(trainer, None, "predict")
    assert not caplog.records
    assert len(dataset) == 3


def test_other_data_sets_are_left_alone(parts: Folder, caplog: pytest.LogCaptureFixture) -> None:
    """One that reads its files by itself may well read what PIL cannot."""

    class Own(AnomalibDataset):
        def __getitem__(self, index: int) -> Any:
            raise NotImplementedError

    own = Own()
    own.samples = parts.test_data.samples
    parts.test_data = own
    check = PictureCheck()
    with caplog.at_level(logging.DEBUG):
        for stage, source in (
            ("test", parts),
            ("predict", DataLoader([1, 2])),
            ("validate", torch.nn.Identity()),
            ("validate", SimpleNamespace()),
            ("fit", parts),
        ):
            trainer = trainer_with(stage, source)
            check.setup(trainer, None, stage)
            check.teardown(trainer, None, stage)
    assert len(own) == 6
    assert not caplog.records


def test_subsets_are_looked_at_through_what_they_are_of(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset, check = PredictDataset(folder), PictureCheck()
    subset = Subset(Subset(dataset, [2, 1, 0]), [1, 2])  # the empty file, then the first picture
    trainer = trainer_with("predict", DataLoader(subset, collate_fn=dataset.collate_fn))
    check.setup(trainer, None, "predict")
    (batch,) = trainer.predict_loop._data_source.instance
    assert [Path(path).name for path in batch.image_path] == ["a.png"]
    check.teardown(trainer, None, "predict")
    assert caplog.messages[0].splitlines()[0].startswith("1 of 2 pictures were skipped.")
    assert caplog.messages[0].splitlines()[1] == f"{folder / 'b.png'} is empty"
    assert subset.indices == [1, 2]


def loaded(check: PictureCheck, source: Any, stage: str = "predict") -> Iterator[list[str]]:
    """Files of each batch, as Lightning would read them after the look."""
    trainer = trainer_with(stage, source)
    check.setup(trainer, None, stage)
    loaders = getattr(trainer, f"{stage}_loop")._data_source.instance
    for batch in loaders:
        yield [Path(path).name for path in batch.image_path]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("wrap", [lambda dataset: dataset, lambda dataset: Subset(dataset, range(5))])
def test_pictures_that_vanish_during_a_pass(
    tmp_path: Path, wrap: Any, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    for index in range(5):
        PICTURE.save(tmp_path / f"{index}.png")
    dataset, check = PredictDataset(tmp_path), PictureCheck()
    collate = dataset.collate_fn
    loader = DataLoader(wrap(dataset), batch_size=2, collate_fn=collate, num_workers=workers)
    trainer = trainer_with("predict", loader)
    check.setup(trainer, None, "predict")
    for name in ("1.png", "2.png", "4.png"):
        (tmp_path / name).unlink()
    assert [[Path(path).name for path in batch.image_path] for batch in loader] == [["0.png"], ["3.png"]]
    check.teardown(trainer, None, "predict")
    (message,) = caplog.messages
    assert message.splitlines() == [
        "3 of 5 pictures were skipped. Fix these files to have them scored:",
        *(f"{tmp_path / name} cannot be read (No such file or directory)" for name in ("1.png", "2.png", "4.png")),
    ]
    assert (type(loader), loader.collate_fn) == (DataLoader, collate)
    assert "__getitems__" not in vars(loader.dataset)


def test_errors_that_no_file_is_to_blame_for_end_the_pass(folder: Path) -> None:
    class Broken:
        def __call__(self, image: torch.Tensor) -> torch.Tensor:
            raise ZeroDivisionError

    dataset = PredictDataset(folder, transform=Broken())
    with pytest.raises(ZeroDivisionError):
        list(loaded(PictureCheck(), DataLoader(dataset, collate_fn=dataset.collate_fn)))


def test_pictures_of_a_data_module_that_vanish_during_a_pass(parts: Folder, caplog: pytest.LogCaptureFixture) -> None:
    parts.eval_batch_size = 1
    check = PictureCheck()
    read = loaded(check, parts, "test")
    first = next(read)
    assert first == ["0.png"]
    for path in map(Path, parts.test_data.samples.image_path):
        if path.parent.name == "good":
            path.unlink()
    assert list(read) == [["2.png"]]
    check.teardown(trainer_with("test", parts), None, "test")
    assert "4 of 6 pictures were skipped" in caplog.text
    assert len(names(parts.test_data)) == 6


# ---------------------------------------------------------------- transforms

IMAGENET = Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def test_transforms_that_normalise_are_refused(folder: Path) -> None:
    """Grey images would still have values near [0, 1] after it."""
    for transform in (None, Resize(20), Compose([Resize(20), Normalize([0.0], [1.0])]), lambda image: image):
        check_transform(transform, "The data set")
    nested = Compose([Resize(20), Compose([IMAGENET])])
    said = r" normalises images to values from -2\.12 to 2\.64, but the model takes them in \[0, 1\]"
    with pytest.raises(ValueError, match=f"The pre-processor{said}"):
        check_transform(nested, "The pre-processor")
    loader = DataLoader(Subset(PredictDataset(folder, transform=nested), [0]))
    with pytest.raises(ValueError, match=f"The data set{said}"):
        PictureCheck().setup(trainer_with("predict", loader), None, "predict")
    model = SimpleNamespace(pre_processor=SimpleNamespace(transform=nested))
    with pytest.raises(ValueError, match=f"The pre-processor{said}"):
        PictureCheck().setup(trainer_with("predict", []), model, "predict")


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_augmentations_that_normalise_are_refused(parts: Folder, stage: str) -> None:
    (parts.val_data if stage == "validate" else parts.test_data).augmentations = IMAGENET
    with pytest.raises(ValueError, match="The data set normalises images"):
        PictureCheck().setup(trainer_with(stage, parts), None, stage)
