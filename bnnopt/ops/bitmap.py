"""The bitmap codec: one bit per element, and the elements that are not +0.0 behind one another.

Bits are laid out as in `bnnopt.ops.packing`: (N, ceil(K / 8)) uint8, every row starts at a byte.
The values are one vector: a 0 in front, then the elements whose bit is set in scan order, then
zeros up to `capacity` elements. A tensor that has more of them than planned makes the vector longer
than `capacity`, and nothing is lost: only here does the size of a value depend on the data.
"""

from __future__ import annotations

import onnx_ir as ir

from bnnopt.ops.operator import (
    Operator,
    TypedDims,
    dims,
    dtype,
    ints,
    like,
    packed_row_bytes,
)


def _encoded(node: ir.Node) -> list[TypedDims]:
    x = node.inputs[0]
    shape = dims(x)
    bits = (ir.DataType.UINT8, (shape[0], packed_row_bytes(shape)))
    return [bits, (dtype(x), (node.attributes["capacity"].as_int(),))]


def _decoded(node: ir.Node) -> list[TypedDims]:
    shape = (dims(node.inputs[0])[0], *ints(node, "shape"))
    return [(dtype(node.inputs[1]), shape)]


def _weight_grad(node: ir.Node) -> list[TypedDims]:
    channels = ints(node, "shape")[0] // node.attributes["group"].as_int()
    filters = dims(node.inputs[2])[1]
    return [(dtype(node.inputs[1]), (filters, channels, *ints(node, "kernel_shape")))]


BITMAP_PACK = Operator(
    summary="""bits, values = the sparse form of x, bit for bit: only +0.0 is left out.

    x: (N, ...) floating point. bits: (N, ceil(K / 8)) uint8. values: (capacity,) of x's dtype, or
    as many as it takes. A bit is set where x is not 0, or is -0.0 (1 / x is below 0), or is NaN.
    Source: Hosny et al., arXiv:2110.15362, section 3; -0.0 is kept here.
    """,
    signature="BitmapPack <capacity> (x) => (bits, values)",
    body="""
        nil = Constant <value_float = 0.0> ()
        nil_like = CastLike (nil, x)
        is_zero = Equal (x, nil_like)
        other = Not (is_zero)
        inverse = Reciprocal (x)
        negative = Less (inverse, nil_like)
        kept = Or (other, negative)
        bits = bnnopt.PackBits (kept)
        all = Constant <value_ints = [-1]> ()
        x_line = Reshape (x, all)
        kept_line = Reshape (kept, all)
        found = Compress (x_line, kept_line)
        front = Reshape (nil_like, all)
        led = Concat <axis = 0> (front, found)
        length = Shape (led)
        planned = Constant <value_int: int = @capacity> ()
        free = Sub (planned, length)
        none = Constant <value_ints = [0]> ()
        missing = Max (free, none)
        pads = Concat <axis = 0> (none, missing)
        values = Pad (led, pads)
    """,
    type_rule=_encoded,
)

PRUNED_BITMAP_PACK = Operator(
    summary="""bits, values = the sparse form of the `keep` largest elements of every sample of x.

    x: (N, ...) floating point. bits, values: as BitmapPack's. Elements with a magnitude of at least
    the `keep`-th largest of their sample stay, all of several equal ones; 1 <= keep <= K.
    Source: Jiang et al., Back Razor (NeurIPS 2022), section 3.
    """,
    signature="PrunedBitmapPack <capacity, keep> (x) => (bits, values)",
    body="""
        rows = Flatten <axis = 1> (x)
        magnitude = Abs (rows)
        count = Constant <value_ints: ints = @keep> ()
        largest, places = TopK <axis = 1> (magnitude, count)
        column = Constant <value_ints = [1]> ()
        floor = ReduceMin <keepdims = 1> (largest, column)
        kept = GreaterOrEqual (magnitude, floor)
        nil = Constant <value_float = 0.0> ()
        nil_like = CastLike (nil, x)
        chosen = Where (kept, rows, nil_like)
        x_shape = Shape (x)
        pruned = Reshape (chosen, x_shape)
        bits, values = bnnopt.BitmapPack <capacity: int = @capacity> (pruned)
    """,
    type_rule=_encoded,
)

BITMAP_UNPACK = Operator(
    summary="""x = what BitmapPack encoded, bit for bit.

    bits: (N, ceil(K / 8)) uint8. values: (capacity or more,). x: (N, *shape) of values' dtype,
    K = product of `shape`. The running number of a set bit is the place of its value; all others
    read the 0 in front.
    """,
    signature="BitmapUnpack <shape> (bits, values) => (x)",
    body="""
        kept = bnnopt.UnpackBits <shape: ints = @shape> (bits)
        ones = Cast <to = 6> (kept)
        all = Constant <value_ints = [-1]> ()
        line = Reshape (ones, all)
        first_axis = Constant <value_int = 0> ()
        number = CumSum (line, first_axis)
        place = Mul (number, line)
        row_shape = Constant <value_ints: ints = @shape> ()
        rows = Constant <value_ints = [-1]> ()
        full_shape = Concat <axis = 0> (rows, row_shape)
        places = Reshape (place, full_shape)
        x = Gather (values, places)
    """,
    type_rule=_decoded,
)

BITMAP_RELU_GRAD = Operator(
    summary="""dx = dy times (1 where y > 0, else 0), y in its bitmap form: ReluGrad.

    dy, dx: (N, *shape) floating point. bits, values: what BitmapPack made of y.
    """,
    signature="BitmapReluGrad <shape> (dy, bits, values) => (dx)",
    body="""
        y = bnnopt.BitmapUnpack <shape: ints = @shape> (bits, values)
        dx = bnnopt.ReluGrad (dy, y)
    """,
    type_rule=like(0),
    in_place={0: 0},
)

BITMAP_CONV_WEIGHT_GRAD = Operator(
    summary="""dw of y = Conv(x, w), x in its bitmap form: ConvWeightGrad.

    bits, values: what BitmapPack made of x (N, *shape), shape = (C, *input). dy: (N, M, *output)
    float. dw: (M, C / group, *kernel_shape), the dtype of x. The other attributes are those of
    ConvWeightGrad. Kernels decode a part of one sample at a time, so that no dense x need exist.
    """,
    signature=(
        "BitmapConvWeightGrad <shape, kernel_shape, strides, pads, dilations, group>"
        " (bits, values, dy) => (dw)"
    ),
    body="""
        x = bnnopt.BitmapUnpack <shape: ints = @shape> (bits, values)
        dw = bnnopt.ConvWeightGrad <
            kernel_shape: ints = @kernel_shape, strides: ints = @strides, pads: ints = @pads,
            dilations: ints = @dilations, group: int = @group
        > (x, dy)
    """,
    type_rule=_weight_grad,
)

OPERATORS = (
    BITMAP_PACK,
    PRUNED_BITMAP_PACK,
    BITMAP_UNPACK,
    BITMAP_RELU_GRAD,
    BITMAP_CONV_WEIGHT_GRAD,
)
