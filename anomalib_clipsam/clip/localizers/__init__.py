# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The maps that CLIP gives, each in a file, behind one interface. Which one the paper uses is unknown.

A new one is a subclass of :class:`Localizer` in a file of its own and an entry of :data:`LOCALIZERS`.
"""

from anomalib_clipsam.clip.localizers.anomaly_clip import AnomalyClipLocalizer
from anomalib_clipsam.clip.localizers.april_gan import AprilGanLocalizer, build_adapters
from anomalib_clipsam.clip.localizers.base import Localizer
from anomalib_clipsam.clip.localizers.crane import CraneLocalizer
from anomalib_clipsam.clip.localizers.dense import DenseLocalizer
from anomalib_clipsam.clip.localizers.musc import MuScLocalizer
from anomalib_clipsam.clip.localizers.pyramid import FeaturePyramid, PyramidLocalizer, build_pyramid
from anomalib_clipsam.clip.localizers.winclip import WinClipLocalizer

LOCALIZERS: dict[str, type[Localizer]] = {
    "dense": DenseLocalizer,
    "april_gan": AprilGanLocalizer,
    "anomaly_clip": AnomalyClipLocalizer,
    "crane": CraneLocalizer,
    "winclip": WinClipLocalizer,
    "musc": MuScLocalizer,
    "pyramid": PyramidLocalizer,
}
"""What ``localizer`` may name."""

__all__ = [
    "LOCALIZERS",
    "AnomalyClipLocalizer",
    "AprilGanLocalizer",
    "CraneLocalizer",
    "DenseLocalizer",
    "FeaturePyramid",
    "Localizer",
    "MuScLocalizer",
    "PyramidLocalizer",
    "WinClipLocalizer",
    "build_adapters",
    "build_pyramid",
]
