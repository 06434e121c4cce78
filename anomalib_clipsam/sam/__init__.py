# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""SAM: the published architectures, a small one for the demo, and the decoder passes for many images at once."""

from anomalib_clipsam.sam.build import SAM_ARCHITECTURES, build_sam
from anomalib_clipsam.sam.decoder import decode

__all__ = ["SAM_ARCHITECTURES", "build_sam", "decode"]
