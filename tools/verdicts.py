# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""What verdicts and outlines are worth on labelled pictures, for several folders and ways to compare at once.

Each folder has the layout of MVTec AD: ``train/good``, ``test/KIND`` and ``ground_truth/KIND``. Predictions are made as
by ``anomalib-clipsam predictions``; a single folder can be checked by ``anomalib-clipsam check`` too.

    python tools/verdicts.py bottle capsule --ways 4 8 batch none
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np

from anomalib_clipsam import ClipSam
from anomalib_clipsam.predictions.check import Figures, check, to_markdown


def build(way: str, folder: Path, weights: str, **options: object) -> ClipSam:
    """Build the model for a way to compare: a number of good parts, or one of ``references``."""
    if way.isdigit():
        options |= {"k_shot": int(way), "few_shot_source": str(folder / "train" / "good")}
    else:
        options["references"] = way
    return ClipSam(weights=weights, **options)


def mean(rows: list[Figures]) -> Figures:
    """Mean of each figure; the pictures are added up."""
    columns = {name: [getattr(row, name) for row in rows] for name in Figures.__dataclass_fields__}
    return Figures(**{n: sum(v) if n == "pictures" else float(np.nanmean(v)) for n, v in columns.items()})


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="DATA", help="folders in the layout of MVTec AD")
    parser.add_argument("--ways", nargs="+", default=["4"], help="numbers of good parts, none, self, batch")
    parser.add_argument("--weights", default="lite")
    args = parser.parse_args()
    logging.getLogger("anomalib_clipsam").setLevel(logging.ERROR)
    for way in args.ways:
        found = {f: check(build(way, f, args.weights), f, quiet=True, accelerator="cpu") for f in args.folders}
        rows = [(folder.name, figures) for folder, figures in found.items()]
        rows += [("mean", mean(list(found.values())))] if len(rows) > 1 else []
        print(f"\n{way} good parts\n" if way.isdigit() else f"\n{way}\n")
        print(to_markdown(rows), flush=True)


if __name__ == "__main__":
    main()
