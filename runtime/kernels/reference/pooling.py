"""Pooling in any number of spatial dimensions, and the gradient of max pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bnnopt.runtime.kernels import Array, at_least_float32
from bnnopt.runtime.kernels.reference.kernel import NumpyKernel
from bnnopt.runtime.kernels.reference.packing import pool_index_pack, pool_index_unpack
from bnnopt.runtime.kernels.reference.parts import Axes
from bnnopt.runtime.kernels.reference.reduction import lowest
from bnnopt.runtime.kernels.windows import Window, make_window


def max_pool(
    x: Array,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    storage_order: int = 0,
) -> tuple[Array, Array]:
    """Maximum in each window, and where it is; one sample at a time.

    The first maximum in row-major order of the window wins. A NaN wins over every number.

    Parameters
    ----------
    x : (N, C, ...)

    Returns
    -------
    y : (N, C, ...), dtype of x
    indices : same shape, int64, flat row-major positions in the whole of x

    Raises
    ------
    ValueError
        If `storage_order` is 1 (column-major indices).
    """
    if storage_order:
        raise ValueError("MaxPool: storage_order 1 has no kernel, expected 0")
    window = make_window(
        x.shape[2:], kernel_shape, strides=strides, pads=pads, dilations=dilations,
        auto_pad=auto_pad, ceil_mode=ceil_mode,
    )  # fmt: skip
    y = np.full((*x.shape[:2], *window.result), lowest(x.dtype), x.dtype)
    indices: Array = np.zeros(y.shape, np.int64)
    for sample, best, index in zip(x, y, indices, strict=True):
        _max_of_sample(sample, window, best, index)
    planes = np.arange(math.prod(x.shape[:2])).reshape(*x.shape[:2], *(1,) * len(window.kernel))
    indices += planes * math.prod(window.source)
    return y, indices


def _max_of_sample(sample: Array, window: Window, best: Array, index: Array) -> None:
    """Fill `best` and `index`, (C, ...); the index counts within one channel."""
    pixels = np.arange(math.prod(window.source)).reshape(window.source)
    taps = list(window.taps())
    for _, source, result in taps:
        np.maximum(best[:, *result], sample[:, *source], out=best[:, *result])
    has_nan = best.dtype.kind == "f" and bool(np.isnan(best).any())
    for _, source, result in reversed(taps):  # the first maximum is written last
        is_best = sample[:, *source] == best[:, *result]
        if has_nan:
            is_best |= np.isnan(sample[:, *source])
        np.copyto(index[:, *result], pixels[source], where=is_best)


def max_pool_grad(dy: Array, indices: Array, *, input_shape: Sequence[int]) -> Array:
    """Gradient of max pooling: add each dy to the element that was the maximum.

    Forward:   y, indices = max_pool(x)
    Backward:  dx.flat[indices] += dy

    Parameters
    ----------
    dy : (N, C, ...) float
    indices : same shape, int64, flat positions in x
    input_shape : spatial dimensions of x

    Returns
    -------
    (N, C, *input_shape), dtype of dy; the sums are float32 or wider
    """
    wide = at_least_float32(dy)
    dx = np.zeros((*dy.shape[:2], *input_shape), wide.dtype)
    np.add.at(dx.reshape(-1), indices.reshape(-1), wide.reshape(-1))
    return dx.astype(dy.dtype, copy=False)


def packed_max_pool(
    x: Array,
    origin: Array,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    plane: int,
    width: int,
    kernel_width: int,
    row_dilation: int,
    column_dilation: int,
    bit_values: list[int],
) -> tuple[Array, Array]:
    """Maximum in each window, and its place there.

    Parameters
    ----------
    x : (N, C, H, W) float or int16
    origin, plane, width, kernel_width, row_dilation, column_dilation, bit_values
        As in `packing.pool_index_pack`.

    Returns
    -------
    y : (N, C, Ho, Wo), dtype of x
    packed : (N, ceil(C Ho Wo n_bits / 8)) uint8
    """
    y, indices = max_pool(
        at_least_float32(x), kernel_shape=kernel_shape, strides=strides, pads=pads,
        dilations=dilations,
    )  # fmt: skip
    packed = pool_index_pack(
        indices, origin, plane=plane, width=width, kernel_width=kernel_width,
        row_dilation=row_dilation, column_dilation=column_dilation, bit_values=bit_values,
    )  # fmt: skip
    return y.astype(x.dtype, copy=False), packed


def packed_max_pool_grad(
    dy: Array,
    packed: Array,
    origin: Array,
    *,
    input_shape: Sequence[int],
    plane: int,
    width: int,
    kernel_width: int,
    row_dilation: int,
    column_dilation: int,
    bit_values: list[int],
    bit_shape: list[int],
) -> Array:
    """Gradient of `packed_max_pool`: `max_pool_grad` at the unpacked indices."""
    indices = pool_index_unpack(
        packed, origin, plane=plane, width=width, kernel_width=kernel_width,
        row_dilation=row_dilation, column_dilation=column_dilation, bit_values=bit_values,
        bit_shape=bit_shape,
    )  # fmt: skip
    return max_pool_grad(dy, indices, input_shape=input_shape)


@np.errstate(all="ignore")
def average_pool(
    x: Array,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
) -> Array:
    """Mean of each window; no scratch, the sums are taken in the result.

    Elements in the padding count as zeros if `count_include_pad`, else not at all. Elements beyond
    the padding, which a last window has under `ceil_mode`, never count.

    Parameters
    ----------
    x : (N, C, ...) float; the sums are float32 or wider

    Returns
    -------
    (N, C, ...), same dtype
    """
    window = make_window(
        x.shape[2:], kernel_shape, strides=strides, pads=pads, dilations=dilations,
        auto_pad=auto_pad, ceil_mode=ceil_mode,
    )  # fmt: skip
    y = np.zeros((*x.shape[:2], *window.result), np.result_type(x, np.float32))
    for _, source, result in window.taps():
        y[:, :, *result] += x[:, :, *source]
    y /= _window_counts(window, bool(count_include_pad)).astype(y.dtype)
    return y.astype(x.dtype, copy=False)


@np.errstate(all="ignore")
def average_pool_grad(
    dy: Array,
    counts: Array,
    *,
    input_shape: Sequence[int],
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    output_padding: Sequence[int],
) -> Array:
    """Gradient of average pooling: each dy is spread over its window.

    Forward:   y = sum of x over the window / counts
    Backward:  dx = sum of dy / counts over the windows that an element is in

    Parameters
    ----------
    dy : (N, C, ...) float
    counts : (1, 1, ...) float, what each window divides by
    input_shape : spatial dimensions of x
    output_padding : what the stride leaves unread of each axis, which `input_shape` says as well

    Returns
    -------
    (N, C, *input_shape), dtype of dy; the sums are float32 or wider
    """
    window = make_window(
        input_shape, kernel_shape, strides=strides, pads=pads, dilations=dilations,
        result=dy.shape[2:],
    )  # fmt: skip
    share = dy / counts.astype(np.result_type(dy, np.float32), copy=False)
    dx = np.zeros((*dy.shape[:2], *input_shape), share.dtype)
    for _, source, result in window.taps():
        dx[:, :, *source] += share[:, :, *result]
    return dx.astype(dy.dtype, copy=False)


def _window_counts(window: Window, includes_pad: bool) -> Array:
    """Number of elements that count in each window, (positions...) int64."""
    counts = np.ones((), np.int64)
    for axis in range(len(window.kernel)):
        first = np.arange(window.result[axis]) * window.strides[axis] - window.begin[axis]
        taps = np.arange(window.kernel[axis]) * window.dilations[axis]
        low = -window.begin[axis] if includes_pad else 0
        high = window.source[axis] + (window.end[axis] if includes_pad else 0)
        elements = first[:, None] + taps
        counted = np.sum((elements >= low) & (elements < high), axis=1)
        counts = np.multiply.outer(counts, counted)
    return np.asarray(counts)


def global_average_pool(x: Array) -> Array:
    """Mean over the spatial axes, (N, C, ...) to (N, C, 1, ...)."""
    return np.asarray(np.mean(x, axis=tuple(range(2, x.ndim)), keepdims=True))


def global_max_pool(x: Array) -> Array:
    """Maximum over the spatial axes, (N, C, ...) to (N, C, 1, ...)."""
    return np.asarray(np.max(x, axis=tuple(range(2, x.ndim)), keepdims=True))


KERNELS: dict[str, NumpyKernel] = {
    "MaxPool": NumpyKernel(max_pool),
    "AveragePool": NumpyKernel(average_pool, Axes("0", "0")),
    "AveragePoolGrad": NumpyKernel(average_pool_grad, Axes("0", "0")),
    "GlobalAveragePool": NumpyKernel(global_average_pool),
    "GlobalMaxPool": NumpyKernel(global_max_pool),
    "MaxPoolGrad": NumpyKernel(max_pool_grad),
    "PackedMaxPool": NumpyKernel(packed_max_pool, Axes("0", "00")),
    "PackedMaxPoolGrad": NumpyKernel(packed_max_pool_grad, Axes("00", "0")),
}
