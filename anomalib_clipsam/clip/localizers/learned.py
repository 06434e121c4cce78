# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""What AnomalyCLIP's and Crane's maps share: learned prompts, one tap at the end of a long second path, smoothing.

Letters: B images, H W map, S side of the square that CLIP sees, h w patch grid, D width, C embedding.

Reference:
    AnomalyCLIP: Zhou et al., https://arxiv.org/abs/2310.18961
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_clipsam.clip.learned_prompts import LearnedPrompts
from anomalib_clipsam.clip.localizers.vit import ViTLocalizer
from anomalib_clipsam.clip.prompts import PromptEnsemble
from anomalib_clipsam.compute.precision import full_precision
from anomalib_clipsam.errors.errors import UserValueError

if TYPE_CHECKING:
    from collections.abc import Callable

    from open_clip import CLIP

    from anomalib_clipsam.clip.taps import Taps

logger = logging.getLogger(__name__)

SCALE = 1 / 0.07
"""Factor of the cosine."""
SIGMA = 4.0
"""Deviation of the Gaussian, in pixels of the square that CLIP sees."""


def gaussian_matrix(size: int, sigma: float) -> torch.Tensor:
    """Write a Gaussian filter as a matrix. Four deviations long, it sees each edge's pixels again beyond the edge.

    Args:
        size (int): Number of values that it filters.
        sigma (float): Deviation, in steps.

    Returns:
        torch.Tensor: ``(size, size)``; times a column of values it gives the column of what scipy's
        ``gaussian_filter1d`` gives.
    """
    radius = int(4 * sigma + 0.5)
    steps = torch.arange(-radius, radius + 1)
    weights = (-(steps**2) / (2 * sigma**2)).double().exp()
    places = (torch.arange(size).view(-1, 1) + steps) % (2 * size)
    places = torch.where(places < size, places, 2 * size - 1 - places)  # (size, 2 * radius + 1)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    matrix.scatter_add_(1, places, (weights / weights.sum()).expand(size, -1))
    return matrix.float()


class LearnedPromptLocalizer(ViTLocalizer):
    """A map by prompts that were learned on another data set and name no class.

    Patch tokens are those of the second path after the last block; each patch has its probability, the map of these is
    interpolated and smoothed.

    Args:
        clip (CLIP): open_clip model with a ViT.
        ensemble (PromptEnsemble): Must be the default: the prompts were learned.
        image_size (int): Side of the square that CLIP sees, in pixels.
        prompts (LearnedPrompts): The learned prompts.
        second_blocks (int | None): Number of last blocks on the second path. Defaults to 19 of 24, as published, and
            as many in proportion.

    Raises:
        ValueError: If the ensemble is not the default, or ``second_blocks`` is not between 1 and the number of blocks.
    """

    needs_adapters = True
    uses_class_name = False
    own_score = True
    position_resize = ("bilinear", False)
    gaussian: torch.Tensor

    def __init__(
        self,
        clip: CLIP,
        ensemble: PromptEnsemble,
        image_size: int,
        prompts: LearnedPrompts,
        second_blocks: int | None = None,
    ) -> None:
        super().__init__(clip, ensemble, image_size)
        if ensemble != PromptEnsemble():
            msg = "This localizer's prompts were learned. Leave `prompts` out, or choose localizer 'dense'."
            raise UserValueError(msg)
        depth = len(clip.visual.transformer.resblocks)
        self.second_blocks = max(1, depth * 19 // 24) if second_blocks is None else second_blocks
        if not 1 <= self.second_blocks <= depth:
            msg = f"second_blocks must be between 1 and {depth}, the number of CLIP's blocks, not {second_blocks}."
            raise UserValueError(msg)
        self.prompts = prompts
        self.register_buffer("gaussian", gaussian_matrix(image_size, SIGMA), persistent=False)

    @classmethod
    def build(
        cls,
        ensemble: PromptEnsemble,
        image_size: int,
        clip: Callable[[], CLIP],
        adapters: Callable[[], dict[str, torch.Tensor]],
    ) -> LearnedPromptLocalizer:
        """Build it on CLIP and learned prompts. See :meth:`Localizer.build`."""
        model = clip()
        return cls(model, ensemble, image_size, LearnedPrompts.from_published(adapters(), model))

    def use_learned(self, weights: dict[str, torch.Tensor]) -> None:
        """Take other prompts. See :meth:`Localizer.use_learned`."""
        self.prompts = LearnedPrompts.from_published(weights, self.clip).to(self.text.device)
        self._text_of, self.class_name = {}, None

    def text_of(self, class_name: str) -> torch.Tensor:
        """Return the text directions, which are the same for every class name. See :meth:`Localizer.text_of`."""
        if not self._text_of:
            logger.info("The prompts of this localizer were learned and name no class: the class name is not used.")
            self._text_of[class_name] = self._encode_in_full(class_name)
        return next(iter(self._text_of.values()))

    def _encode_text(self, class_name: str) -> torch.Tensor:
        del class_name
        return self.prompts.encode(self.clip)

    def _localize(self, image: torch.Tensor, tapped: bool) -> tuple[torch.Tensor, torch.Tensor, Taps]:
        (second,), tokens, grids = self._two_paths(image, self.second_blocks, keep=1, tapped=tapped)
        with full_precision(image.device.type):
            patches = self.patch_tokens(second)
            probability = (SCALE * patches @ self.text.T).softmax(dim=-1)[..., 1]  # (B, h * w)
            anomaly_map = self.smooth(self.enlarge(probability))
            if tuple(image.shape[-2:]) != (self.image_size, self.image_size):
                anomaly_map = F.interpolate(anomaly_map.unsqueeze(1), image.shape[-2:], mode="bilinear").squeeze(1)
            embedding = self._score_embedding(tokens.float(), patches, probability)
            return anomaly_map, (SCALE * embedding @ self.text.T).softmax(dim=-1)[:, 1], grids

    def patch_tokens(self, second: torch.Tensor) -> torch.Tensor:
        """Bring the second path's tokens to CLIP's embedding space.

        Args:
            second (torch.Tensor): ``(B, 1 + h * w, D)``.

        Returns:
            torch.Tensor: Normalised patch tokens ``(B, h * w, C)``.
        """
        return F.normalize(self.clip.visual.ln_post(second[:, 1:].float()) @ self.clip.visual.proj, dim=-1)

    def enlarge(self, probability: torch.Tensor) -> torch.Tensor:
        """Interpolate probabilities of patches, not their logits.

        Args:
            probability (torch.Tensor): ``(B, h * w)``.

        Returns:
            torch.Tensor: ``(B, S, S)``.
        """
        grid = probability.unflatten(-1, self.grid).unsqueeze(1)
        size = (self.image_size, self.image_size)
        return F.interpolate(grid, size, mode="bilinear", align_corners=False).squeeze(1)

    def smooth(self, anomaly_map: torch.Tensor) -> torch.Tensor:
        """Filter maps ``(B, S, S)`` by a Gaussian of :data:`SIGMA`; the edge's pixels are repeated beyond it.

        Args:
            anomaly_map (torch.Tensor): ``(B, S, S)``.

        Returns:
            torch.Tensor: ``(B, S, S)``.
        """
        return self.gaussian @ anomaly_map @ self.gaussian.T

    @abstractmethod
    def _score_embedding(self, tokens: torch.Tensor, patches: torch.Tensor, probability: torch.Tensor) -> torch.Tensor:
        """Return the normalised image embedding ``(B, C)`` that the image score compares with the text.

        Args:
            tokens (torch.Tensor): Tokens of CLIP's own path, the class token first, ``(B, L, D)``.
            patches (torch.Tensor): Normalised patch tokens ``(B, h * w, C)``.
            probability (torch.Tensor): Probability of the abnormal text per patch ``(B, h * w)``.
        """
