# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The table of bad input: each line ends in a score, in a picture left out by name, or in one clear sentence."""

from __future__ import annotations

import logging
import os
import pickle
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
import torch
from anomalib.cli import AnomalibCLI
from anomalib.data.utils import read_image
from anomalib.models import Padim
from PIL import Image

from anomalib_clipsam import ClipSam
from anomalib_clipsam.drawn_parts.drawing import draw_part

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
DEMO = ("--model=ClipSam", "--model.weights=demo")
NAN, INF = float("nan"), float("inf")


def part() -> Image.Image:
    """A drawn capsule with a crack, not square."""
    return Image.fromarray(draw_part("capsule", np.random.default_rng(0), "crack")[0][20:220])


def png(header: bytes, content: bytes = b"") -> bytes:
    """A PNG file with that header, whatever it holds."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content)


def saved(image: Image.Image, path: Path, **options: Any) -> None:
    image.save(path, **options)


def cut(path: Path) -> None:
    """Write a picture and keep the first half of the file."""
    part().save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def rotated(path: Path) -> None:
    """A picture whose EXIF says that it must be turned: anomalib reads, and so ClipSam scores, the pixels as stored."""
    exif = Image.Exif()
    exif[0x0112] = 6
    part().save(path, exif=exif)


def like(values: np.ndarray, path: Path) -> None:
    Image.fromarray(values).save(path)


def grey(scale: int) -> np.ndarray:
    return np.asarray(part().convert("L")).astype(np.uint16) * scale


# name of the file -> what writes it, and whether its pixels are those of plain.png
SCORED: dict[str, tuple[Callable[[Path], object], bool]] = {
    "plain.png": (lambda path: part().save(path), True),
    "upper-case.PNG": (lambda path: part().save(path, format="png"), True),
    'it\'s "ü" {} 部.png': (lambda path: part().save(path), True),
    "alpha.png": (lambda path: part().convert("RGBA").save(path), True),
    "animated.webp": (lambda path: saved(part(), path, save_all=True, append_images=[part()] * 2, lossless=True), True),
    "animated.png": (
        lambda path: saved(part(), path, save_all=True, append_images=[Image.new("RGB", (256, 200))]),
        True,
    ),
    "pages.tiff": (lambda path: saved(part(), path, save_all=True, append_images=[Image.new("L", (9, 9))]), True),
    "exif-rotated.png": (rotated, True),
    "colours-of-16-bit.png": (
        lambda path: cv2.imwrite(str(path), np.asarray(part())[..., ::-1].astype(np.uint16) * 257),
        True,
    ),
    "bitmap.bmp": (lambda path: part().save(path), True),
    "pixmap.ppm": (lambda path: part().save(path), True),
    "grey.png": (lambda path: part().convert("L").save(path), False),
    "grey-alpha.png": (lambda path: part().convert("LA").save(path), False),
    "black-and-white.png": (lambda path: part().convert("1").save(path), False),
    "palette.png": (lambda path: saved(part().quantize(16), path, transparency=b"\x00\x80"), False),
    "cmyk.jpg": (lambda path: part().convert("CMYK").save(path), False),
    "grey-of-16-bit-within-8.png": (lambda path: like(grey(1), path), False),
    "1-by-1.png": (lambda path: part().resize((1, 1)).save(path), False),
    "1-by-5000.png": (lambda path: part().resize((1, 5000)).save(path), False),
    "5000-by-1.png": (lambda path: part().resize((5000, 1)).save(path), False),
}

# name of the file -> what writes it, and what is said of it
SKIPPED: dict[str, tuple[Callable[[Path], object], str]] = {
    "zero-bytes.png": (lambda path: path.write_bytes(b""), "is empty"),
    "zero-bytes.jpg": (lambda path: path.write_bytes(b""), "is empty"),
    "cut.png": (cut, "cannot be read ("),
    "cut.jpg": (cut, "cannot be read ("),
    "cut.webp": (cut, "cannot be read ("),
    "cut.tiff": (cut, "cannot be read ("),
    "text.png": (lambda path: path.write_text("no picture"), "is no picture"),
    "page.jpg": (lambda path: path.write_text("<html>404 Not Found</html>"), "is no picture"),
    "folder.png": (lambda path: path.mkdir(), "cannot be read ("),
    "0-by-0.png": (
        lambda path: path.write_bytes(png(struct.pack(">IIBBBBB", 0, 0, 8, 0, 0, 0, 0))),
        "is no picture",
    ),
    "30000-by-30000.png": (
        lambda path: path.write_bytes(png(struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0))),
        "cannot be read (Image size (900000000 pixels) exceeds limit",
    ),
    "grey-of-16-bit.png": (lambda path: like(grey(257), path), "(mode I;16): save it with 8 bits a channel"),
    "grey-of-32-bit.tiff": (lambda path: like(grey(257).astype(np.int32), path), "(mode I): save it with 8 bits"),
    "floats.tiff": (lambda path: like((grey(1) / 255).astype(np.float32), path), "(mode F): save it with 8 bits"),
    "postscript.png": (lambda path: part().save(path, format="eps"), "is no picture in BMP, JPEG, PNG, PPM, TIFF or"),
    "19000-by-5000.png": (
        lambda path: path.write_bytes(png(struct.pack(">IIBBBBB", 19_000, 5_000, 8, 0, 0, 0, 0))),
        "has 95,000,000 pixels, more than the 89,478,485 of PIL.Image.MAX_IMAGE_PIXELS: save it smaller",
    ),
    "nan-floats.tiff": (lambda path: like(np.full((9, 9), NAN, np.float32), path), "holds values from nan to nan"),
}


class Predicted:
    """What `anomalib predict` made of all these pictures in one folder."""

    def __init__(self, folder: Path, cli: AnomalibCLI, messages: list[str], written: list[str]) -> None:
        batches = cli.engine.trainer.predict_loop.predictions
        self.folder, self.model, self.messages, self.written = folder, cli.model.eval(), messages, written
        self.batch_of = {Path(batch.image_path[0]).name: batch for batch in batches}


class Listener(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory) -> Predicted:
    root = tmp_path_factory.mktemp("pictures")
    for name, (write, _) in (SCORED | SKIPPED).items():
        (root / "folder").mkdir(exist_ok=True)
        write(root / "folder" / name)
    logger, listener, level = logging.getLogger("anomalib_clipsam"), Listener(), logging.getLogger().level
    logger.addHandler(listener)
    torch.set_num_threads(1)
    try:
        cli = AnomalibCLI(["predict", *DEMO, f"--data={root / 'folder'}", f"--default_root_dir={root / 'results'}"])
    finally:
        logger.removeHandler(listener)
        logging.getLogger().setLevel(level)
    written = [
        path.name for path in (root / "results").rglob("*") if path.suffix.lower() in Image.registered_extensions()
    ]
    return Predicted(root / "folder", cli, listener.messages, written)


@pytest.fixture
def fails(capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Run a command of anomalib's in an empty folder, and give its exit code and what it says in the end."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str]:
        level = logging.getLogger().level
        try:
            AnomalibCLI([str(argument) for argument in arguments])
        except SystemExit as end:
            return end.code, capsys.readouterr().err
        except Exception as error:  # noqa: BLE001  # Python prints it last and ends with 1
            return 1, str(error)
        finally:
            logging.getLogger().setLevel(level)
        return 0, ""

    return run


@pytest.fixture(scope="module")
def model() -> ClipSam:
    return ClipSam("demo", class_name="part").eval()


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize("name", SCORED)
def test_picture_is_scored(predicted: Predicted, name: str) -> None:
    batch = predicted.batch_of[name]
    assert 0 <= batch.pred_score.item() <= 1
    assert torch.isfinite(batch.anomaly_map).all()
    assert name in predicted.written
    alone = predicted.model(read_image(predicted.folder / name, as_tensor=True).unsqueeze(0))
    torch.testing.assert_close(batch.anomaly_map, alone.anomaly_map, atol=1e-5, rtol=0)
    torch.testing.assert_close(batch.pred_score, alone.pred_score, atol=1e-5, rtol=0)
    _, same = SCORED[name]
    difference = (batch.anomaly_map - predicted.batch_of["plain.png"].anomaly_map).abs().amax().item()
    assert (difference < 1e-5) == same


@pytest.mark.parametrize("name", SKIPPED)
def test_picture_is_left_out_by_name(predicted: Predicted, name: str) -> None:
    assert name not in predicted.batch_of
    assert name not in predicted.written
    (line,) = [line for line in predicted.messages[-1].splitlines() if f"{predicted.folder / name} " in line]
    _, said = SKIPPED[name]
    assert said in line


def test_pictures_left_out_are_counted(predicted: Predicted) -> None:
    first, *listed = predicted.messages[-1].splitlines()
    assert first.startswith(f"{len(SKIPPED)} of {len(SKIPPED) + len(SCORED)} pictures were skipped. Fix these files")
    assert len(listed) == len(SKIPPED)
    assert len(predicted.batch_of) == len(predicted.written) == len(SCORED)


@pytest.mark.slow
def test_large_picture_is_scored(anomalib: Callable, tmp_path: Path) -> None:
    Image.new("L", (9_900, 9_000), 128).save(tmp_path / "large.png", compress_level=1)
    cli = anomalib("predict", *DEMO, f"--data={tmp_path / 'large.png'}")
    (batch,) = cli.engine.trainer.predict_loop.predictions
    assert 0 <= batch.pred_score.item() <= 1


# ---------------------------------------------------------------- data


def no_data(folder: Path) -> str:
    return f"--data={folder / 'nowhere'}"


def empty_folder(folder: Path) -> str:
    (folder / "empty").mkdir()
    return f"--data={folder / 'empty'}"


def folder_of_other_files(folder: Path) -> str:
    (folder / "notes").mkdir()
    (folder / "notes" / "notes.txt").write_text("no picture")
    return f"--data={folder / 'notes'}"


def file_of_another_kind(folder: Path) -> str:
    (folder / "notes.txt").write_text("no picture")
    return f"--data={folder / 'notes.txt'}"


def unreadable_file(folder: Path) -> str:
    (folder / "zero.png").write_bytes(b"")
    return f"--data={folder / 'zero.png'}"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (no_data, "Path does not exist: {}/nowhere"),
        (empty_folder, "Found 0 images in {}/empty"),
        (folder_of_other_files, "Found 0 images in {}/notes"),
        (file_of_another_kind, "is not an image file: {}/notes.txt"),
        (unreadable_file, "No picture of 1 can be scored: {}/zero.png is empty. Fix these files or give others."),
    ],
)
def test_nothing_to_score(fails: Callable, tmp_path: Path, data: Callable, said: str) -> None:
    code, message = fails("predict", *DEMO, data(tmp_path))
    assert code == 1
    assert said.format(tmp_path) in message


def test_process_ends_with_the_sentence(tmp_path: Path) -> None:
    """What the exceptions of the other tests are for whoever sits at the command line: no traceback."""
    program = "from anomalib_clipsam import _autoload; _autoload.install(); from anomalib.cli.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", program, "predict", *DEMO, unreadable_file(tmp_path)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "1000"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 1
    assert result.stderr.rstrip().splitlines()[-1] == (
        f"anomalib: No picture of 1 can be scored: {tmp_path / 'zero.png'} is empty. Fix these files or give others."
    )
    assert "Traceback" not in result.stderr


def test_mask_of_another_size(
    anomalib: Callable, folder_arguments: list[str], parts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The picture is left out, and the worker processes read what is left."""
    masks = tmp_path / "mask"
    masks.mkdir()
    for index in range(4):
        mask = Image.open(parts / "mask" / f"{index}.png")
        mask.resize((50, 40) if index == 1 else mask.size).save(masks / f"{index}.png")
    cli = anomalib("test", *DEMO, *folder_arguments, f"--data.mask_dir={masks}", "--data.num_workers=1")
    said = f"1 of 8 pictures were skipped. Fix these files to have them scored:\n{parts / 'defect' / '1.png'} is 256 x "
    assert [message for message in caplog.messages if message.startswith(said)]
    assert f"but its mask {masks / '1.png'} is 50 x 40" in caplog.text
    assert {"image_AUROC", "pixel_AUROC"} <= set(cli.engine.trainer.callback_metrics)
    assert len(cli.datamodule.test_data) == 8


def test_category_without_a_defect(
    anomalib: Callable, parts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = ["--data=Folder", "--data.name=parts", f"--data.root={parts}", "--data.normal_dir=good"]
    options = ["--data.normal_test_dir=good", "--data.val_split_mode=same_as_test", "--data.num_workers=0"]
    cli = anomalib("test", *DEMO, *data, *options)
    assert caplog.messages[-1].startswith("No test picture is labelled abnormal: AUROC, AP and F1 need both")
    assert all(torch.isfinite(value) for value in cli.engine.trainer.callback_metrics.values())


def test_data_module_without_its_folder(fails: Callable, folder_arguments: list[str], tmp_path: Path) -> None:
    code, message = fails("test", *DEMO, *folder_arguments, f"--data.root={tmp_path / 'nowhere'}")
    assert code == 1
    assert str(tmp_path / "nowhere") in message


# ---------------------------------------------------------------- checkpoints


def test_checkpoint_of_another_model(fails: Callable, parts: Path, tmp_path: Path) -> None:
    other = Padim(backbone="resnet18", pre_trained=False)
    checkpoint = {
        "state_dict": other.state_dict(),
        "hyper_parameters": dict(other.hparams),
        "pytorch-lightning_version": "2.6.0",
        "loops": {},
    }
    other.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "padim.ckpt")
    code, message = fails("predict", *DEMO, f"--data={parts / 'good'}", f"--ckpt_path={tmp_path / 'padim.ckpt'}")
    assert code == 1
    assert "Padim" in message or "not one of ClipSam" in message


@pytest.mark.parametrize("damage", ["empty", "text", "cut off", "changed", "pickle"])
@pytest.mark.parametrize("command", ["predict", "test"])
def test_damaged_checkpoint(
    fails: Callable, folder_arguments: list[str], parts: Path, tmp_path: Path, damage: str, command: str
) -> None:
    file = tmp_path / "damaged.ckpt"
    torch.save({"state_dict": {"a": torch.zeros(1000)}}, file)
    whole = file.read_bytes()
    contents = {
        "empty": b"",
        "text": b"This is no checkpoint.",
        "cut off": whole[: len(whole) // 2],
        "changed": whole[:100] + b"?" * 50 + whole[150:],
        "pickle": pickle.dumps(print),
    }
    file.write_bytes(contents[damage])
    data = [f"--data={parts / 'good'}"] if command == "predict" else folder_arguments
    code, message = fails(command, *DEMO, *data, f"--ckpt_path={file}")
    assert code == 1
    assert f"{file} is damaged or no checkpoint" in message
    assert "leave the path out" in message


def test_checkpoint_that_is_missing(fails: Callable, parts: Path, tmp_path: Path) -> None:
    code, message = fails("predict", *DEMO, f"--data={parts / 'good'}", f"--ckpt_path={tmp_path / 'none.ckpt'}")
    assert code == 1
    assert f"{tmp_path / 'none.ckpt'}" in message


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("argument", "code", "said"),
    [
        ("weights=vit_x", 1, "Unknown weights 'vit_x'. Choose one of vit_h, vit_l, vit_b, mobile, lite, demo"),
        ("ppg.kernel_size=4", 1, "kernel_size is 4, but a dilation needs an odd number of at least 3"),
        ("class_name=", 1, "class_name is empty. Name the part"),
        ("ppg.num_positives=three", 2, "Expected a <class 'int'>. Got value: three"),
        ("ppg.points=3", 2, "points"),
        ("refine=perhaps", 2, "Expected a <class 'bool'>. Got value: perhaps"),
        ("kernel=3", 2, "kernel"),
    ],
)
def test_wrong_argument_of_a_command(fails: Callable, parts: Path, argument: str, code: int, said: str) -> None:
    found, message = fails("predict", *DEMO, f"--model.{argument}", f"--data={parts / 'good'}")
    assert found == code
    assert said in message


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"weights": "vit_x"}, ValueError, "Unknown weights 'vit_x'. Choose one of"),
        ({"weights": ""}, ValueError, "Unknown weights ''. Choose one of"),
        ({"weights": ["demo"]}, TypeError, r"weights is \['demo'\], but must be of the type str"),
        ({"weights": None}, TypeError, "weights is None, but must be of the type str"),
        ({"localizer": "x"}, ValueError, "Unknown localizer 'x'. Choose one of"),
        ({"fusion": {"mode": "x"}}, ValueError, "Unknown fusion 'x'. Choose one of"),
        ({"ppg": {"spacing": "x"}}, ValueError, "Unknown spacing 'x'. Choose one of"),
        ({"ppg": {"negatives": "x"}}, ValueError, "Unknown negatives 'x'. Choose one of"),
        ({"cps": {"box": "x"}}, ValueError, "Unknown box 'x'. Choose one of"),
        ({"sam_architecture": "x"}, ValueError, "Unknown sam_architecture 'x'. Choose one of"),
        ({"clip_architecture": "x"}, ValueError, "Name its file with `clip_weights`"),
        ({"clip_architecture": "x", "clip_weights": __file__}, ValueError, "Unknown CLIP architecture 'x'. Use"),
        ({"clip_weights": "nowhere.pt"}, FileNotFoundError, "nowhere.pt"),
        ({"clip_weights": __file__}, ValueError, "test_bad_input.py"),
        ({"sam_weights": "nowhere.pt"}, FileNotFoundError, "nowhere.pt"),
        ({"sam_weights": Path(__file__)}, ValueError, "test_bad_input.py"),
        ({"localizer": "april_gan", "adapters": "nowhere.pt"}, FileNotFoundError, "nowhere.pt"),
        ({"ppg": {"num_positives": 0}}, ValueError, "num_positives is 0 .* Choose at least 1"),
        ({"ppg": {"num_positives": -1}}, ValueError, "num_positives is -1"),
        (
            {"ppg": {"num_positives": "3"}},
            TypeError,
            "num_positives is '3', but must be of the type int. Give such a value",
        ),
        ({"ppg": {"num_positives": 3.0}}, TypeError, "num_positives is 3.0, but must be of the type int"),
        ({"ppg": {"num_positives": True}}, TypeError, "num_positives is True, but must be of the type int"),
        ({"ppg": {"num_negatives": -1}}, ValueError, "num_negatives -1"),
        ({"ppg": {"kernel_size": 0}}, ValueError, "kernel_size is 0, but a dilation needs an odd number"),
        ({"ppg": {"kernel_size": -3}}, ValueError, "kernel_size is -3, but"),
        ({"ppg": {"kernel_size": 24}}, ValueError, "kernel_size is 24, but"),
        ({"ppg": {"interval": 0}}, ValueError, "interval is 0; it must be a number of pixels above 0"),
        ({"ppg": {"interval": -50.0}}, ValueError, "interval is -50.0; it must be a number of pixels above 0"),
        ({"ppg": {"interval": INF}}, ValueError, "interval is inf; it must be a number of pixels above 0"),
        ({"ppg": {"min_score": -0.1}}, ValueError, "min_score is -0.1; it must be between 0 and 1."),
        ({"ppg": {"min_score": 1.1}}, ValueError, "min_score is 1.1; it must be between 0 and 1."),
        ({"ppg": {"min_score": NAN}}, ValueError, "min_score is nan; it must be between 0 and 1."),
        ({"ppg": {"min_score": "0.5"}}, TypeError, "min_score is '0.5', but must be of the type float"),
        ({"ppg": {"min_score": False}}, TypeError, "min_score is False, but must be of the type float"),
        ({"ppg": {"region_ratio": 2}}, ValueError, "region_ratio is 2; it must be between 0 and 1."),
        ({"fusion": {"weight": 1.5}}, ValueError, "fusion's weight is 1.5, but"),
        ({"cps": {"passes": 0}}, ValueError, "passes is 0"),
        ({"ppg": {"points": 3}}, ValueError, "ppg has no 'points'. Choose one of min_score, "),
        ({"ppg": 3}, TypeError, "ppg is 3, but must be of the type dict or None"),
        ({"map_size": 0}, ValueError, "map_size is 0; it must be a number of pixels above 0"),
        ({"map_size": "518"}, TypeError, "map_size is '518', but must be of the type int or None"),
        ({"clip_size": 100}, ValueError, "clip_size is 100; it must be a multiple of 32"),
        ({"refine": "no"}, TypeError, "refine is 'no', but must be of the type bool"),
        ({"post_processor": None}, TypeError, "post_processor is None, but must be of the type Module or bool"),
        ({"class_name": ""}, ValueError, "class_name is empty. Name the part"),
        ({"class_name": " \t\n"}, ValueError, "class_name is empty. Name the part"),
        ({"class_name": 7}, TypeError, "class_name is 7, but must be of the type str or None"),
        ({"class_name": Path("bolt")}, TypeError, "class_name is .*, but must be of the type str or None"),
    ],
)
def test_wrong_argument(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ClipSam(**{"weights": "demo", **arguments})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must map some of"),
        (b"\xff\xfe\x00", "is not readable as YAML"),
        (b"normal: [", "is not readable as YAML"),
        (b"ordinary: ['{}']", "must map some of"),
        (b"normal: '{}'", "must be a list of texts"),
        (b"normal: []", "has no 'normal' entry"),
        (b"normal: ['flawless part']", "exactly one '{}'"),
        (b"normal: [7]", "exactly one '{}'"),
    ],
)
def test_wrong_prompt_file(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "prompts.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        ClipSam("demo", prompts=str(tmp_path / "prompts.yaml"))


def test_missing_prompt_file() -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no prompt file 'nowhere.yaml'. Give"):
        ClipSam("demo", prompts="nowhere.yaml")


# ---------------------------------------------------------------- class names


@pytest.mark.parametrize(
    "name",
    [
        "metal nut",
        'it\'s a "part"',
        "{}",
        "{0} {name} %s",
        "Schraube mit Öse",
        "ネジ",
        "مسمار",
        "🔩",
        "<|endoftext|>",
        "\udcff",
    ],
    ids=ascii,
)
def test_odd_class_name(model: ClipSam, name: str) -> None:
    text = model.model.localizer.text_of(name)
    assert text.shape == (2, 96)
    assert torch.isfinite(text).all()
    assert not torch.allclose(text[0], text[1])


@pytest.mark.parametrize("name", ["very long " * 50, "部" * 200, "x" * 10_000])
def test_class_name_too_long(model: ClipSam, name: str) -> None:
    with pytest.raises(
        ValueError, match=r"more than the 77 tokens that CLIP reads: .* Shorten the class name"
    ) as found:
        model.model.localizer.text_of(name)
    assert len(str(found.value)) < 250


# ---------------------------------------------------------------- tensors


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.full((1, 3, 20, 30), NAN), ValueError, r"those at \[0\] hold NaN or infinite values. Give floats"),
        (torch.full((1, 3, 20, 30), INF), ValueError, r"those at \[0\] hold NaN or infinite values"),
        (torch.zeros(1, 3, 20, 30, dtype=torch.uint8), TypeError, "are torch.uint8. Give floats"),
        (torch.zeros(3, 20, 30), ValueError, r"shape \(3, 20, 30\). Give floats"),
        (torch.zeros(20, 30), ValueError, r"shape \(20, 30\). Give floats"),
        (torch.zeros(1, 1, 20, 30), ValueError, r"shape \(1, 1, 20, 30\)"),
        (torch.zeros(1, 4, 20, 30), ValueError, r"shape \(1, 4, 20, 30\)"),
        (torch.zeros(1, 20, 30, 3), ValueError, r"shape \(1, 20, 30, 3\)"),
        (torch.zeros(0, 3, 20, 30), ValueError, r"shape \(0, 3, 20, 30\)"),
        (np.zeros((1, 3, 20, 30), np.float32), TypeError, "are ndarray. Give floats"),
        (torch.full((1, 3, 20, 30), 255.0), ValueError, "hold values from 255 to 255. .*: divide 8-bit values by 255"),
        (torch.full((1, 3, 20, 30), -2.0), ValueError, "hold values from -2 to -2. .* leave `Normalize` out"),
    ],
    ids=[
        "nan",
        "inf",
        "uint8",
        "one image",
        "plane",
        "one channel",
        "alpha",
        "channels last",
        "no image",
        "numpy",
        "8 bits",
        "normalised",
    ],
)
def test_wrong_tensor(model: ClipSam, images: Any, error: type[Exception], message: str) -> None:
    for call in (model, model.model, model.model.stages):
        with pytest.raises(error, match=message):
            call(images)
