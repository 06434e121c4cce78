# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""What happens around Lightning's passes: pictures in, predictions kept, checkpoints read."""
