"""Layer normalisation and its gradient: every row by its own mean and variance, in float64."""

from __future__ import annotations

import math

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.reference.kernel import NumpyKernel


@np.errstate(all="ignore")
def layer_normalization(
    x: Array,
    scale: Array,
    bias: Array | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> tuple[Array, ...]:
    """Return scale (x - mean) / sqrt(variance + epsilon) + bias, the means, and 1 / sqrt(..).

    Rows are all axes from `axis` on; the scale and the bias have these.
    """
    normal, mean, inv_std = _normal(x, math.prod(x.shape[axis % x.ndim :]), epsilon)
    y = normal * scale.reshape(-1)
    if bias is not None:
        y += bias.reshape(-1)
    small = (*x.shape[: axis % x.ndim], *(1 for _ in x.shape[axis % x.ndim :]))
    wide = np.result_type(x, np.float32)
    statistics = (a.astype(wide).reshape(small) for a in (mean, inv_std))
    return (y.astype(x.dtype).reshape(x.shape), *statistics)


@np.errstate(all="ignore")
def layer_normalization_grad(
    dy: Array, x: Array, scale: Array, *, epsilon: float
) -> tuple[Array, Array, Array]:
    """The gradients of x, scale and bias.

    Parameters
    ----------
    dy, x : the same shape, float
    scale : the axes of a row, the last ones of x
    """
    normal, _, inv_std = _normal(x, scale.size, epsilon)
    rows = dy.reshape(normal.shape).astype(np.float64)
    a = rows * scale.reshape(-1)
    level = a.mean(1, keepdims=True)
    slope = (a * normal).mean(1, keepdims=True)
    dx = (a - level - normal * slope) * inv_std
    sums = ((rows * normal).sum(0), rows.sum(0))
    dscale, dbias = (np.asarray(s, scale.dtype).reshape(scale.shape) for s in sums)
    return dx.astype(dy.dtype).reshape(x.shape), dscale, dbias


def _normal(x: Array, length: int, epsilon: float) -> tuple[Array, Array, Array]:
    """Rows of mean 0 and variance 1, the means, and 1 / sqrt(variance + epsilon)."""
    rows = x.reshape(-1, length).astype(np.float64)
    mean = rows.mean(1, keepdims=True)
    centred = rows - mean
    inv_std = 1 / np.sqrt((centred * centred).mean(1, keepdims=True) + epsilon)
    return centred * inv_std, mean, inv_std


KERNELS: dict[str, NumpyKernel] = {
    "LayerNormalization": NumpyKernel(layer_normalization),
    "LayerNormalizationGrad": NumpyKernel(layer_normalization_grad),
}
