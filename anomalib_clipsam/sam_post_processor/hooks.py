# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""How a model of anomalib shows its images to its SamPostProcessor, which anomalib 2.7 gives the maps only.

torch tells, by a hook for every module of the process, when a model gets a post-processor. It is registered once, with
the first SamPostProcessor. It can go when anomalib hands a post-processor the images too; no upstream issue is known.
"""

from __future__ import annotations

import sys
from functools import cache, partial

from anomalib.models.components import AnomalibModule
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from anomalib_clipsam.errors.errors import UserValueError


@cache
def listen_for(kind: type[nn.Module]) -> None:
    """Let every model of anomalib that gets a post-processor of this kind show it its images.

    Args:
        kind (type[nn.Module]): The kind; it has a method ``show``, a hook before the model's ``forward``.
    """
    register_module_module_registration_hook(partial(_introduce, kind))


def _introduce(kind: type[nn.Module], module: nn.Module, _name: str, submodule: nn.Module | None) -> None:
    """Register the hook of a model that gets a post-processor."""
    if isinstance(submodule, kind) and isinstance(module, AnomalibModule):
        _refuse_to_lose_sam(type(module).__name__)
        module.register_forward_pre_hook(submodule.show)


def _refuse_to_lose_sam(model: str) -> None:
    """Raise on a command line that exports a checkpoint.

    anomalib's ``Engine.export`` builds a model of the checkpoint's own there, and asks no post-processor.
    """
    if sys.argv[1:2] == ["export"] and any(argument.startswith("--ckpt_path") for argument in sys.argv):
        msg = (
            f"`anomalib export --ckpt_path` builds {model} anew with its default post-processor: SAM would be lost. "
            f"Export in Python: {model}.load_from_checkpoint(path, post_processor=SamPostProcessor()).to_onnx(folder)."
        )
        raise UserValueError(msg)
