"""Dropout with a counter-based random stream, so that every backend draws the same mask."""

from __future__ import annotations

import numpy as np

from bnnopt.runtime.kernels import Array


@np.errstate(invalid="ignore")
def dropout(
    x: Array, step: Array, *, threshold: int, scale: float, seed: int
) -> tuple[Array, Array]:
    """Return x times (scale where kept, else 0), and the boolean mask of what is kept.

    Element i of step t is kept where lowbias32(i + t * 0x9E3779B1 + seed) >= `threshold`.

    Parameters
    ----------
    x : any shape, float
    step : int64 scalar
    threshold : int
        ratio * 2^32
    scale : float
        1 / (1 - ratio)
    """
    start = (int(step) * 0x9E3779B1 + seed) & 0xFFFFFFFF
    hashed = np.arange(x.size, dtype=np.uint32)
    hashed += np.uint32(start)
    _lowbias32(hashed)
    mask = (hashed >= threshold).reshape(x.shape)
    return x * (mask * x.dtype.type(scale)), mask


def _lowbias32(x: Array) -> None:
    """Hash uint32 values in place (C. Wellons, "Prospecting for Hash Functions")."""
    x ^= x >> 16
    x *= np.uint32(0x7FEB352D)
    x ^= x >> 15
    x *= np.uint32(0x846CA68B)
    x ^= x >> 16
