# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The textures: surfaces that fill the picture."""

import cv2
import numpy as np

from anomalib_clipsam.drawn_parts.canvas import Canvas, box, clouds, disk, grain, hsv, metal, pick, rgb


def brushed_metal(rng: np.random.Generator) -> Canvas:
    """Sheet metal brushed along one direction, with a broad highlight."""
    canvas = Canvas(rng, (0.9, 1.1), np.pi, full=True)
    canvas.color[:] = metal(rng)
    glow = np.exp(-np.square((canvas.v - rng.uniform(-60, 60)) / rng.uniform(50, 110)))
    amount = rng.uniform(0.025, 0.05)
    canvas.tint(0.9 + amount * canvas.brush(rng, int(rng.integers(35, 70))) + rng.uniform(0.05, 0.2) * glow)
    return canvas


def weave(rng: np.random.Generator) -> Canvas:
    """Plain weave or twill of two yarns."""
    canvas = Canvas(rng, (0.9, 1.2), 0.8, full=True)
    pitch = rng.uniform(9, 14)
    hue = rng.uniform()
    value = rng.uniform(0.4, 0.85)
    warp = hsv(hue, rng.uniform(0.05, 0.5), value)
    weft = hsv(hue + rng.uniform(-0.08, 0.08), rng.uniform(0.05, 0.5), value * rng.uniform(0.65, 1.0))
    a, b = canvas.u / pitch, canvas.v / pitch
    i, j = np.floor(a).astype(np.int32), np.floor(b).astype(np.int32)
    over = (i + j) % 2 == 0 if rng.uniform() < 0.6 else (i + j) % 3 != 0
    a, b = (a - i - 0.5) * 2, (b - j - 0.5) * 2
    across, length = np.where(over, a, b), np.where(over, b, a)
    shade = (1 - 0.5 * across * across) * (1 - 0.22 * length * length)
    tone = rng.uniform(0.93, 1.07, 64).astype(np.float32)
    shade = shade * np.where(over, tone[i % 64], tone[(j + 31) % 64]) + 0.03 * grain(rng, 0.6)
    canvas.color[:] = rgb(1.12 * shade * over, warp) + rgb(1.12 * shade * ~over, weft)
    canvas.height[:] = (1 - across * across) * pitch * 0.12
    canvas.gloss = 0.05
    return canvas


def wood(rng: np.random.Generator) -> Canvas:
    """A planed board, its grain running along one direction."""
    canvas = Canvas(rng, (0.9, 1.1), np.pi, full=True)
    hue, value = rng.uniform(0.055, 0.1), rng.uniform(0.45, 0.85)
    light, dark = hsv(hue, rng.uniform(0.3, 0.5), value), hsv(hue - 0.015, 0.6, value * rng.uniform(0.6, 0.75))
    bend = rng.uniform(2, 5) * clouds(rng, 3) + rng.uniform(2, 14) * np.sin(canvas.u / rng.uniform(90, 220))
    phase = (canvas.v + bend + rng.uniform(0, 300)) / rng.uniform(9, 20)
    ring = phase + 0.35 * np.sin(phase * 0.37)
    ring -= np.floor(ring)
    late = np.square(ring) * (1 - np.clip((ring - 0.9) * 10, 0, 1))
    canvas.color[:] = light + rgb(late * rng.uniform(0.5, 0.9), dark - light)
    canvas.tint(1 + 0.035 * canvas.brush(rng, 41) + 0.02 * clouds(rng, 6))
    canvas.gloss = 0.1
    return canvas


def carpet(rng: np.random.Generator) -> Canvas:
    """Looped pile."""
    canvas = Canvas(rng, (0.9, 1.15), np.pi, full=True)
    color = hsv(rng.uniform(), rng.uniform(0.05, 0.45), rng.uniform(0.35, 0.75))
    pile = grain(rng, rng.uniform(1.3, 2.0))
    rows = np.sin(canvas.u * (2 * np.pi / rng.uniform(7, 11)) + 0.6 * pile)
    canvas.color[:] = color
    canvas.tint(0.95 + 0.1 * pile + 0.06 * rows + 0.02 * clouds(rng, 5))
    canvas.height[:] = 0.5 * pile
    canvas.gloss = 0.0
    return canvas


def perforated(rng: np.random.Generator) -> Canvas:
    """A sheet with a lattice of round or square holes over a dark ground."""
    canvas = Canvas(rng, (0.9, 1.15), np.pi, full=True)
    pitch = rng.uniform(19, 28)
    radius = pitch * rng.uniform(0.24, 0.34)
    canvas.color[:] = metal(rng) if rng.uniform() < 0.7 else hsv(rng.uniform(), 0.35, rng.uniform(0.5, 0.85))
    canvas.tint(1 + 0.025 * canvas.brush(rng, 31))
    b = canvas.v / pitch
    j = np.floor(b)
    a = canvas.u / pitch + (0.5 * (j % 2) if rng.uniform() < 0.5 else 0)
    a, b = (a - np.floor(a) - 0.5) * pitch, (b - j - 0.5) * pitch
    distance = disk(a, b, radius) if rng.uniform() < 0.7 else box(a, b, radius, radius, 2)
    canvas.bevel(-distance, 2.5, 1.2)
    canvas.paint(canvas.cover(distance), hsv(rng.uniform(), 0.1, rng.uniform(0.04, 0.16)))
    canvas.gloss = 0.5
    return canvas


def printed_grid(rng: np.random.Generator) -> Canvas:
    """Paper or foil printed with a regular grid of lines, dots or crosses."""
    canvas = Canvas(rng, (0.9, 1.15), 0.6, full=True)
    canvas.color[:] = hsv(rng.uniform(), rng.uniform(0, 0.15), rng.uniform(0.78, 0.95))
    canvas.tint(1 + 0.012 * grain(rng, 1.0) + 0.015 * clouds(rng, 4))
    pitch = rng.uniform(20, 30)
    a, b = canvas.u / pitch, canvas.v / pitch
    a, b = (a - np.floor(a) - 0.5) * pitch, (b - np.floor(b) - 0.5) * pitch
    kind = pick(rng, ("lines", "dots", "crosses"))
    width = pitch * rng.uniform(0.07, 0.11)
    if kind == "lines":
        distance = np.minimum(np.abs(a), np.abs(b)) - width
    elif kind == "dots":
        distance = disk(a, b, pitch * rng.uniform(0.22, 0.32))
    else:
        arm = pitch * 0.32
        distance = np.minimum(box(a, b, arm, width), box(a, b, width, arm))
    ink = hsv(rng.uniform(), rng.uniform(0.2, 0.8), rng.uniform(0.15, 0.55))
    canvas.print(canvas.cover(distance) * rng.uniform(0.85, 1), ink)
    return canvas


def tread_plate(rng: np.random.Generator) -> Canvas:
    """Floor plate with raised lozenges that point two ways in turn."""
    canvas = Canvas(rng, (0.9, 1.15), np.pi, full=True)
    canvas.color[:] = metal(rng) if rng.uniform() < 0.6 else hsv(rng.uniform(), 0.4, rng.uniform(0.3, 0.6))
    canvas.tint(0.9 + 0.03 * grain(rng, 0.9) + 0.015 * clouds(rng, 6))
    pitch = rng.uniform(34, 44)
    length, width = pitch * 0.36, pitch * 0.11
    reach = int(200 / pitch)
    for i in range(-reach, reach + 1):
        for j in range(-reach, reach + 1):
            window = canvas.near(i * pitch, j * pitch, length + 1)
            if window[0].stop - window[0].start < 3 or window[1].stop - window[1].start < 3:
                continue
            a, b = canvas.u[window] - i * pitch, canvas.v[window] - j * pitch
            a, b = (a + b) * 0.7071, (a - b) * 0.7071
            a, b = (a, b) if (i + j) % 2 else (b, a)
            distance = box(a, b, length, width, width * 0.95)
            cover = canvas.cover(distance)
            if abs(i * pitch) < 85 and abs(j * pitch) < 85:
                canvas.removable(cover, window)
            canvas.tint(1 + 0.12 * cover, window)
            canvas.bevel(distance, width, 1.1, window)
    canvas.gloss = 0.5
    return canvas


def leather(rng: np.random.Generator) -> Canvas:
    """Pebbled leather."""
    canvas = Canvas(rng, (0.9, 1.1), np.pi, full=True)
    color = hsv(rng.uniform(0.0, 0.11), rng.uniform(0.3, 0.65), rng.uniform(0.25, 0.65))
    if rng.uniform() < 0.3:
        color = hsv(rng.uniform(), rng.uniform(0.05, 0.4), rng.uniform(0.2, 0.7))
    pebbles = np.minimum(np.abs(grain(rng, rng.uniform(2.2, 3.2))), 1.0)
    canvas.color[:] = color
    canvas.tint(0.86 + 0.2 * pebbles + 0.015 * clouds(rng, 5) + 0.012 * grain(rng))
    canvas.height[:] = cv2.GaussianBlur(pebbles, (3, 3), 0) * 1.4
    canvas.gloss = 0.25
    return canvas


def mosaic(rng: np.random.Generator) -> Canvas:
    """Small glazed tiles set in grout, in rows or as bricks."""
    canvas = Canvas(rng, (0.9, 1.1), 0.8, full=True)
    pitch = rng.uniform(30, 42)
    gap = rng.uniform(1.6, 2.6)
    canvas.color[:] = hsv(0.1, rng.uniform(0, 0.15), rng.uniform(0.3, 0.85))
    canvas.tint(1 + 0.03 * grain(rng, 0.7))
    hue, saturation, value = rng.uniform(), rng.uniform(0.15, 0.6), rng.uniform(0.45, 0.9)
    shift = 0.5 if rng.uniform() < 0.4 else 0.0
    b = canvas.v / pitch
    j = np.floor(b)
    a = canvas.u / pitch + shift * (j % 2)
    i = np.floor(a)
    a, b = (a - i - 0.5) * pitch, (b - j - 0.5) * pitch
    table = np.stack(
        [hsv(hue + rng.uniform(-0.02, 0.02), saturation, value * rng.uniform(0.88, 1.06)) for _ in range(31)]
    )
    distance = box(a, b, pitch / 2 - gap, pitch / 2 - gap, 3)
    cover = canvas.cover(distance)
    rows, columns = j.astype(np.int32), i.astype(np.int32)
    for row in (-2, -1, 0, 1):
        for column in (-2, -1, 0, 1):
            window = canvas.near((column + 0.5 - shift * (row % 2)) * pitch, (row + 0.5) * pitch, pitch * 0.72)
            tile = (rows[window] == row) & (columns[window] == column)
            canvas.removable(cover[window] * tile, window)
    canvas.paint(cover, table[(rows * 7 + columns * 3) % 31] * rgb(1 + 0.02 * clouds(rng, 9)))
    canvas.bevel(distance, 4, 0.9)
    canvas.gloss = 0.6
    return canvas
