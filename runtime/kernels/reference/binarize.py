"""Binarisation and the gradients of its straight-through estimators (STE)."""

from __future__ import annotations

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.reference.kernel import NumpyKernel
from bnnopt.runtime.kernels.reference.parts import TILES


def binarize(x: Array, *, zero: float, ste: str, clip: float) -> Array:
    """Return -1 where x < 0, +1 where x > 0, `zero` elsewhere (also for NaN).

    `ste` and `clip` concern the gradient only.
    """
    y = np.full_like(x, zero)
    np.copyto(y, -zero, where=x < 0 if zero > 0 else x > 0)
    return y


def ternarize(x: Array, *, ste: str, clip: float) -> Array:
    """Return sign(x), 0 at 0."""
    return np.asarray(np.sign(x))


def straight_through(b: Array, s: Array) -> Array:
    """Return b; the gradient is that of s."""
    return b.copy()


@np.errstate(invalid="ignore")
def clip_grad(dy: Array, x: Array, *, low: float, high: float) -> Array:
    """Return dy times (1 where low <= x <= high, else 0)."""
    inside = x >= low
    inside &= x <= high
    return np.asarray(dy * inside)


@np.errstate(invalid="ignore")
def relu_grad(dy: Array, y: Array) -> Array:
    """Return dy times (1 where y > 0, else 0)."""
    return np.asarray(dy * (y > 0))


@np.errstate(over="ignore", invalid="ignore")
def hard_swish_grad(dy: Array, x: Array) -> Array:
    """Return dy (x / 3 + 1 / 2) where -3 <= x <= 3, dy above, 0 below."""
    slope = x.astype(np.result_type(x, np.float32)) * (1 / 3) + 0.5
    dx = np.asarray(slope * dy).astype(dy.dtype)
    np.copyto(dx, dy, where=x > 3)
    np.copyto(dx, 0, where=x < -3)
    return dx


@np.errstate(invalid="ignore")
def approx_sign_grad(dy: Array, x: Array) -> Array:
    """Return dy max(0, 2 - 2 |x|)."""
    dx = np.asarray(np.abs(x.astype(np.result_type(x, np.float32), copy=False)))
    dx *= -2
    dx += 2
    np.maximum(dx, 0, out=dx)
    dx *= dy
    return dx.astype(dy.dtype, copy=False)


@np.errstate(over="ignore", invalid="ignore")
def swish_sign_grad(dy: Array, x: Array, *, beta: float) -> Array:
    """Return dy b (2 - b x t) (1 - t^2) / 2 with b = `beta`, t = tanh(b x / 2)."""
    dx = np.asarray(x * beta)
    tanh = np.tanh(dx * 0.5)
    dx *= tanh
    np.subtract(2, dx, out=dx)
    dx *= 1 - tanh * tanh
    dx *= beta / 2
    dx *= dy
    return dx


KERNELS: dict[str, NumpyKernel] = {
    "ApproxSignGrad": NumpyKernel(approx_sign_grad, TILES),
    "Binarize": NumpyKernel(binarize, TILES),
    "ClipGrad": NumpyKernel(clip_grad, TILES),
    "HardSwishGrad": NumpyKernel(hard_swish_grad, TILES),
    "ReluGrad": NumpyKernel(relu_grad, TILES),
    "SwishSignGrad": NumpyKernel(swish_sign_grad, TILES),
    "StraightThrough": NumpyKernel(straight_through, TILES),
    "Ternarize": NumpyKernel(ternarize, TILES),
}
