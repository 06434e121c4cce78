# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""How things are computed, not what: precision, linear layers, hashes."""
