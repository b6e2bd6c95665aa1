"""Batch normalisation over a batch's own statistics: to floats or to bits, and its gradient."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.reference.kernel import NumpyKernel
from bnnopt.runtime.kernels.reference.packing import binarize_pack, range_pack, unpack_bits
from bnnopt.runtime.kernels.reference.parts import Axes

FLOAT, HALF = 1, 10  # as ONNX numbers its types


def batch_normalization_training(
    x: Array,
    scale: Array,
    bias: Array,
    running_mean: Array,
    running_var: Array,
    *,
    epsilon: float,
    momentum: float,
    dtype: int = FLOAT,
) -> tuple[Array, ...]:
    """Normalise x with the batch's own mean and (biased) variance.

    Parameters
    ----------
    x : (N, C, ...) float or int16
    scale, bias, running_mean, running_var : (C,) float
    dtype : int
        Of y: `HALF`, or else that of scale.

    Returns
    -------
    y : (N, C, ...)
    next_mean, next_var : (C,)
        momentum * running + (1 - momentum) * batch.
    batch_mean, inv_std : (C,)
        inv_std = 1 / sqrt(variance + epsilon).
    """
    inputs = x, scale, bias, running_mean, running_var
    return _normalize(*inputs, epsilon=epsilon, momentum=momentum, dtype=dtype, l1=False)


@functools.wraps(batch_normalization_training, assigned=())
def l1_batch_normalization_training(*inputs: Array, **attributes: Any) -> tuple[Array, ...]:
    """`batch_normalization_training` with the square of mean|x - mean| for the variance."""
    return _normalize(*inputs, **attributes, l1=True)


def _normalize(
    x: Array,
    scale: Array,
    bias: Array,
    running_mean: Array,
    running_var: Array,
    *,
    epsilon: float,
    momentum: float,
    dtype: int = FLOAT,
    l1: bool,
) -> tuple[Array, ...]:
    flat = by_channel(x).astype(scale.dtype, copy=False)
    mean = flat.mean(axis=(0, 2))
    y = flat - column(mean)
    if l1:
        variance = np.abs(y).mean(axis=(0, 2)) ** 2
    else:
        variance = np.einsum("ncl,ncl->c", y, y) / (x.size // mean.size)
    inv_std = 1 / np.sqrt(variance + epsilon)
    y *= column(inv_std * scale)
    y += column(bias)
    next_mean = running_mean * momentum + mean * (1 - momentum)
    next_var = running_var * momentum + variance * (1 - momentum)
    return _rounded(y.reshape(x.shape), dtype), next_mean, next_var, mean, inv_std


def batch_normalization_apply(
    x: Array, scale: Array, bias: Array, batch_mean: Array, inv_std: Array, *, dtype: int = FLOAT
) -> Array:
    """Return y of `batch_normalization_training` again, (N, C, ...).

    Parameters
    ----------
    x : (N, C, ...) float or int16
    scale, bias, batch_mean, inv_std : (C,) float
    dtype : int
        As there.
    """
    y = by_channel(x).astype(scale.dtype, copy=False) - column(batch_mean)
    y *= column(inv_std * scale)
    y += column(bias)
    return _rounded(y.reshape(x.shape), dtype)


def _rounded(y: Array, dtype: int) -> Array:
    return y.astype(np.float16) if dtype == HALF else y


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
    return _differentiate(dy, x, scale, batch_mean, inv_std, l1=False)


@functools.wraps(batch_normalization_grad, assigned=())
def l1_batch_normalization_grad(*inputs: Array) -> tuple[Array, Array, Array]:
    """Differentiate `l1_batch_normalization_training`; see `batch_normalization_grad`.

    (s - mean(s)) mean|xh|, s = sgn(xh), stands for xh in dx.
    """
    return _differentiate(*inputs, l1=True)


def _differentiate(
    dy: Array, x: Array, scale: Array, batch_mean: Array, inv_std: Array, *, l1: bool
) -> tuple[Array, Array, Array]:
    count = x.size // scale.size
    dy_flat = by_channel(dy).astype(scale.dtype, copy=False)
    dx = by_channel(x) - column(batch_mean)
    dx *= column(inv_std)
    dbias = dy_flat.sum(axis=(0, 2))
    dscale = np.einsum("ncl,ncl->c", dy_flat, dx)
    if l1:
        size = np.abs(dx).mean(axis=(0, 2))
        np.sign(dx, out=dx)
        dx -= column(dx.mean(axis=(0, 2)))
        dx *= column(size)
    dx *= column(dscale / count)
    dx += column(dbias / count)
    np.subtract(dy_flat, dx, out=dx)
    dx *= column(scale * inv_std)
    return dx.reshape(x.shape).astype(dy.dtype, copy=False), dscale, dbias


def batch_normalization_levels(
    x: Array, signs: Array, mask: Array, batch_mean: Array, inv_std: Array, *, shape: list[int]
) -> tuple[Array, Array]:
    """What two bits of a batch norm's result say of its input, on average by channel.

    Parameters
    ----------
    x : (N, *shape) float or int16
    signs, mask : (N, ceil(K / 8)) uint8
    batch_mean, inv_std : (C,) float

    Returns
    -------
    levels : (C, 4)
        Mean of xh = (x - mean) inv_std where the pair of bits is sign + 2 mask; 0 if it is nowhere.
    slopes : (C, 4)
        The same of (s - mean(s)) mean|xh|, s = sgn(xh).
    """
    unit = by_channel(x).astype(inv_std.dtype, copy=False) - column(batch_mean)
    unit *= column(inv_std)
    direction = np.sign(unit)
    direction -= column(direction.mean(axis=(0, 2)))
    direction *= column(np.abs(unit).mean(axis=(0, 2)))
    pairs = _pairs(signs, mask, shape)
    levels, slopes = np.zeros((2, len(inv_std), 4), inv_std.dtype)
    for pair in range(4):
        chosen = pairs == pair
        count = np.maximum(chosen.sum(axis=(0, 2)), 1)
        levels[:, pair] = np.where(chosen, unit, 0).sum(axis=(0, 2)) / count
        slopes[:, pair] = np.where(chosen, direction, 0).sum(axis=(0, 2)) / count
    return levels, slopes


def _pairs(signs: Array, mask: Array, shape: list[int]) -> Array:
    """Sign + 2 mask of every element, (N, C, L) uint8."""
    plus, inside = (unpack_bits(bits, shape=shape) for bits in (signs, mask))
    return by_channel(plus + np.uint8(2) * inside)


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
    shape: list[int],
) -> tuple[Array, ...]:
    """Return the bits of Binarize(y) and of low <= y <= high, the statistics, and two tables.

    The parameters are those of `batch_normalization_training`, which gives y, of
    `packing.binarize_pack` and `packing.range_pack`. Both tables are the levels of
    `batch_normalization_levels`.
    """
    inputs = x, scale, bias, running_mean, running_var
    return _signs(
        *inputs, epsilon=epsilon, momentum=momentum, zero=zero, low=low, high=high, shape=shape,
        l1=False,
    )  # fmt: skip


@functools.wraps(batch_normalization_signs, assigned=())
def l1_batch_normalization_signs(*inputs: Array, **attributes: Any) -> tuple[Array, ...]:
    """`batch_normalization_signs` of `l1_batch_normalization_training`, with its slopes."""
    return _signs(*inputs, **attributes, l1=True)


def _signs(
    x: Array, *channels: Array, epsilon: float, momentum: float, zero: float, low: float,
    high: float, shape: list[int], l1: bool,
) -> tuple[Array, ...]:  # fmt: skip
    training = l1_batch_normalization_training if l1 else batch_normalization_training
    y, *statistics = training(x, *channels, epsilon=epsilon, momentum=momentum)
    bits = binarize_pack(y, zero=zero), range_pack(y, low=low, high=high)
    levels, slopes = batch_normalization_levels(x, *bits, *statistics[2:], shape=shape)
    return *bits, *statistics, levels, slopes if l1 else levels


def batch_normalization_signs_grad(
    dy: Array,
    signs: Array,
    mask: Array,
    scale: Array,
    inv_std: Array,
    levels: Array,
    slopes: Array,
    *,
    shape: list[int],
) -> tuple[Array, Array, Array]:
    """Differentiate batch norm behind a clipped sign, from the bits of its result alone.

    Parameters
    ----------
    dy : (N, *shape) float
        Gradient of the signs.
    signs, mask : (N, ceil(K / 8)) uint8
    scale, inv_std : (C,) float
    levels, slopes : (C, 4) float
        As `batch_normalization_signs` gives them.

    Returns
    -------
    dx : (N, *shape), dtype of dy
        scale inv_std (d - dbias / count - slope dscale / count), d = dy where the mask is set.
    dscale, dbias : (C,)
        sum(d level) and sum(d).
    """
    count, pairs = dy.size // scale.size, _pairs(signs, mask, shape)
    channel = np.arange(len(scale)).reshape(-1, 1)
    wide = by_channel(dy).astype(scale.dtype, copy=False)
    kept = np.where(pairs >= 2, wide, scale.dtype.type(0))
    dbias = kept.sum(axis=(0, 2))
    dscale = np.einsum("ncl,ncl->c", kept, levels[channel, pairs])
    dx = slopes[channel, pairs]
    dx *= column(dscale / count)
    dx += column(dbias / count)
    np.subtract(kept, dx, out=dx)
    dx *= column(scale * inv_std)
    return dx.reshape(dy.shape).astype(dy.dtype, copy=False), dscale, dbias


def by_channel(x: Array) -> Array:
    """A view of (N, C, ...) as (N, C, length)."""
    return x.reshape(*x.shape[:2], math.prod(x.shape[2:]))


def column(per_channel: Array) -> Array:
    """One value a channel, to go with `by_channel`."""
    return per_channel.reshape(-1, 1)


KERNELS: dict[str, NumpyKernel] = {
    "BatchNormalizationApply": NumpyKernel(batch_normalization_apply, Axes("10000", "1")),
    "BatchNormalizationGrad": NumpyKernel(batch_normalization_grad, Axes("11000", "100")),
    "BatchNormalizationLevels": NumpyKernel(batch_normalization_levels, Axes("1bb00", "00")),
    "BatchNormalizationSigns": NumpyKernel(batch_normalization_signs, Axes("10000", "bb000000")),
    "BatchNormalizationSignsGrad": NumpyKernel(
        batch_normalization_signs_grad, Axes("1bb0000", "100")
    ),
    "BatchNormalizationTraining": NumpyKernel(batch_normalization_training, Axes("10000", "10000")),
    "L1BatchNormalizationGrad": NumpyKernel(l1_batch_normalization_grad, Axes("11000", "100")),
    "L1BatchNormalizationSigns": NumpyKernel(
        l1_batch_normalization_signs, Axes("10000", "bb000000")
    ),
    "L1BatchNormalizationTraining": NumpyKernel(
        l1_batch_normalization_training, Axes("10000", "10000")
    ),
}
