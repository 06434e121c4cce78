# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Errors and log lines: what they say, and how a command line shows them."""
