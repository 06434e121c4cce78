# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Precision of the two image encoders, which take more than nine tenths of the time.

Weights, residual streams, comparisons with the text, PPG, CPS and fusion always stay in float32: a rounding error there
could move a point or a pixel.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from functools import cache
from typing import TYPE_CHECKING

import torch

from anomalib_clipsam.errors.errors import UserValueError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

logger = logging.getLogger(__name__)

PRECISIONS = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Name -> type that matrix products are computed in; ``None`` leaves it as it is."""


@cache  # so that it warns once
def check_precision(precision: str, device: torch.device) -> None:
    """Check that a device supports a precision.

    Args:
        precision (str): One of :data:`PRECISIONS`.
        device (torch.device): Where the model is.

    Raises:
        ValueError: If the device has no fp16, or a GPU no bf16. A CPU that emulates bf16 gets a warning: the result is
            right, but takes longer than in float32.
    """
    if precision == "fp16" and device.type == "cpu":
        msg = "precision='fp16' needs a GPU. On a CPU, choose 'bf16' or 'float32'."
        raise UserValueError(msg)
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        msg = f"{torch.cuda.get_device_name(device)} does not compute in bf16. Choose precision='fp16' or 'float32'."
        raise UserValueError(msg)
    if precision == "bf16" and device.type == "cpu" and not cpu_has_bf16():
        logger.warning("This CPU has no native bf16: precision='bf16' will be slower than 'float32'.")


def cpu_has_bf16() -> bool:
    """Check whether this CPU has native bf16.

    Returns:
        bool: ``True`` for x86 with AVX-512 BF16 or AMX, for Arm with BF16, and where torch is too old to tell.
    """
    if not hasattr(torch.cpu, "get_capabilities"):
        return True
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def encoders_in(precision: str, device_type: str) -> AbstractContextManager:
    """Run the enclosed code in a precision.

    Args:
        precision (str): One of :data:`PRECISIONS`. ``"float32"`` leaves it to Lightning's ``precision``.
        device_type (str): Type of the device, such as ``"cuda"``.

    Returns:
        AbstractContextManager: The context. It does nothing during an export: there the target decides.
    """
    dtype = PRECISIONS[precision]
    if dtype is None or torch.compiler.is_exporting():
        return nullcontext()
    return torch.autocast(device_type, dtype)


def full_precision(device_type: str) -> AbstractContextManager:
    """Run the enclosed code in float32, whatever is around it.

    Args:
        device_type (str): Type of the device.

    Returns:
        AbstractContextManager: The context; it does nothing where nothing lowers the precision.
    """
    if not torch.amp.is_autocast_available(device_type) or not torch.is_autocast_enabled(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def precision_in_use(precision: str, device_type: str) -> str:
    """Name what :func:`encoders_in` computes in.

    Args:
        precision (str): One of :data:`PRECISIONS`.
        device_type (str): Type of the device.

    Returns:
        str: That precision, or the one of the autocast around it, such as Lightning's.
    """
    if PRECISIONS[precision] is None and torch.amp.is_autocast_available(device_type):
        around = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None
        return next((name for name, dtype in PRECISIONS.items() if dtype == around), precision)
    return precision
