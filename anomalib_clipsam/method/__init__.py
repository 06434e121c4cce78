# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The method: point prompts, the cascade, the fusion, and what they are computed on."""
