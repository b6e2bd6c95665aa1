"""A counter-based random stream, so that every backend draws the same; dropout by it."""

from __future__ import annotations

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.formulas import stream_start
from bnnopt.runtime.kernels.reference.kernel import NumpyKernel
from bnnopt.runtime.kernels.reference.parts import Axes


def random_bits(x: Array, step: Array, *, seed: int) -> Array:
    """Return lowbias32(i + step * 0x9E3779B1 + seed) for element i of x, as int64.

    Parameters
    ----------
    x : any shape
        Only its shape is read.
    step : int64 scalar
    """
    return _hashed(x, step, seed).astype(np.int64)


@np.errstate(invalid="ignore")
def dropout(
    x: Array, step: Array, *, threshold: int, scale: float, seed: int
) -> tuple[Array, Array]:
    """Return x times (scale where kept, else 0), and the boolean mask of what is kept.

    An element is kept where its `random_bits` are at least `threshold`.

    Parameters
    ----------
    x : any shape, float
    step : int64 scalar
    threshold : int
        ratio * 2^32
    scale : float
        1 / (1 - ratio)
    """
    mask = _hashed(x, step, seed) >= threshold
    return x * (mask * x.dtype.type(scale)), mask


def draw_uniform(x: Array, step: Array, *, low: float, scale: float, seed: int) -> Array:
    """Return low + scale f, f in [0, 1) from the first 24 `random_bits`, as float32.

    Parameters
    ----------
    x : any shape
        Only its shape is read; float64 of float64.
    step : int64 scalar
    low, scale : float
        The least number, and the width of the range.
    """
    kind = np.float64 if x.dtype == np.float64 else np.float32
    u: Array = (_hashed(x, step, seed) >> np.uint32(8)).astype(kind)
    u *= kind(2.0**-24)
    u *= kind(scale)
    u += kind(low)
    return u


def _hashed(x: Array, step: Array, seed: int) -> Array:
    hashed = np.arange(x.size, dtype=np.uint32)
    hashed += np.uint32(stream_start(step, seed))
    _lowbias32(hashed)
    return hashed.reshape(x.shape)


def _lowbias32(x: Array) -> None:
    """Hash uint32 values in place (C. Wellons, "Prospecting for Hash Functions")."""
    x ^= x >> 16
    x *= np.uint32(0x7FEB352D)
    x ^= x >> 15
    x *= np.uint32(0x846CA68B)
    x ^= x >> 16


KERNELS: dict[str, NumpyKernel] = {
    "Dropout": NumpyKernel(dropout, Axes("0", "00")),
    "RandomBits": NumpyKernel(random_bits),
    "DrawUniform": NumpyKernel(draw_uniform),
}
