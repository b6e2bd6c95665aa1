"""Reductions along axes, and what normalises along them.

The axes of the Reduce operators are an input, (n,) int64; without it all axes are reduced, or none
if `noop_with_empty_axes`. Results keep the dtype of x, integers too.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.formulas import axes_of
from bnnopt.runtime.kernels.reference.elementwise import div
from bnnopt.runtime.kernels.reference.kernel import NumpyKernel
from bnnopt.runtime.kernels.reference.parts import OUT, Axes


def lowest(dtype: np.dtype[Any]) -> float | int:
    """Return the least value of a dtype: what a maximum begins with."""
    if dtype.kind == "f":
        return -np.inf
    return 0 if dtype.kind == "b" else int(np.iinfo(dtype).min)


def _highest(dtype: np.dtype[Any]) -> float | int:
    if dtype.kind == "f":
        return np.inf
    return 1 if dtype.kind == "b" else int(np.iinfo(dtype).max)


def reduce_sum(
    x: Array, axes: Array | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Array:
    """Sum along the axes."""
    over = axes_of(x, axes, noop_with_empty_axes)
    return np.asarray(np.sum(x, axis=over, dtype=x.dtype, keepdims=bool(keepdims)))


@np.errstate(all="ignore")
def reduce_mean(
    x: Array, axes: Array | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Array:
    """Mean along the axes; integers truncate toward zero."""
    over = axes_of(x, axes, noop_with_empty_axes)
    if x.dtype.kind == "f":
        return np.asarray(np.mean(x, axis=over, keepdims=bool(keepdims)))
    total = np.asarray(np.sum(x, axis=over, keepdims=bool(keepdims)))
    count = np.asarray(np.prod([x.shape[axis] for axis in over], dtype=total.dtype))
    return div(total, count).astype(x.dtype)


def reduce_max(
    x: Array, axes: Array | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Array:
    """Maximum along the axes; of nothing, the lowest value."""
    over = axes_of(x, axes, noop_with_empty_axes)
    initial = lowest(x.dtype)
    return np.asarray(np.max(x, axis=over, keepdims=bool(keepdims), initial=initial))


def reduce_min(
    x: Array, axes: Array | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Array:
    """Minimum along the axes; of nothing, the highest value."""
    over = axes_of(x, axes, noop_with_empty_axes)
    initial = _highest(x.dtype)
    return np.asarray(np.min(x, axis=over, keepdims=bool(keepdims), initial=initial))


@np.errstate(all="ignore")
def reduce_prod(
    x: Array, axes: Array | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Array:
    """Product along the axes."""
    over = axes_of(x, axes, noop_with_empty_axes)
    return np.asarray(np.prod(x, axis=over, dtype=x.dtype, keepdims=bool(keepdims)))


def reduce_l1(
    x: Array, axes: Array | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Array:
    """Sum of |x| along the axes."""
    over = axes_of(x, axes, noop_with_empty_axes)
    return np.asarray(np.sum(np.abs(x), axis=over, dtype=x.dtype, keepdims=bool(keepdims)))


@np.errstate(all="ignore")
def reduce_sum_square(
    x: Array, axes: Array | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Array:
    """Sum of squares along the axes."""
    over = axes_of(x, axes, noop_with_empty_axes)
    return np.asarray(np.sum(np.square(x), axis=over, dtype=x.dtype, keepdims=bool(keepdims)))


def reduce_l2(
    x: Array, axes: Array | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Array:
    """Square root of the sum of squares along the axes."""
    squares = reduce_sum_square(
        x, axes, keepdims=keepdims, noop_with_empty_axes=noop_with_empty_axes
    )
    return np.asarray(np.sqrt(squares)).astype(x.dtype, copy=False)


@np.errstate(all="ignore")
def reduce_log_sum_exp(
    x: Array, axes: Array | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Array:
    """log(sum(exp(x))) along the axes, without overflow; x is float."""
    over = axes_of(x, axes, noop_with_empty_axes)
    highest = np.max(x, axis=over, keepdims=True, initial=-np.inf)
    highest = np.where(np.isfinite(highest), highest, x.dtype.type(0))  # inf - inf is NaN
    total = np.sum(np.exp(x - highest), axis=over, keepdims=True)
    y = np.asarray(np.log(total) + highest)
    return y if keepdims else np.asarray(y.squeeze(over))


def arg_max(x: Array, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Array:
    """Index of the maximum along one axis, int64; of equal ones the first, or the last."""
    if select_last_index:
        index = x.shape[axis] - 1 - np.argmax(np.flip(x, axis), axis=axis, keepdims=bool(keepdims))
    else:
        index = np.argmax(x, axis=axis, keepdims=bool(keepdims))
    return np.asarray(index, dtype=np.int64)


@np.errstate(all="ignore")
def cum_sum(x: Array, axis: Array, *, exclusive: int = 0, reverse: int = 0) -> Array:
    """Running sum along one axis, from its end if `reverse`, without the element if `exclusive`."""
    along = int(axis.item()) % x.ndim
    source = np.moveaxis(np.flip(x, along) if reverse else x, along, 0)
    y = np.zeros_like(x)
    target = np.moveaxis(np.flip(y, along) if reverse else y, along, 0)
    if exclusive:
        source, target = source[:-1], target[1:]
    np.cumsum(source, axis=0, dtype=x.dtype, out=target)
    return y


@np.errstate(all="ignore")
def softmax(x: Array, *, axis: int = -1, out: Array | None = None) -> Array:
    """exp(x) / sum(exp(x)) along one axis, without overflow, in `out` if given."""
    y = np.asarray(np.subtract(x, np.max(x, axis=axis, keepdims=True), out=out))
    np.exp(y, out=y)
    y /= np.sum(y, axis=axis, keepdims=True)
    return y


@np.errstate(all="ignore")
def log_softmax(x: Array, *, axis: int = -1) -> Array:
    """Logarithm of the softmax along one axis, exact also where the softmax underflows."""
    y = np.asarray(x - np.max(x, axis=axis, keepdims=True))
    y -= np.log(np.sum(np.exp(y), axis=axis, keepdims=True))
    return y


def batch_normalization(
    x: Array,
    scale: Array,
    bias: Array,
    mean: Array,
    variance: Array,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Array:
    """Normalise with the running statistics: scale (x - mean) / sqrt(variance + epsilon) + bias.

    Parameters
    ----------
    x : (N, C, ...) float
    scale, bias, mean, variance : (C,) float

    Raises
    ------
    ValueError
        If `training_mode` is 1: that is another operator of the training step.
    """
    if training_mode:
        raise ValueError("BatchNormalization: training_mode 1 has no kernel, expected 0")
    factor = scale / np.sqrt(variance + epsilon)
    shift = bias - mean * factor
    per_channel = (-1,) + (1,) * (x.ndim - 2)
    y = np.asarray(x * factor.astype(x.dtype, copy=False).reshape(per_channel))
    y += shift.astype(x.dtype, copy=False).reshape(per_channel)
    return y


KERNELS: dict[str, NumpyKernel] = {
    "BatchNormalization": NumpyKernel(batch_normalization, Axes("0", "0")),
    "ReduceMean": NumpyKernel(reduce_mean),
    "ReduceSum": NumpyKernel(reduce_sum),
    "ReduceMax": NumpyKernel(reduce_max),
    "ReduceMin": NumpyKernel(reduce_min),
    "ReduceProd": NumpyKernel(reduce_prod),
    "ReduceL1": NumpyKernel(reduce_l1),
    "ReduceL2": NumpyKernel(reduce_l2),
    "ReduceSumSquare": NumpyKernel(reduce_sum_square),
    "ReduceLogSumExp": NumpyKernel(reduce_log_sum_exp),
    "ArgMax": NumpyKernel(arg_max),
    "CumSum": NumpyKernel(cum_sum),
    "Softmax": NumpyKernel(softmax, OUT),
    "LogSoftmax": NumpyKernel(log_softmax),
}
