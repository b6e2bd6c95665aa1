"""Batch normalisation over a batch's own statistics: to floats or to bits, and its gradient."""

from __future__ import annotations

import math

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.packing import binarize_pack, range_pack


def batch_normalization_training(
    x: Array,
    scale: Array,
    bias: Array,
    running_mean: Array,
    running_var: Array,
    *,
    epsilon: float,
    momentum: float,
) -> tuple[Array, Array, Array, Array, Array]:
    """Normalise x with the batch's own mean and (biased) variance.

    Parameters
    ----------
    x : (N, C, ...) float or int16
    scale, bias, running_mean, running_var : (C,) float

    Returns
    -------
    y : (N, C, ...), dtype of scale
    next_mean, next_var : (C,)
        momentum * running + (1 - momentum) * batch.
    batch_mean, inv_std : (C,)
        inv_std = 1 / sqrt(variance + epsilon).
    """
    flat = _by_channel(x).astype(scale.dtype, copy=False)
    mean = flat.mean(axis=(0, 2))
    y = flat - _column(mean)
    variance = np.einsum("ncl,ncl->c", y, y) / (x.size // mean.size)
    inv_std = 1 / np.sqrt(variance + epsilon)
    y *= _column(inv_std * scale)
    y += _column(bias)
    next_mean = running_mean * momentum + mean * (1 - momentum)
    next_var = running_var * momentum + variance * (1 - momentum)
    return y.reshape(x.shape), next_mean, next_var, mean, inv_std


def batch_normalization_apply(
    x: Array, scale: Array, bias: Array, batch_mean: Array, inv_std: Array
) -> Array:
    """Return y of `batch_normalization_training` again, (N, C, ...) in the dtype of scale.

    Parameters
    ----------
    x : (N, C, ...) float or int16
    scale, bias, batch_mean, inv_std : (C,) float
    """
    y = _by_channel(x).astype(scale.dtype, copy=False) - _column(batch_mean)
    y *= _column(inv_std * scale)
    y += _column(bias)
    return y.reshape(x.shape)


def batch_normalization_grad(
    dy: Array, x: Array, scale: Array, batch_mean: Array, inv_std: Array
) -> tuple[Array, Array, Array]:
    """Differentiate `batch_normalization_training`, the statistics' own dependence included.

    Parameters
    ----------
    dy : (N, C, ...) float
    x : (N, C, ...) float or int16
    scale, batch_mean, inv_std : (C,) float

    Returns
    -------
    dx : (N, C, ...), dtype of dy
        scale inv_std (dy - dbias / count - xh dscale / count), xh = (x - mean) inv_std.
    dscale, dbias : (C,)
        sum(dy xh) and sum(dy).
    """
    count = x.size // scale.size
    dy_flat = _by_channel(dy).astype(scale.dtype, copy=False)
    dx = _by_channel(x) - _column(batch_mean)
    dx *= _column(inv_std)
    dbias = dy_flat.sum(axis=(0, 2))
    dscale = np.einsum("ncl,ncl->c", dy_flat, dx)
    dx *= _column(dscale / count)
    dx += _column(dbias / count)
    np.subtract(dy_flat, dx, out=dx)
    dx *= _column(scale * inv_std)
    return dx.reshape(x.shape).astype(dy.dtype, copy=False), dscale, dbias


def batch_normalization_signs(
    x: Array,
    scale: Array,
    bias: Array,
    running_mean: Array,
    running_var: Array,
    *,
    epsilon: float,
    momentum: float,
    zero: float,
    low: float,
    high: float,
) -> tuple[Array, ...]:
    """Return the bits of Binarize(y) and of low <= y <= high, and the statistics.

    The parameters are those of `batch_normalization_training`, which gives y, and of
    `packing.binarize_pack` and `packing.range_pack`.
    """
    y, *statistics = batch_normalization_training(
        x, scale, bias, running_mean, running_var, epsilon=epsilon, momentum=momentum
    )
    return binarize_pack(y, zero=zero), range_pack(y, low=low, high=high), *statistics


def _by_channel(x: Array) -> Array:
    return x.reshape(*x.shape[:2], math.prod(x.shape[2:]))


def _column(per_channel: Array) -> Array:
    return per_channel.reshape(-1, 1)
