"""A gradient in int8 with one unit for the whole tensor, and the binary products that read it."""

from __future__ import annotations

from typing import Any

import numpy as np

from bnnopt.runtime.kernels import Array, at_least_float32
from bnnopt.runtime.kernels.reference import binary_products
from bnnopt.runtime.kernels.reference.dropout import draw_uniform
from bnnopt.runtime.kernels.reference.elementwise import cast
from bnnopt.runtime.kernels.reference.kernel import NumpyKernel
from bnnopt.runtime.kernels.reference.narrow import Product, dressed, place_of_dy
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
    q = rounded(x * (kind(TOP) / largest), step, seed, TOP)
    return q, np.asarray(largest / kind(TOP))


def rounded(place: Array, step: Array, seed: int, top: int) -> Array:
    """The integers next to `place`, above or below by chance, at most `top` large; writes place."""
    place += draw_uniform(place, step, low=0.0, scale=1.0, seed=seed)
    np.clip(np.floor(place, out=place), -top, top, out=place)
    return place.astype(np.int8)


def _reading_int8(plain: Product) -> Product:
    """A product of dy in int8, times its unit; dx is of the dtype that ONNX numbers so.

    The integers are floats of the unit's type as they are summed: sums below 2^24 are exact.
    """
    place = place_of_dy(plain)

    def product(*inputs: Array, dtype: int | None = None, **attributes: Any) -> Array:
        dy, unit = inputs[place : place + 2]
        wide = dy.astype(unit.dtype)
        sums = plain(*inputs[:place], wide, *inputs[place + 2 :], **attributes)
        return np.asarray(sums * unit) if dtype is None else cast(sums * unit, to=dtype)

    options = ["dtype"] if place == 0 else []  # in front: it makes dx
    return dressed(product, plain, ("dy", "dy_unit"), options)


binary_conv_weight_grad_int8 = _reading_int8(binary_products.binary_conv_weight_grad)
binary_conv_input_grad_int8 = _reading_int8(binary_products.binary_conv_input_grad)
binary_gemm_weight_grad_int8 = _reading_int8(binary_products.binary_gemm_weight_grad)
binary_gemm_input_grad_int8 = _reading_int8(binary_products.binary_gemm_input_grad)


def _signs_of(plain: Product, plain_signs: Product) -> Product:
    """The same, packed: (M, ceil(K / 8)) uint8, the bits of dw >= 0."""
    reading = _reading_int8(plain)

    def product(*inputs: Array, **attributes: Any) -> Array:
        return binarize_pack(reading(*inputs, **attributes), zero=1.0)

    return dressed(product, plain_signs, ("dy", "dy_unit"), [])


binary_conv_weight_grad_signs_int8 = _signs_of(
    binary_products.binary_conv_weight_grad, binary_products.binary_conv_weight_grad_signs
)
binary_gemm_weight_grad_signs_int8 = _signs_of(
    binary_products.binary_gemm_weight_grad, binary_products.binary_gemm_weight_grad_signs
)

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
