"""A gradient in four bits with one unit for the whole tensor, and the products that read it.

A packed tensor is ``(N, ceil(K / 2))`` uint8 for one of shape ``(N, ...)`` with K elements behind
its first axis: element ``2 b + j`` in bits ``4 j`` to ``4 j + 3`` of byte b, 8 more than it is.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bnnopt.runtime.kernels import Array, at_least_float32
from bnnopt.runtime.kernels.reference import int8
from bnnopt.runtime.kernels.reference.kernel import NumpyKernel
from bnnopt.runtime.kernels.reference.narrow import Product, dressed, place_of_dy
from bnnopt.runtime.kernels.reference.parts import Axes

TOP = 7
MIDDLE = 8  # what a packed element has more than the integer
MAX_HALVINGS = 5


@np.errstate(invalid="ignore")
def int4_pack(x: Array, step: Array, *, seed: int, one_in: int) -> tuple[Array, Array]:
    """Round x / unit to one of the two integers next to it, by chance, and cut off what is beyond.

    Parameters
    ----------
    x : (N, ...) float
        Where one is infinite or NaN unit is NaN, and all integers are 0.
    step : int64 scalar
    seed : int
        With `step`, of the bits; see `dropout.random_bits`.
    one_in : int
        The largest magnitude is halved, five times at most, as long as no more than one element in
        so many exceeds the half; 7 units are what that leaves.

    Returns
    -------
    packed : (N, ceil(K / 2)) uint8
    unit : () float32, or float64 for float64
    """
    x = at_least_float32(x)
    magnitude, kind = np.abs(x), x.dtype.type
    found = np.max(magnitude, initial=0)  # NaN if one is
    if not np.isfinite(found):
        return pack_codes(np.zeros(x.shape, np.int8)), np.asarray(kind(np.nan))
    largest = max(kind(found), kind(int8.LEAST))
    halves = (largest * kind(0.5**k) for k in range(1, MAX_HALVINGS + 1))
    n_halvings = sum(np.count_nonzero(magnitude > half) * one_in <= x.size for half in halves)
    reach = largest * kind(0.5**n_halvings)
    q = int8.rounded(x * (kind(TOP) / reach), step, seed, TOP)
    return pack_codes(q), np.asarray(reach / kind(TOP))


def pack_codes(q: Array) -> Array:
    """Pack integers (N, ...) of -8 to 7."""
    rows = (q + MIDDLE).astype(np.uint8).reshape(len(q), math.prod(q.shape[1:]))
    pairs = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2)))
    return np.ascontiguousarray(pairs[:, ::2] | pairs[:, 1::2] << 4)


def int4_unpack(packed: Array, *, shape: list[int]) -> Array:
    """Return the integers (N, *shape) int8."""
    codes = np.stack([packed & 15, packed >> 4], axis=-1)
    codes = codes.reshape(len(packed), 2 * packed.shape[1])[:, : math.prod(shape)]
    return (codes.astype(np.int8) - np.int8(MIDDLE)).reshape(len(packed), *shape)


def _reading_int4(wide: Product) -> Product:
    """A product of a packed dy of shape (N, *dy_shape), as `wide` is of one in int8."""
    place = place_of_dy(wide)

    def product(*inputs: Array, dy_shape: list[int], **attributes: Any) -> Array:
        read = [*inputs]
        read[place] = int4_unpack(read[place], shape=dy_shape)
        return wide(*read, **attributes)

    return dressed(product, wide, ("dy_packed",), ["dy_shape"])


binary_conv_weight_grad_int4 = _reading_int4(int8.binary_conv_weight_grad_int8)
binary_gemm_weight_grad_int4 = _reading_int4(int8.binary_gemm_weight_grad_int8)

KERNELS: dict[str, NumpyKernel] = {
    "BinaryConvInputGradInt4": NumpyKernel(
        _reading_int4(int8.binary_conv_input_grad_int8), Axes("0", "0")
    ),
    "BinaryConvWeightGradInt4": NumpyKernel(binary_conv_weight_grad_int4),
    "BinaryConvWeightGradSignsInt4": NumpyKernel(
        _reading_int4(int8.binary_conv_weight_grad_signs_int8)
    ),
    "BinaryGemmInputGradInt4": NumpyKernel(_reading_int4(int8.binary_gemm_input_grad_int8)),
    "BinaryGemmWeightGradInt4": NumpyKernel(binary_gemm_weight_grad_int4),
    "BinaryGemmWeightGradSignsInt4": NumpyKernel(
        _reading_int4(int8.binary_gemm_weight_grad_signs_int8)
    ),
    "Int4Pack": NumpyKernel(int4_pack),
    "Int4Unpack": NumpyKernel(int4_unpack),
}
