# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""A model for trying a comparison without downloads."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

from anomalib.models import WinClip


class UntrainedWinClip(WinClip):
    """anomalib's WinClip with random weights in its CLIP: it shows that WinClip runs, and its figures say nothing.

    Args:
        **kwargs: Arguments of :class:`anomalib.models.WinClip`.
    """

    def __init__(self, **kwargs: Any) -> None:
        # anomalib has no argument for it; without a name, open_clip keeps the random weights.
        with patch("anomalib.models.image.winclip.torch_model.PRETRAINED", None):
            super().__init__(**kwargs)
