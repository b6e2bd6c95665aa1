"""Signed powers of two in 5 bits: the codec of gradients, and the products that read it.

A packed tensor of shape ``(N, ...)`` with K elements behind its first axis is
``(N, ceil(K / 2) + ceil(K / 8))`` uint8, really 5 bits an element. Every row starts at a byte:
first the exponents, element ``2 b + j`` in bits ``4 j`` to ``4 j + 3`` of byte b, then the signs,
as `PackBits` has them, 1 for a negative element; the spare bits of both parts are 0. With it goes
one number for the whole tensor, its unit: element i is ``+-2^c unit`` for an exponent c of 1 to 15,
and 0 for c = 0.
"""

from __future__ import annotations

import onnx_ir as ir

from bnnopt.ops import binary_products
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

N_EXPONENT_BITS = 4
DECODED = "dy_packed, dy_unit"  # what the products read in the place of dy


def pow2_row_bytes(shape: Dims) -> int:
    """Bytes of a row of exponents and signs: all of `shape` but its first axis."""
    return packed_row_bytes(shape, N_EXPONENT_BITS) + packed_row_bytes(shape)


def _packed(node: ir.Node) -> list[TypedDims]:
    shape = dims(node.inputs[0])
    return [(ir.DataType.UINT8, (shape[0], pow2_row_bytes(shape))), (ir.DataType.FLOAT, ())]


def _unpacked(node: ir.Node) -> list[TypedDims]:
    return [(ir.DataType.FLOAT, (dims(node.inputs[0])[0], *ints(node, "shape")))]


POW2_PACK = Operator(
    summary="""packed, unit = the power of two next to each element of x, by its logarithm.

    x: (N, ...) floating point. packed: (N, ceil(K / 2) + ceil(K / 8)) uint8, unit: () float32, see
    the top of this module. The largest magnitude M gets the exponent 15: unit = 2^(k - 15), k =
    round(log2 M), but at least 2^-126. What is below 2^(k - 14.5) becomes 0. Where all of x is 0 so
    is unit, and where x has an infinity or a NaN unit is NaN, and with it everything unpacked; all
    bits are 0 then.

    Source: Wang et al., arXiv:2102.04270v1, with two differences: there the largest exponent lies
    one below k, so that the largest elements are halved, and 0 has no code.
    """,
    signature="Pow2Pack (x) => (packed, unit)",
    body=f"""
        x_float = Cast <to = 1> (x)
        nil = Constant <value_float = 0.0> ()
        none = Mul (x_float, nil)
        poison = ReduceSum <keepdims = 0> (none)
        magnitude = Abs (x_float)
        largest = ReduceMax <keepdims = 0> (magnitude)
        wide = Cast <to = 11> (magnitude)
        wide_largest = Cast <to = 11> (largest)
        log_two = Constant <value = double {{0.69314718055994530942}}> ()
        two = Constant <value = double {{2.0}}> ()
        log_largest = Log (wide_largest)
        octave = Div (log_largest, log_two)
        top = Round (octave)
        steps = Constant <value = double {{15.0}}> ()
        low = Sub (top, steps)
        lowest = Constant <value = double {{-126.0}}> ()
        highest = Constant <value = double {{112.0}}> ()
        base = Clip (low, lowest, highest)
        wide_power = Pow (two, base)
        power = Cast <to = 1> (wide_power)
        is_zero = Equal (largest, nil)
        finite_unit = Where (is_zero, nil, power)
        unit = Add (finite_unit, poison)
        is_sound = Greater (unit, nil)
        logarithm = Log (wide)
        exponents = Div (logarithm, log_two)
        whole = Round (exponents)
        from_base = Sub (whole, base)
        wide_nil = Constant <value = double {{0.0}}> ()
        inside = Clip (from_base, wide_nil, steps)
        sound = Where (is_sound, inside, wide_nil)
        codes = Cast <to = 2> (sound)
        {pack_half_bytes("exponent_bits")}
        below = Less (x_float, nil)
        negative = And (below, is_sound)
        sign_bits = bnnopt.PackBits (negative)
        packed = Concat <axis = 1> (exponent_bits, sign_bits)
    """,
    type_rule=_packed,
)

POW2_UNPACK = Operator(
    summary="""x = what Pow2Pack kept: 0, or plus or minus a power of two times the unit.

    packed: (N, ceil(K / 2) + ceil(K / 8)) uint8, unit: () float32. x: (N, *shape) float32, K the
    product of `shape`.
    """,
    signature="Pow2Unpack <shape> (packed, unit) => (x)",
    body=f"""
        row_shape = Constant <value_ints: ints = @shape> ()
        row_length = ReduceProd <keepdims = 1> (row_shape)
        one = Constant <value_ints = [1]> ()
        pair = Constant <value_ints = [2]> ()
        longer = Add (row_length, one)
        n_bytes = Div (longer, pair)
        start = Constant <value_ints = [0]> ()
        far = Constant <value_ints = [9223372036854775807]> ()
        bytes = Slice (packed, start, n_bytes, one)
        sign_bits = Slice (packed, n_bytes, far, one)
        {unpack_half_bytes("bytes")}
        indices = Cast <to = 6> (codes)
        powers = Constant <value = float[16] {{
            0, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768
        }}> ()
        magnitude = Gather (powers, indices)
        negative = bnnopt.UnpackBits <shape: ints = @shape> (sign_bits)
        opposite = Neg (magnitude)
        signed = Where (negative, opposite, magnitude)
        x = Mul (signed, unit)
    """,
    type_rule=_unpacked,
)


def _reading_pow2(plain: Operator) -> Operator:
    """The gradient of a binary product that reads its dy packed."""
    name, attributes, inputs, output = signature_of(plain)
    gives_dx, given = output == "dx", ", ".join(inputs)
    own = [*attributes, "dy_shape", *(["dtype"] if gives_dx else [])]
    result = "wide_dx" if gives_dx else output
    rounding = "dx = Cast <to: int = @dtype> (wide_dx)" if gives_dx else ""
    return Operator(
        summary=f"""{name} of a dy that Pow2Pack packed.

    dy_packed: (N, ceil(K / 2) + ceil(K / 8)) uint8, dy_unit: () float32, K the product of
    `dy_shape`, the shape of dy behind its first axis. {_DX_TYPE if gives_dx else ""}All else is
    that operator's.
    """,
        signature=f"{name}Pow2 <{', '.join(own)}> ({given.replace('dy', DECODED)}) => ({output})",
        body=f"""
        dy = bnnopt.Pow2Unpack <shape: ints = @dy_shape> ({DECODED})
        {result} = bnnopt.{name} {passed_on(attributes)} ({given})
        {rounding}
    """,
        type_rule=plain.type_rule,
        family=plain.base,
        form=plain.form | Form.POW2,
    )


_DX_TYPE = "dx is of the ONNX `dtype`: 1, float32, or 10, float16. "


BINARY_CONV_WEIGHT_GRAD_POW2 = _reading_pow2(binary_products.BINARY_CONV_WEIGHT_GRAD)
BINARY_CONV_WEIGHT_GRAD_SIGNS_POW2 = _reading_pow2(binary_products.BINARY_CONV_WEIGHT_GRAD_SIGNS)
BINARY_CONV_INPUT_GRAD_POW2 = _reading_pow2(binary_products.BINARY_CONV_INPUT_GRAD)
BINARY_GEMM_WEIGHT_GRAD_POW2 = _reading_pow2(binary_products.BINARY_GEMM_WEIGHT_GRAD)
BINARY_GEMM_WEIGHT_GRAD_SIGNS_POW2 = _reading_pow2(binary_products.BINARY_GEMM_WEIGHT_GRAD_SIGNS)
BINARY_GEMM_INPUT_GRAD_POW2 = _reading_pow2(binary_products.BINARY_GEMM_INPUT_GRAD)
POW2_PRODUCTS = (
    BINARY_CONV_WEIGHT_GRAD_POW2,
    BINARY_CONV_WEIGHT_GRAD_SIGNS_POW2,
    BINARY_CONV_INPUT_GRAD_POW2,
    BINARY_GEMM_WEIGHT_GRAD_POW2,
    BINARY_GEMM_WEIGHT_GRAD_SIGNS_POW2,
    BINARY_GEMM_INPUT_GRAD_POW2,
)
OPERATORS = (POW2_PACK, POW2_UNPACK, *POW2_PRODUCTS)
