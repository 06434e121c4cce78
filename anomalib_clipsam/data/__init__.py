# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Pictures of a pass: what is read, in which order, and what is left out."""
