# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""CLIP: text prompts and the anomaly maps that come of them."""

from anomalib_clipsam.clip.build import build_clip, encode_ensemble
from anomalib_clipsam.clip.localizer import (
    AprilGanLocalizer,
    DenseLocalizer,
    Localizer,
    WinClipLocalizer,
    build_adapters,
)
from anomalib_clipsam.clip.prompts import PromptEnsemble

__all__ = [
    "AprilGanLocalizer",
    "DenseLocalizer",
    "Localizer",
    "PromptEnsemble",
    "WinClipLocalizer",
    "build_adapters",
    "build_clip",
    "encode_ensemble",
]
