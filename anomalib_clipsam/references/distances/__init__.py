# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Distances of a picture's patches: from its own, from a few reference images', from a batch's."""
