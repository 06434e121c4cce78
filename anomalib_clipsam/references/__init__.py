# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""References beside the text: the picture itself, a few good parts, the unlabelled batch."""

from anomalib_clipsam.compute.hashing import picture_key
from anomalib_clipsam.references.batch_judge import BatchJudge
from anomalib_clipsam.references.build import REFERENCES, build_judge
from anomalib_clipsam.references.calibration import KINDS, Calibration, passing_threshold
from anomalib_clipsam.references.combination import Combination
from anomalib_clipsam.references.distances.batch import LEAST_PICTURES, BatchReference, smooth_scores
from anomalib_clipsam.references.distances.features import peak_score
from anomalib_clipsam.references.distances.few_shot import FewShotReference, quarter_turns
from anomalib_clipsam.references.distances.self_reference import SelfReference
from anomalib_clipsam.references.few_shot_judge import FewShotJudge
from anomalib_clipsam.references.judge import Judge, Thresholds
from anomalib_clipsam.references.options import ReferenceOptions
from anomalib_clipsam.references.self_judge import SelfJudge
from anomalib_clipsam.references.tiled_batch_judge import TiledBatchJudge

__all__ = [
    "KINDS",
    "LEAST_PICTURES",
    "REFERENCES",
    "BatchJudge",
    "BatchReference",
    "Calibration",
    "Combination",
    "FewShotJudge",
    "FewShotReference",
    "Judge",
    "ReferenceOptions",
    "SelfJudge",
    "SelfReference",
    "Thresholds",
    "TiledBatchJudge",
    "build_judge",
    "passing_threshold",
    "peak_score",
    "picture_key",
    "quarter_turns",
    "smooth_scores",
]
