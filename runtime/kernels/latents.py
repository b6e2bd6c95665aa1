"""Latent weights in int8: q stands for (q + 1/2) units, so that none is 0."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bnnopt.runtime.kernels import Array


def widened(q: Array, unit: float) -> NDArray[np.float32]:
    """What the integers stand for."""
    return np.asarray((q.astype(np.float32) + np.float32(0.5)) * np.float32(unit))


def places(bound: float, unit: float) -> tuple[int, int]:
    """The integers, from and to, that stand for magnitudes up to a bound, or for the least."""
    most = int(min(max(bound / unit - 0.5, 0), 127))
    return -most - 1, most


def nearest(w: Array, unit: float) -> NDArray[np.int8]:
    """The integers that stand for what is next to w, with its sign; 0 is plus."""
    return np.clip(np.floor(w / np.float32(unit)), -128, 127).astype(np.int8)
