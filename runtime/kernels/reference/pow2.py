"""Signed powers of two in 5 bits, and the binary products that read a dy kept so.

A packed tensor is ``(N, ceil(K / 2) + ceil(K / 8))`` uint8 for a tensor of shape ``(N, ...)`` with
K elements behind its first axis. Of every row first the exponents, element ``2 b + j`` in bits
``4 j`` to ``4 j + 3`` of byte b, then the signs as in `packing`, 1 for a negative element. Element
i is ``+-2^c unit`` for an exponent c of 1 to 15, and 0 for c = 0; unit is one number a tensor.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bnnopt.runtime.kernels import Array, at_least_float32
from bnnopt.runtime.kernels.reference import binary_products
from bnnopt.runtime.kernels.reference.elementwise import cast
from bnnopt.runtime.kernels.reference.kernel import NumpyKernel
from bnnopt.runtime.kernels.reference.narrow import Product, dressed, place_of_dy
from bnnopt.runtime.kernels.reference.packing import pack_bits, unpack_bits
from bnnopt.runtime.kernels.reference.parts import Axes

TOP = 15  # exponent of the largest element
LOWEST, HIGHEST = -126, 112  # of the unit: its multiples are normal float32 numbers
POWERS = np.append(0, 2.0 ** np.arange(1, 16))
HALF_OCTAVE = np.float64(math.sqrt(0.5))


@np.errstate(invalid="ignore")
def pow2_pack(x: Array) -> tuple[Array, Array]:
    """Take of each element the power of two that is next to it, by its logarithm.

    Parameters
    ----------
    x : (N, ...) float
        A largest magnitude M gets the exponent 15: unit = 2^(round(log2 M) - 15). Where all are 0
        so is unit, and where one is infinite or NaN unit is NaN; all bits are 0 then.

    Returns
    -------
    packed : (N, ceil(K / 2) + ceil(K / 8)) uint8
    unit : () float32, or float64 for float64
    """
    x = at_least_float32(x)
    largest = np.max(np.abs(x), initial=0)  # NaN if one is
    if not 0 < largest < np.inf:
        unit = np.asarray(largest * 0, x.dtype)
        return pow2_pack_codes(np.zeros(x.shape, np.uint8), np.zeros(x.shape, np.bool_)), unit
    base = int(np.clip(_rounded_log2(largest) - TOP, LOWEST, HIGHEST))
    codes = np.clip(_rounded_log2(x) - base, 0, TOP)
    codes[x == 0] = 0
    unit = np.asarray(np.ldexp(x.dtype.type(1), base))
    return pow2_pack_codes(codes.astype(np.uint8), x < 0), unit


def _rounded_log2(x: Array) -> Array:
    mantissa, exponent = np.frexp(np.abs(x))
    return np.asarray(exponent - (mantissa < HALF_OCTAVE))


def pow2_pack_codes(codes: Array, negative: Array) -> Array:
    """Pack the exponents 0 to 15 and the signs of a tensor (N, ...)."""
    rows = codes.reshape(len(codes), math.prod(codes.shape[1:]))
    pairs = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2)))
    return np.hstack([pairs[:, ::2] | pairs[:, 1::2] << 4, pack_bits(negative)])


def pow2_unpack(packed: Array, unit: Array, *, shape: list[int]) -> Array:
    """Return (N, *shape) in the dtype of unit: 0, or plus or minus a power of two times unit."""
    length = math.prod(shape)
    exponents, signs = np.hsplit(packed, [-(-length // 2)])
    codes = np.stack([exponents & 15, exponents >> 4], axis=-1)
    codes = codes.reshape(len(packed), 2 * exponents.shape[1])
    x = POWERS.astype(unit.dtype)[codes[:, :length]].reshape(len(packed), *shape)
    np.negative(x, out=x, where=unpack_bits(signs, shape=shape))
    return np.asarray(x * unit)


def _reading_pow2(plain: Product) -> Product:
    """A product of a packed dy of shape (N, *dy_shape); dx is of the dtype that ONNX numbers so."""
    place = place_of_dy(plain)

    def product(
        *inputs: Array, dy_shape: list[int], dtype: int | None = None, **attributes: Any
    ) -> Array:
        dy = pow2_unpack(*inputs[place : place + 2], shape=dy_shape)
        result = plain(*inputs[:place], dy, *inputs[place + 2 :], **attributes)
        return result if dtype is None else cast(result, to=dtype)

    options = ["dy_shape", *(["dtype"] if place == 0 else [])]  # in front: it makes dx
    return dressed(product, plain, ("dy_packed", "dy_unit"), options)


binary_conv_weight_grad_pow2 = _reading_pow2(binary_products.binary_conv_weight_grad)
binary_gemm_weight_grad_pow2 = _reading_pow2(binary_products.binary_gemm_weight_grad)

KERNELS: dict[str, NumpyKernel] = {
    "BinaryConvInputGradPow2": NumpyKernel(
        _reading_pow2(binary_products.binary_conv_input_grad), Axes("0", "0")
    ),
    "BinaryConvWeightGradPow2": NumpyKernel(binary_conv_weight_grad_pow2),
    "BinaryConvWeightGradSignsPow2": NumpyKernel(
        _reading_pow2(binary_products.binary_conv_weight_grad_signs)
    ),
    "BinaryGemmInputGradPow2": NumpyKernel(_reading_pow2(binary_products.binary_gemm_input_grad)),
    "BinaryGemmWeightGradPow2": NumpyKernel(binary_gemm_weight_grad_pow2),
    "BinaryGemmWeightGradSignsPow2": NumpyKernel(
        _reading_pow2(binary_products.binary_gemm_weight_grad_signs)
    ),
    "Pow2Pack": NumpyKernel(pow2_pack),
    "Pow2Unpack": NumpyKernel(pow2_unpack, Axes("0", "0")),
}
