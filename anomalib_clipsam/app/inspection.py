# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""What the page asks of the model: look at a picture once, and decide about it as often as a threshold moves.

Letters: k good parts, H W map.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
import torch
from anomalib.data import InferenceBatch
from PIL import Image, UnidentifiedImageError
from torchvision.transforms.v2.functional import to_dtype, to_image

from anomalib_clipsam.data.files import FORMATS, find_fault
from anomalib_clipsam.drawing.panels import FOUND, fit, heat, orientation_of, outline, upright
from anomalib_clipsam.drawing.stages import CROPS, draw_crops, draw_prompts
from anomalib_clipsam.errors.errors import UserFileNotFoundError, UserValueError, counted, printable
from anomalib_clipsam.lightning_model import ClipSam
from anomalib_clipsam.plugin.part_names import DEFAULT_CLASS_NAME
from anomalib_clipsam.plugin.post_processor import ClipSamPostProcessor
from anomalib_clipsam.predictions.describe import parts_of
from anomalib_clipsam.predictions.run import MOST_GOOD_PARTS
from anomalib_clipsam.references import Thresholds, build_judge
from anomalib_clipsam.references.bounds import FALSE_ALARMS, check_false_alarms
from anomalib_clipsam.references.judge import reasons

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_BYTES = 25 * 2**20
"""Largest file that is taken, in bytes."""
MOST_PIXELS = 25_000_000
"""Largest picture that is taken. As float32 one takes 300 MB while it is resized."""
LONGEST_NAME = 80
"""Most letters of a class name; CLIP reads 77 tokens of a sentence."""
PANEL = 640
"""Longer side of the pictures on the page, in pixels."""


@dataclass(frozen=True)
class Look:
    """What the networks said of a picture. A threshold that moves needs no more.

    Args:
        picture (Image.Image): The picture as it is stored, its longer side :data:`PANEL` pixels.
        predictions (InferenceBatch): Score ``(1,)``, final map and SAM's mask ``(1, H, W)``, on the CPU, before any
            threshold.
        thresholds (Thresholds | None): What good parts pass; ``None`` without them.
        steps (dict[str, Image.Image]): Title -> panel, in the order of the method.
        class_name (str): Name that CLIP was asked about.
        notes (tuple[str, ...]): What a user should know, in sentences. Defaults to none.
        orientation (int): How the picture is to be turned for a person, see
            :func:`~anomalib_clipsam.drawing.panels.orientation_of`. Defaults to ``1``, not at all.
    """

    picture: Image.Image
    predictions: InferenceBatch
    thresholds: Thresholds | None
    steps: dict[str, Image.Image]
    class_name: str
    notes: tuple[str, ...] = ()
    orientation: int = 1


@dataclass(frozen=True)
class Decision:
    """What thresholds make of a look.

    Args:
        score (float): Image score in [0, 1]; with good parts normalised, so that 0.5 is the threshold they set.
        defective (bool): Whether the score is above the threshold.
        regions (int): Connected parts of the mask.
        share (float): Share of the picture that the mask covers, in [0, 1].
        outlined (Image.Image): The picture, with the outline of the mask.
        map (Image.Image): The picture under the final map.
    """

    score: float
    defective: bool
    regions: int
    share: float
    outlined: Image.Image
    map: Image.Image


class Inspector:
    """ClipSam, for one picture at a time. It keeps nothing of a picture but the look that it gives away.

    Args:
        weights (str): As ``weights`` of :class:`~anomalib_clipsam.lightning_model.ClipSam`. Defaults to ``"lite"``.
        tiles (int | str | None): As ``tiles`` of the same. Defaults to ``None``.
        false_alarms (float): As ``false_alarms`` of the same. Defaults to
            :data:`~anomalib_clipsam.references.bounds.FALSE_ALARMS`.
    """

    def __init__(
        self, weights: str = "lite", tiles: int | str | None = None, false_alarms: float = FALSE_ALARMS
    ) -> None:
        check_false_alarms(false_alarms)
        self.false_alarms = false_alarms
        self.model = ClipSam(weights=weights, tiles=tiles).to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self._lock = Lock()  # the model holds one class name and one set of good parts at a time

    @property
    def in_tiles(self) -> bool:
        """Whether pictures are seen in tiles, which are not compared with good parts here."""
        return self.model.in_tiles

    @property
    def uses_class_name(self) -> bool:
        """Whether a class name changes anything."""
        return self.model.model.localizer.uses_class_name

    def look(self, path: str | Path, good: Sequence[str | Path] = (), class_name: str = "") -> Look:
        """Let the networks look at a picture.

        Args:
            path (str | Path): The picture.
            good (Sequence[str | Path]): Good parts to compare it with; the first eight are used. Defaults to none.
            class_name (str): Name of the part. Defaults to an empty one, ``"object"``.

        Returns:
            Look: What they said.

        Raises:
            FileNotFoundError: If a file is gone.
            ValueError: If a file is too large or no picture, or the name is too long; the message is for the user.
        """
        class_name = tidy(class_name)
        if len(class_name) > LONGEST_NAME:
            msg = f"The class name has {len(class_name)} letters, and {LONGEST_NAME} are allowed. Give a shorter one."
            raise UserValueError(msg)
        notes = []
        if good and self.in_tiles:
            msg = "Good parts in tiles take minutes, and this page looks at tiles. Take them out, or leave --tiles out."
            raise UserValueError(msg)
        image = read_upload(path)
        misfit = self.model.model.misfit(image.size) if self.in_tiles else None
        if misfit is not None:
            msg = f"{printable(Path(path).name)} {misfit}"
            raise UserValueError(msg)
        if len(good) > MOST_GOOD_PARTS:
            notes.append(f"Of the {len(good)} good parts, the first {MOST_GOOD_PARTS} are used.")
        parts = [self._fitted(read_upload(part)) for part in good[:MOST_GOOD_PARTS]]
        model = self.model.model
        with self._lock:
            if parts:
                judge = build_judge(model.localizer, "none", len(parts), {}, false_alarms=self.false_alarms)
                judge = judge.to(self.model.device)
                model = model.judged_by(judge)
            model.set_class_name(class_name)
            if parts:
                judge.learn(torch.cat(parts), model)
            shown = self._fitted(image)
            stages = model.stages(shown)
        (why,) = reasons(stages.score, model.judge)
        if why:
            notes.append(f"It is defective whatever the threshold: {why}. Is it the same part, seen in the same way?")
        if parts and judge.copies:
            notes.append(f"{counted(len(judge.copies), 'good part')} of {len(parts)} shows what an earlier one shows.")
        picture = fit(image, PANEL)
        steps = {"Text and good parts" if parts else "CLIP map": heat(picture, stages.anomaly_map[0])}
        orientation = orientation_of(path)
        if stages.region is None or not stages.region.any():
            notes.append("CLIP finds nothing suspicious in it, so SAM was not asked.")
        elif stages.crops is not None:
            steps[CROPS] = draw_crops(picture, stages)
        else:
            steps |= draw_prompts(picture, stages, model.ppg.frame_size, shown.shape[-2:], orientation)
        steps = {title: upright(panel, orientation) for title, panel in steps.items()}
        predictions = InferenceBatch(*(None if answer is None else answer.cpu() for answer in stages.predictions))
        thresholds = model.judge.thresholds if parts else None
        return Look(picture, predictions, thresholds, steps, class_name, tuple(notes), orientation)

    def _fitted(self, image: Image.Image) -> torch.Tensor:
        """Make of a picture what the model takes, as anomalib's passes do: ``(1, 3, S, S)``, for tiles its own size."""
        pixels = to_dtype(to_image(image), torch.float32, scale=True)
        return self.model.pre_processor(pixels[None]).to(self.model.device)


def tidy(class_name: str) -> str:
    """Return the name that CLIP is asked about.

    Args:
        class_name (str): What somebody typed.

    Returns:
        str: That, without needless spaces; ``"object"`` if nothing is left.
    """
    return " ".join(class_name.split()) or DEFAULT_CLASS_NAME


def decide(look: Look, image_threshold: float = 0.5, pixel_threshold: float = 0.5) -> Decision:
    """Decide about a picture, as a pass of anomalib's with these sensitivities would. No network runs.

    Args:
        look (Look): What the networks said.
        image_threshold (float): Score above which the picture is defective, in [0, 1]. Defaults to ``0.5``.
        pixel_threshold (float): The outline is where the map is above it, in [0, 1]. Defaults to ``0.5``.

    Returns:
        Decision: Verdict and mask.
    """
    post_processor = ClipSamPostProcessor(
        image_sensitivity=1 - image_threshold, pixel_sensitivity=1 - pixel_threshold
    ).eval()
    if look.thresholds is not None:
        post_processor.use_thresholds(look.thresholds.image, look.thresholds.pixel)
    decided = post_processor(look.predictions)
    mask = decided.pred_mask[0]  # (H, W)
    return Decision(
        score=decided.pred_score.item(),
        defective=bool(decided.pred_label),
        regions=len(parts_of(mask.numpy().astype(np.uint8))),
        share=mask.float().mean().item(),
        outlined=upright(outline(look.picture, mask, FOUND), look.orientation),
        map=upright(heat(look.picture, decided.anomaly_map[0], pixel_threshold), look.orientation),
    )


def read_upload(path: str | Path) -> Image.Image:
    """Read a picture that somebody sent. Nothing is decoded before its size is known to be allowed.

    Args:
        path (str | Path): The file.

    Returns:
        Image.Image: RGB, as it is stored: anomalib reads a photograph that was stored lying in the same way.

    Raises:
        FileNotFoundError: If it is gone.
        ValueError: If it is too large or no picture; the message is for the user.
    """
    path, name = Path(path), printable(Path(path).name)
    if not path.exists():
        msg = f"{name} is no longer here: files are deleted after an hour. Drop it once more."
        raise UserFileNotFoundError(msg)
    size = path.stat().st_size
    if size > MOST_BYTES:
        msg = f"{name} has {size / 2**20:.1f} MB, and {MOST_BYTES / 2**20:.0f} MB are allowed. Save it smaller."
        raise UserValueError(msg)
    try:
        with Image.open(path, formats=FORMATS) as image:
            pixels = image.width * image.height
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError):
        pixels = 0  # what is wrong is said below
    if pixels > MOST_PIXELS:
        msg = (
            f"{name} has {pixels / 1e6:.1f} megapixels, and {MOST_PIXELS / 1e6:.0f} are allowed. Save it smaller, or "
            "crop it to the part."
        )
        raise UserValueError(msg)
    fault = find_fault(path)
    if fault is not None:
        msg = f"{name} {fault}."
        raise UserValueError(msg)
    with Image.open(path, formats=FORMATS) as image:
        return image.convert("RGB")
