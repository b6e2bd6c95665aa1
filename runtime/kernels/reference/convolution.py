"""Convolution, its two gradients and transposed convolution, in any number of spatial dimensions.

All work in tiles of one sample. Its columns (im2col), (group, C / group * taps, positions), are
laid out in one scratch buffer, and one matrix product for each group reads them. A pointwise
convolution reads the sample itself, without scratch. A depthwise one (group == C > 1) multiplies
and adds tap by tap, over all channels at once. Sums are in the dtype of the inputs, in an order
that depends on the shapes alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from bnnopt.runtime.kernels import Array, at_least_float32
from bnnopt.runtime.kernels.reference.bitmap import samples as bitmap_samples
from bnnopt.runtime.kernels.reference.kernel import NumpyKernel
from bnnopt.runtime.kernels.reference.parts import Axes
from bnnopt.runtime.kernels.windows import Window, make_window

PRODUCT_ELEMENTS = 1 << 18  # of a weight gradient, added at a time


def conv(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
) -> Array:
    """Convolve, one sample at a time.

    Parameters
    ----------
    x : (N, C, ...) float
    w : (M, C / group, ...), same dtype; its spatial dimensions are `kernel_shape`
    b : (M,), same dtype, optional

    Returns
    -------
    (N, M, ...), same dtype
    """
    window = make_window(
        x.shape[2:], w.shape[2:], strides=strides, pads=pads, dilations=dilations, auto_pad=auto_pad
    )
    y = np.zeros((x.shape[0], w.shape[0], *window.result), x.dtype)
    if _is_depthwise(x.shape[1], group):
        _depthwise(x, w, window, y)
    else:
        weights = w.reshape(group, w.shape[0] // group, -1)
        for tile, columns in zip(y, _column_tiles(x, window, group), strict=True):
            np.matmul(weights, columns, out=_by_group(tile, group))
    if b is not None:
        y += b.reshape(-1, *(1,) * len(window.kernel))
    return y


def conv_input_grad(
    dy: Array,
    w: Array,
    *,
    input_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    group: int = 1,
) -> Array:
    """Gradient of a convolution with respect to its input, one sample at a time.

    Forward:   y = conv(x, w)
    Backward:  dx[n] = col2im(w.T @ dy[n])

    Parameters
    ----------
    dy : (N, M, ...) float
    w : (M, C / group, ...) float, what is summed in
    input_shape : spatial dimensions of x
    pads : all begins, then all ends

    Returns
    -------
    (N, C, *input_shape), dtype of dy
    """
    if dy.dtype != w.dtype:
        wide = conv_input_grad(
            dy.astype(w.dtype), w, input_shape=input_shape, strides=strides, pads=pads,
            dilations=dilations, group=group,
        )  # fmt: skip
        return wide.astype(dy.dtype)
    window = make_window(
        input_shape, w.shape[2:], strides=strides, pads=pads, dilations=dilations,
        result=dy.shape[2:],
    )  # fmt: skip
    channels = w.shape[1] * group
    dx = np.zeros((dy.shape[0], channels, *input_shape), dy.dtype)
    if _is_depthwise(channels, group):
        _depthwise_input_grad(dy, w, window, dx)
    else:
        _grouped_input_grad(dy, w, window, dx, group)
    return dx


def conv_tap_sums(
    dy: Array,
    *,
    input_shape: Sequence[int],
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
) -> Array:
    """Sums of dy over the outputs whose tap lies inside the input.

    Parameters
    ----------
    dy : (N, M, ...) float

    Returns
    -------
    (M, 1, *kernel_shape), float32 at least
    """
    window = make_window(
        input_shape, kernel_shape, strides=strides, pads=pads, dilations=dilations,
        result=dy.shape[2:],
    )  # fmt: skip
    planes = dy.sum(axis=0, dtype=np.float64)
    sums = np.zeros((len(planes), math.prod(kernel_shape)))
    for tap, _, result in window.taps():
        sums[:, tap] = planes[:, *result].sum(axis=tuple(range(1, planes.ndim)))
    wide = np.result_type(dy.dtype, np.float32)
    return sums.astype(wide).reshape(-1, 1, *kernel_shape)


def conv_weight_grad(
    x: Array,
    dy: Array,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    group: int = 1,
) -> Array:
    """Gradient of a convolution with respect to its weight, summed sample by sample.

    Forward:   y = conv(x, w)
    Backward:  dw = sum over n of dy[n] @ columns(x[n]).T

    Parameters
    ----------
    x : (N, C, ...) float
    dy : (N, M, ...) float
    kernel_shape : spatial dimensions of w
    pads : all begins, then all ends

    Returns
    -------
    (M, C / group, *kernel_shape), dtype of x, but float32 for a float16 x
    """
    samples = (at_least_float32(sample) for sample in x)
    dtype = np.result_type(x, np.float32)
    return weight_grad_of_samples(
        samples, dy, shape=x.shape[1:], dtype=dtype, kernel_shape=kernel_shape, strides=strides,
        pads=pads, dilations=dilations, group=group,
    )  # fmt: skip


def bitmap_conv_weight_grad(
    bits: Array,
    values: Array,
    dy: Array,
    *,
    shape: Sequence[int],
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    group: int,
) -> Array:
    """`conv_weight_grad` of an x in its bitmap form, of which one sample at a time is decoded.

    Parameters
    ----------
    bits : (N, ceil(K / 8)) uint8
    values : (capacity or more,) float
    dy : (N, M, ...) float
    shape : (C, ...), of a sample of x; K is their product

    Returns
    -------
    (M, C / group, *kernel_shape), dtype of values
    """
    return weight_grad_of_samples(
        bitmap_samples(bits, values, shape=shape), dy, shape=shape, dtype=values.dtype,
        kernel_shape=kernel_shape, strides=strides, pads=pads, dilations=dilations, group=group,
    )  # fmt: skip


def weight_grad_of_samples(
    x: Iterable[Array],
    dy: Array,
    *,
    shape: Sequence[int],
    dtype: np.dtype[Any],
    kernel_shape: Sequence[int],
    strides: Sequence[int] | None,
    pads: Sequence[int] | None,
    dilations: Sequence[int] | None,
    group: int,
) -> Array:
    """`conv_weight_grad` of samples of one `shape` that come one by one, summed in `dtype`."""
    window = make_window(
        shape[1:], kernel_shape, strides=strides, pads=pads, dilations=dilations,
        result=dy.shape[2:],
    )  # fmt: skip
    dw = np.zeros((dy.shape[1], shape[0] // group, *kernel_shape), dtype)
    _add_samples(x, dy, window, group, dw)
    return dw


def conv_transpose(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
) -> Array:
    """Transposed convolution: the input gradient of a convolution, one sample at a time.

    Parameters
    ----------
    x : (N, C, ...) float
    w : (C, M / group, ...), same dtype; its spatial dimensions are `kernel_shape`
    b : (M,), same dtype, optional
    output_shape : spatial dimensions of the result; the pads then follow from it

    Returns
    -------
    (N, M, ...), same dtype
    """
    rank = x.ndim - 2
    steps, spread = strides or (1,) * rank, dilations or (1,) * rank
    extra = output_padding or (0,) * rank
    full = [
        (n - 1) * stride + (k - 1) * dilation + 1 + more
        for n, k, stride, dilation, more in zip(
            x.shape[2:], w.shape[2:], steps, spread, extra, strict=True
        )
    ]
    if output_shape is None and auto_pad.startswith("SAME"):
        output_shape = [n * stride for n, stride in zip(x.shape[2:], steps, strict=True)]
    pads = _transposed_pads(full, output_shape, pads, auto_pad)
    sizes = zip(full, pads[:rank], pads[rank:], strict=True)
    shape = output_shape or [n - begin - end for n, begin, end in sizes]
    y = conv_input_grad(
        x, w, input_shape=shape, strides=steps, pads=pads, dilations=spread, group=group
    )
    if b is not None:
        y += b.reshape(-1, *(1,) * rank)
    return y


def _transposed_pads(
    full: Sequence[int],
    output_shape: Sequence[int] | None,
    pads: Sequence[int] | None,
    auto_pad: str,
) -> Sequence[int]:
    """Pads, all begins then all ends, that cut the full result to `output_shape` if that is set."""
    if output_shape is None:
        no_pads = [0] * (2 * len(full))
        return no_pads if auto_pad == "VALID" else pads or no_pads
    totals = [max(n - wanted, 0) for n, wanted in zip(full, output_shape, strict=True)]
    less, more = [n // 2 for n in totals], [n - n // 2 for n in totals]
    return less + more if auto_pad == "SAME_UPPER" else more + less


def _is_depthwise(channels: int, group: int) -> bool:
    return group == channels and group > 1


def _by_group(sample: Array, group: int) -> Array:
    """View (channels, ...) as (group, channels / group, positions)."""
    return sample.reshape(group, sample.shape[0] // group, math.prod(sample.shape[1:]))


def _add_samples(x: Iterable[Array], dy: Array, window: Window, group: int, dw: Array) -> None:
    """Add to dw the weight gradient of each of the samples of x."""
    if _is_depthwise(dw.shape[1] * group, group):
        _depthwise_weight_grad(x, dy, window, group, dw)
        return
    total = dw.reshape(group, dy.shape[1] // group, -1)
    step = max(1, PRODUCT_ELEMENTS * total.shape[1] // max(total.size, 1))
    for tile, columns in zip(dy, _column_tiles(x, window, group), strict=True):
        rows = _by_group(tile.astype(dw.dtype, copy=False), group)
        for start in range(0, total.shape[1], step):  # a product of all is as large as dw
            part = slice(start, start + step)
            total[:, part] += np.matmul(rows[:, part], columns.swapaxes(1, 2))


def _column_tiles(x: Iterable[Array], window: Window, group: int) -> Iterator[Array]:
    """Yield the columns of each sample, (group, C / group * taps, positions), in one buffer."""
    if window.is_pointwise:
        yield from (_by_group(sample, group) for sample in x)
        return
    positions, n_taps, columns = math.prod(window.result), math.prod(window.kernel), None
    taps = list(window.taps())
    for sample in x:
        if columns is None:
            columns = np.zeros((len(sample), n_taps, *window.result), sample.dtype)
        for tap, source, result in taps:  # never the padding: it stays zero
            columns[:, tap][:, *result] = sample[:, *source]
        yield columns.reshape(group, -1, positions)


def _grouped_input_grad(dy: Array, w: Array, window: Window, dx: Array, group: int) -> None:
    weights = w.reshape(group, w.shape[0] // group, -1).swapaxes(1, 2)
    if window.is_pointwise:
        for tile, sample in zip(dy, dx, strict=True):
            np.matmul(weights, _by_group(tile, group), out=_by_group(sample, group))
        return
    columns = np.empty((dx.shape[1], math.prod(window.kernel), *window.result), dy.dtype)
    flat, taps = columns.reshape(group, -1, math.prod(window.result)), list(window.taps())
    for tile, sample in zip(dy, dx, strict=True):
        np.matmul(weights, _by_group(tile, group), out=flat)
        for tap, source, result in taps:
            sample[:, *source] += columns[:, tap][:, *result]


def _depthwise_steps(
    w: Array, window: Window, channels: int
) -> list[tuple[slice, Array, tuple[slice, ...], tuple[slice, ...]]]:
    """(filters, their weights (C, 1...), slices of the input, slices of the result) for each tap.

    With more than one filter for each channel, `filters` picks one for each, c * multiplier + j.
    """
    multiplier, ones = w.shape[0] // channels, (1,) * len(window.kernel)
    weights = w.reshape(w.shape[0], -1)
    return [
        (slice(j, None, multiplier), weights[j::multiplier, tap].reshape(-1, *ones), source, result)
        for j in range(multiplier)
        for tap, source, result in window.taps()
    ]


def _depthwise(x: Array, w: Array, window: Window, y: Array) -> None:
    steps = _depthwise_steps(w, window, x.shape[1])
    scratch = np.empty((x.shape[1], *window.result), x.dtype)
    for sample, tile in zip(x, y, strict=True):
        for filters, weights, source, result in steps:
            product = scratch[:, *result]
            np.multiply(sample[:, *source], weights, out=product)
            tile[filters][:, *result] += product


def _depthwise_input_grad(dy: Array, w: Array, window: Window, dx: Array) -> None:
    steps = _depthwise_steps(w, window, dx.shape[1])
    scratch = np.empty((dx.shape[1], *window.result), dy.dtype)
    for tile, sample in zip(dy, dx, strict=True):
        for filters, weights, source, result in steps:
            product = scratch[:, *result]
            np.multiply(tile[filters][:, *result], weights, out=product)
            sample[:, *source] += product


def _depthwise_weight_grad(
    x: Iterable[Array], dy: Array, window: Window, channels: int, dw: Array
) -> None:
    axes, multiplier = tuple(range(1, dy.ndim - 1)), dw.shape[0] // channels
    scratch = np.empty((channels, *window.result), dw.dtype)
    total = dw.reshape(dw.shape[0], -1)
    taps = list(window.taps())
    for sample, tile in zip(x, dy, strict=True):
        for j in range(multiplier):
            for tap, source, result in taps:
                product = scratch[:, *result]
                np.multiply(sample[:, *source], tile[j::multiplier][:, *result], out=product)
                total[j::multiplier, tap] += np.sum(product, axis=axes)


KERNELS: dict[str, NumpyKernel] = {
    "Conv": NumpyKernel(conv, Axes("0", "0")),
    "ConvTranspose": NumpyKernel(conv_transpose),
    "BitmapConvWeightGrad": NumpyKernel(bitmap_conv_weight_grad),
    "ConvTapSums": NumpyKernel(conv_tap_sums),
    "ConvWeightGrad": NumpyKernel(conv_weight_grad, Axes("-1", "0")),
}
