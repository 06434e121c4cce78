# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""References beside the text: the picture itself, a few good parts, the unlabelled batch."""

from anomalib_clipsam.clip.references.batch import BatchReference, smooth_scores
from anomalib_clipsam.clip.references.few_shot import FewShotReference, quarter_turns
from anomalib_clipsam.clip.references.self_reference import SelfReference

__all__ = ["BatchReference", "FewShotReference", "SelfReference", "quarter_turns", "smooth_scores"]
