# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""What all localizers are: from an image to CLIP's anomaly map S_a and an image score, by text alone.

Letters: B images, H W map, h w patch grid, C embedding, T taps.

Reference:
    APRIL-GAN: Chen et al., https://arxiv.org/abs/2305.17382
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from anomalib_clipsam.clip.build import encode_ensemble
from anomalib_clipsam.clip.text_cache import cache_key, is_text, load_text, save_text
from anomalib_clipsam.compute.hashing import hash_weights
from anomalib_clipsam.compute.precision import full_precision
from anomalib_clipsam.errors.errors import UserTypeError, UserValueError

if TYPE_CHECKING:
    from collections.abc import Callable

    from open_clip import CLIP

    from anomalib_clipsam.clip.prompts import PromptEnsemble
    from anomalib_clipsam.clip.taps import Taps

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def text_anomaly_map(
    tokens: torch.Tensor,
    text: torch.Tensor,
    scale: torch.Tensor | float,
    grid: tuple[int, int],
    size: tuple[int, int],
) -> torch.Tensor:
    """Compare patch tokens with the normal and the abnormal text, as APRIL-GAN defines it.

    Args:
        tokens (torch.Tensor): Patch tokens in CLIP's embedding space ``(B, h * w, C)``; they are normalised here.
        text (torch.Tensor): Normalised text directions ``(2, C)``, normal then abnormal.
        scale (torch.Tensor | float): Factor of the cosine; 100 in APRIL-GAN.
        grid (tuple[int, int]): Height and width of the patch grid.
        size (tuple[int, int]): Height and width of the map.

    Returns:
        torch.Tensor: Probability of the abnormal text per pixel, ``(B, H, W)`` in [0, 1].
    """
    with full_precision(tokens.device.type):  # the two logits differ little from one another
        logits = scale * F.normalize(tokens.float(), dim=-1) @ text.T  # (B, h * w, 2)
        logits = logits.transpose(1, 2).unflatten(-1, grid)  # (B, 2, h, w)
        logits = F.interpolate(logits, size, mode="bilinear", align_corners=True)
        return logits.softmax(dim=1)[:, 1]


class Localizer(nn.Module, ABC):
    """Base of the localizers: holds the prompt ensemble and the text directions of the current class name.

    Args:
        ensemble (PromptEnsemble): States and templates of the text prompts.

    Attributes:
        image_size (int): Side of the square that CLIP sees, in pixels; set by the subclass.
        text_size (int): Size C of the text directions; set by the subclass.
        unit_text (bool): Whether these have the length 1.
        needs_adapters (bool): Whether it is built from learned weights beside CLIP's.
        uses_class_name (bool): Whether its text names the part.
        own_score (bool): Whether its score is the image score as published, which the map's maximum has no part in.
        activation (str): Activation of the network that encodes its text.
        joins_taps (bool): Whether its taps are stages of a CNN, of several resolutions.
        reference_sigma (float): Gaussian that smooths a map of distances between its taps, in pixels of 256.
        usual_self_distance (tuple[float, float] | None): Usual distance of a patch to its own picture, and the limit of
            good pictures, where they were measured.
        depth (int): Number of blocks that references may choose from; 0 where they have no choice.
        embedding (torch.Tensor | None): Normalised image embeddings ``(B, E)`` of the last images, where CLIP's own are
            computed, and not during an export.
        own_weights (str | None): Name of the weights that it brings itself, in place of the pair's CLIP.
    """

    image_size: int
    text_size: int
    unit_text: ClassVar[bool] = True
    needs_adapters: ClassVar[bool] = False
    uses_class_name: ClassVar[bool] = True
    own_score: ClassVar[bool] = False
    joins_taps: ClassVar[bool] = False
    reference_sigma: ClassVar[float] = 0.0
    usual_self_distance: ClassVar[tuple[float, float] | None] = None
    reference_taps: tuple[int, ...]
    depth: int = 0
    embedding: torch.Tensor | None = None
    own_weights: ClassVar[str | None] = None

    @classmethod
    @abstractmethod
    def build(
        cls,
        ensemble: PromptEnsemble,
        image_size: int,
        clip: Callable[[], CLIP],
        adapters: Callable[[], dict[str, torch.Tensor]],
    ) -> Localizer:
        """Build a localizer of this kind from what the user chose. What is not called is not read.

        Args:
            ensemble (PromptEnsemble): States and templates of the text prompts.
            image_size (int): Side of the square that CLIP is to see, in pixels.
            clip (Callable[[], CLIP]): Loads CLIP.
            adapters (Callable[[], dict[str, torch.Tensor]]): Loads the learned weights beside it.

        Returns:
            Localizer: The localizer.
        """

    @property
    def activation(self) -> str:
        """Activation of the network that encodes the text; ``""`` where none does."""
        return ""

    def __init__(self, ensemble: PromptEnsemble) -> None:
        super().__init__()
        self.ensemble = ensemble
        self.class_name: str | None = None
        self._text_of: dict[str, torch.Tensor] = {}

    def set_class_name(self, class_name: str) -> None:
        """Ask about parts of this name from now on. The text is encoded once per class name.

        Args:
            class_name (str): Name of the part, as it stands in the text prompts.
        """
        if class_name != self.class_name:
            self._use_text(self.text_of(class_name))
            self.class_name = class_name

    def text_of(self, class_name: str) -> torch.Tensor:
        """Return the text directions of a class name, encoded when they are first asked for.

        Args:
            class_name (str): Name of the part.

        Returns:
            torch.Tensor: ``(2, C)``, normal and abnormal, on the CPU; in float32, also under Lightning's autocast.
        """
        if class_name not in self._text_of:
            self._text_of[class_name] = self._encode_in_full(class_name)
        return self._text_of[class_name]

    def _encode_in_full(self, class_name: str) -> torch.Tensor:
        """Encode text in float32, to the CPU."""
        device = next((buffer.device for buffer in self.buffers()), torch.device("cpu"))
        with full_precision(device.type):
            return self._encode_text(class_name).cpu()

    def restore_text(self, class_name: str, text: torch.Tensor) -> None:
        """Take text directions over from a checkpoint, in place of encoding them.

        Args:
            class_name (str): Name of the part.
            text (torch.Tensor): What :meth:`text_of` gave, for the same weights and ensemble.

        Raises:
            ValueError: If it is none by :func:`~anomalib_clipsam.clip.text_cache.is_text`.
        """
        if not is_text(text, self.text_size, self.unit_text):
            shape = tuple(getattr(text, "shape", ()))
            msg = (
                f"The text directions of '{class_name}' have the shape {shape}, and other numbers than this CLIP's: it "
                f"needs two finite ones of {self.text_size}, of length 1. Calibrate anew without the checkpoint."
            )
            raise UserValueError(msg)
        self._text_of[class_name] = text
        self.class_name = None

    def use_learned(self, weights: dict[str, torch.Tensor]) -> None:
        """Take other learned weights of the same kind, in place of those that it was built with.

        Args:
            weights (dict[str, torch.Tensor]): What a published file holds.

        Raises:
            TypeError: If the localizer has none.
        """
        del weights
        msg = f"{type(self).__name__} has no learned weights beside CLIP's. Leave them out."
        raise UserTypeError(msg)

    @abstractmethod
    def _encode_text(self, class_name: str) -> torch.Tensor:
        """Encode the ensemble for a class name to ``(2, C)``, normal and abnormal."""

    @abstractmethod
    def _use_text(self, text: torch.Tensor) -> None:
        """Use these text directions ``(2, C)`` in the passes to come."""

    @abstractmethod
    def _localize(self, image: torch.Tensor, tapped: bool) -> tuple[torch.Tensor, torch.Tensor, Taps]:
        """Return map and score as :meth:`forward` says, and the taps if they are asked for, else an empty tuple."""

    def with_taps(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Taps]:
        """Locate what looks damaged, and give the features that references are compared by.

        Args:
            image (torch.Tensor): ``(B, 3, H, W)``, RGB in [0, 1].

        Returns:
            tuple[torch.Tensor, torch.Tensor, Taps]: What :meth:`forward` gives, and T grids of patch features
            ``(B, C_t, h_t, w_t)``.
        """
        return self._localize(image, tapped=True)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Locate what looks damaged.

        Args:
            image (torch.Tensor): ``(B, 3, H, W)``, RGB in [0, 1].

        Returns:
            tuple[torch.Tensor, torch.Tensor]: Anomaly map S_a ``(B, H, W)`` in [0, 1], and CLIP's global text score
            ``(B,)`` in [0, 1].
        """
        anomaly_map, score, _ = self._localize(image, tapped=False)
        return anomaly_map, score


class ClipLocalizer(Localizer):
    """What the localizers on a CLIP of open_clip share: text directions, and the image as CLIP was trained on it.

    Args:
        clip (CLIP): open_clip model.
        ensemble (PromptEnsemble): States and templates of the text prompts.
        image_size (int): Side of the square that CLIP sees, in pixels.
        mean (tuple[float, ...]): Mean that CLIP's images were normalised by. Defaults to OpenAI's.
        std (tuple[float, ...]): Deviation that they were normalised by. Defaults to OpenAI's.
    """

    mean: torch.Tensor
    std: torch.Tensor
    text: torch.Tensor

    def __init__(
        self,
        clip: CLIP,
        ensemble: PromptEnsemble,
        image_size: int,
        mean: tuple[float, ...] = CLIP_MEAN,
        std: tuple[float, ...] = CLIP_STD,
    ) -> None:
        super().__init__(ensemble)
        self.clip = clip
        self.image_size = image_size
        self.text_size = clip.text_projection.shape[1]
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)
        self.register_buffer("text", torch.zeros(2, self.text_size), persistent=False)

    @property
    def activation(self) -> str:
        """Activation of the network that encodes the text; weights do not tell."""
        return type(self.clip.transformer.resblocks[0].mlp.gelu).__name__

    def _encode_text(self, class_name: str) -> torch.Tensor:
        tower = {name: value for name, value in self.clip.named_parameters() if not name.startswith("visual.")}
        key = cache_key(hash_weights(self.clip, tower), self.activation, self.ensemble.sentences(class_name))
        text = load_text(key, self.text_size)
        if text is None:
            text = encode_ensemble(self.clip, self.ensemble, class_name)
            save_text(key, text.cpu())
        return text

    def _use_text(self, text: torch.Tensor) -> None:
        self.text = text.to(self.text)

    def _normalise(self, image: torch.Tensor) -> torch.Tensor:
        """Resize an image to the square that CLIP sees, and normalise it as CLIP was trained."""
        size = (self.image_size, self.image_size)
        if tuple(image.shape[-2:]) != size:
            image = F.interpolate(image, size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
        return (image - self.mean) / self.std
