# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""``anomalib-clipsam app``: one picture after the other, in a browser."""
