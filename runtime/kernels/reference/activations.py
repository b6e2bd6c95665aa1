"""Gradients of activations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.reference.elementwise import vector_erf
from bnnopt.runtime.kernels.reference.kernel import NumpyKernel
from bnnopt.runtime.kernels.reference.parts import TILES


@np.errstate(all="ignore")
def gelu_grad(dy: Array, x: Array) -> Array:
    """Return dy (Phi(x) + x phi(x)), computed in float64."""
    wide = x.astype(np.float64)
    phi = 0.5 * (1 + vector_erf(wide / math.sqrt(2)))
    density = np.exp(-0.5 * wide * wide) / math.sqrt(2 * math.pi)
    along = np.where(density > 0, wide * density, 0)  # x may be infinite
    return np.asarray(dy * (phi + along)).astype(dy.dtype)


@np.errstate(all="ignore")
def tanh_gelu_grad(dy: Array, x: Array) -> Array:
    """Return dy ((1 + t) / 2 + x (1 - t^2) a (1 + 3 b x^2) / 2), computed in float64."""
    a, b, wide = math.sqrt(2 / math.pi), 0.044715, x.astype(np.float64)
    t = np.tanh(a * (wide + b * wide**3))
    rest = 1 - t * t
    along = np.where(rest > 0, 0.5 * wide * rest * a * (1 + 3 * b * wide * wide), 0)
    return np.asarray(dy * (0.5 * (1 + t) + along)).astype(dy.dtype)


@np.errstate(all="ignore")
def softmax_grad(dy: Array, y: Array, *, axis: int) -> Array:
    """Return y (dy - sum(dy y)), with sums in float64."""
    total = np.sum(dy * y, axis=axis, keepdims=True, dtype=np.float64)
    return np.asarray(y * (dy - total.astype(dy.dtype)))


@np.errstate(all="ignore")
def prelu_grad(dy: Array, x: Array, slope: Array, *, axes: Sequence[int]) -> tuple[Array, Array]:
    """Return dy where x > 0, else slope dy; and sums of x dy where x <= 0, in float64."""
    dx = np.where(x > 0, dy, dy * slope).astype(dy.dtype)
    part = np.where(x > 0, 0, dy * x)
    total = np.sum(part, axis=tuple(axes), dtype=np.float64)
    return dx, np.asarray(total, slope.dtype).reshape(slope.shape)


KERNELS: dict[str, NumpyKernel] = {
    "GeluGrad": NumpyKernel(gelu_grad, TILES),
    "PReluGrad": NumpyKernel(prelu_grad),
    "SoftmaxGrad": NumpyKernel(softmax_grad),
    "TanhGeluGrad": NumpyKernel(tanh_gelu_grad, TILES),
}
