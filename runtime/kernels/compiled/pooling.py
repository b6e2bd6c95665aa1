"""The compiled poolings, their gradients, and sums by the taps of a window: plane by plane."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled.calls import (
    FLOAT16,
    FLOAT32,
    INT8,
    TYPES,
    Arrays,
    Attributes,
    covered,
    integer,
    integers,
    number,
    optional,
    type_of,
)
from bnnopt.runtime.kernels.compiled.functions import CFunction
from bnnopt.runtime.kernels.compiled.kernel import CompiledKernel
from bnnopt.runtime.kernels.windows import make_window

MAX_POOL = CFunction("int bnn_max_pool(void*, void*, i64*, uint8_t*, i64*, i64, i64, i64, i64)")
MAX_POOL_GRAD = CFunction("int bnn_max_pool_grad_f32(float*, i64*, float*, i64, i64, i64)")
HALF_MAX_POOL_GRAD = CFunction(
    "int bnn_max_pool_grad_f16(bnn_half*, i64*, bnn_half*, i64, i64, i64)"
)
PACKED_MAX_POOL_GRAD = CFunction(
    "int bnn_packed_max_pool_grad(void*, uint8_t*, int32_t*, void*, i64, i64, i64, i64, i64, i64, "
    "i64, i64, i64, i64, i64, i64)"
)
NORMALIZATION_POOL_GRAD = CFunction(
    "int bnn_batch_normalization_pool_grad(void*, void*, uint8_t*, int32_t*, uint8_t*, float*, "
    "float*, float*, void*, float*, float*, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, "
    "i64, i64, i64, float)"
)
CONV_TAP_SUMS = CFunction("int bnn_conv_tap_sums(void*, float*, i64*, i64, i64, i64)")
AVERAGE_POOL = CFunction("void bnn_average_pool(void*, void*, i64*, i64, i64, i64)")
AVERAGE_POOL_GRAD = CFunction("void bnn_average_pool_grad(void*, float*, void*, i64*, i64, i64)")

MAX_PLANE = 2**31 - 1  # elements whose places in a plane fit int32


def max_pool(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`pooling.max_pool` over two spatial axes; the indices may be left out."""
    x, y, indices = inputs[0], outputs[0], optional(outputs, 1)
    if indices is not None and not covered(indices, dtype=np.int64):
        return False
    if attributes.get("storage_order", 0):
        return False
    return _max_pool(x, y, indices, None, attributes, 0)


def packed_max_pool(
    inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array
) -> bool:
    """`pooling.packed_max_pool`; the places may be left out."""
    x, y, packed = inputs[0], outputs[0], optional(outputs, 1)
    n_bits = _n_place_bits(attributes)
    if n_bits is None or (packed is not None and not covered(packed, dtype=np.uint8)):
        return False
    return _max_pool(x, y, None, packed, attributes, n_bits)


def _max_pool(
    x: Array | None,
    y: Array | None,
    indices: Array | None,
    packed: Array | None,
    attributes: Attributes,
    n_bits: int,
) -> bool:
    x_type = type_of(x)
    if x_type is None or type_of(y) != x_type:
        return False
    assert x is not None
    window = _window(x, y, attributes)
    if window is None:
        return False
    if packed is not None and _may_see_padding_only(attributes):
        return False
    sizes = x_type, *x.shape[:2], n_bits
    return MAX_POOL(x, y, indices, packed, window, *sizes)


def _may_see_padding_only(attributes: Attributes) -> bool:
    """Whether a window may have no element of the input, and its maximum no place."""
    pads = integers(attributes, "pads") or []
    dilations = integers(attributes, "dilations") or []
    kernel = 2 * (integers(attributes, "kernel_shape") or [])
    is_dilated = any(d > 1 for d in dilations) and any(pads)
    return is_dilated or any(pad >= k for pad, k in zip(pads, kernel, strict=True))


def _n_place_bits(attributes: Attributes) -> int | None:
    """Bits of a place in a pooling window, 1 to 8; None if `bit_values` are others."""
    bits = integers(attributes, "bit_values") or []
    plain = 1 <= len(bits) <= 8 and bits == [1 << i for i in range(len(bits))]
    return len(bits) if plain else None


def packed_max_pool_grad(
    inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array
) -> bool:
    """`pooling.packed_max_pool_grad`."""
    (dy, packed, origin), dx = inputs, outputs[0]
    dy_type, n_bits = _gradient_type(dy), _n_place_bits(attributes)
    fits = covered(packed, dtype=np.uint8) and covered(origin, dtype=np.int32)
    if not fits or dy_type is None or dy_type != _gradient_type(dx) or n_bits is None:
        return False
    assert dy is not None
    assert dx is not None
    assert origin is not None
    if dx.size == 0 or dx.shape[:2] != dy.shape[:2] or origin.shape != dy.shape[2:]:
        return False
    names = ("kernel_width", "row_dilation", "column_dilation")
    geometry = [integer(attributes, name) for name in names]
    sizes = *dy.shape[:2], *dx.shape[2:], *dy.shape[2:]
    pairs = int((n_bits, *geometry) == (2, 2, 1, 1) and side_by_side(origin, *dx.shape[2:]))
    numbers = dy_type, *sizes, *geometry, n_bits, pairs
    return PACKED_MAX_POOL_GRAD(dy, packed, origin, dx, *numbers)


def l1_batch_normalization_pool_grad(
    inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array
) -> bool:
    """`pooled_normalization.l1_batch_normalization_pool_grad`; either sum may be left out."""
    return pool_grad_of_channels(inputs, outputs, attributes, 0)


def pool_grad_of_channels(
    inputs: Arrays, outputs: Arrays, attributes: Attributes, first: int
) -> bool:
    """The same of the channels that dx has, from `first` on; the sums are those of all."""
    (dy, y, packed, origin, signs, *channels), dx = inputs, outputs[0]
    sums = [optional(outputs, i) for i in range(1, 3)]
    dy_type, y_type, n_bits = type_of(dy), type_of(y), _n_place_bits(attributes)
    fits = covered(packed, signs, dtype=np.uint8) and covered(origin, dtype=np.int32)
    fits = fits and covered(*channels, *[s for s in sums if s is not None])
    if not fits or None in (dy_type, y_type, n_bits) or dy_type != type_of(dx):
        return False
    assert dx is not None
    assert dy is not None
    assert origin is not None
    if dx.size == 0 or dx.ndim != 4:
        return False
    names = ("kernel_width", "row_dilation", "column_dilation")
    geometry = [integer(attributes, name) for name in names]
    sizes = *dy.shape[:2], first, *dx.shape[1:], origin.size
    numbers = (integer(attributes, "relu"), dy_type, y_type, *sizes, *geometry)
    epsilon = number(attributes, "epsilon")
    return NORMALIZATION_POOL_GRAD(*inputs, dx, *sums, *numbers, n_bits, epsilon)


def conv_tap_sums(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`convolution.conv_tap_sums` in two dimensions."""
    (dy,), sums = inputs, outputs[0]
    dy_type = type_of(dy)
    if dy_type is None or not covered(sums):
        return False
    assert dy is not None
    source = integers(attributes, "input_shape") or []
    if dy.ndim != 4 or dy.size == 0:
        return False
    window = _window_numbers(source, dy.shape[2:], attributes)
    return CONV_TAP_SUMS(dy, sums, window, dy_type, *dy.shape[:2])


def _gradient_type(array: Array | None) -> int | None:
    """As `type_of`, of integers with a unit as well."""
    return TYPES[INT8] if covered(array, dtype=INT8) else type_of(array)


def side_by_side(origin: Array, height: int, width: int) -> bool:
    """Whether the windows of 2 x 2 begin on every second row and column, and end inside."""
    rows, columns = origin.shape
    first, last = int(origin[0, 0]), int(origin[-1, -1])
    steps = 2 * (rows - 1) * width + 2 * (columns - 1)
    inside = 2 * rows <= height and 2 * columns <= width
    return inside and (first, last) == (0, steps)


def average_pool(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`pooling.average_pool` over one or two spatial axes, x and y float32 or float16."""
    x, y = inputs[0], outputs[0]
    window = _float_window(x, y, attributes)
    if window is None:
        return False
    assert x is not None
    counts_pad = integer({"count_include_pad": 0, **attributes}, "count_include_pad")
    return AVERAGE_POOL(x, y, window, type_of(x), math.prod(x.shape[:2]), counts_pad)


def average_pool_grad(
    inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array
) -> bool:
    """`pooling.average_pool_grad` over one or two spatial axes, dy and dx float32 or float16."""
    (dy, counts), dx = inputs, outputs[0]
    window = _float_window(dx, dy, attributes)
    if window is None or not covered(counts):
        return False
    assert dx is not None
    return AVERAGE_POOL_GRAD(dy, counts, dx, window, type_of(dx), math.prod(dx.shape[:2]))


def _float_window(x: Array | None, y: Array | None, attributes: Attributes) -> list[int] | None:
    """As `_window`, if both are of one type of floats."""
    fits = type_of(x) in (TYPES[FLOAT32], TYPES[FLOAT16]) and type_of(x) == type_of(y)
    return _window(x, y, attributes) if fits else None


def _window(x: Array | None, y: Array | None, attributes: Attributes) -> list[int] | None:
    """The numbers of C's ``struct bnn_window``; None if the case is not covered."""
    assert x is not None
    assert y is not None
    kernel = integers(attributes, "kernel_shape") or []
    plane = math.prod(x.shape[2:])
    if x.ndim not in (3, 4) or len(kernel) != x.ndim - 2 or not 0 < plane <= MAX_PLANE:
        return None
    numbers = _window_numbers(x.shape[2:], None, attributes)
    if x.ndim == 3:  # a row
        numbers = [n for pair in zip((1, 1, 1, 1, 1, 0, 0), numbers, strict=True) for n in pair]
    return numbers if y.shape == (*x.shape[:2], *numbers[2:4][4 - x.ndim :]) else None


def _window_numbers(
    source: Sequence[int], result: Sequence[int] | None, attributes: Attributes
) -> list[int]:
    window = make_window(
        source,
        integers(attributes, "kernel_shape") or [],
        strides=integers(attributes, "strides"),
        pads=integers(attributes, "pads"),
        dilations=integers(attributes, "dilations"),
        auto_pad=cast(str, attributes.get("auto_pad", "NOTSET")),
        ceil_mode=cast(int, attributes.get("ceil_mode", 0)),
        result=result,
    )
    return [
        *window.source, *window.result, *window.kernel, *window.strides, *window.dilations,
        *window.begin, *window.end,
    ]  # fmt: skip


def max_pool_grad(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`pooling.max_pool_grad`, any number of spatial axes."""
    (dy, indices), dx = inputs, outputs[0]
    halves = covered(dy, dx, dtype=np.float16)
    if not (halves or covered(dy, dx)) or not covered(indices, dtype=np.int64):
        return False
    assert dy is not None
    assert dx is not None
    assert indices is not None
    if dx.size == 0 or dx.shape[:2] != dy.shape[:2] or indices.size != dy.size:
        return False
    sizes = math.prod(dx.shape[:2]), math.prod(dx.shape[2:]), math.prod(dy.shape[2:])
    function = HALF_MAX_POOL_GRAD if halves else MAX_POOL_GRAD
    return function(dy, indices, dx, *sizes)


KERNELS: dict[str, CompiledKernel] = {
    "AveragePool": CompiledKernel(average_pool, repeatable=True),
    "AveragePoolGrad": CompiledKernel(average_pool_grad, repeatable=True),
    "ConvTapSums": CompiledKernel(conv_tap_sums, repeatable=True),
    "L1BatchNormalizationPoolGrad": CompiledKernel(
        l1_batch_normalization_pool_grad, repeatable=True
    ),
    "MaxPool": CompiledKernel(max_pool, repeatable=True),
    "MaxPoolGrad": CompiledKernel(max_pool_grad),
    "PackedMaxPool": CompiledKernel(packed_max_pool, repeatable=True),
    "PackedMaxPoolGrad": CompiledKernel(packed_max_pool_grad, repeatable=True),
}
