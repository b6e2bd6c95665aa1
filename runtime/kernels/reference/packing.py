"""Codecs of one bit per element, and of the few bits of a pooling index.

A packed tensor is ``(N, ceil(K * n_bits / 8))`` uint8 for a tensor of shape ``(N, ...)`` with K
elements behind its first axis: every row starts at a byte. Bit j of byte b is element ``8 b + j``
of the row (``numpy.packbits`` with ``bitorder="little"``); the spare bits of the last byte are 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bnnopt.runtime.kernels import Array, at_least_float32
from bnnopt.runtime.kernels.reference.kernel import NumpyKernel
from bnnopt.runtime.kernels.reference.parts import Axes


def pack_bits(mask: Array) -> Array:
    """Pack a boolean tensor (N, ...) into (N, ceil(K / 8)) uint8."""
    rows = mask.reshape(len(mask), math.prod(mask.shape[1:]))
    return np.packbits(rows, axis=1, bitorder="little")


def unpack_bits(packed: Array, *, shape: Sequence[int]) -> Array:
    """Unpack (N, ceil(K / 8)) uint8 into (N, *shape) bool."""
    bits = np.unpackbits(packed, axis=1, count=math.prod(shape), bitorder="little")
    return bits.view(np.bool_).reshape(len(packed), *shape)


def sign_pack(x: Array) -> Array:
    """Pack the bits of x > 0."""
    return pack_bits(x > 0)


def binarize_pack(x: Array, *, zero: float) -> Array:
    """Pack the bits of Binarize(x) > 0: not x < 0 (also for NaN) if `zero` is +1, x > 0 if -1."""
    return pack_bits(np.logical_not(x < 0) if zero > 0 else x > 0)


def sign_unpack(packed: Array, *, shape: list[int]) -> Array:
    """Return (N, *shape) float32, +1 where the bit is set, else -1."""
    return np.where(unpack_bits(packed, shape=shape), np.float32(1), np.float32(-1))


def range_pack(x: Array, *, low: float, high: float) -> Array:
    """Pack the bits of low <= x <= high, compared as floats of at least 32 bits."""
    x = at_least_float32(x)
    inside = x >= low
    inside &= x <= high
    return pack_bits(inside)


@np.errstate(invalid="ignore")
def masked_grad(dy: Array, packed: Array, *, shape: list[int]) -> Array:
    """Return dy times the bit."""
    return np.asarray(dy * unpack_bits(packed, shape=shape))


def pool_index_pack(
    indices: Array,
    origin: Array,
    *,
    plane: int,
    width: int,
    kernel_width: int,
    row_dilation: int,
    column_dilation: int,
    bit_values: list[int],
) -> Array:
    """Pack the place of every maximum in its pooling window, ``len(bit_values)`` bits each.

    Works sample by sample, so that its temporaries are a sample's.

    Parameters
    ----------
    indices : (N, C, Ho, Wo) int64
        MaxPool's second output.
    origin : (Ho, Wo) int32
        Row * width + column of each window's first element, negative in the padding.
    plane, width, kernel_width, row_dilation, column_dilation : int
        H W and W of the pooling's input; the kernel's width and dilations.
    bit_values : list of int
        1, 2, 4, ..: as many as an index has bits.

    Returns
    -------
    (N, ceil(C Ho Wo n_bits / 8)) uint8
    """
    n_bits = len(bit_values)
    n_bytes = math.ceil(math.prod(indices.shape[1:]) * n_bits / 8)
    packed = np.empty((len(indices), n_bytes), np.uint8)
    for row, sample in zip(packed, indices, strict=True):
        down, along = np.divmod(sample % plane - origin, width)
        place = down // row_dilation * kernel_width + along // column_dilation
        bytes_ = place.astype(np.uint8).reshape(-1, 1)
        bits = np.unpackbits(bytes_, axis=1, count=n_bits, bitorder="little")
        row[:] = np.packbits(bits, bitorder="little")
    return packed


def pool_index_unpack(
    packed: Array,
    origin: Array,
    *,
    plane: int,
    width: int,
    kernel_width: int,
    row_dilation: int,
    column_dilation: int,
    bit_values: list[int],
    bit_shape: list[int],
) -> Array:
    """Return MaxPool's indices again, (N, C, Ho, Wo) int64 with `bit_shape` = C, Ho, Wo, n_bits.

    The other parameters are those of `pool_index_pack`.
    """
    *shape, n_bits = bit_shape
    indices = np.empty((len(packed), *shape), np.int64)
    for n, row in enumerate(packed):
        bits = np.unpackbits(row, count=math.prod(bit_shape), bitorder="little")
        place = np.packbits(bits.reshape(-1, n_bits), axis=1, bitorder="little").reshape(shape)
        down, along = np.divmod(place.astype(np.int32), kernel_width)
        in_plane = down * (row_dilation * width) + along * column_dilation + origin
        first_plane = n * shape[0]
        starts = np.arange(first_plane, first_plane + shape[0], dtype=np.int64) * plane
        np.add(in_plane, starts.reshape(-1, 1, 1), out=indices[n])
    return indices


KERNELS: dict[str, NumpyKernel] = {
    "BinarizePack": NumpyKernel(binarize_pack, Axes("0", "0")),
    "MaskedGrad": NumpyKernel(masked_grad, Axes("00", "0")),
    "PackBits": NumpyKernel(pack_bits, Axes("0", "0")),
    "PoolIndexPack": NumpyKernel(pool_index_pack, Axes("0", "0")),
    "PoolIndexUnpack": NumpyKernel(pool_index_unpack),
    "RangePack": NumpyKernel(range_pack, Axes("0", "0")),
    "SignPack": NumpyKernel(sign_pack, Axes("0", "0")),
    "SignUnpack": NumpyKernel(sign_unpack, Axes("0", "0")),
    "UnpackBits": NumpyKernel(unpack_bits, Axes("0", "0")),
}
