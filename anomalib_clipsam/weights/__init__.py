# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Weights: the table of them, where files are found, and how a file becomes a model."""
