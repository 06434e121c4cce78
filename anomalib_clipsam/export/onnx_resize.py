# Copyright (C) 2026 The anomalib_clipsam authors
# SPDX-License-Identifier: Apache-2.0

"""Antialiased bicubic resize in ONNX as two matrix products. Needs onnxscript.

ONNX has an operator for it, but few runtimes do: OpenVINO's reader drops the antialiasing, and its own operator
prepares each new picture size for up to half a minute. Products are the same everywhere.

Letters: H W image, S T size to resize to.
"""

# Without `from __future__ import annotations`: torch's exporter reads the types of `resize`.
from collections.abc import Sequence

import numpy as np
from onnx import numpy_helper
from onnxscript import FLOAT, INT64
from onnxscript import opset18 as op

from anomalib_clipsam.errors.errors import UserValueError


def _constant(value: object, kind: type) -> FLOAT:
    return op.Constant(value=numpy_helper.from_array(np.asarray(value, dtype=kind)))


def _weights(length: INT64, size: int) -> FLOAT:
    """What each of ``length`` pixels adds to each of ``size``: ``(size, length)``, rows of sum 1.

    The kernel is Keys' with a = -0.5, as torch's and Pillow's, stretched where the image shrinks. Positions are whole
    numbers, half pixels times ``size``: fractions above 256 would be lost where a runtime computes in bf16.
    """
    sides = _constant(size, np.int64)
    pixels = op.Mul(op.Range(_constant(0, np.int64), length, _constant(1, np.int64)), _constant(2, np.int64))
    pixels = op.Mul(op.Add(pixels, _constant(1, np.int64)), sides)  # (length,)
    centres = op.Mul(_constant(2 * np.arange(size)[:, None] + 1, np.int64), length)  # (size, 1)
    unit = op.Mul(op.Max(length, sides), _constant(2, np.int64))
    apart = op.Cast(op.Abs(op.Sub(pixels, centres)), to=FLOAT.dtype)
    x = op.Div(apart, op.Cast(unit, to=FLOAT.dtype))  # (size, length)
    # 1.5 x^3 - 2.5 x^2 + 1 up to 1, then -0.5 x^3 + 2.5 x^2 - 4 x + 2 up to 2
    zero, half, one, two, four = (_constant(value, np.float32) for value in (0, 0.5, 1, 2, 4))
    one_and_a_half, two_and_a_half = (_constant(value, np.float32) for value in (1.5, 2.5))
    near = op.Add(op.Mul(op.Mul(op.Sub(op.Mul(x, one_and_a_half), two_and_a_half), x), x), one)
    far = op.Add(op.Mul(op.Sub(op.Mul(op.Sub(two_and_a_half, op.Mul(x, half)), x), four), x), two)
    weights = op.Where(op.Less(x, one), near, op.Where(op.Less(x, two), far, zero))
    return op.Div(weights, op.ReduceSum(weights, op.Constant(value_ints=[1]), keepdims=1))


def resize(
    self: FLOAT,
    output_size: Sequence[int],
    align_corners: bool,
    scales_h: float | None = None,
    scales_w: float | None = None,
) -> FLOAT:
    """Translate ``aten::_upsample_bicubic2d_aa``, for ``custom_translation_table`` of ``torch.onnx.export``.

    Args:
        self (FLOAT): Images, ``(B, C, H, W)`` of any size.
        output_size (Sequence[int]): S and T.
        align_corners (bool): Must be ``False``, as in torchvision.
        scales_h (float | None): Not used: the sizes give the scale.
        scales_w (float | None): Likewise.

    Returns:
        FLOAT: ``(B, C, S, T)``.

    Raises:
        ValueError: If corners are to be aligned.
    """
    del scales_h, scales_w
    if align_corners:
        msg = "An antialiased resize with align_corners=True is not exported. Leave align_corners out."
        raise UserValueError(msg)
    height, width = (op.Squeeze(op.Shape(self, start=axis, end=axis + 1)) for axis in (2, 3))
    rows, columns = _weights(height, output_size[0]), _weights(width, output_size[1])
    turned = op.Transpose(op.MatMul(rows, self), perm=[0, 1, 3, 2])  # (B, C, W, S)
    # Turned back last: what follows a product goes into it in OpenVINO, which then takes columns for channels.
    return op.Transpose(op.MatMul(columns, turned), perm=[0, 1, 3, 2])
