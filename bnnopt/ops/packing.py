"""Codecs of one bit per element, and of the few bits of a pooling index.

A packed tensor is ``(N, ceil(K * n_bits / 8))`` uint8 for a tensor of shape ``(N, ...)`` with K
elements behind its first axis: every row (sample, or output filter) starts at a byte, so that a
packed batch can be cut between samples. Bit j of byte b is element ``8 b + j`` of the row
(``numpy.packbits`` with ``bitorder="little"``); the spare bits of a row's last byte are 0.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from bnnopt.ops.operator import Operator, TypedDims, dims, ints, like, packed_row_bytes


def _packed(node: ir.Node) -> list[TypedDims]:
    shape = dims(node.inputs[0])
    return [(ir.DataType.UINT8, (shape[0], packed_row_bytes(shape)))]


def _unpacked_bool(node: ir.Node) -> list[TypedDims]:
    return [(ir.DataType.BOOL, (dims(node.inputs[0])[0], *ints(node, "shape")))]


def _unpacked_float(node: ir.Node) -> list[TypedDims]:
    return [(ir.DataType.FLOAT, (dims(node.inputs[0])[0], *ints(node, "shape")))]


def _packed_indices(node: ir.Node) -> list[TypedDims]:
    shape = dims(node.inputs[0])
    n_bits = len(ints(node, "bit_values"))
    return [(ir.DataType.UINT8, (shape[0], packed_row_bytes(shape, n_bits)))]


def _unpacked_indices(node: ir.Node) -> list[TypedDims]:
    *shape, _n_bits = ints(node, "bit_shape")
    return [(ir.DataType.INT64, (dims(node.inputs[0])[0], *shape))]


def pack_half_bytes(packed: str) -> str:
    """Statements of ONNX for `packed` (N, ceil(K / 2)): `codes` (N, ...), of four bits each."""
    return f"""
        rows = Flatten <axis = 1> (codes)
        row_length = Shape <start = 1> (rows)
        pair = Constant <value_ints = [2]> ()
        spare = Mod (row_length, pair)
        no_pads = Constant <value_ints = [0, 0, 0]> ()
        pads = Concat <axis = 0> (no_pads, spare)
        padded = Pad (rows, pads)
        by_byte = Constant <value_ints = [0, -1, 2]> ()
        pairs = Reshape (padded, by_byte)
        place_values = Constant <value = uint8[2, 1] {{1, 16}}> ()
        sums = MatMulInteger (pairs, place_values)
        narrow = Cast <to = 2> (sums)
        by_row = Constant <value_ints = [0, -1]> ()
        {packed} = Reshape (narrow, by_row)
    """.strip()


def unpack_half_bytes(packed: str) -> str:
    """Statements for the `codes`; `row_shape`, its product `row_length`, `start` [0], `one` [1]."""
    return f"""
        nibble = Constant <value = uint8 {{15}}> ()
        four = Constant <value = uint8 {{4}}> ()
        first = BitwiseAnd ({packed}, nibble)
        second = BitShift <direction = "RIGHT"> ({packed}, four)
        last = Constant <value_ints = [-1]> ()
        first_column = Unsqueeze (first, last)
        second_column = Unsqueeze (second, last)
        columns = Concat <axis = -1> (first_column, second_column)
        rows = Flatten <axis = 1> (columns)
        used = Slice (rows, start, row_length, one)
        full_shape = Concat <axis = 0> (start, row_shape)
        codes = Reshape (used, full_shape)
    """.strip()


PACK_BITS = Operator(
    summary="""packed = the bits of a boolean tensor, rows padded to whole bytes.

    mask: (N, ...) bool. packed: (N, ceil(K / 8)) uint8.
    """,
    signature="PackBits (mask) => (packed)",
    body="""
        rows = Flatten <axis = 1> (mask)
        bytes = Cast <to = 2> (rows)
        row_length = Shape <start = 1> (bytes)
        eight = Constant <value_ints = [8]> ()
        negative_length = Neg (row_length)
        spare = Mod (negative_length, eight)
        no_pads = Constant <value_ints = [0, 0, 0]> ()
        pads = Concat <axis = 0> (no_pads, spare)
        padded = Pad (bytes, pads)
        by_byte = Constant <value_ints = [0, -1, 8]> ()
        octets = Reshape (padded, by_byte)
        place_values = Constant <value = uint8[8, 1] {1, 2, 4, 8, 16, 32, 64, 128}> ()
        sums = MatMulInteger (octets, place_values)
        narrow = Cast <to = 2> (sums)
        by_row = Constant <value_ints = [0, -1]> ()
        packed = Reshape (narrow, by_row)
    """,
    type_rule=_packed,
)

UNPACK_BITS = Operator(
    summary="""mask = the boolean tensor whose bits PackBits kept.

    packed: (N, ceil(K / 8)) uint8. mask: (N, *shape) bool, K = product of `shape`.
    """,
    signature="UnpackBits <shape> (packed) => (mask)",
    body="""
        last = Constant <value_ints = [-1]> ()
        column = Unsqueeze (packed, last)
        place_values = Constant <value = uint8[8] {1, 2, 4, 8, 16, 32, 64, 128}> ()
        octets = BitwiseAnd (column, place_values)
        bits = Cast <to = 9> (octets)
        rows = Flatten <axis = 1> (bits)
        row_shape = Constant <value_ints: ints = @shape> ()
        row_length = ReduceProd <keepdims = 1> (row_shape)
        start = Constant <value_ints = [0]> ()
        axis = Constant <value_ints = [1]> ()
        used = Slice (rows, start, row_length, axis)
        batch = Constant <value_ints = [0]> ()
        full_shape = Concat <axis = 0> (batch, row_shape)
        mask = Reshape (used, full_shape)
    """,
    type_rule=_unpacked_bool,
)

SIGN_PACK = Operator(
    summary="""packed = the bits of x > 0: exact for a tensor of -1 and +1, and the mask of a ReLU.

    x: (N, ...) float or int16. packed: (N, ceil(K / 8)) uint8.
    """,
    signature="SignPack (x) => (packed)",
    body="""
        nil = Constant <value_float = 0.0> ()
        x_float = Cast <to = 1> (x)
        positive = Greater (x_float, nil)
        packed = bnnopt.PackBits (positive)
    """,
    type_rule=_packed,
)

SIGN_UNPACK = Operator(
    summary="""x = +1 where the bit is set, else -1.

    packed: (N, ceil(K / 8)) uint8. x: (N, *shape) float32.
    """,
    signature="SignUnpack <shape> (packed) => (x)",
    body="""
        positive = bnnopt.UnpackBits <shape: ints = @shape> (packed)
        two = Constant <value_float = 2.0> ()
        one = Constant <value_float = 1.0> ()
        unit = Cast <to = 1> (positive)
        double = Mul (unit, two)
        x = Sub (double, one)
    """,
    type_rule=_unpacked_float,
)

BINARIZE_PACK = Operator(
    summary="""packed = the bits of Binarize(x) > 0: what it would say, without its floats.

    x: (N, ...) float or int16. packed: (N, ceil(K / 8)) uint8. `zero` is Binarize's: with +1 the
    bit is not (x < 0), so that NaN gives 1; with -1 it is x > 0.
    """,
    signature="BinarizePack <zero> (x) => (packed)",
    body="""
        zero_value = Constant <value_float: float = @zero> ()
        nil = Constant <value_float = 0.0> ()
        x_float = Cast <to = 1> (x)
        is_plus = Greater (zero_value, nil)
        below = Less (x_float, nil)
        not_below = Not (below)
        above = Greater (x_float, nil)
        plus_at_zero = And (not_below, is_plus)
        positive = Or (above, plus_at_zero)
        packed = bnnopt.PackBits (positive)
    """,
    type_rule=_packed,
)

RANGE_PACK = Operator(
    summary="""packed = the bits of low <= x <= high, compared as float32: what ClipGrad reads of x.

    x: (N, ...) float or int16. packed: (N, ceil(K / 8)) uint8.
    """,
    signature="RangePack <low, high> (x) => (packed)",
    body="""
        low_value = Constant <value_float: float = @low> ()
        high_value = Constant <value_float: float = @high> ()
        x_float = Cast <to = 1> (x)
        over = GreaterOrEqual (x_float, low_value)
        under = LessOrEqual (x_float, high_value)
        inside = And (over, under)
        packed = bnnopt.PackBits (inside)
    """,
    type_rule=_packed,
)


MASKED_GRAD = Operator(
    summary="""dx = dy times the bit: the gradient of ReLU, Clip and the clipped STE.

    dy, dx: (N, *shape) floating point. packed: (N, ceil(K / 8)) uint8.
    """,
    signature="MaskedGrad <shape> (dy, packed) => (dx)",
    body="""
        kept = bnnopt.UnpackBits <shape: ints = @shape> (packed)
        factor = CastLike (kept, dy)
        dx = Mul (factor, dy)
    """,
    type_rule=like(0),
    in_place={0: 0},
)

# What both directions compute places with.
_WINDOW_GEOMETRY = """
        width64 = Constant <value_int: int = @width> ()
        width_value = Cast <to = 6> (width64)
        kernel_width64 = Constant <value_int: int = @kernel_width> ()
        kernel_width_value = Cast <to = 6> (kernel_width64)
        row_dilation64 = Constant <value_int: int = @row_dilation> ()
        row_dilation_value = Cast <to = 6> (row_dilation64)
        column_dilation64 = Constant <value_int: int = @column_dilation> ()
        column_dilation_value = Cast <to = 6> (column_dilation64)
"""

POOL_INDEX_PACK = Operator(
    summary="""packed = the place in its window of every pooling output, in n bits each.

    indices: (N, C, Ho, Wo) int64, MaxPool's second output (index into the whole input).
    origin: (Ho, Wo) int32, row * width + column of each window's first element (negative in the
    padding). packed: (N, ceil(C Ho Wo n_bits / 8)) uint8; `bit_values` is 1, 2, .. 2^(n_bits - 1).
    `plane` = H * W, `width` = W of the input; the dilated kernel must not be wider than W, and the
    kernel has at most 256 elements.
    """,
    signature=(
        "PoolIndexPack <plane, width, kernel_width, row_dilation, column_dilation, bit_values>"
        " (indices, origin) => (packed)"
    ),
    body=_WINDOW_GEOMETRY
    + """
        plane_value = Constant <value_int: int = @plane> ()
        in_plane = Mod (indices, plane_value)
        in_plane32 = Cast <to = 6> (in_plane)
        offset = Sub (in_plane32, origin)
        dilated_row = Div (offset, width_value)
        row = Div (dilated_row, row_dilation_value)
        dilated_column = Mod (offset, width_value)
        column = Div (dilated_column, column_dilation_value)
        row_start = Mul (row, kernel_width_value)
        place = Add (row_start, column)
        place8 = Cast <to = 2> (place)
        last = Constant <value_ints = [-1]> ()
        place_column = Unsqueeze (place8, last)
        bit_values64 = Constant <value_ints: ints = @bit_values> ()
        bit_values8 = Cast <to = 2> (bit_values64)
        spread = BitwiseAnd (place_column, bit_values8)
        bits = Cast <to = 9> (spread)
        packed = bnnopt.PackBits (bits)
    """,
    type_rule=_packed_indices,
)

POOL_INDEX_UNPACK = Operator(
    summary="""indices = what PoolIndexPack packed, again as indices into the whole input.

    packed: (N, ceil(C Ho Wo n_bits / 8)) uint8. origin: (Ho, Wo) int32. indices: (N, C, Ho, Wo)
    int64. `bit_shape` is [C, Ho, Wo, n_bits]; the other attributes are PoolIndexPack's.
    """,
    signature=(
        "PoolIndexUnpack <plane, width, kernel_width, row_dilation, column_dilation, bit_values,"
        " bit_shape> (packed, origin) => (indices)"
    ),
    body=_WINDOW_GEOMETRY
    + """
        bits = bnnopt.UnpackBits <shape: ints = @bit_shape> (packed)
        bits8 = Cast <to = 2> (bits)
        bit_values64 = Constant <value_ints: ints = @bit_values> ()
        bit_values8 = Cast <to = 2> (bit_values64)
        last = Constant <value_ints = [-1]> ()
        place_values = Unsqueeze (bit_values8, last)
        place_column = MatMulInteger (bits8, place_values)
        place = Squeeze (place_column, last)
        row = Div (place, kernel_width_value)
        column = Mod (place, kernel_width_value)
        row_step = Mul (row_dilation_value, width_value)
        row_offset = Mul (row, row_step)
        column_offset = Mul (column, column_dilation_value)
        offset = Add (row_offset, column_offset)
        in_plane = Add (offset, origin)
        in_plane64 = Cast <to = 7> (in_plane)
        planes = Shape <start = 0, end = 2> (in_plane64)
        n_planes = ReduceProd <keepdims = 0> (planes)
        first = Constant <value_int = 0> ()
        step = Constant <value_int = 1> ()
        plane_numbers = Range (first, n_planes, step)
        plane_value = Constant <value_int: int = @plane> ()
        plane_starts = Mul (plane_numbers, plane_value)
        unit_axes = Constant <value_ints = [1, 1]> ()
        per_plane = Concat <axis = 0> (planes, unit_axes)
        plane_offset = Reshape (plane_starts, per_plane)
        indices = Add (in_plane64, plane_offset)
    """,
    type_rule=_unpacked_indices,
)

OPERATORS = (
    PACK_BITS,
    UNPACK_BITS,
    SIGN_PACK,
    SIGN_UNPACK,
    BINARIZE_PACK,
    RANGE_PACK,
    MASKED_GRAD,
    POOL_INDEX_PACK,
    POOL_INDEX_UNPACK,
)


def n_index_bits(kernel_elements: int) -> int:
    """Bits that name one of `kernel_elements` places in a pooling window."""
    return max(1, math.ceil(math.log2(kernel_elements)))
