"""The stem of a residual network on some filters after the other; see `ops.pooled_filter_blocks`.

A block's map lies in scratch memory. A sample's part of a result is contiguous, so the pooling
writes it, the places of its maxima and the sides where they belong, sample by sample: the bits of 8
filters begin at a whole byte. No filter depends on another, so the bits are those of whole maps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.chains import OF_WINDOW
from bnnopt.runtime.kernels.compiled import (
    convolution,
    elementwise,
    normalization,
    packing,
    pooling,
)
from bnnopt.runtime.kernels.compiled.calls import Arrays, Attributes, integers, optional
from bnnopt.runtime.kernels.compiled.filter_blocks import DTYPES, aligned_bytes, cut
from bnnopt.runtime.kernels.compiled.kernel import CompiledKernel, Sizes, largest
from bnnopt.runtime.kernels.windows import make_window

FILTERS = 32  # of a block: for each of them the convolution gathers its input
GRADIENT_FILTERS = 16  # the lanes that a weight gradient works on at least
MAX_PLANE = 1 << 14  # elements of a channel of the map, which the sums of taps keep on the stack

Shape = Sequence[int]

_KERNELS: dict[str, CompiledKernel] = {
    **convolution.KERNELS,
    **elementwise.KERNELS,
    **normalization.KERNELS,
    **packing.KERNELS,
    **pooling.KERNELS,
}


def _blocks(n_filters: int, step: int) -> Iterator[slice]:
    for start in range(0, n_filters, step):
        yield slice(start, min(start + step, n_filters))


def _bytes_of(filters: slice, bits: int) -> slice:
    """Where some filters are in a row of so many bits a filter."""
    return slice(filters.start * bits // 8, -(-filters.stop * bits // 8))


def _map_shape(x: Shape, w: Shape, window: Attributes) -> tuple[int, ...]:
    """Of what a convolution with these attributes gives."""
    strides, pads, dilations = (integers(window, name) for name in OF_WINDOW[1:])
    result = make_window(x[2:], w[2:], strides=strides, pads=pads, dilations=dilations).result
    return (x[0], w[0], *result)


def _cut(scratch: Array, shape: Shape, attributes: Attributes) -> tuple[Array, Array] | None:
    """A block's map at the beginning of the scratch memory, and the rest."""
    if scratch.ctypes.data % 64 or scratch.size < _map_bytes(shape, attributes):
        return None
    (y,), rest = cut(scratch, [(shape, _dtype(attributes))])
    return y, rest


def _map_bytes(shape: Shape, attributes: Attributes) -> int:
    """Of a block's map, aligned."""
    return aligned_bytes(shape, _dtype(attributes))


def _dtype(attributes: Attributes) -> np.dtype[Any]:
    return DTYPES[cast(int, attributes["dtype"])]


# Forward ------------------------------------------------------------------------------------------


def conv_norm_max_pool(
    inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array
) -> bool:
    """`pooled_filter_blocks.real_conv_norm_max_pool`; statistics may be left out."""
    x, w = inputs[:2]
    if any(a is None for a in (*inputs, *outputs[:3])) or attributes.get("group", 1) != 1:
        return False
    assert x is not None
    assert w is not None
    shape = _map_shape(x.shape, w.shape, attributes)
    return all(
        _run_block(filters, shape, cast("list[Array]", inputs), outputs, attributes, scratch)
        for filters in _blocks(len(w), FILTERS)
    )


def _run_block(
    filters: slice,
    shape: Shape,
    inputs: list[Array],
    outputs: Arrays,
    attributes: Attributes,
    scratch: Array,
) -> bool:
    x, w, *channels, origin = inputs
    found = _cut(scratch, (shape[0], filters.stop - filters.start, *shape[2:]), attributes)
    if found is None:
        return False
    y, rest = found
    scale, bias, *running = (c[filters] for c in channels)
    statistics = [optional(outputs, i) for i in range(3, 7)]
    made = [y, *(None if s is None else s[filters] for s in statistics)]
    norm = _KERNELS["L1BatchNormalizationTraining"]
    return (
        _KERNELS["RealConv"]([x, w[filters]], [y], attributes, rest)
        and norm([y, scale, bias, *running], made, attributes, rest)
        and _pool(filters, y, bias, origin, outputs, attributes, rest)
    )


def _pool(
    filters: slice,
    y: Array,
    bias: Array,
    origin: Array,
    outputs: Arrays,
    attributes: Attributes,
    rest: Array,
) -> bool:
    """Sides, maxima and places of a block, where they belong."""
    pooled, places, sides = cast("list[Array]", outputs[:3])
    own = {**attributes, **{name: attributes[f"pool_{name}"] for name in OF_WINDOW}}
    n_bits = len(integers(attributes, "bit_values") or [])
    at = _bytes_of(filters, n_bits * origin.size)
    side_bytes = _bytes_of(filters, math.prod(y.shape[2:]))
    for n in range(len(y)):
        one = slice(n, n + 1)
        found = pooled[one, filters]
        done = (
            _KERNELS["ThresholdPack"]([y[one], bias], [sides[one, side_bytes]], {}, rest)
            and _KERNELS["PackedMaxPool"]([y[one], origin], [found, places[one, at]], own, rest)
            and (not attributes["relu"] or _KERNELS["Relu"]([found], [found], {}, rest))
        )
        if not done:
            return False
    return True


def scratch_bytes(sizes: Sizes) -> int | None:
    """Bytes of a block's map, and of what the convolution needs beside it."""
    (x, w), attributes = sizes.inputs[:2], sizes.attributes
    if attributes.get("group", 1) != 1:
        return None
    needed = []
    for filters in _blocks(w[0], FILTERS):
        block = (filters.stop - filters.start, *w[1:])
        shape = _map_shape(x, block, attributes)
        given = Sizes([x, block], [shape], attributes, n_threads=sizes.n_threads)
        needed.append(_with_map("RealConv", given, shape, attributes))
    return largest(needed)


def _with_map(
    operator: str, sizes: Sizes, shape: Sequence[int], attributes: Attributes
) -> int | None:
    """What an operator needs beside a block's map, and that."""
    rule = _KERNELS[operator].scratch
    assert rule is not None
    beside = rule(sizes)
    return None if beside is None else _map_bytes(shape, attributes) + beside


# The way back -------------------------------------------------------------------------------------


def conv_norm_max_pool_grad(
    inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array
) -> bool:
    """`pooled_filter_blocks.real_conv_norm_max_pool_grad`; all but dw may be left out."""
    *read, x = inputs
    dw, taps, *sums = (optional(outputs, i) for i in range(4))
    if any(a is None for a in (*inputs, dw)):
        return False
    assert x is not None
    assert dw is not None
    of_conv = _of_conv(attributes, len(dw))
    shape = _map_shape(x.shape, dw.shape, of_conv)
    for filters in _blocks(len(dw), GRADIENT_FILTERS):
        found = _cut(scratch, (shape[0], filters.stop - filters.start, *shape[2:]), attributes)
        if found is None:
            return False
        dx, rest = found
        done = (
            pooling.pool_grad_of_channels(read, [dx, *sums], attributes, filters.start)
            and _KERNELS["ConvWeightGrad"]([x, dx], [dw[filters]], of_conv, rest)
            and (taps is None or _KERNELS["ConvTapSums"]([dx], [taps[filters]], of_conv, rest))
        )
        if not done:
            return False
    return True


def _of_conv(attributes: Attributes, n_filters: int) -> Attributes:
    """The attributes of the convolution's gradients, for some of its filters."""
    own = {name: attributes[f"conv_{name}"] for name in ("input_shape", *OF_WINDOW)}
    return {"group": 1, convolution.ALL_FILTERS: n_filters, **own}


def gradient_scratch_bytes(sizes: Sizes) -> int | None:
    """Bytes of a block's map, and of what the weight gradient needs beside it."""
    (n_filters, *_), x, attributes = sizes.inputs[5], sizes.inputs[-1], sizes.attributes
    of_conv = _of_conv(attributes, n_filters)
    kernel = cast("list[int]", attributes["conv_kernel_shape"])
    needed = []
    for filters in _blocks(n_filters, GRADIENT_FILTERS):
        dw = (filters.stop - filters.start, x[1], *kernel)
        shape = _map_shape(x, dw, of_conv)
        if math.prod(shape[2:]) > MAX_PLANE:
            return None
        given = Sizes([x, shape], [dw], of_conv, n_threads=sizes.n_threads)
        needed.append(_with_map("ConvWeightGrad", given, shape, attributes))
    return largest(needed)


KERNELS: dict[str, CompiledKernel] = {
    "RealConvNormMaxPool": CompiledKernel(conv_norm_max_pool, scratch_bytes, repeatable=True),
    "RealConvNormMaxPoolGrad": CompiledKernel(
        conv_norm_max_pool_grad, gradient_scratch_bytes, repeatable=True
    ),
}
