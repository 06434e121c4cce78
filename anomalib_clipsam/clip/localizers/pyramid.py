# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Localizer on a CNN: its stages joined top-down, with the picture as its own reference. [ours]

A CNN keeps places that a ViT of this size does not, and ImageNet's features tell surfaces apart that no drawn picture
shows. Its stages are the taps; each is adapted and joined with the coarser ones as in a feature pyramid, and the finest
is projected to CLIP's embedding space and compared with the normal and the abnormal text. What no other patch of the
picture looks like is told to the pyramid at 1/8 of the side, and raises the log-odds once more at the end.

References compare other features: the stages at 1/8 and 1/16 of the tower as it was before it learned what defects look
like. What a tower learns about defects, it forgets about the good parts that they are told from.

Letters: B images, H W map, h w grid at 1/8 of the side, N = h * w patches, M = N / 4 references, C embedding, F width
of the pyramid, D features of a patch, T stages.

References:
    - APRIL-GAN (stages of CLIP's ResNets as taps): Chen et al., https://arxiv.org/abs/2305.17382
    - Feature Pyramid Networks: Lin et al., https://arxiv.org/abs/1612.03144
    - MuSc (mutual scores): Li et al., https://arxiv.org/abs/2401.16753
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from anomalib_clipsam.clip.localizers.base import ClipLocalizer
from anomalib_clipsam.clip.taps import join_taps
from anomalib_clipsam.compute.precision import full_precision
from anomalib_clipsam.errors.errors import UserValueError

if TYPE_CHECKING:
    from collections.abc import Callable

    from open_clip import CLIP

    from anomalib_clipsam.clip.prompts import PromptEnsemble
    from anomalib_clipsam.clip.taps import Taps

LIKE_SHARE = 0.3
"""Share of the picture's patches, the most similar ones, that a patch is compared with in the self reference."""

FAR = 3
"""Steps of the grid, at least, from a patch to those that it is rebuilt from: its neighbours share its defect."""

TEMPERATURE = 0.03
"""Of the softmax over cosines that a patch is rebuilt with."""

SELF_WEIGHT = 0.3
"""What one standard deviation of a patch's distance to its own picture adds to its log-odds; chosen on validation."""

REFERENCE_STAGES = (2, 3)
"""Stages that references compare, at 1/8 and 1/16 of the side."""

REFERENCE_PREFIX = "reference."
"""Of the entries of the adapters' file that are the reference tower's."""

SURROUNDINGS = (4, 8)
"""Sides of the surroundings that a place of a fine stage is compared with, in steps of its grid."""


def patch_features(taps: Taps) -> torch.Tensor:
    """Join two stages to one unit vector per patch of the finer grid.

    Args:
        taps (tuple[torch.Tensor, ...]): The stages at 1/8 and 1/16 of the side, ``(B, D_8, h, w)`` and
            ``(B, D_16, h / 2, w / 2)``.

    Returns:
        torch.Tensor: ``(B, D_8 + D_16, h, w)``, each patch smoothed over 3 x 3 and of length 1.
    """
    return F.normalize(join_taps(taps)[0], dim=1)


class SelfComparison(nn.Module):
    """Compare the patches of a picture with the rest of it. It has no weights.

    Args:
        grid (int): Side of the square grid of patches; even.
    """

    near: torch.Tensor

    def __init__(self, grid: int) -> None:
        super().__init__()
        patches, references = (torch.arange(count) + 0.5 for count in (grid, grid // 2))
        apart = (patches[:, None] - 2 * references).abs()  # (grid, grid / 2), along one axis
        apart = torch.maximum(apart[:, None, :, None], apart[None, :, None, :])
        self.register_buffer("near", (apart < FAR).flatten(2).flatten(0, 1), persistent=False)  # (N, M)

    def forward(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compare.

        Args:
            patches (torch.Tensor): Unit vectors ``(B, D, h, w)``.

        Returns:
            tuple[torch.Tensor, torch.Tensor]: Distances ``(B, 2, h, w)``, 1 - cosine to the most similar
            :data:`LIKE_SHARE` of the picture and to the most similar patch far off; and residual ``(B, D, h, w)``, the
            patch less what patches far off rebuild of it.
        """
        references = F.normalize(F.avg_pool2d(patches, 2), dim=1).flatten(2)  # (B, D, M)
        tokens = patches.flatten(2)  # (B, D, N)
        cosines = tokens.transpose(1, 2) @ references  # (B, N, M)
        like = cosines.topk(max(1, round(LIKE_SHARE * cosines.shape[-1])), dim=-1).values.mean(-1)
        cosines = cosines.masked_fill(self.near, -1.0)
        nearest = cosines.amax(-1)
        rebuilt = (cosines / TEMPERATURE).softmax(-1) @ references.transpose(1, 2)  # (B, N, D)
        residual = tokens - rebuilt.transpose(1, 2)
        distances = 1 - torch.stack([like, nearest], dim=1)
        return distances.unflatten(-1, patches.shape[-2:]), residual.unflatten(-1, patches.shape[-2:])


def standardise(distances: torch.Tensor) -> torch.Tensor:
    """Bring distances ``(B, 1, h, w)`` to mean 0 and deviation 1 over each picture; equal ones to 0."""
    centred = distances - distances.mean((2, 3), keepdim=True)
    return centred / (centred.square().mean((2, 3), keepdim=True).sqrt() + 1e-3)


def deviations(stage: torch.Tensor) -> list[torch.Tensor]:
    """Subtract its surroundings of each size of :data:`SURROUNDINGS` from every place.

    Args:
        stage (torch.Tensor): ``(B, D_t, h_t, w_t)``, its sides multiples of these sizes.

    Returns:
        list[torch.Tensor]: One tensor of the same shape per size.
    """
    return [stage - _enlarge(F.avg_pool2d(stage, size), size) for size in SURROUNDINGS]


def magnitude(stage: torch.Tensor) -> torch.Tensor:
    """Return the root mean square over the channels, ``(B, 1, h_t, w_t)``."""
    return (stage.square().mean(1, keepdim=True) + 1e-6).sqrt()


class FeaturePyramid(nn.Module):
    """Adapters: from the stages of a CNN and their self reference to embeddings that the text is compared with.

    Every stage is given as it is and standardised over the picture. At the two finest, which are too fine for a self
    reference, how far a place is from its surroundings is given as well: a defect's outline is read off it.

    Args:
        channels (tuple[int, ...]): Channels of the stages at 1/2, 1/4, 1/8, 1/16 and 1/32 of the side.
        embed_dim (int): Size C of CLIP's embedding.
        grid (int): Side of the grid at 1/8.
        width (int): Width F at 1/8 and coarser.
        fine_width (int): Width at 1/4.
    """

    def __init__(
        self, channels: tuple[int, ...], embed_dim: int, grid: int, width: int = 96, fine_width: int = 64
    ) -> None:
        super().__init__()
        half, quarter, eighth, sixteenth, last = channels
        self.compare = SelfComparison(grid)
        self.lateral_2 = nn.Sequential(nn.BatchNorm2d(2 * half), nn.Conv2d(2 * half, fine_width, 3, 2, 1))
        self.lateral_4 = _lateral(3 * quarter + 2 * len(SURROUNDINGS) + 2, fine_width)
        self.lateral_8 = _lateral(3 * eighth + sixteenth + 2, width)
        self.lateral_16 = _lateral(2 * sixteenth, width)
        self.lateral_32 = _lateral(2 * last, width)
        self.narrow = nn.Conv2d(width, fine_width, 1)
        self.join_4, self.join_8, self.join_16 = _join(fine_width), _join(width), _join(width)
        self.adapter = nn.Conv2d(fine_width, embed_dim, 1)
        self.image_adapter = nn.Linear(3 * width + fine_width, embed_dim)

    def forward(self, taps: Taps) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Adapt the stages.

        Args:
            taps (tuple[torch.Tensor, ...]): The five stages, finest first, ``(B, D_t, h_t, w_t)``.

        Returns:
            tuple[torch.Tensor, torch.Tensor, torch.Tensor]: Embeddings at 1/4 of the side, ``(B, C, 2 h, 2 w)``; what
            is added to the image's own embedding, ``(B, C)``; and the distances of the self reference
            ``(B, 2, h, w)``.
        """
        patches = patch_features(taps[2:4])
        distances, residual = self.compare(patches)
        standard = [F.instance_norm(tap) for tap in taps]
        finest, fine = (deviations(stage) for stage in standard[:2])
        unlike = torch.cat([fine[-1], *map(magnitude, (standard[1], *fine))], dim=1)
        unlike_finest = torch.cat([magnitude(stage) for stage in (standard[0], *finest)], dim=1)
        half, quarter, eighth, sixteenth, last = (torch.cat(pair, dim=1) for pair in zip(taps, standard, strict=True))
        quarter = torch.cat([quarter, unlike, F.max_pool2d(unlike_finest, 2)], dim=1)
        last = self.lateral_32(last)
        sixteenth = self.join_16(self.lateral_16(sixteenth) + _enlarge(last, 2))
        eighth = self.lateral_8(torch.cat([eighth, residual, distances], dim=1))
        eighth = self.join_8(eighth + _enlarge(sixteenth, 2))
        quarter = self.lateral_4(quarter) + self.lateral_2(half) + _enlarge(self.narrow(eighth), 2)
        quarter = self.join_4(quarter)
        pooled = [sixteenth.mean((2, 3)), sixteenth.amax((2, 3)), eighth.amax((2, 3)), quarter.amax((2, 3))]
        return self.adapter(quarter), self.image_adapter(torch.cat(pooled, dim=1)), distances


def _lateral(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.Conv2d(channels, width, 1))


def _join(width: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    for _ in range(2):
        layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _enlarge(x: torch.Tensor, factor: int) -> torch.Tensor:
    return F.interpolate(x, scale_factor=float(factor), mode="bilinear", align_corners=False)


class PyramidLocalizer(ClipLocalizer):
    """Stages of a CNN tower, joined top-down and compared with the text. [ours]

    Args:
        clip (CLIP): open_clip model whose image tower is a CNN of timm with stages at 1/2 to 1/32 of the side.
        ensemble (PromptEnsemble): States and templates of the text prompts.
        image_size (int): Side of the square that CLIP sees, in pixels; a multiple of 32.
        pyramid (FeaturePyramid): The adapters, built for this size.
        reference_tower (nn.Module | None): CNN of timm whose :data:`REFERENCE_STAGES` references compare; it runs for
            references alone. Defaults to ``None``, the image tower.

    Raises:
        ValueError: If ``image_size`` is no multiple of 32.
    """

    needs_adapters = True
    joins_taps = True
    reference_sigma = 3.0
    usual_self_distance = (0.266, 0.438)  # of 60 photographs of objects and 60 of materials, none damaged

    def __init__(
        self,
        clip: CLIP,
        ensemble: PromptEnsemble,
        image_size: int,
        pyramid: FeaturePyramid,
        reference_tower: nn.Module | None = None,
    ) -> None:
        if image_size < 64 or image_size % 32:
            msg = (
                f"clip_size is {image_size}; it must be a multiple of 32, the step of the tower's last stage, above 32."
            )
            raise UserValueError(msg)
        config = clip.visual.trunk.pretrained_cfg
        super().__init__(clip, ensemble, image_size, config["mean"], config["std"])
        self.pyramid = pyramid
        self.reference_tower: Any = reference_tower  # its methods are timm's
        self.to(memory_format=torch.channels_last)  # a third faster on a CPU

    @classmethod
    def build(
        cls,
        ensemble: PromptEnsemble,
        image_size: int,
        clip: Callable[[], CLIP],
        adapters: Callable[[], dict[str, torch.Tensor]],
    ) -> PyramidLocalizer:
        """Build it on CLIP and adapters. See :meth:`Localizer.build`."""
        model, learned = clip(), adapters()
        reference = {key: learned.pop(key) for key in list(learned) if key.startswith(REFERENCE_PREFIX)}
        tower = build_reference_tower(reference, model) if reference else None
        return cls(model, ensemble, image_size, build_pyramid(learned, model, image_size), tower)

    def tap(self, image: torch.Tensor) -> tuple[Taps, torch.Tensor]:
        """Run the image tower.

        Args:
            image (torch.Tensor): ``(B, 3, H, W)``, RGB in [0, 1].

        Returns:
            tuple[tuple[torch.Tensor, ...], torch.Tensor]: The five stages, finest first, ``(B, D_t, h_t, w_t)``, and
            what the tower pools to its image embedding, ``(B, D, h / 4, w / 4)``.
        """
        last, taps = self.clip.visual.trunk.forward_intermediates(self._normalise(image))
        return tuple(taps), last

    def compare(self, taps: Taps, last: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Compare the adapted stages with the text.

        Args:
            taps (tuple[torch.Tensor, ...]): The stages, as :meth:`tap` gives them.
            last (torch.Tensor): What is pooled to the image embedding.
            size (tuple[int, int]): Height and width of the map.

        Returns:
            tuple[torch.Tensor, torch.Tensor]: Log-odds of the abnormal text per pixel ``(B, H, W)``, raised where a
            place is unlike the rest of the picture, and for the image ``(B,)``.
        """
        visual = self.clip.visual
        own = visual.head(visual.trunk.forward_head(last))
        adapted, added, distances = self.pyramid(taps)
        with full_precision(own.device.type):
            direction = self.clip.logit_scale.exp() * (self.text[1] - self.text[0])  # (C,)
            odds = (F.normalize(adapted.float(), dim=1) * direction.view(-1, 1, 1)).sum(1, keepdim=True)
            unlike = standardise(distances[:, :1].float())
            odds = odds + SELF_WEIGHT * F.interpolate(unlike, odds.shape[-2:], mode="bilinear", align_corners=False)
            odds = F.interpolate(odds, size, mode="bilinear", align_corners=False)
            embedding = F.normalize((own + added).float(), dim=-1)
            if not torch.compiler.is_compiling():
                self.embedding = embedding
            return odds.squeeze(1), embedding @ direction

    def _localize(self, image: torch.Tensor, tapped: bool) -> tuple[torch.Tensor, torch.Tensor, Taps]:
        taps, last = self.tap(image)
        height, width = image.shape[-2:]
        odds, score = self.compare(taps, last, (height, width))
        return odds.sigmoid(), score.sigmoid(), self._tap_reference(image, taps) if tapped else ()

    def _tap_reference(self, image: torch.Tensor, taps: Taps) -> Taps:
        """Return the stages that references compare."""
        if self.reference_tower is None:
            return tuple(taps[stage] for stage in REFERENCE_STAGES)
        stages = self.reference_tower.forward_intermediates(
            self._normalise(image), indices=REFERENCE_STAGES, stop_early=True, intermediates_only=True
        )
        return tuple(stages)


def build_reference_tower(state_dict: dict[str, torch.Tensor], clip: CLIP) -> nn.Module:
    """Build the tower whose stages references compare.

    Args:
        state_dict (dict[str, torch.Tensor]): Of the image tower's architecture up to the last of
            :data:`REFERENCE_STAGES`, each key behind :data:`REFERENCE_PREFIX`.
        clip (CLIP): The model with that image tower.

    Returns:
        nn.Module: In eval mode.

    Raises:
        ValueError: If keys or shapes are not those.
    """
    tower = deepcopy(clip.visual.trunk)
    tower.prune_intermediate_layers(list(REFERENCE_STAGES))
    state_dict = {key.removeprefix(REFERENCE_PREFIX): value for key, value in state_dict.items()}
    _check_fit(tower, state_dict)
    tower.load_state_dict(state_dict)
    return tower.eval()


def _check_fit(module: nn.Module, state_dict: dict[str, torch.Tensor]) -> None:
    """Raise if a state dict has other keys or shapes than a module."""
    expected = {key: value.shape for key, value in module.state_dict().items()}
    found = {key: getattr(value, "shape", None) for key, value in state_dict.items()}
    if expected != found:
        wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
        msg = (
            f"The adapter weights do not fit this CLIP: {len(wrong)} entries differ, such as '{wrong[0]}'. "
            "Take adapters that were trained with localizer='pyramid' and the same CLIP architecture."
        )
        raise UserValueError(msg)


def build_pyramid(state_dict: dict[str, torch.Tensor], clip: CLIP, image_size: int) -> FeaturePyramid:
    """Build the adapters from their state dict.

    Args:
        state_dict (dict[str, torch.Tensor]): Of a :class:`FeaturePyramid`; its widths are read off it.
        clip (CLIP): The model whose stages are adapted.
        image_size (int): Side of the square that CLIP sees, in pixels.

    Returns:
        FeaturePyramid: In eval mode.

    Raises:
        ValueError: If keys or shapes are not those.
    """
    narrow = state_dict.get("narrow.weight")
    fine_width, width = (1, 1) if narrow is None else narrow.shape[:2]
    channels = tuple(stage["num_chs"] for stage in clip.visual.trunk.feature_info)
    pyramid = FeaturePyramid(channels, clip.text_projection.shape[1], image_size // 8, width, fine_width)
    _check_fit(pyramid, state_dict)
    pyramid.load_state_dict(state_dict)
    return pyramid.eval()
