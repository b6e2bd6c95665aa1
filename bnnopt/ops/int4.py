"""A gradient in four bits: the codec, and the binary products that read it.

Integers of -7 to 7 with one unit for the whole tensor, as those of `int8`, but two to a byte: a
tensor of shape ``(N, ...)`` with K elements behind its first axis is ``(N, ceil(K / 2))`` uint8,
element ``2 b + j`` in bits ``4 j`` to ``4 j + 3`` of byte b of its row, 8 more than the integer; a
spare half byte is 0. The unit follows the tensor: what few elements exceed is cut off, so that the
others are told apart.
"""

from __future__ import annotations

import onnx_ir as ir

from bnnopt.ops.int8 import INT8_PRODUCTS, LARGEST, ROUNDED
from bnnopt.ops.operator import (
    Dims,
    Form,
    Operator,
    TypedDims,
    dims,
    ints,
    packed_row_bytes,
    passed_on,
    signature_of,
)
from bnnopt.ops.packing import pack_half_bytes, unpack_half_bytes

N_BITS = 4
MAX_HALVINGS = 5
_DECODED = "dy_packed, dy_unit"


def int4_row_bytes(shape: Dims) -> int:
    """Bytes of a row: all of `shape` but its first axis."""
    return packed_row_bytes(shape, N_BITS)


def _packed(node: ir.Node) -> list[TypedDims]:
    shape = dims(node.inputs[0])
    return [(ir.DataType.UINT8, (shape[0], int4_row_bytes(shape))), (ir.DataType.FLOAT, ())]


def _unpacked(node: ir.Node) -> list[TypedDims]:
    return [(ir.DataType.INT8, (dims(node.inputs[0])[0], *ints(node, "shape")))]


def _halving(k: int) -> str:
    """Statements for `fits_k`: 1 if no more elements than may be cut off exceed largest / 2^k."""
    return f"""
        part_{k} = Constant <value_float = {2.0**-k}> ()
        bound_{k} = Mul (largest, part_{k})
        is_above_{k} = Greater (magnitude, bound_{k})
        ones_{k} = Cast <to = 7> (is_above_{k})
        above_{k} = ReduceSum <keepdims = 0> (ones_{k})
        weighed_{k} = Mul (above_{k}, one_in_value)
        is_few_{k} = LessOrEqual (weighed_{k}, n)
        fits_{k} = Cast <to = 1> (is_few_{k})"""


_HALVINGS = range(1, MAX_HALVINGS + 1)

INT4_PACK = Operator(
    summary="""packed, unit = the integers next to x / unit, one above or one below by chance.

    x: (N, ...) floating point; step: int64 scalar. packed: (N, ceil(K / 2)) uint8, see the top of
    this module; unit: () float32. The largest magnitude of x, but at least 2^-100, is halved up to
    five times, as long as no more than one in `one_in` elements exceeds the half; unit is what that
    leaves, divided by 7. The integers are floor(x / unit + f) within -7 and 7, f in [0, 1) being
    the first 24 of the element's RandomBits: but for what is cut off their mean is x / unit. Where
    x has an infinity or a NaN, unit is NaN and all integers are 0.
    Source: Sun et al., Ultra-Low Precision 4-bit Training of Deep Neural Networks, NeurIPS 2020 (a
    scale of its own for each layer's gradient); Gupta et al., arXiv:1502.02551 (the rounding).
    """,
    signature="Int4Pack <seed, one_in> (x, step) => (packed, unit)",
    body=f"""
        {LARGEST}
        n = Size (x)
        one_in_value = Constant <value_int: int = @one_in> ()
        {"".join(map(_halving, _HALVINGS))}
        n_halvings = Sum ({", ".join(f"fits_{k}" for k in _HALVINGS)})
        halves = Neg (n_halvings)
        two = Constant <value_float = 2.0> ()
        factor = Pow (two, halves)
        reach = Mul (largest, factor)
        top = Constant <value_float = 7.0> ()
        finite_unit = Div (reach, top)
        unit = Add (finite_unit, poison)
        inverse = Div (top, reach)
        {ROUNDED}
        eight = Constant <value_float = 8.0> ()
        raised = Add (sound, eight)
        codes = Cast <to = 2> (raised)
        {pack_half_bytes("packed")}
    """,
    type_rule=_packed,
)

INT4_UNPACK = Operator(
    summary="""q = the integers that Int4Pack kept.

    packed: (N, ceil(K / 2)) uint8; q: (N, *shape) int8, K the product of `shape`.
    """,
    signature="Int4Unpack <shape> (packed) => (q)",
    body=f"""
        row_shape = Constant <value_ints: ints = @shape> ()
        row_length = ReduceProd <keepdims = 1> (row_shape)
        start = Constant <value_ints = [0]> ()
        one = Constant <value_ints = [1]> ()
        {unpack_half_bytes("packed")}
        wide = Cast <to = 6> (codes)
        eight = Constant <value = int32 {{8}}> ()
        integers = Sub (wide, eight)
        q = Cast <to = 3> (integers)
    """,
    type_rule=_unpacked,
)


def _reading_int4(wide: Operator) -> Operator:
    """The gradient of a binary product that reads in four bits what `wide` reads in int8."""
    name, attributes, inputs, output = signature_of(wide)
    given = ", ".join(inputs)
    return Operator(
        summary=f"""{name} of integers that Int4Pack packed.

    dy_packed: (N, ceil(K / 2)) uint8, dy_unit: () float32, K the product of `dy_shape`, the shape
    of dy behind its first axis. All else is that operator's.
    """,
        signature=(
            f"{name.removesuffix('Int8')}Int4 <{', '.join([*attributes, 'dy_shape'])}> "
            f"({given.replace('dy, dy_unit', _DECODED)}) => ({output})"
        ),
        body=f"""
        dy = bnnopt.Int4Unpack <shape: ints = @dy_shape> (dy_packed)
        {output} = bnnopt.{name} {passed_on(attributes)} ({given})
        """,
        type_rule=wide.type_rule,
        family=wide.base,
        form=wide.form & ~Form.INT8 | Form.INT4,
    )


INT4_PRODUCTS = tuple(map(_reading_int4, INT8_PRODUCTS))
_BY_NAME = {product.name: product for product in INT4_PRODUCTS}
BINARY_CONV_WEIGHT_GRAD_INT4 = _BY_NAME["BinaryConvWeightGradInt4"]
BINARY_GEMM_WEIGHT_GRAD_INT4 = _BY_NAME["BinaryGemmWeightGradInt4"]
OPERATORS = (INT4_PACK, INT4_UNPACK, *INT4_PRODUCTS)
