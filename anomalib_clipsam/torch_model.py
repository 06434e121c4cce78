# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""ClipSam's PyTorch model: an image's path from CLIP's map through point prompts to SAM's mask.

Letters: B images, A of them shown to SAM, H W map, S side of SAM's frame, h w feature grid, C channels.

Reference:
    Hou et al., "Enhancing Zero-Shot Anomaly Detection: CLIP-SAM Collaboration with Cascaded Prompts",
    https://arxiv.org/abs/2510.11028
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from anomalib.data import InferenceBatch
from torch.nn import functional as F  # noqa: N812

from anomalib_clipsam.references import BatchJudge, picture_key
from anomalib_clipsam.compute.precision import check_precision, encoders_in
from anomalib_clipsam.method.frame import resize_image, scaled_size
from anomalib_clipsam.method.fusion import Fusion, image_score
from anomalib_clipsam.method.refiner import ClipSamStages, NotFiniteError, SamRefiner, not_finite

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator

    from anomalib_clipsam.clip import Localizer
    from anomalib_clipsam.clip.localizers.base import Taps
    from anomalib_clipsam.references import Judge
    from anomalib_clipsam.references.judge import Answer, Look
    from anomalib_clipsam.method.cps import CascadedPrompts
    from anomalib_clipsam.method.ppg import PointPromptGenerator

OVERSHOOT = 0.5
"""How far outside [0, 1] values are clamped and not refused: where black and white pixels alternate, a bicubic resize
takes them out of it by 0.45, with antialiasing by 0.28."""


class ClipSamModel(SamRefiner):
    """CLIP's anomaly map, refined by SAM.

    Args:
        localizer (Localizer): Gives S_a and CLIP's global score.
        map_size (int): Longer side of maps and masks, in pixels.
        ppg (PointPromptGenerator | None): Makes the point prompts. Without ``ppg``, ``cps`` and ``fusion`` the map is
            CLIP's alone. Defaults to ``None``.
        cps (CascadedPrompts | None): Decoder passes, with SAM. Defaults to ``None``.
        fusion (Fusion | None): Joins map and mask. Defaults to ``None``.
        judge (Judge | None): References beside the text: the picture itself, good parts, or the batch. Defaults to
            ``None``, the text alone.
        class_name (str): Name that is asked about until :meth:`set_class_name` is called. Defaults to ``"object"``.
        precision (str): What CLIP's and SAM's image encoders compute in: ``"float32"``, ``"bf16"`` or ``"fp16"``.
            Defaults to ``"float32"``.

    Attributes:
        images_seen (int): Images since the counts were last reset; counted with refinement only.
        images_refined (int): How many of them SAM has seen.

    Raises:
        ValueError: If the precision is unknown.
    """

    def __init__(
        self,
        localizer: Localizer,
        map_size: int,
        ppg: PointPromptGenerator | None = None,
        cps: CascadedPrompts | None = None,
        fusion: Fusion | None = None,
        judge: Judge | None = None,
        class_name: str = "object",
        precision: str = "float32",
    ) -> None:
        super().__init__(ppg, cps, fusion, precision)
        self.localizer = localizer
        self.map_size = map_size
        self.judge = judge
        self.class_name = class_name
        self.requires_grad_(requires_grad=False)

    def set_class_name(self, class_name: str) -> None:
        """Set the name in the text prompts. The text is encoded with the next image, once per name.

        Args:
            class_name (str): Name of the part in the text prompts.
        """
        self.class_name = class_name

    def settings(self) -> dict[str, Hashable]:
        """Give all that predictions depend on besides the image and the weights.

        Returns:
            dict[str, Hashable]: Class name, prompts, sizes, precision, references, and, as ``"ppg.min_score"``, what
            PPG, CPS and fusion are set to.
        """
        parts = {"ppg": self.ppg, "cps": self.cps, "fusion": self.fusion}
        plain = {
            f"{group}.{name}": value
            for group, part in parts.items()
            if part is not None
            for name, value in vars(part).items()
            if isinstance(value, str | int | float) and not name.startswith("_") and name != "training"
        }
        return {
            "class_name": self.class_name,
            "prompts": self.localizer.ensemble,
            "clip_size": self.localizer.image_size,
            "map_size": self.map_size,
            "precision": self.precision,
            "references": None if self.judge is None else self.judge.settings(),
            **plain,
        }

    def forward(self, image: torch.Tensor) -> InferenceBatch:
        """Predict map, mask and score.

        Args:
            image (torch.Tensor): ``(B, 3, height, width)``, RGB in [0, 1].

        Returns:
            InferenceBatch: ``anomaly_map`` ``(B, H, W)`` and ``pred_score`` ``(B,)`` in [0, 1]; ``pred_mask`` ``(B, H,
            W)`` bool, SAM's own, or ``None`` without refinement.
        """
        stages = self.stages(image)
        return InferenceBatch(pred_score=stages.score, anomaly_map=stages.fused_map, pred_mask=stages.mask)

    @torch.no_grad()
    def stages(self, image: torch.Tensor) -> ClipSamStages:
        """Run the method and keep every intermediate result.

        Args:
            image (torch.Tensor): ``(B, 3, height, width)``, RGB in [0, 1]. If it is not square, SAM's frame is padded.

        Returns:
            ClipSamStages: All results; maps have the image's aspect ratio and ``map_size`` on the longer side.

        Raises:
            TypeError: If the images are not a float tensor.
            ValueError: If the shape or the range of values is wrong, or the device does not support the precision.
            NotFiniteError: If a value of an image, CLIP's map or SAM's features is NaN or infinite. Nothing is checked
                in a compiled or exported graph.
        """
        check_images(image)
        if not torch.compiler.is_compiling():
            check_precision(self.precision, image.device)
        image = image.clamp(0, 1)
        anomaly_map, score = self.localize(image)
        if self.sam is None:
            return ClipSamStages(anomaly_map, score, fused_map=anomaly_map)
        return self.refine(image, anomaly_map, score)

    def localize(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Find where a part looks damaged, and whether it does, by text and references.

        Args:
            image (torch.Tensor): ``(B, 3, height, width)``, RGB in [0, 1].

        Returns:
            tuple[torch.Tensor, torch.Tensor]: S_a ``(B, H, W)`` and the image score ``(B,)``, in [0, 1].
        """
        if isinstance(self.judge, BatchJudge):
            known = self.judge.recall([picture_key(picture) for picture in image], image.device)
            if known is not None:
                return known
        return self.join(image, (look[:2] if self.judge is None else self.judge(*look) for look in self.looks(image)))

    def count_looks(self, image: torch.Tensor) -> int:
        """Say in how many views pictures ``(B, 3, height, width)`` are seen: each as a whole."""
        return len(image)

    def looks(self, image: torch.Tensor) -> Iterator[Look]:
        """Give the looks at pictures ``(B, 3, height, width)``: one, see :meth:`look`."""
        yield self.look(image)

    def join(self, image: torch.Tensor, answers: Iterable[Answer]) -> Answer:
        """Join what text and references say of each look: of a single one, that.

        Args:
            image (torch.Tensor): ``(B, 3, height, width)``, RGB in [0, 1].
            answers (Iterable[tuple]): Map ``(B, H, W)`` and score ``(B,)`` of each look, in order.

        Returns:
            tuple[torch.Tensor, torch.Tensor]: S_a ``(B, H, W)`` and the image score ``(B,)``, in [0, 1].
        """
        del image
        (answer,) = answers
        return answer

    @torch.no_grad()
    def look(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Taps]:
        """Ask CLIP alone.

        Args:
            image (torch.Tensor): ``(B, 3, height, width)``, RGB in [0, 1].

        Returns:
            tuple[torch.Tensor, torch.Tensor, Taps]: Map ``(B, H, W)`` and image score ``(B,)`` by text, in [0, 1]; and,
            where there are references, the features that they are compared by.

        Raises:
            NotFiniteError: If a value is NaN or infinite.
        """
        self.localizer.set_class_name(self.class_name)
        shown = resize_image(image, max(self.map_size, self.localizer.image_size))  # a small map must not blur the view
        with encoders_in(self.precision, image.device.type):
            if self.judge is None:
                (anomaly_map, global_score), taps = self.localizer(shown), ()
            else:
                anomaly_map, global_score, taps = self.localizer.with_taps(shown)
        self._check_finite("CLIP's map", (anomaly_map, global_score, *taps))
        anomaly_map, global_score = anomaly_map.clamp(0, 1), global_score.clamp(0, 1)
        size = scaled_size(image.shape[-2:], self.map_size)
        if tuple(anomaly_map.shape[-2:]) != size:
            anomaly_map = F.interpolate(anomaly_map.unsqueeze(1), size, mode="area").squeeze(1)
        score = global_score if self.localizer.own_score else image_score(global_score, anomaly_map)
        return anomaly_map, score, taps

    @property
    def batch_looks(self) -> dict[str, Callable[[torch.Tensor], None]]:
        """What all pictures of a batch that judges itself are shown to before the pass, one after the other."""
        return {"Comparing all pictures": self.collect}

    def collect(self, image: torch.Tensor) -> None:
        """Look at pictures of a batch that judges itself, those that were not seen yet.

        Args:
            image (torch.Tensor): ``(B, 3, height, width)``, RGB in [0, 1], as they will come again.
        """
        check_images(image)
        image = image.clamp(0, 1)
        keys = [picture_key(picture) for picture in image]
        new = {key: index for index, key in enumerate(keys) if not self.judge.knows(key)}
        self.judge.skip(len(keys) - len(new))
        if new:
            looks = self.look(image[list(new.values())])
            self.judge.collect(list(new), *looks, self.localizer.embedding)


def check_images(images: torch.Tensor) -> None:
    """Raise unless the model can take these images. Nothing is checked during an export.

    Args:
        images (torch.Tensor): ``(B, 3, height, width)``, RGB in [0, 1], or a little outside after a resize.

    Raises:
        TypeError: If they are not a float tensor.
        ValueError: If the shape is wrong, or values lie farther outside [0, 1] than :data:`OVERSHOOT`.
        NotFiniteError: If a value is NaN or infinite.
    """
    if torch.compiler.is_compiling():
        return
    expected = "Give floats in [0, 1] of shape (B, 3, height, width)"
    if not isinstance(images, torch.Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, torch.Tensor) else type(images).__name__
        msg = f"The images are {kind}. {expected}, such as `images / 255` of 8-bit values."
        raise TypeError(msg)
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        msg = f"The images have the shape {tuple(images.shape)}. {expected}, such as `image.unsqueeze(0)` of one image."
        raise ValueError(msg)
    low, high = images.amin(), images.amax()  # NaN of NaN; without a copy, as a picture may have gigabytes
    if (low >= -OVERSHOOT) & (high <= 1 + OVERSHOOT):  # a GPU is waited for here, once
        return
    wrong = not_finite((images,))
    if wrong:
        msg = f"Of the batch's images, those at {wrong} hold NaN or infinite values. {expected}."
        raise NotFiniteError(msg, wrong)
    msg = (
        f"The images hold values from {low.item():.4g} to {high.item():.4g}. {expected}: divide 8-bit values by 255, "
        "and leave `Normalize` out of pre-processor and augmentations, since the model normalises images itself."
    )
    raise ValueError(msg)
