# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""The precision that the two image encoders compute in, the costly nine tenths and more of the method.

Weights, residual streams, comparisons with the text, PPG, CPS and fusion stay in float32 in any case: what a rounding
error would turn into another point or another pixel.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from functools import cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

logger = logging.getLogger(__name__)

PRECISIONS = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What may be asked for, and what matrix products are then computed in. ``None`` leaves them as they come."""


@cache  # so that it warns once
def check_precision(precision: str, device: torch.device) -> None:
    """See whether a device computes well in a precision.

    Args:
        precision (str): One of :data:`PRECISIONS`.
        device (torch.device): Where the model is.

    Raises:
        ValueError: If the device has no fp16, or a GPU no bf16. A CPU that only imitates bf16 gets a warning: the
            answer is right, but it takes longer than float32.
    """
    if precision == "fp16" and device.type == "cpu":
        msg = "precision='fp16' needs a GPU. On a CPU, choose 'bf16' or 'float32'."
        raise ValueError(msg)
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        msg = f"{torch.cuda.get_device_name(device)} does not compute in bf16. Choose precision='fp16' or 'float32'."
        raise ValueError(msg)
    if precision == "bf16" and device.type == "cpu" and not cpu_has_bf16():
        logger.warning("This CPU has no bf16 of its own: precision='bf16' will be slower than 'float32'.")


def cpu_has_bf16() -> bool:
    """Say whether this CPU multiplies bf16 numbers by itself.

    Returns:
        bool: ``True`` for x86 with AVX-512 BF16 or AMX, for Arm with BF16, and where torch is too old to tell.
    """
    if not hasattr(torch.cpu, "get_capabilities"):
        return True
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def encoders_in(precision: str, device_type: str) -> AbstractContextManager:
    """Compute in a precision what is called inside.

    Args:
        precision (str): One of :data:`PRECISIONS`. With ``"float32"``, what Lightning's ``precision`` says holds.
        device_type (str): Type of the device, such as ``"cuda"``.

    Returns:
        AbstractContextManager: The context. It does nothing while the model is exported: the target decides then.
    """
    dtype = PRECISIONS[precision]
    if dtype is None or torch.compiler.is_exporting():
        return nullcontext()
    return torch.autocast(device_type, dtype)


def full_precision(device_type: str) -> AbstractContextManager:
    """Compute in float32 what is called inside, whatever is around it.

    Args:
        device_type (str): Type of the device.

    Returns:
        AbstractContextManager: The context; it does nothing where nothing lowers the precision.
    """
    if not torch.amp.is_autocast_available(device_type) or not torch.is_autocast_enabled(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)
