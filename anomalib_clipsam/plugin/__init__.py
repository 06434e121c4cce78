# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""What ties the method to Lightning's passes: ClipSam's parts, pre- and post-processor, checkpoints."""
