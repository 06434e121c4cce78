# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Drawn parts: pictures to try the model on, and to train its small networks on, without any download."""
