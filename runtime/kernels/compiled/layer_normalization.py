"""The compiled layer normalisation and its gradient."""

from __future__ import annotations

import math

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled.calls import (
    Arrays,
    Attributes,
    covered,
    integer,
    number,
    optional,
)
from bnnopt.runtime.kernels.compiled.functions import CFunction
from bnnopt.runtime.kernels.compiled.kernel import CompiledKernel

LAYER_NORMALIZATION = CFunction(
    "void bnn_layer_normalization_f32(float*, float*, float*, float*, float*, float*, i64, i64, "
    "float)"
)
LAYER_NORMALIZATION_GRAD = CFunction(
    "void bnn_layer_normalization_grad_f32(float*, float*, float*, float*, float*, float*, void*, "
    "i64, i64, float)"
)
UNITS = 16  # LAYER_UNITS in C


def layer_normalization(
    inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array
) -> bool:
    """`layer_normalization.layer_normalization`; both statistics may be left out."""
    x, scale, bias = *inputs[:2], optional(inputs, 2)
    y, mean, inv_std = outputs[0], optional(outputs, 1), optional(outputs, 2)
    given = [array for array in (bias, mean, inv_std) if array is not None]
    if not covered(x, scale, y, *given):
        return False
    assert x is not None
    assert scale is not None
    options = {"axis": -1, "epsilon": 1e-5, **attributes}
    length = math.prod(x.shape[integer(options, "axis") % x.ndim :])
    if x.size == 0 or scale.size != length or (bias is not None and bias.size != length):
        return False
    sizes = x.size // length, length
    return LAYER_NORMALIZATION(x, scale, bias, y, mean, inv_std, *sizes, number(options, "epsilon"))


def layer_normalization_grad(
    inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array
) -> bool:
    """`layer_normalization.layer_normalization_grad`."""
    (dy, x, scale), (dx, dscale, dbias) = inputs, outputs
    if not covered(dy, x, scale, dx, dscale, dbias) or scratch.ctypes.data % 8:
        return False
    assert x is not None
    assert scale is not None
    length = scale.size
    if x.size == 0 or scratch.size < _scratch_bytes(length):
        return False
    epsilon = number(attributes, "epsilon")
    return LAYER_NORMALIZATION_GRAD(
        dy, x, scale, dx, dscale, dbias, scratch, x.size // length, length, epsilon
    )


def _scratch_bytes(length: int) -> int:
    """Of the sums in float64 of each unit, for the scale and for the bias."""
    return UNITS * 2 * length * np.dtype(np.float64).itemsize


KERNELS: dict[str, CompiledKernel] = {
    "LayerNormalization": CompiledKernel(layer_normalization, repeatable=True),
    "LayerNormalizationGrad": CompiledKernel(
        layer_normalization_grad,
        lambda sizes: _scratch_bytes(math.prod(sizes.inputs[2])),
        repeatable=True,
    ),
}
