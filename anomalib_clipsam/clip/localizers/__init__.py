# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Localizers: from an image to CLIP's anomaly map S_a and an image score."""
