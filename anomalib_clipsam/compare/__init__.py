# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""``anomalib-clipsam compare``: anomalib's models side by side, on the same footing; see ``docs/compare.md``."""
