"""Latent weights of binary layers in int8; see `bnnopt.ops.latents`."""

from __future__ import annotations

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.latents import widened
from bnnopt.runtime.kernels.reference.dropout import random_bits
from bnnopt.runtime.kernels.reference.kernel import NumpyKernel
from bnnopt.runtime.kernels.reference.parts import Axes


def widen_latents(q: Array, *, unit: float) -> Array:
    """Return (q + 1/2) unit in float32."""
    return widened(q, unit)


def round_to_latents(x: Array, step: Array, *, unit: float, seed: int) -> Array:
    """Return x / unit - 1/2 in int8, rounded stochastically, from -128 to 127.

    Parameters
    ----------
    x : any shape, float32
    step : int64 scalar
    seed : int
        With `step`, of the bits; see `dropout.random_bits`.
    """
    inverse = np.float32(1) / np.float32(unit or 1)
    drawn = (random_bits(x, step, seed=seed) >> 19).astype(x.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        below = np.floor(x * inverse + (drawn * np.float32(2**-13) - np.float32(0.5)))
    under = np.where(below < 127, below, 127)  # of NaN 127
    return np.where(under > -128, under, -128).astype(np.int8)


KERNELS: dict[str, NumpyKernel] = {
    "RoundToLatents": NumpyKernel(round_to_latents),
    "WidenLatents": NumpyKernel(widen_latents, Axes("0", "0")),
}
