# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""CLIP: text prompts and the anomaly maps that are made with them."""

from anomalib_clipsam.clip.build import build_clip, encode_ensemble
from anomalib_clipsam.clip.learned_prompts import LearnedPrompts
from anomalib_clipsam.clip.localizers import (
    LOCALIZERS,
    AnomalyClipLocalizer,
    AprilGanLocalizer,
    CraneLocalizer,
    DenseLocalizer,
    Localizer,
    MuScLocalizer,
    WinClipLocalizer,
    build_adapters,
)
from anomalib_clipsam.clip.prompts import PromptEnsemble

__all__ = [
    "LOCALIZERS",
    "AnomalyClipLocalizer",
    "AprilGanLocalizer",
    "CraneLocalizer",
    "DenseLocalizer",
    "LearnedPrompts",
    "Localizer",
    "MuScLocalizer",
    "PromptEnsemble",
    "WinClipLocalizer",
    "build_adapters",
    "build_clip",
    "encode_ensemble",
]
