# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""What a user may set of the references."""

# Without `from __future__ import annotations`: jsonargparse does not resolve `list[int]` as a text.
from typing import TypedDict


class ReferenceOptions(TypedDict, total=False):
    """What a user may set of the references.

    Args:
        rotate (bool): Whether good parts also count as turned by 90, 180 and 270 degrees. Defaults to ``False``.
        memory_limit (int): Most patches of good parts that are kept per tap, shared equally among the parts, and among
            the tiles of a part. Defaults to ``32768``; with tiles to ``8192``, as each of them is compared with all.
        text_share (float): Share of the text in the map; 0 gives the reference alone. Defaults to ``0.2`` for good
            parts and the batch, with tiles to ``0.5``, and else to ``0.3``.
        text_score_share (float): Share of the text in the image score. Defaults to ``0.2`` for good parts and the
            batch, else to ``0.4``.
        peak_share (float): Share of the map's pixels, the highest ones, whose mean is the reference's image score; 0
            for the maximum, as published for MuSc and APRIL-GAN. Defaults to ``0.01``.
        passing_share (float): Share of the good parts, or of the batch, that the image threshold lets pass. Defaults to
            none: what ``false_alarms`` says (with ``raw`` all good parts, and 0.9 of a batch).
        taps (list[int]): Blocks of a ViT, counted from 1, whose output is compared. Defaults to four, evenly spaced.
        raw (bool): Whether maps are half the distance, as published, and no probability. Defaults to ``False``.
        windows (list[int]): Pictures of a batch that share their image scores, MuSc's last step: published are 1, 2, 3
            for MVTec AD and 1, 8, 9 for VisA. It needs a ViT. Defaults to none.
    """

    rotate: bool
    memory_limit: int
    text_share: float
    text_score_share: float
    peak_share: float
    passing_share: float
    taps: list[int]
    raw: bool
    windows: list[int]
