# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""ClipSam's PyTorch model for large pictures: CLIP looks at tiles and at the whole, SAM at what is suspicious. [ours]

Letters: B images, H W map of a picture, N tiles, M side of the map of one look, S side of SAM's frame.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_clipsam.compute.precision import check_precision, full_precision
from anomalib_clipsam.method.checks import check_images
from anomalib_clipsam.method.frame import Window, frame_to_map, resize_to, scaled_size
from anomalib_clipsam.method.stages import ClipSamStages
from anomalib_clipsam.references.judge import Answer
from anomalib_clipsam.tiling.blending import Blend
from anomalib_clipsam.tiling.crops import plan_crops
from anomalib_clipsam.tiling.layout import TileGrid, Tiling
from anomalib_clipsam.torch_model import ClipSamModel

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator

    from anomalib_clipsam.references.judge import View

WHOLE_WEIGHT = 0.4
"""What the look at the whole picture adds to its tiles' map; chosen on drawn pictures and photographs
(``docs/ablation.md``). Added, and not averaged with it: the whole is blind to small defects, which would fall below the
thresholds."""


class TiledClipSamModel(ClipSamModel):
    """:class:`~anomalib_clipsam.torch_model.ClipSamModel` for pictures at their own size, in tiles.

    Args:
        *args: As :class:`~anomalib_clipsam.torch_model.ClipSamModel` takes them; ``map_size`` is that of one look.
        tiling (Tiling): How pictures are cut.
        **kwargs: As it takes them.
    """

    takes_any_size = True

    def __init__(self, *args: Any, tiling: Tiling, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tiling = tiling

    def settings(self) -> dict[str, Hashable]:
        """Return all that predictions depend on besides the image and the weights."""
        tiling = self.tiling
        return {
            **super().settings(),
            "map_size": tiling.map_size,
            "tiles": tiling.side,
            "tile_overlap": tiling.overlap,
        }

    def grid(self, image: torch.Tensor) -> TileGrid:
        """Lay tiles over pictures ``(B, 3, height, width)``."""
        return self.tiling.grid(tuple(image.shape[-2:]), self.map_size)

    def misfit(self, size: tuple[int, int]) -> str | None:
        """Explain why a picture of this width and height cannot be cut; ``None`` if it can."""
        try:
            self.tiling.grid(size[::-1], self.map_size)
        except ValueError as error:
            return f"cannot be cut: {error}"
        return None

    @torch.no_grad()
    def stages(self, image: torch.Tensor) -> ClipSamStages:
        """Run the method, a picture at a time.

        Args:
            image (torch.Tensor): ``(B, 3, height, width)``, RGB in [0, 1], at the pictures' own size.

        Returns:
            ClipSamStages: Maps ``(B, H, W)`` in the pictures' aspect; no prompts, of which each crop has its own.

        Raises:
            TypeError: If the images are not a float tensor.
            ValueError: If the shape or the range of values is wrong, there are too many tiles, or the device does not
                support the precision.
            NotFiniteError: If a value of an image, CLIP's map or SAM's features is NaN or infinite.
        """
        check_images(image)
        check_precision(self.precision, image.device)
        found = [self._stages_of_one(picture) for picture in image.split(1)]
        return ClipSamStages(
            torch.cat([stages.anomaly_map for stages in found]),
            torch.cat([stages.score for stages in found]),
            torch.cat([stages.fused_map for stages in found]),
            mask=_together([stages.mask for stages in found]),
            region=_together([stages.region for stages in found]),
            crops=tuple(crops for stages in found for crops in stages.crops or ()),
            unlike=_together([stages.unlike for stages in found]),
        )

    def _stages_of_one(self, image: torch.Tensor) -> ClipSamStages:
        _, answer = self.localize(image)
        stages = ClipSamStages(answer.map, answer.score, fused_map=answer.map, crops=((),))
        if self.sam is not None:
            stages = self.refine(image, answer.map, answer.score)
        return replace(stages, unlike=answer.unlike)

    def localize(self, image: torch.Tensor) -> tuple[None, Answer]:
        """Find where a part looks damaged. See :meth:`ClipSamModel.localize`.

        Args:
            image (torch.Tensor): ``(1, 3, height, width)``, RGB in [0, 1].

        Returns:
            tuple[None, Answer]: No map by text, of which each tile has its own; and S_a with the image score.
        """
        answer = None if self.judge is None else self.judge.known(image)
        if answer is None:
            views = self.views(image)
            judged = (Answer(*view[:2]) if self.judge is None else self.judge(*view) for view in views)
            answer = self._finish(image, self.join(image, judged))
        return None, answer

    def count_views(self, image: torch.Tensor) -> int:
        """Count the tiles of a picture ``(1, 3, height, width)``."""
        return len(self.grid(image))

    def views(self, image: torch.Tensor) -> Iterator[View]:
        """Look at the tiles of a picture, or at the whole where it is one tile.

        Args:
            image (torch.Tensor): ``(1, 3, height, width)``, RGB in [0, 1].

        Yields:
            View: What CLIP says of some tiles, see :meth:`view`.
        """
        grid = self.grid(image)
        windows = list(grid)
        for first in range(0, len(windows), self.tiling.batch):
            some = windows[first : first + self.tiling.batch]
            yield self.view(torch.cat([self._cut(image, grid, window) for window in some]))

    def join(self, image: torch.Tensor, answers: Iterable[Answer]) -> Answer:
        """Blend what text and references say of the tiles, and add what the text says of the whole.

        Args:
            image (torch.Tensor): ``(1, 3, height, width)``, RGB in [0, 1].
            answers (Iterable[Answer]): What they say of the tiles, in the order of :meth:`views`.

        Returns:
            Answer: What they say of the picture; it is unlike its references where more than half of its tiles are.
        """
        tiles = self.blend(image, answers)
        if self.count_views(image) == 1:
            return tiles
        whole = self.view_whole(image)
        anomaly_map = (tiles.map + WHOLE_WEIGHT * whole.map).clamp(max=1)
        unlike = None if tiles.unlike is None else tiles.unlike.float().mean(dim=0, keepdim=True) > 0.5
        return Answer(anomaly_map, join_scores(tiles.score, anomaly_map, whole.score), unlike)

    def view_whole(self, image: torch.Tensor) -> Answer:
        """Ask about the whole of a picture ``(1, 3, height, width)`` by text: map ``(1, H, W)`` and score ``(1,)``."""
        grid = self.grid(image)
        view = self.view(self._cut(image, grid, (0, 0, *grid.size)))
        return Answer(_resize_map(view.map, grid.size), view.score)

    def blend(self, image: torch.Tensor, answers: Iterable[Answer]) -> Answer:
        """Blend the maps of a picture's tiles, or resize the only one to the picture's.

        Args:
            image (torch.Tensor): ``(1, 3, height, width)``.
            answers (Iterable[Answer]): See :meth:`join`.

        Returns:
            Answer: Blended map ``(1, H, W)``; the score of each tile, and whether it is unlike, ``(N,)``.
        """
        grid = self.grid(image)
        if len(grid) == 1:
            answer = super().join(image, answers)
            return answer._replace(map=_resize_map(answer.map, grid.size))
        blend, windows = Blend(grid, self.tiling.overlap, image.device), iter(grid)
        scores: list[torch.Tensor] = []
        unlike: list[torch.Tensor | None] = []
        for answer in answers:
            scores.append(answer.score)
            unlike.append(answer.unlike)
            for tile_map in _resize_map(answer.map, grid.tile):
                blend.add(next(windows), tile_map)
        return Answer(blend.result()[None], torch.cat(scores), _together(unlike))

    def _cut(self, image: torch.Tensor, grid: TileGrid, window: Window, longer_side: int | None = None) -> torch.Tensor:
        """Cut a part of a picture out, resized to a longer side, CLIP's if it is not given.

        Only what is cut out is copied: the picture may have gigabytes.
        """
        rows, columns = grid.pixels(window)
        size = scaled_size(window[2:], longer_side or max(self.map_size, self.localizer.image_size))
        return resize_to(image[..., rows, columns], size).clamp(0, 1)

    @torch.no_grad()
    def refine(self, image: torch.Tensor, anomaly_map: torch.Tensor, score: torch.Tensor) -> ClipSamStages:
        """Refine the map with SAM, once for each suspicious part of the picture.

        Args:
            image (torch.Tensor): ``(1, 3, height, width)``, RGB in [0, 1].
            anomaly_map (torch.Tensor): S_a, as :meth:`localize` gives it, ``(1, H, W)``.
            score (torch.Tensor): Image score, ``(1,)``.

        Returns:
            ClipSamStages: All results. The final map is the highest of those of the crops, each of which falls to the
            map's share outside its mask. A region that no crop has left keeps S_a, and is its own mask.
        """
        ppg, cps, fusion = self.refinement
        grid, size = self.grid(image), tuple(anomaly_map.shape[-2:])
        region = ppg.extreme_region(anomaly_map)  # (1, H, W)
        side = round(cps.sam.image_encoder.img_size * max(size) / max(grid.picture))
        crops, left = plan_crops(region[0], anomaly_map[0], side)
        fused_map, mask = None, left[None]
        for crop in crops:
            logits, peak, iou = self._refine_crop(image, anomaly_map, grid, crop.window)
            fused = fusion(anomaly_map, logits, peak, iou).clamp(0, 1)
            fused_map = fused if fused_map is None else torch.maximum(fused_map, fused)
            mask = mask | (logits > 0)
        fused_map = anomaly_map if fused_map is None else torch.where(left, anomaly_map, fused_map)
        return ClipSamStages(anomaly_map, score, fused_map, mask, region, crops=(tuple(crop.window for crop in crops),))

    def _refine_crop(
        self, image: torch.Tensor, anomaly_map: torch.Tensor, grid: TileGrid, window: Window
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Ask SAM about a part: its logits on the picture's map ``(1, H, W)``, peak and predicted IoU ``(1,)``."""
        ppg, cps, _ = self.refinement
        top, left, height, width = window
        at = (..., slice(top, top + height), slice(left, left + width))
        features = self.encode(self._cut(image, grid, window, cps.sam.image_encoder.img_size))
        self._check_finite("SAM's features", (features,))
        part = _resize_map(anomaly_map[at], scaled_size((height, width), self.map_size))
        with full_precision(image.device.type):
            prompts = ppg(part, features)
            cascade = cps(features, prompts, part)
        logits = torch.full_like(anomaly_map, NO_LOGIT)
        logits[at] = frame_to_map(cascade.logits_3.squeeze(1), (height, width))
        return logits, prompts.peak, cascade.iou


NO_LOGIT = -1e4
"""Mask logit outside a crop: its sigmoid is 0, also summed over a large picture."""


def join_scores(tiles: torch.Tensor, anomaly_map: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Return a picture's score: the mean of its most suspicious tile's, of its map's highest value, and the whole's.

    The highest of many scores is high for good pictures too; the other two hold against it (``docs/ablation.md``).

    Args:
        tiles (torch.Tensor): Scores of the tiles, ``(N,)``.
        anomaly_map (torch.Tensor): S_a, ``(1, H, W)``.
        whole (torch.Tensor): Score of the whole, ``(1,)``.

    Returns:
        torch.Tensor: ``(1,)`` in [0, 1].
    """
    return (tiles.amax(dim=0, keepdim=True) + anomaly_map.amax(dim=(-2, -1)) + whole) / 3


def _resize_map(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bring maps ``(B, h, w)`` to a size: the mean of what falls on a pixel, bilinear between where they grow."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    if size[0] <= maps.shape[-2] and size[1] <= maps.shape[-1]:
        return F.interpolate(maps.unsqueeze(1), size, mode="area").squeeze(1)
    return F.interpolate(maps.unsqueeze(1), size, mode="bilinear", align_corners=False).squeeze(1)


def _together(values: list[torch.Tensor | None]) -> torch.Tensor | None:
    """Join the results of several pictures or tiles; ``None`` where one has none."""
    known = [value for value in values if value is not None]
    return torch.cat(known) if len(known) == len(values) else None
