# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""CLIP: its text prompts, and how it is built."""

from anomalib_clipsam.clip.build import build_clip, encode_ensemble
from anomalib_clipsam.clip.learned_prompts import LearnedPrompts
from anomalib_clipsam.clip.prompts import PromptEnsemble

__all__ = [
    "LearnedPrompts",
    "PromptEnsemble",
    "build_clip",
    "encode_ensemble",
]
