# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The objects: parts that lie on a background."""

import cv2
import numpy as np

from anomalib_clipsam.drawn_parts.canvas import SIZE, Canvas, box, clouds, disk, grain, hsv, metal, pick, rgb


def _letters(rng: np.random.Generator, count: int, alphabet: str = "ABCDEFHKLMNPRSTUVXZ0123456789") -> str:
    return "".join(alphabet[i] for i in rng.integers(len(alphabet), size=count))


def _write(sheet: np.ndarray, text: str, u: float, v: float, height: float, thickness: int = 4) -> None:
    """Write ``text`` centred on a point of the part's frame, ``height`` units high."""
    font = cv2.FONT_HERSHEY_SIMPLEX
    size = 2 * height / 22
    (wide, tall), _ = cv2.getTextSize(text, font, size, thickness)
    origin = (int(SIZE + 2 * u - wide / 2), int(SIZE + 2 * v + tall / 2))
    cv2.putText(sheet, text, origin, font, size, 255, thickness, cv2.LINE_AA)


def _turned(canvas: Canvas, rng: np.random.Generator, amount: float) -> np.ndarray:
    """Shine of a surface turned on a lathe: two opposite bright sectors."""
    angle = np.arctan2(canvas.v, canvas.u)
    return amount * np.cos(2 * (angle - rng.uniform(0, np.pi)))


def washer(rng: np.random.Generator) -> Canvas:
    """A flat metal washer."""
    canvas = Canvas(rng, (0.85, 1.1))
    outer = rng.uniform(82, 95)
    inner = outer * rng.uniform(0.42, 0.58)
    radius = disk(canvas.u, canvas.v, 0)
    distance = np.maximum(radius - outer, inner - radius)
    canvas.body(canvas.cover(distance), metal(rng))
    rings = np.sin(radius * rng.uniform(0.8, 1.4)) * 0.02
    canvas.tint(0.95 + _turned(canvas, rng, 0.14) + rings + 0.015 * grain(rng, 0.8))
    canvas.bevel(distance, rng.uniform(3, 6), 1.3)
    canvas.gloss = 0.7
    return canvas


def gear(rng: np.random.Generator) -> Canvas:
    """A spur gear with a bore and lightening holes."""
    canvas = Canvas(rng, (0.85, 1.06))
    teeth = int(rng.integers(12, 21))
    root = rng.uniform(72, 80)
    tooth = rng.uniform(11, 15)
    radius = disk(canvas.u, canvas.v, 0)
    turn = np.arctan2(canvas.v, canvas.u) * (teeth / (2 * np.pi))
    index = np.floor(turn)
    across = np.abs(turn - index - 0.5) * (2 * np.pi / teeth) * radius
    width = root * np.pi / teeth * 0.52
    flank = across - (width - (radius - root) * 0.28)
    color = metal(rng)
    steps = np.where(index < 0, index + teeth, index)
    rim = radius - root
    canvas.body(canvas.cover(rim), color)
    profile = np.maximum(np.maximum(flank, radius - root - tooth), root - 3 - radius)
    cover = canvas.cover(profile)
    for k in range(0, teeth - 1, 2):
        middle, ring = (k + 1) * 2 * np.pi / teeth, root + tooth / 2
        window = canvas.near(ring * np.cos(middle), ring * np.sin(middle), tooth * 2.2)
        pair = ((steps[window] == k) | (steps[window] == k + 1)) & (rim[window] > 0.5)
        canvas.removable(cover[window] * pair, window)
    canvas.body(cover, color)
    whole = np.minimum(rim, profile)
    bore = rng.uniform(14, 22)
    holes = bore - radius
    count = int(pick(rng, (0, 4, 5, 6)))
    if count:
        ring, size = (bore + root) / 2, rng.uniform(8, 11)
        part = np.round(np.arctan2(canvas.v, canvas.u) * (count / (2 * np.pi))) * (2 * np.pi / count)
        holes = np.maximum(holes, -disk(canvas.u - ring * np.cos(part), canvas.v - ring * np.sin(part), size))
    solid = canvas.cover(holes)
    canvas.alpha *= solid
    canvas.tint(0.95 + _turned(canvas, rng, 0.1) + 0.02 * grain(rng, 0.8))
    canvas.bevel(np.maximum(whole, holes), 4, 1.2)
    hub = np.abs(radius - bore - 5) - 2
    canvas.tint(1 - 0.15 * canvas.cover(hub))
    canvas.gloss = 0.6
    return canvas


def screw(rng: np.random.Generator) -> Canvas:
    """A screw seen from the side: head, shank and thread."""
    canvas = Canvas(rng, (0.95, 1.1), shift=6)
    color = metal(rng)
    shank = rng.uniform(11, 15)
    pitch = rng.uniform(8, 11)
    head = rng.uniform(24, 31)
    u, v = canvas.u, canvas.v
    start = rng.uniform(-40, -20)
    phase = (u + v * 0.25) / pitch
    tooth = np.abs(phase - np.floor(phase) - 0.5) * 2
    taper = np.clip((u - 75) / 28, 0, 1) * shank * 0.8
    thread = np.maximum(np.abs(v) - shank - 4 * (1 - tooth) * (u > start) + taper, np.abs(u - 15) - 85)
    top = (
        np.maximum(box(u + 84, v, 16, head, 6), disk(u + 60, v, 44))
        if rng.uniform() < 0.5
        else box(u + 84, v, 14, head, 3)
    )
    canvas.body(canvas.cover(thread), color)
    canvas.tint(1 - 0.4 * (u > start) * tooth * (thread < 0))
    canvas.body(canvas.cover(top), color)
    barrel = np.where(top < 0, v / head, v / (shank + 4))
    side = 1 if rng.uniform() < 0.5 else -1
    shine = np.exp(-np.square((barrel - 0.3 * side) / 0.3))
    canvas.tint((0.8 + 0.5 * shine) * (1 - 0.45 * np.square(np.clip(barrel, -1, 1))) + 0.015 * grain(rng, 0.7))
    canvas.tint(1 - 0.4 * canvas.cover(box(u + 70, v, 1.2, shank)))
    canvas.bevel(top, 4, 0.8)
    canvas.gloss = 0.4
    return canvas


def bottle(rng: np.random.Generator) -> Canvas:
    """The mouth of a glass bottle seen from above."""
    canvas = Canvas(rng, (0.88, 1.08))
    glass = hsv(
        float(pick(rng, (0.09, 0.3, 0.4, 0.55))) + rng.uniform(-0.03, 0.03),
        rng.uniform(0.4, 0.8),
        rng.uniform(0.3, 0.6),
    )
    radius = disk(canvas.u, canvas.v, 0)
    outer, lip, mouth = rng.uniform(90, 98), rng.uniform(66, 74), rng.uniform(40, 50)
    canvas.body(canvas.cover(radius - outer), glass)
    canvas.tint(0.8 + 0.25 * np.clip((outer - radius) / 30, 0, 1) + _turned(canvas, rng, 0.1))
    ring = np.maximum(radius - lip, mouth - radius)
    canvas.paint(canvas.cover(ring), np.minimum(glass * 1.25 + 0.06, 1))
    canvas.bevel(radius - outer, 16, 0.8)
    canvas.bevel(ring, (lip - mouth) / 2, 1.4)
    canvas.paint(canvas.cover(radius - mouth, 2), glass * rng.uniform(0.12, 0.35))
    depth = np.clip((mouth - radius) / mouth, 0, 1)
    canvas.tint(1 + 0.5 * depth * (radius < mouth))
    canvas.gloss = 1.2
    return canvas


def pcb(rng: np.random.Generator) -> Canvas:
    """A circuit board with chips, small parts, tracks and printing."""
    canvas = Canvas(rng, (0.88, 1.02), np.pi if rng.uniform() < 0.5 else 0.15, shift=6)
    board = hsv(
        float(pick(rng, (0.38, 0.36, 0.6, 0.0, 0.42))) + rng.uniform(-0.02, 0.02),
        rng.uniform(0.5, 0.85),
        rng.uniform(0.22, 0.45),
    )
    wide, high = rng.uniform(84, 94), rng.uniform(62, 72)
    distance = box(canvas.u, canvas.v, wide, high, rng.uniform(2, 9))
    hole = np.maximum(6 - disk(np.abs(canvas.u) - wide + 12, np.abs(canvas.v) - high + 12, 0), distance)
    canvas.body(canvas.cover(hole), board)
    tracks = canvas.stamp(lambda sheet: _tracks(sheet, rng, wide, high))
    canvas.tint(1 + 0.28 * tracks)
    canvas.tint(1 + 0.015 * grain(rng, 0.7))
    ring = np.abs(disk(np.abs(canvas.u) - wide + 12, np.abs(canvas.v) - high + 12, 7.5)) - 1.8
    gold = np.array((0.8, 0.68, 0.38), np.float32)
    canvas.paint(canvas.cover(ring), gold)
    canvas.bevel(hole, 2, 0.8)
    # Large packages stand in a row, small ones in the rows above and below.
    chips = int(rng.integers(1, 4))
    for k in range(chips):
        centre = (k - (chips - 1) / 2) * (2 * wide - 30) / chips
        half = min(rng.uniform(16, 28), (wide - 24) / chips)
        _package(canvas, centre, rng.uniform(-4, 4), half, rng.uniform(13, 20))
    for row in (-1, 1):
        count = int(rng.integers(4, 7))
        for k in range(count):
            centre = (k - (count - 1) / 2) * (2 * wide - 50) / count
            _chip(canvas, rng, centre, row * (high - 17))
    white = hsv(0.1, 0.05, 0.9)
    words = [(_letters(rng, 3), u, v) for u, v in ((-wide * 0.5, -high * 0.47), (wide * 0.42, high * 0.48))]
    canvas.print(canvas.stamp(lambda sheet: [_write(sheet, *word, 9, 3) for word in words]) * 0.85, white)
    canvas.gloss = 0.5
    return canvas


def _tracks(sheet: np.ndarray, rng: np.random.Generator, wide: float, high: float) -> None:
    for _ in range(14):
        u, v = rng.uniform(-wide + 8, wide - 8), rng.uniform(-high + 8, high - 8)
        points = [(u, v)]
        for k in range(3):
            u = np.clip(u + (k != 1) * rng.uniform(-60, 60), 8 - wide, wide - 8)
            v = np.clip(v + (k == 1) * rng.uniform(-50, 50), 8 - high, high - 8)
            points.append((u, v))
        corners = (np.array(points) * 2 + SIZE).astype(np.int32)
        cv2.polylines(sheet, [corners], isClosed=False, color=255, thickness=4)
        cv2.circle(sheet, tuple(int(c) for c in corners[-1]), 6, 255, -1)


def _package(canvas: Canvas, u: float, v: float, half_width: float, half_height: float) -> None:
    """A black package with legs along both long sides."""
    window = canvas.near(u, v, half_width + half_height)
    a, b = canvas.u[window] - u, canvas.v[window] - v
    body = box(a, b, half_width, half_height, 1.5)
    legs = np.maximum(np.abs(np.abs(b) - half_height - 2.5) - 3, np.abs(a) - half_width + 2)
    legs = np.maximum(legs, np.abs((a / 6) - np.floor(a / 6) - 0.5) * 6 - 1.6)
    canvas.paint(canvas.cover(legs + 0.4), (0.6, 0.52, 0.3), window)
    canvas.removable(np.maximum(canvas.cover(body), canvas.cover(legs)), window)
    canvas.paint(canvas.cover(legs), (0.78, 0.78, 0.8), window)
    canvas.paint(canvas.cover(body), (0.1, 0.1, 0.11), window)
    canvas.bevel(body, 2.5, 1.2, window)
    dot = disk(a + half_width - 6, b + half_height - 6, 2)
    canvas.paint(canvas.cover(dot), (0.3, 0.3, 0.3), window)


def _chip(canvas: Canvas, rng: np.random.Generator, u: float, v: float) -> None:
    """A small part between two soldered ends."""
    color = pick(rng, ((0.62, 0.45, 0.3), (0.12, 0.12, 0.13), (0.75, 0.7, 0.6), (0.8, 0.45, 0.1)))
    half_width, half_height = rng.uniform(7.5, 10), rng.uniform(5.5, 7)
    window = canvas.near(u, v, 18)
    a, b = canvas.u[window] - u, canvas.v[window] - v
    pads = box(np.abs(a) - half_width - 0.5, b, 3.4, half_height, 1)
    canvas.paint(canvas.cover(pads), (0.72, 0.72, 0.74), window)
    whole = box(a, b, half_width + 1, half_height, 1)
    canvas.removable(canvas.cover(whole), window)
    canvas.paint(canvas.cover(whole), (0.82, 0.82, 0.84), window)
    canvas.paint(canvas.cover(box(a, b, half_width - 2.5, half_height + 0.5)) * canvas.cover(whole), color, window)
    canvas.bevel(whole, 2.5, 1.2, window)


def label(rng: np.random.Generator) -> Canvas:
    """A printed card: a heading, lines of text, a bar code, a frame."""
    canvas = Canvas(rng, (0.88, 1.02), np.pi if rng.uniform() < 0.4 else 0.2, shift=6)
    wide, high = rng.uniform(86, 95), rng.uniform(58, 70)
    distance = box(canvas.u, canvas.v, wide, high, rng.uniform(2, 10))
    canvas.body(canvas.cover(distance), hsv(rng.uniform(), rng.uniform(0, 0.18), rng.uniform(0.8, 0.95)))
    canvas.tint(1 + 0.012 * grain(rng, 0.9))
    canvas.bevel(distance, 2, 0.8)
    hue = rng.uniform()
    ink = hsv(hue, rng.uniform(0.3, 0.9), rng.uniform(0.1, 0.5))
    if rng.uniform() < 0.6:
        band = np.maximum(distance + 6, canvas.v + high - 26)
        canvas.print(canvas.cover(band), hsv(hue + rng.uniform(-0.1, 0.1), 0.6, 0.65))
        heading = hsv(0, 0, 0.95)
    else:
        heading = ink
    name, lines = _letters(rng, int(rng.integers(6, 9))), [_letters(rng, int(rng.integers(9, 13))) for _ in range(2)]
    widths = rng.integers(2, 9, 24)

    def text(sheet: np.ndarray) -> None:
        for k, line in enumerate(lines):
            _write(sheet, line, -8, -high + 46 + 20 * k, 10, 4)
        x, bottom = int(SIZE - 2 * wide + 36), int(SIZE + 2 * high - 20)
        for k, width in enumerate(widths):
            if k % 2 == 0:
                cv2.rectangle(sheet, (x, bottom - 52), (x + int(width), bottom), 255, -1)
            x += int(width) + 4

    canvas.print(canvas.stamp(lambda sheet: _write(sheet, name, 0, -high + 16, 12, 5)), heading)
    canvas.print(canvas.stamp(text), ink)
    stamp = disk(canvas.u - wide + 32, canvas.v - high + 26, 0)
    canvas.print(canvas.cover(np.minimum(np.abs(stamp - 14) - 2, stamp - 6)), ink)
    canvas.gloss = 0.1
    return canvas


def biscuit(rng: np.random.Generator) -> Canvas:
    """A baked biscuit with a wavy rim, docking holes and, at times, chocolate drops."""
    canvas = Canvas(rng, (0.88, 1.08))
    dough = hsv(rng.uniform(0.07, 0.105), rng.uniform(0.4, 0.6), rng.uniform(0.68, 0.88))
    radius = disk(canvas.u, canvas.v, 0)
    angle = np.arctan2(canvas.v, canvas.u)
    waves = int(pick(rng, (0, 18, 24)))
    rim = rng.uniform(84, 94) + (3.2 * np.cos(angle * waves) if waves else 1.5 * clouds(rng, 6))
    distance = radius - rim
    canvas.body(canvas.cover(distance), dough)
    canvas.tint(1.02 - 0.22 * np.exp(distance / 12) + 0.03 * clouds(rng, 12) + 0.025 * grain(rng, 1.0))
    canvas.bevel(distance, 16, 0.9)
    if rng.uniform() < 0.5:
        canvas.height += 0.4 * grain(rng, 1.6)
        for ring, count in ((0, 1), (32, 6), (62, 10)):
            for k in range(count):
                turn = 2 * np.pi * k / count + ring
                u, v = ring * np.cos(turn), ring * np.sin(turn)
                window = canvas.near(u, v, 7)
                hole = disk(canvas.u[window] - u, canvas.v[window] - v, 3.2)
                canvas.paint(canvas.cover(hole, 2) * 0.75, dough * 0.35, window)
    else:
        canvas.height += 0.7 * grain(rng, 2.0)
        first = rng.uniform(0, 6)
        for k in range(9):
            ring, turn = (60 if k else 0) - 28 * (k % 2), first + k * 2.4
            u, v = ring * np.cos(turn), ring * np.sin(turn)
            window = canvas.near(u, v, 14)
            drop = box(canvas.u[window] - u, canvas.v[window] - v, *rng.uniform(7, 10.5, 2), 6)
            canvas.paint(canvas.cover(drop), hsv(0.06, 0.55, 0.2), window)
            canvas.bevel(drop, 6, 1.0, window)
    canvas.gloss = 0.15
    return canvas


def battery(rng: np.random.Generator) -> Canvas:
    """A round cell seen from the side: terminal, coloured sleeve, lettering."""
    canvas = Canvas(rng, (0.9, 1.04), np.pi if rng.uniform() < 0.6 else 0.2, shift=6)
    u, v = canvas.u, canvas.v
    half = rng.uniform(28, 38)
    sleeve = hsv(rng.uniform(), rng.uniform(0.1, 0.85), rng.uniform(0.2, 0.8))
    second = hsv(rng.uniform(), rng.uniform(0.1, 0.85), rng.uniform(0.3, 0.9))
    knob = box(u - 96, v, 7, half * 0.35, 2)
    canvas.body(canvas.cover(knob), (0.74, 0.74, 0.76))
    tube = box(u, v, 93, half, 5)
    canvas.body(canvas.cover(tube), sleeve)
    split = rng.uniform(20, 55)
    canvas.paint(canvas.cover(np.maximum(split - u, tube)), second)
    canvas.paint(canvas.cover(np.maximum(np.abs(np.abs(u) - 91) - 3.5, tube)), (0.72, 0.72, 0.75))
    canvas.tint(1 + 0.01 * grain(rng, 0.7))
    ink = hsv(0, 0, 0.95) if sleeve.mean() < 0.5 else hsv(0, 0, 0.1)
    name, small = _letters(rng, int(rng.integers(4, 6))), _letters(rng, 7)
    canvas.print(
        canvas.stamp(
            lambda sheet: (
                _write(sheet, name, -30, -half * 0.2, half * 0.55, 7),
                _write(sheet, small, -30, half * 0.5, 7, 3),
            )
        ),
        ink,
    )
    plus = np.minimum(box(u - 72, v, 8, 2.2), box(u - 72, v, 2.2, 8))
    canvas.print(canvas.cover(plus), hsv(0, 0, 0.95) if second.mean() < 0.5 else hsv(0, 0, 0.1))
    t = np.clip(v / half, -1, 1)
    side = 1 if rng.uniform() < 0.5 else -1
    shade = (1 - 0.5 * t**4 - 0.15 * t * side) + 0.3 * np.exp(-np.square((t + 0.45 * side) / 0.12))
    canvas.tint(shade)
    canvas.gloss = 0.3
    return canvas


def lens(rng: np.random.Generator) -> Canvas:
    """A coated lens in a black mount with engraved marks."""
    canvas = Canvas(rng, (0.88, 1.08))
    radius = disk(canvas.u, canvas.v, 0)
    outer, glass = rng.uniform(88, 97), rng.uniform(58, 66)
    canvas.body(canvas.cover(radius - outer), hsv(0.6, 0.05, rng.uniform(0.12, 0.3)))
    canvas.tint(1 + _turned(canvas, rng, 0.15) + 0.02 * grain(rng, 0.8))
    canvas.bevel(radius - outer, 5, 1.2)
    canvas.bevel(-(radius - glass), 7, 1.0)
    hue = rng.uniform(0.45, 0.85)
    t = np.clip(radius / glass, 0, 1)
    inner = hsv(hue, rng.uniform(0.3, 0.6), rng.uniform(0.35, 0.6))
    edge = hsv(hue + rng.uniform(-0.15, 0.15), rng.uniform(0.4, 0.7), rng.uniform(0.12, 0.25))
    canvas.paint(canvas.cover(radius - glass + 1), inner + rgb(t * t, edge - inner))
    x, y = canvas.light
    cos, sin = np.cos(canvas.angle), np.sin(canvas.angle)
    u, v = -(x * cos + y * sin) * glass * 0.42, -(y * cos - x * sin) * glass * 0.42
    glare = disk(canvas.u - u, canvas.v - v, glass * 0.32)
    canvas.shine(0.2 * np.exp(-np.square(np.maximum(glare + 14, 0) / 14)) * (radius < glass))
    turn = np.arctan2(canvas.v, canvas.u)
    ticks = int(rng.integers(24, 40)) / (2 * np.pi)
    beat = np.abs(turn * ticks - np.round(turn * ticks)) / ticks * radius - 1.3
    marks = np.maximum(beat, np.abs(radius - (outer + glass) / 2 - 3) - rng.uniform(4, 7))
    canvas.print(canvas.cover(marks) * 0.9, (0.88, 0.88, 0.86))
    canvas.gloss = 0.5
    return canvas


def zipper(rng: np.random.Generator) -> Canvas:
    """A closed zipper on its tape."""
    canvas = Canvas(rng, (0.9, 1.04), np.pi if rng.uniform() < 0.5 else 0.15, shift=6)
    u, v = canvas.u, canvas.v
    tape = hsv(rng.uniform(), rng.uniform(0.1, 0.6), rng.uniform(0.15, 0.75))
    half = rng.uniform(38, 50)
    distance = box(u, v, 98, half, 1)
    canvas.body(canvas.cover(distance), tape)
    weave = np.sin(u * 1.9 + v * 1.2)
    canvas.tint(1 + 0.07 * weave + 0.03 * grain(rng, 0.8))
    canvas.tint(1 - 0.3 * canvas.cover(np.abs(np.abs(v) - half * 0.62) - 1.2))
    color = metal(rng) if rng.uniform() < 0.7 else hsv(rng.uniform(), 0.5, 0.7)
    pitch = rng.uniform(9, 12)
    count = int(92 / pitch)
    index = np.round(u / pitch * 2)
    side = np.where(index % 2 == 0, 1, -1)
    tooth = box(u - index * pitch / 2, v - side * 5, pitch * 0.2, 11, 1.5)
    tooth = np.maximum(tooth, np.abs(u) - (count + 0.3) * pitch)
    cover = canvas.cover(tooth)
    canvas.tint(1 - 0.45 * canvas.cover(np.maximum(np.abs(v) - 15, distance), 3))
    for k in range(-count * 2 + 2, count * 2 - 2, 5):
        window = canvas.near(k * pitch / 2, 0, 22)
        canvas.removable(cover[window] * np.isin(index[window], (k, k + 1, k + 2)), window)
    canvas.paint(cover, color)
    canvas.bevel(tooth, pitch * 0.2, 1.6)
    canvas.gloss = 0.6
    return canvas


def ring(rng: np.random.Generator) -> Canvas:
    """A glazed ceramic ring with a painted band."""
    canvas = Canvas(rng, (0.86, 1.06))
    outer = rng.uniform(86, 96)
    inner = outer * rng.uniform(0.3, 0.42)
    radius = disk(canvas.u, canvas.v, 0)
    distance = np.maximum(radius - outer, inner - radius)
    canvas.body(canvas.cover(distance), hsv(rng.uniform(), rng.uniform(0.02, 0.3), rng.uniform(0.7, 0.92)))
    canvas.tint(1 + 0.012 * clouds(rng, 5) + 0.006 * grain(rng, 1.0))
    canvas.bevel(distance, (outer - inner) / 2, rng.uniform(0.5, 0.8))
    middle = (outer + inner) / 2
    paint = hsv(rng.uniform(), rng.uniform(0.5, 0.9), rng.uniform(0.25, 0.65))
    dots = int(rng.integers(9, 15)) / (2 * np.pi)
    turn = np.arctan2(canvas.v, canvas.u)
    turn -= np.round(turn * dots) / dots
    spots = disk(turn * middle, radius - middle, rng.uniform(6, 8.5))
    bands = np.abs(np.abs(radius - middle) - rng.uniform(13, 16)) - rng.uniform(1.3, 2.2)
    canvas.print(canvas.cover(np.minimum(spots, bands)), paint)
    canvas.gloss = 0.9
    return canvas


def button(rng: np.random.Generator) -> Canvas:
    """A sewing button with two or four holes."""
    canvas = Canvas(rng, (0.84, 1.08))
    radius = disk(canvas.u, canvas.v, 0)
    outer = rng.uniform(82, 94)
    color = hsv(rng.uniform(), rng.uniform(0.1, 0.75), rng.uniform(0.25, 0.85))
    spread = rng.uniform(15, 20)
    if rng.uniform() < 0.6:
        holes = disk(np.abs(canvas.u) - spread, np.abs(canvas.v) - spread, rng.uniform(7.5, 10))
    else:
        holes = disk(np.abs(canvas.u) - spread, canvas.v, rng.uniform(8.5, 11))
    distance = np.maximum(radius - outer, -holes)
    canvas.body(canvas.cover(distance), color)
    swirl = np.sin((canvas.u + 14 * clouds(rng, 4)) / rng.uniform(7, 14)) if rng.uniform() < 0.35 else clouds(rng, 3)
    canvas.tint(1 + 0.045 * swirl)
    canvas.bevel(distance, 6, 1.2)
    canvas.bevel(-(radius - outer * rng.uniform(0.66, 0.78)), rng.uniform(6, 14), rng.uniform(0.7, 1.1))
    canvas.gloss = 0.9
    return canvas


def cap(rng: np.random.Generator) -> Canvas:
    """A fluted plastic screw cap with a raised emblem."""
    canvas = Canvas(rng, (0.86, 1.06))
    radius = disk(canvas.u, canvas.v, 0)
    turn = np.arctan2(canvas.v, canvas.u)
    ribs = int(rng.integers(36, 60))
    outer = rng.uniform(86, 95)
    color = hsv(rng.uniform(), rng.uniform(0.1, 0.9), rng.uniform(0.35, 0.9))
    distance = radius - outer + 1.2 * np.cos(turn * ribs)
    canvas.body(canvas.cover(distance), color)
    top = rng.uniform(70, 76)
    canvas.tint(1 + 0.008 * grain(rng, 0.8) - 0.18 * (np.cos(turn * ribs) + 0.4) * (radius > top))
    canvas.bevel(radius - outer, outer - top, 1.0)
    canvas.bevel(np.abs(radius - top * 0.86) - 2.5, 2.5, 1.0)
    points = int(pick(rng, (3, 4, 5, 6, 8)))
    petals = radius - rng.uniform(28, 36) * (1 + 0.35 * np.cos(turn * points))
    canvas.bevel(petals, 4, rng.uniform(0.8, 1.3))
    canvas.gloss = 0.6
    return canvas


def capsule(rng: np.random.Generator) -> Canvas:
    """A two-coloured medical capsule with an imprint."""
    canvas = Canvas(rng, (0.9, 1.05), np.pi if rng.uniform() < 0.6 else 0.3, shift=6)
    u, v = canvas.u, canvas.v
    half = rng.uniform(32, 38)
    first = hsv(rng.uniform(), rng.uniform(0.3, 0.85), rng.uniform(0.4, 0.8))
    second = hsv(rng.uniform(), rng.uniform(0.02, 0.6), rng.uniform(0.6, 0.92))
    split = rng.uniform(-12, 12)
    slim = box(u, v, 97, half - 2, half - 2)
    wide = np.maximum(box(u, v, 97, half, half), u - split)
    canvas.body(canvas.cover(slim), second)
    canvas.body(canvas.cover(wide), first)
    canvas.tint(1 - 0.22 * canvas.cover(np.abs(u - split - 2) - 1.2))
    name, code = _letters(rng, 3), _letters(rng, 3, "0123456789")
    ink = hsv(0, 0, 0.93) if first.mean() < 0.5 else hsv(0.6, 0.3, 0.15)
    canvas.print(canvas.stamp(lambda sheet: _write(sheet, name, -50, 0, 18, 6)), ink)
    ink = hsv(0, 0, 0.93) if second.mean() < 0.5 else hsv(0.6, 0.3, 0.15)
    canvas.print(canvas.stamp(lambda sheet: _write(sheet, code, 48, 0, 18, 6)), ink)
    t = np.clip(-np.minimum(slim, wide) / half, 0, 1)
    shade = 0.62 + 0.42 * np.sqrt(t * (2 - t)) + 0.006 * grain(rng, 1.0)
    canvas.tint(shade)
    x, y = canvas.light
    side = 1 if -x * np.sin(canvas.angle) + y * np.cos(canvas.angle) < 0 else -1
    glare = box(u - rng.uniform(-10, 10), v - side * half * 0.45, 62, 1.5, 1.5)
    canvas.shine(0.3 * np.exp(-np.square(np.maximum(glare, 0) / 4)))
    return canvas


def key(rng: np.random.Generator) -> Canvas:
    """A door key: bow with a hole, shaft with a groove, cut teeth."""
    canvas = Canvas(rng, (0.95, 1.06), shift=6)
    u, v = canvas.u, canvas.v
    color = metal(rng)
    bow = rng.uniform(33, 40)
    head = disk(u + 60, v, bow) if rng.uniform() < 0.5 else box(u + 60, v, bow, bow * 0.9, 12)
    hole = disk(u + 60 + bow * 0.35, v, bow * rng.uniform(0.25, 0.36))
    shaft = np.maximum(np.abs(v) - 14, np.abs(u - 30) - 70)
    shaft = np.maximum(shaft, (u - 100 + np.abs(v + 4)) * 0.7)
    cuts = rng.uniform(0, 10, 8).astype(np.float32)
    place = np.clip((u - 10) / 11, 0, 6.999)
    index = np.floor(place).astype(np.int32)
    step = np.clip((place - index) * 2.2 - 0.6, 0, 1)
    depth = cuts[index] + step * (cuts[index + 1] - cuts[index])
    shaft = np.maximum(shaft, np.where(u > 4, v - 14 + np.maximum(depth, 1), -1e3))
    whole = np.maximum(np.minimum(head, shaft), -hole)
    canvas.body(canvas.cover(whole), color)
    canvas.tint(0.95 + 0.02 * canvas.brush(rng, 25) + 0.02 * clouds(rng, 4))
    groove = np.maximum(np.abs(v + 5) - 2.6, np.abs(u - 40) - 56)
    canvas.bevel(whole, 3.5, 1.3)
    canvas.bevel(groove, 2.6, -1.5)
    canvas.tint(1 - 0.25 * canvas.cover(groove, 2))
    canvas.bevel(np.abs(disk(u + 60, v, bow * 0.78)) - 1.6 if rng.uniform() < 0.5 else head + 8, 3, 0.9)
    canvas.gloss = 0.7
    return canvas


def connector(rng: np.random.Generator) -> Canvas:
    """A plastic plug with a row of gold or tin pins and wells above them."""
    canvas = Canvas(rng, (0.9, 1.05), np.pi if rng.uniform() < 0.5 else 0.2, shift=6)
    u, v = canvas.u, canvas.v
    plastic = hsv(rng.uniform(), rng.uniform(0, 0.5), float(pick(rng, (0.14, 0.3, 0.8))) * rng.uniform(0.9, 1.1))
    pin = hsv(0.12, 0.45, 0.82) if rng.uniform() < 0.5 else hsv(0.6, 0.04, 0.78)
    wide = rng.uniform(80, 92)
    body = np.minimum(box(u, v + 22, wide, 32, 4), box(u, v + 50, wide * 0.3, 14, 3))
    count = int(rng.integers(6, 10))
    pitch = 2 * (wide - 8) / count
    for k in range(count):
        centre = (k - (count - 1) / 2) * pitch
        window = canvas.near(centre, 36, 34)
        a, b = u[window] - centre, v[window] - 36
        leg = box(a, b, pitch * 0.24, 29, 3)
        seen = canvas.cover(np.maximum(leg, -body[window]))
        canvas.removable(seen, window)
        canvas.body(canvas.cover(leg), pin, window)
        canvas.bevel(leg, pitch * 0.22, 1.4, window)
    canvas.height *= 1 - canvas.cover(body)
    canvas.body(canvas.cover(body), plastic)
    canvas.tint(1 + 0.012 * grain(rng, 0.8))
    canvas.bevel(body, 4, 1.2)
    for k in range(count):
        centre = (k - (count - 1) / 2) * pitch
        window = canvas.near(centre, -20, 22)
        a, b = u[window] - centre, v[window] + 20
        well = box(a, b, pitch * 0.3, 11, 2)
        canvas.paint(canvas.cover(well), plastic * 0.3, window)
        canvas.bevel(well, 3, -0.8, window)
        contact = box(a, b, pitch * 0.13, 6, 1)
        canvas.removable(canvas.cover(contact), window)
        canvas.paint(canvas.cover(contact), pin * 0.9, window)
    canvas.gloss = 0.5
    return canvas
