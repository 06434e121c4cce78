# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The features that MuSc compares: CLIP's, with the position embedding resized as its code does.

Reference:
    Li et al., "MuSc", https://arxiv.org/abs/2401.16753
"""

from __future__ import annotations

from anomalib_clipsam.clip.localizers.dense import DenseLocalizer


class MuScLocalizer(DenseLocalizer):
    """As ``dense``, for references as MuSc published them: bicubic position embedding without antialiasing.

    MuSc has no text. Its own activation is plain GELU, ``clip_quick_gelu=False``; see ``configs/musc_mvtec_ad.yaml``.
    """

    position_resize = ("bicubic", False)
