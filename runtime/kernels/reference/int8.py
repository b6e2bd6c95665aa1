"""A gradient in int8 with one unit for the whole tensor, and the binary products that read it."""

from __future__ import annotations

import numpy as np

from bnnopt.runtime.kernels import Array, at_least_float32
from bnnopt.runtime.kernels.reference import binary_products
from bnnopt.runtime.kernels.reference.dropout import draw_uniform
from bnnopt.runtime.kernels.reference.elementwise import cast
from bnnopt.runtime.kernels.reference.kernel import NumpyKernel
from bnnopt.runtime.kernels.reference.packing import binarize_pack
from bnnopt.runtime.kernels.reference.parts import Axes

TOP = 127
LEAST = 2.0**-100  # below which a largest magnitude counts as this


@np.errstate(invalid="ignore")
def int8_pack(x: Array, step: Array, *, seed: int) -> tuple[Array, Array]:
    """Round x / unit to one of the two integers next to it, by chance: its mean is x / unit.

    Parameters
    ----------
    x : any shape, float
        Where one is infinite or NaN unit is NaN, and all integers are 0.
    step : int64 scalar
    seed : int
        With `step`, of the bits; see `dropout.random_bits`.

    Returns
    -------
    q : int8, the shape of x, -127 to 127
    unit : () float32, or float64 for float64
    """
    x = at_least_float32(x)
    found, kind = np.max(np.abs(x), initial=0), x.dtype.type  # NaN if one is
    if not np.isfinite(found):
        return np.zeros(x.shape, np.int8), np.asarray(kind(np.nan))
    largest = max(kind(found), kind(LEAST))
    place = x * (kind(TOP) / largest)
    place += draw_uniform(x, step, low=0.0, scale=1.0, seed=seed)
    np.clip(np.floor(place, out=place), -TOP, TOP, out=place)
    return place.astype(np.int8), np.asarray(largest / kind(TOP))


def binary_conv_weight_grad_int8(
    x_packed: Array,
    dy: Array,
    dy_unit: Array,
    *,
    x_shape: list[int],
    kernel_shape: list[int],
    strides: list[int],
    pads: list[int],
    dilations: list[int],
    group: int,
) -> Array:
    """`binary_products.binary_conv_weight_grad` of dy (N, M, Ho, Wo) int8, times the unit."""
    sums = binary_products.binary_conv_weight_grad(
        x_packed, _wide(dy, dy_unit), x_shape=x_shape, kernel_shape=kernel_shape, strides=strides,
        pads=pads, dilations=dilations, group=group,
    )  # fmt: skip
    return np.asarray(sums * dy_unit)


def binary_conv_weight_grad_signs_int8(
    x_packed: Array,
    dy: Array,
    dy_unit: Array,
    *,
    x_shape: list[int],
    kernel_shape: list[int],
    strides: list[int],
    pads: list[int],
    dilations: list[int],
    group: int,
) -> Array:
    """Pack `binary_conv_weight_grad_int8` >= 0: (M, ceil(K / 8)) uint8."""
    dw = binary_conv_weight_grad_int8(
        x_packed, dy, dy_unit, x_shape=x_shape, kernel_shape=kernel_shape, strides=strides,
        pads=pads, dilations=dilations, group=group,
    )  # fmt: skip
    return binarize_pack(dw, zero=1.0)


def binary_conv_input_grad_int8(
    dy: Array,
    dy_unit: Array,
    w_packed: Array,
    *,
    input_shape: list[int],
    w_shape: list[int],
    strides: list[int],
    pads: list[int],
    dilations: list[int],
    group: int,
    output_padding: list[int],
    dtype: int,
) -> Array:
    """`binary_products.binary_conv_input_grad` of dy (N, M, Ho, Wo) int8, times the unit."""
    sums = binary_products.binary_conv_input_grad(
        _wide(dy, dy_unit), w_packed, input_shape=input_shape, w_shape=w_shape, strides=strides,
        pads=pads, dilations=dilations, group=group, output_padding=output_padding,
    )  # fmt: skip
    return cast(sums * dy_unit, to=dtype)


def binary_gemm_weight_grad_int8(
    x_packed: Array, dy: Array, dy_unit: Array, *, x_shape: list[int]
) -> Array:
    """`binary_products.binary_gemm_weight_grad` of dy (N, M) int8, times the unit."""
    wide = _wide(dy, dy_unit)
    sums = binary_products.binary_gemm_weight_grad(x_packed, wide, x_shape=x_shape)
    return np.asarray(sums * dy_unit)


def binary_gemm_weight_grad_signs_int8(
    x_packed: Array, dy: Array, dy_unit: Array, *, x_shape: list[int]
) -> Array:
    """Pack `binary_gemm_weight_grad_int8` >= 0: (M, ceil(K / 8)) uint8."""
    dw = binary_gemm_weight_grad_int8(x_packed, dy, dy_unit, x_shape=x_shape)
    return binarize_pack(dw, zero=1.0)


def binary_gemm_input_grad_int8(
    dy: Array, dy_unit: Array, w_packed: Array, *, w_shape: list[int], dtype: int
) -> Array:
    """`binary_products.binary_gemm_input_grad` of dy (N, M) int8, times the unit."""
    wide = _wide(dy, dy_unit)
    sums = binary_products.binary_gemm_input_grad(wide, w_packed, w_shape=w_shape)
    return cast(sums * dy_unit, to=dtype)


def _wide(dy: Array, unit: Array) -> Array:
    """The integers, as floats of the unit's type: sums below 2^24 are exact."""
    return dy.astype(unit.dtype)


KERNELS: dict[str, NumpyKernel] = {
    "BinaryConvInputGradInt8": NumpyKernel(binary_conv_input_grad_int8, Axes("0", "0")),
    "BinaryConvWeightGradInt8": NumpyKernel(binary_conv_weight_grad_int8, Axes("-1", "0")),
    "BinaryConvWeightGradSignsInt8": NumpyKernel(
        binary_conv_weight_grad_signs_int8, Axes("-1", "0")
    ),
    "BinaryGemmInputGradInt8": NumpyKernel(binary_gemm_input_grad_int8),
    "BinaryGemmWeightGradInt8": NumpyKernel(binary_gemm_weight_grad_int8, Axes("-1", "0")),
    "BinaryGemmWeightGradSignsInt8": NumpyKernel(
        binary_gemm_weight_grad_signs_int8, Axes("-1", "0")
    ),
    "Int8Pack": NumpyKernel(int8_pack),
}
