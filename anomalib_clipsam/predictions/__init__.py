# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The command `predictions`: a folder of pictures in, tables and masks out."""
