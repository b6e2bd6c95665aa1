"""Products with +-1 tensors that are kept as bits: unpacked by tiles, then multiplied as floats.

Packed tensors are as in `packing`: (N, ceil(K / 8)) uint8, bit j of byte b is element 8 b + j.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import DTypeLike

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.reference.convolution import (
    conv,
    conv_input_grad,
    weight_grad_of_samples,
)
from bnnopt.runtime.kernels.reference.elementwise import cast
from bnnopt.runtime.kernels.reference.kernel import NumpyKernel
from bnnopt.runtime.kernels.reference.packing import binarize_pack
from bnnopt.runtime.kernels.reference.parts import Axes

TILE_BYTES = 1 << 20  # of unpacked floats, but one row at least
FILTERS_BYTES = 1 << 22  # the same of a convolution's weights: each tile gathers its columns anew


def binary_conv(
    x_packed: Array,
    w_packed: Array,
    *,
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    group: int,
    dtype: int,
) -> Array:
    """Convolve, padding with zeros.

    Parameters
    ----------
    x_packed : (N, ceil(C H W / 8)) uint8; `x_shape` is (C, H, W)
    w_packed : (M, ceil(C / group kh kw / 8)) uint8; `w_shape` is (C / group, kh, kw)

    Returns
    -------
    (N, M, Ho, Wo), integers, in the dtype with the ONNX number `dtype`
    """
    tiles = []
    for _, x in _tiles(x_packed, x_shape, np.float32):
        filters = [
            cast(conv(x, w, strides=strides, pads=pads, dilations=dilations, group=group), to=dtype)
            for _, w in _filters(w_packed, w_shape, np.float32, group)
        ]
        tiles.append(np.concatenate(filters, axis=1))
    return np.concatenate(tiles)


def binary_conv_weight_grad(
    x_packed: Array,
    dy: Array,
    *,
    x_shape: Sequence[int],
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    group: int,
) -> Array:
    """Gradient of `binary_conv` with respect to its weights, one sample at a time.

    Parameters
    ----------
    x_packed : (N, ceil(C H W / 8)) uint8; `x_shape` is (C, H, W)
    dy : (N, M, Ho, Wo) float

    Returns
    -------
    (M, C / group, *kernel_shape), the dtype of dy, but float32 for float16
    """
    dtype = np.result_type(dy.dtype, np.float32)
    samples = (sample for _, tile in _tiles(x_packed, x_shape, dtype) for sample in tile)
    return weight_grad_of_samples(
        samples, dy, shape=x_shape, dtype=dtype, kernel_shape=kernel_shape, strides=strides,
        pads=pads, dilations=dilations, group=group,
    )  # fmt: skip


def binary_conv_weight_grad_signs(
    x_packed: Array,
    dy: Array,
    *,
    x_shape: Sequence[int],
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    group: int,
) -> Array:
    """Pack `binary_conv_weight_grad` >= 0: (M, ceil(K / 8)) uint8, K elements a filter."""
    dw = binary_conv_weight_grad(
        x_packed, dy, x_shape=x_shape, kernel_shape=kernel_shape, strides=strides, pads=pads,
        dilations=dilations, group=group,
    )  # fmt: skip
    return binarize_pack(dw, zero=1.0)


def binary_conv_input_grad(
    dy: Array,
    w_packed: Array,
    *,
    input_shape: Sequence[int],
    w_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    group: int,
    output_padding: Sequence[int],
) -> Array:
    """Gradient of `binary_conv` with respect to its input; `output_padding` follows from shapes.

    Parameters
    ----------
    dy : (N, M, Ho, Wo) float
    w_packed : (M, ceil(C / group kh kw / 8)) uint8; `w_shape` is (C / group, kh, kw)
    input_shape : (H, W)

    Returns
    -------
    (N, C, *input_shape), the dtype of dy
    """
    wide = _wide(dy)
    dx = np.zeros((len(dy), w_shape[0] * group, *input_shape), wide.dtype)
    for rows, w in _filters(w_packed, w_shape, wide.dtype, group):
        dx += conv_input_grad(
            wide[:, rows], w, input_shape=input_shape, strides=strides, pads=pads,
            dilations=dilations, group=group,
        )  # fmt: skip
    return dx.astype(dy.dtype, copy=False)


def binary_gemm(
    x_packed: Array, w_packed: Array, *, x_shape: Sequence[int], w_shape: Sequence[int], dtype: int
) -> Array:
    """Return x (N, K) times w (M, K) transposed, both packed: (N, M) integers in ONNX's `dtype`."""
    x = _signs(x_packed, x_shape, np.float32)
    y = np.empty((len(x_packed), len(w_packed)), np.float32)
    for rows, w in _tiles(w_packed, w_shape, np.float32):
        np.matmul(x, w.T, out=y[:, rows])
    return cast(y, to=dtype)


def binary_gemm_weight_grad(x_packed: Array, dy: Array, *, x_shape: Sequence[int]) -> Array:
    """Return dy (N, M) transposed times x (N, K), packed: (M, K), float32 for float16."""
    dy = _wide(dy)
    return np.asarray(np.matmul(dy.T, _signs(x_packed, x_shape, dy.dtype)))


def binary_gemm_weight_grad_signs(x_packed: Array, dy: Array, *, x_shape: Sequence[int]) -> Array:
    """Pack `binary_gemm_weight_grad` >= 0: (M, ceil(K / 8)) uint8."""
    return binarize_pack(binary_gemm_weight_grad(x_packed, dy, x_shape=x_shape), zero=1.0)


def binary_gemm_input_grad(dy: Array, w_packed: Array, *, w_shape: Sequence[int]) -> Array:
    """Return dy (N, M) times w (M, K), packed: (N, K) in the dtype of dy."""
    wide = _wide(dy)
    dx = np.zeros((len(dy), math.prod(w_shape)), wide.dtype)
    for rows, w in _tiles(w_packed, w_shape, wide.dtype):
        dx += np.matmul(wide[:, rows], w)
    return dx.astype(dy.dtype, copy=False)


def _wide(dy: Array) -> Array:
    """What is summed: float16 as float32."""
    return dy.astype(np.float32) if dy.dtype == np.float16 else dy


def _signs(packed: Array, shape: Sequence[int], dtype: DTypeLike) -> Array:
    """Unpack to (N, *shape) of -1 and +1."""
    length = math.prod(shape)
    signs = np.empty((len(packed), length), dtype)
    step = max(1, TILE_BYTES // 8 // max(length, 1))
    for start in range(0, len(packed), step):
        rows = slice(start, start + step)
        signs[rows] = np.unpackbits(packed[rows], axis=1, count=length, bitorder="little")
    signs *= 2
    signs -= 1
    return signs.reshape(len(packed), *shape)


def _filters(
    packed: Array, shape: Sequence[int], dtype: DTypeLike, group: int
) -> Iterator[tuple[slice, Array]]:
    """Yield slices of the filters, and what they unpack to; the filters of groups all at once."""
    if group > 1:
        return iter([(slice(None), _signs(packed, shape, dtype))])
    return _tiles(packed, shape, dtype, FILTERS_BYTES)


def _tiles(
    packed: Array, shape: Sequence[int], dtype: DTypeLike, n_bytes: int = TILE_BYTES
) -> Iterator[tuple[slice, Array]]:
    """Yield slices of the rows, and what they unpack to, about `n_bytes`."""
    step = max(1, n_bytes // (math.prod(shape) * np.dtype(dtype).itemsize or 1))
    for start in range(0, len(packed), step):
        rows = slice(start, start + step)
        yield rows, _signs(packed[rows], shape, dtype)


KERNELS: dict[str, NumpyKernel] = {
    "BinaryConv": NumpyKernel(binary_conv, Axes("0", "0")),
    "BinaryConvInputGrad": NumpyKernel(binary_conv_input_grad, Axes("0", "0")),
    "BinaryConvWeightGrad": NumpyKernel(binary_conv_weight_grad, Axes("-1", "0")),
    "BinaryConvWeightGradSigns": NumpyKernel(binary_conv_weight_grad_signs, Axes("-1", "0")),
    "BinaryGemm": NumpyKernel(binary_gemm),
    "BinaryGemmInputGrad": NumpyKernel(binary_gemm_input_grad),
    "BinaryGemmWeightGrad": NumpyKernel(binary_gemm_weight_grad, Axes("-1", "0")),
    "BinaryGemmWeightGradSigns": NumpyKernel(binary_gemm_weight_grad_signs, Axes("-1", "0")),
}
