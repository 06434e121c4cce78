# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Look at a large picture in tiles: `python tiles.py model_localizer.onnx model_refiner.onnx large.png overlay.png`.

Without torch. The two files are written by `ClipSam(...).to_parts("exported")`, without `tiles`. Needs `pip install
numpy onnxruntime pillow`. Tiles, blending and score are those of `tiles="auto"` with the carried weights and the
threshold of 0.5; SAM is asked around the highest places of the map.
"""

import math
import sys

import numpy as np
from PIL import Image

SIDE, OVERLAP, LARGEST_MAP, WHOLE_WEIGHT = 256, 0.25, 1024, 0.4
FLOOR, RATIO, MAX_CROPS = 0.4, 0.5, 8
"""SAM is asked where the map passes the floor, and this share of its maximum: PPG's `min_score` and `region_ratio`."""


def starts(whole: int, length: int) -> list[int]:
    """Place the fewest tiles along one side, evenly, the first and the last at its ends."""
    if whole <= length:
        return [0]
    steps = math.ceil((whole - length) / max(1, math.floor(length * (1 - OVERLAP))))
    return [round(number * (whole - length) / steps) for number in range(steps + 1)]


def window(length: int) -> np.ndarray:
    """Return how much each pixel of a tile counts: raised cosines over the overlap at its sides, 1 between."""
    ramp = min(max(1, round(length * OVERLAP)), length // 2 or 1)
    place = np.arange(length) + 0.5
    weights = 0.5 - 0.5 * np.cos(np.pi * np.minimum(np.minimum(place, length - place) / ramp, 1))
    weights = np.maximum(weights, 1e-3)
    return weights[:, None] * weights


def resized(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bring a map to a height and width."""
    way = Image.Resampling.BOX if size[0] <= values.shape[0] else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(values).resize(size[::-1], way))


def main(localizer_path: str, refiner_path: str, picture_path: str, overlay_path: str) -> None:
    """Look at a picture, print the verdict and write the overlay."""
    import onnxruntime

    paths = (localizer_path, refiner_path)
    localizer, refiner = (onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]) for path in paths)
    picture = Image.open(picture_path).convert("RGB")
    pixels = np.asarray(picture)  # (height, width, 3), 8 bits: a picture in floats has four times the bytes
    height, width = pixels.shape[:2]
    scale = max(height, width) / min(max(height, width), LARGEST_MAP)  # pixels of the picture in one of the map
    size = (round(height / scale), round(width / scale))
    tile = min(max(1, round(min(SIDE, height, width) / scale)), *size)

    def cut(top: int, left: int, rows: int, columns: int) -> np.ndarray:
        """Cut a part of the map out of the picture."""
        y, x = round(top * height / size[0]), round(left * width / size[1])
        below, right = round((top + rows) * height / size[0]), round((left + columns) * width / size[1])
        return (pixels[y:below, x:right].astype(np.float32) / 255).transpose(2, 0, 1)[None]

    def look(image: np.ndarray) -> tuple[float, np.ndarray]:
        score, clip_map = localizer.run(["pred_score", "clip_map"], {"input": image})
        return float(score[0]), clip_map[0]

    whole_score, whole = look(cut(0, 0, *size))
    score, anomaly_map = whole_score, resized(whole, size)
    windows = [(top, left) for top in starts(size[0], tile) for left in starts(size[1], tile)]
    if len(windows) > 1:
        total, weight, weights, scores = np.zeros(size), np.zeros(size), window(tile), []
        for top, left in windows:
            tile_score, tile_map = look(cut(top, left, tile, tile))
            scores.append(tile_score)
            at = (slice(top, top + tile), slice(left, left + tile))
            total[at] += weights * resized(tile_map, (tile, tile))
            weight[at] += weights
        anomaly_map = np.minimum(total / weight + WHOLE_WEIGHT * anomaly_map, 1).astype(np.float32)
        score = (max(scores) + float(anomaly_map.max()) + whole_score) / 3

    mask, left_over, asked = np.zeros(size, dtype=bool), anomaly_map.copy(), 0
    side = min(tile, *size)
    while asked < MAX_CROPS and left_over.max() >= max(FLOOR, RATIO * anomaly_map.max()):
        centre = np.unravel_index(left_over.argmax(), size)
        top, left = (int(min(max(0, at - side // 2), whole - side)) for at, whole in zip(centre, size, strict=True))
        at = (slice(top, top + side), slice(left, left + side))
        clip_map = resized(anomaly_map[at], whole.shape)[None]
        (found,) = refiner.run(["pred_mask"], {"input": cut(top, left, side, side), "clip_map": clip_map})
        mask[at] |= resized(found[0].astype(np.float32), (side, side)) > 0.5
        left_over[at] = 0
        asked += 1
    label = "defective" if score > 0.5 else "good"
    mask &= score > 0.5
    area = round(mask.mean() * height * width)  # in pixels of the picture
    print(f"{label}, score {score:.4f}, {len(windows)} tiles, SAM asked {asked} times, mask {area} pixels")
    shown = Image.fromarray(mask.astype(np.uint8) * 128).resize(picture.size)
    Image.composite(Image.new("RGB", picture.size, "red"), picture, shown).save(overlay_path)


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    main(*sys.argv[1:])
