"""The bitmap codec in numpy; see `bnnopt.ops.bitmap` for the format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.reference.kernel import NumpyKernel
from bnnopt.runtime.kernels.reference.packing import pack_bits, unpack_bits


def bitmap_pack(x: Array, *, capacity: int) -> tuple[Array, Array]:
    """Return the bits of what is not +0.0, and those elements behind a 0, zeros up to `capacity`.

    Parameters
    ----------
    x : (N, ...) floating point
    capacity : int
        Planned elements of the values, the 0 in front included.

    Returns
    -------
    (N, ceil(K / 8)) uint8, (capacity,) of x's dtype; longer where x has more to keep
    """
    kept = np.ascontiguousarray(x).view(f"u{x.itemsize}") != 0
    found = x[kept]
    values = np.zeros(max(capacity, found.size + 1), x.dtype)
    values[1 : found.size + 1] = found
    return pack_bits(kept), values


def pruned_bitmap_pack(x: Array, *, capacity: int, keep: list[int]) -> tuple[Array, Array]:
    """Return `bitmap_pack` of the ``keep[0]`` largest magnitudes of every sample, and equal ones.

    Parameters
    ----------
    x : (N, ...) floating point
    capacity : int
        Planned elements of the values, the 0 in front included.
    keep : list of one int
        Elements of a sample, 1 to K.

    Returns
    -------
    (N, ceil(K / 8)) uint8, (capacity,) of x's dtype; longer where x has more to keep
    """
    rows = np.ascontiguousarray(x).reshape(len(x), -1)
    width = 8 * x.itemsize
    magnitude = rows.view(f"u{x.itemsize}") & np.array(2 ** (width - 1) - 1, f"u{x.itemsize}")
    last = rows.shape[1] - keep[0]
    floor = np.partition(magnitude, last, axis=1)[:, last : last + 1]
    pruned = np.where(magnitude >= floor, rows, x.dtype.type(0))
    return bitmap_pack(pruned.reshape(x.shape), capacity=capacity)


def bitmap_unpack(bits: Array, values: Array, *, shape: list[int]) -> Array:
    """Return the (N, *shape) tensor that `bitmap_pack` encoded."""
    kept = unpack_bits(bits, shape=shape)
    x = np.zeros(kept.shape, values.dtype)
    x[kept] = values[1 : np.count_nonzero(kept) + 1]
    return x


def samples(bits: Array, values: Array, *, shape: Sequence[int]) -> Iterator[Array]:
    """Yield the samples of `bitmap_unpack`, decoded one at a time."""
    first = 0
    for row in bits:
        kept = unpack_bits(row[None], shape=shape)[0]
        x, last = np.zeros(kept.shape, values.dtype), first + int(np.count_nonzero(kept))
        x[kept] = values[first + 1 : last + 1]
        first = last
        yield x


@np.errstate(invalid="ignore")
def bitmap_relu_grad(dy: Array, bits: Array, values: Array, *, shape: list[int]) -> Array:
    """Return dy times (1 where the encoded tensor is above 0, else 0)."""
    return np.asarray(dy * (bitmap_unpack(bits, values, shape=shape) > 0))


KERNELS: dict[str, NumpyKernel] = {
    "BitmapPack": NumpyKernel(bitmap_pack),
    "BitmapReluGrad": NumpyKernel(bitmap_relu_grad),
    "BitmapUnpack": NumpyKernel(bitmap_unpack),
    "PrunedBitmapPack": NumpyKernel(pruned_bitmap_pack),
}
