# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""ClipSam's PyTorch model for large pictures: CLIP looks at tiles and at the whole, SAM at what is suspicious. [ours]

Letters: B images, H W map of a picture, N tiles, M side of the map of one look, S side of SAM's frame.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F  # noqa: N812

from anomalib_clipsam.references import picture_key
from anomalib_clipsam.compute.precision import check_precision, full_precision
from anomalib_clipsam.method.frame import frame_to_map, resize_to, scaled_size
from anomalib_clipsam.method.refiner import ClipSamStages
from anomalib_clipsam.tiling.layout import Blend, TileGrid, Tiling, Window, plan_asks
from anomalib_clipsam.torch_model import ClipSamModel, check_images

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator

    from anomalib_clipsam.references.judge import Answer, Look

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

    def __init__(self, *args: Any, tiling: Tiling, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tiling = tiling

    def settings(self) -> dict[str, Hashable]:
        """Give all that predictions depend on besides the image and the weights."""
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
        """Say why a picture of this width and height cannot be cut; ``None`` if it can."""
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
            *(torch.cat([getattr(stages, name) for stages in found]) for name in ("anomaly_map", "score", "fused_map")),
            **{
                name: None if self.sam is None else torch.cat([getattr(stages, name) for stages in found])
                for name in ("mask", "region")
            },
            asks=tuple(asks for stages in found for asks in stages.asks),
        )

    def _stages_of_one(self, image: torch.Tensor) -> ClipSamStages:
        anomaly_map, score = self.localize(image)
        if self.sam is None:
            return ClipSamStages(anomaly_map, score, fused_map=anomaly_map, asks=((),))
        return self.refine(image, anomaly_map, score)

    def count_looks(self, image: torch.Tensor) -> int:
        """Give the number of tiles of a picture ``(1, 3, height, width)``."""
        return len(self.grid(image))

    def looks(self, image: torch.Tensor) -> Iterator[Look]:
        """Look at the tiles of a picture, or at the whole where it is one tile.

        Args:
            image (torch.Tensor): ``(1, 3, height, width)``, RGB in [0, 1].

        Yields:
            tuple: Text map, text score and taps of some tiles, as :meth:`look` gives them.
        """
        grid = self.grid(image)
        windows = list(grid)
        for first in range(0, len(windows), self.tiling.batch):
            some = windows[first : first + self.tiling.batch]
            yield self.look(torch.cat([self._cut(image, grid, window) for window in some]))

    def join(self, image: torch.Tensor, answers: Iterable[Answer]) -> Answer:
        """Blend what text and references say of the tiles, and add what the text says of the whole.

        Args:
            image (torch.Tensor): ``(1, 3, height, width)``, RGB in [0, 1].
            answers (Iterable[tuple]): Maps and scores of the tiles, in the order of :meth:`looks`.

        Returns:
            tuple[torch.Tensor, torch.Tensor]: S_a ``(1, H, W)`` and the image score ``(1,)``, in [0, 1].
        """
        tile_map, tile_scores = self.blend(image, answers)
        if self.count_looks(image) == 1:
            return tile_map, tile_scores
        whole_map, whole_score = self.look_at_whole(image)
        anomaly_map = (tile_map + WHOLE_WEIGHT * whole_map).clamp(max=1)
        return anomaly_map, join_scores(tile_scores, anomaly_map, whole_score)

    def look_at_whole(self, image: torch.Tensor) -> Answer:
        """Ask about the whole of a picture ``(1, 3, height, width)`` by text: map ``(1, H, W)`` and score ``(1,)``."""
        grid = self.grid(image)
        anomaly_map, score, _ = self.look(self._cut(image, grid, (0, 0, *grid.size)))
        return _resize_map(anomaly_map, grid.size), score

    def blend(self, image: torch.Tensor, answers: Iterable[Answer]) -> Answer:
        """Blend the maps of a picture's tiles, or resize the only one to the picture's.

        Args:
            image (torch.Tensor): ``(1, 3, height, width)``.
            answers (Iterable[tuple]): See :meth:`join`.

        Returns:
            tuple[torch.Tensor, torch.Tensor]: Blended map ``(1, H, W)``, and the score of each tile ``(N,)``.
        """
        grid = self.grid(image)
        if len(grid) == 1:
            anomaly_map, score = super().join(image, answers)
            return _resize_map(anomaly_map, grid.size), score
        blend, scores, windows = Blend(grid, self.tiling.overlap, image.device), [], iter(grid)
        for maps, tile_scores in answers:
            scores.append(tile_scores)
            for tile_map in _resize_map(maps, grid.tile):
                blend.add(next(windows), tile_map)
        return blend.result()[None], torch.cat(scores)

    @property
    def batch_looks(self) -> dict[str, Callable[[torch.Tensor], None]]:
        """What the pictures of a batch that judges itself are shown to before the pass.

        See :class:`~anomalib_clipsam.references.TiledBatchJudge`.
        """
        return {
            "Looking at all pictures": self.collect,
            "Comparing all pictures": self._compare,
            "Judging all pictures": self._settle,
        }

    def collect(self, image: torch.Tensor) -> None:
        """Keep patches of the tiles of pictures ``(B, 3, height, width)``."""
        check_images(image)
        for picture in image.split(1):
            self.judge.sample(picture_key(picture[0]), self.looks(picture), self.count_looks(picture))

    def _compare(self, image: torch.Tensor) -> None:
        """Compare tiles of pictures ``(B, 3, height, width)`` with the patches of the other pictures."""
        for picture in image.split(1):
            self.judge.compare(picture_key(picture[0]), self.looks(picture), partial(self.blend, picture))

    def _settle(self, image: torch.Tensor) -> None:
        """Keep what text and the other pictures say of pictures ``(B, 3, height, width)``."""
        for picture in image.split(1):
            key = picture_key(picture[0])
            if not self.judge.answered(key):
                self.judge.keep(key, self.join(picture, self.judge.answer(key, self.looks(picture))))

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
        grid, size = self.grid(image), tuple(anomaly_map.shape[-2:])
        region = self.ppg.extreme_region(anomaly_map)  # (1, H, W)
        side = round(self.sam.image_encoder.img_size * max(size) / max(grid.picture))
        asks, left = plan_asks(region[0], anomaly_map[0], side)
        self.images_seen += 1
        self.images_refined += bool(asks)
        fused_map, mask = None, left[None]
        for ask in asks:
            logits, peak, iou = self._ask(image, anomaly_map, grid, ask.window)
            fused = self.fusion(anomaly_map, logits, peak, iou).clamp(0, 1)
            fused_map = fused if fused_map is None else torch.maximum(fused_map, fused)
            mask = mask | (logits > 0)
        fused_map = anomaly_map if fused_map is None else torch.where(left, anomaly_map, fused_map)
        return ClipSamStages(anomaly_map, score, fused_map, mask, region, asks=(tuple(ask.window for ask in asks),))

    def _ask(
        self, image: torch.Tensor, anomaly_map: torch.Tensor, grid: TileGrid, window: Window
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Ask SAM about a part: its logits on the picture's map ``(1, H, W)``, peak and predicted IoU ``(1,)``."""
        top, left, height, width = window
        at = (..., slice(top, top + height), slice(left, left + width))
        features = self.encode(self._cut(image, grid, window, self.sam.image_encoder.img_size))
        self._check_finite("SAM's features", (features,))
        part = _resize_map(anomaly_map[at], scaled_size((height, width), self.map_size))
        with full_precision(image.device.type):
            prompts = self.ppg(part, features)
            cascade = self.cps(features, prompts, part)
        logits = torch.full_like(anomaly_map, NO_LOGIT)
        logits[at] = frame_to_map(cascade.logits_3.squeeze(1), (height, width))
        return logits, prompts.peak, cascade.iou


NO_LOGIT = -1e4
"""Mask logit outside a crop: its sigmoid is 0, also summed over a large picture."""


def join_scores(tiles: torch.Tensor, anomaly_map: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Give a picture's score: the mean of its most suspicious tile's, of the highest value of its map, and the whole's.

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
