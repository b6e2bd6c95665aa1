"""A counter-based random stream, so that every backend draws the same; dropout by it."""

from __future__ import annotations

import onnx_ir as ir

from bnnopt.ops.operator import Operator, TypedDims, dims, dtype


def _forward(node: ir.Node) -> list[TypedDims]:
    x = node.inputs[0]
    return [(dtype(x), dims(x)), (ir.DataType.BOOL, dims(x))]


def _bits(node: ir.Node) -> list[TypedDims]:
    return [(ir.DataType.INT64, dims(node.inputs[0]))]


RANDOM_BITS = Operator(
    summary="""bits = hash(i + step * 0x9E3779B1 + seed) for element i of x: uniform in [0, 2^32).

    x: any shape and dtype, of which only the shape is read. step: int64 scalar. bits: int64, the
    shape of x. No state, no order: a resumed run draws the same.
    Source of the hash: C. Wellons, "Prospecting for Hash Functions", lowbias32; its multipliers are
    written as signed numbers of 32 bits, so that no product leaves int64.
    """,
    signature="RandomBits <seed> (x, step) => (bits)",
    body="""
        low32 = Constant <value_int = 4294967295> ()
        one = Constant <value_int = 1> ()
        zero = Constant <value_int = 0> ()
        stride = Constant <value_int = 2654435761> ()
        seed_value = Constant <value_int: int = @seed> ()
        length = Size (x)
        index = Range (zero, length, one)
        step_wide = Mul (step, stride)
        start_wide = Add (step_wide, seed_value)
        start = BitwiseAnd (start_wide, low32)
        counter = Add (index, start)
        h0 = BitwiseAnd (counter, low32)
        shift16 = Constant <value_int = 65536> ()
        shift15 = Constant <value_int = 32768> ()
        multiplier1 = Constant <value_int = 2146121005> ()
        multiplier2 = Constant <value_int = -2073254261> ()
        h0_high = Div (h0, shift16)
        h1 = BitwiseXor (h0, h0_high)
        h1_wide = Mul (h1, multiplier1)
        h2 = BitwiseAnd (h1_wide, low32)
        h2_high = Div (h2, shift15)
        h3 = BitwiseXor (h2, h2_high)
        h3_wide = Mul (h3, multiplier2)
        h4 = BitwiseAnd (h3_wide, low32)
        h4_high = Div (h4, shift16)
        h5 = BitwiseXor (h4, h4_high)
        x_shape = Shape (x)
        bits = Reshape (h5, x_shape)
    """,
    type_rule=_bits,
)

DROPOUT = Operator(
    summary="""y = x times (scale where mask, else 0); mask is true with probability 1 - ratio.

    x, y: any shape, float; mask: bool; step: int64 scalar. An element is kept where its RandomBits
    are at least `threshold` = ratio * 2^32; `scale` = 1 / (1 - ratio).
    """,
    signature="Dropout <threshold, scale, seed> (x, step) => (y, mask)",
    body="""
        bits = bnnopt.RandomBits <seed: int = @seed> (x, step)
        threshold_value = Constant <value_int: int = @threshold> ()
        mask = GreaterOrEqual (bits, threshold_value)
        scale_value = Constant <value_float: float = @scale> ()
        scale_like = CastLike (scale_value, x)
        kept_like = CastLike (mask, x)
        factor = Mul (kept_like, scale_like)
        y = Mul (factor, x)
    """,
    type_rule=_forward,
    in_place={0: 0},
)

DRAW_UNIFORM = Operator(
    summary="""u = low + scale f, f in [0, 1) being the first 24 of the 32 RandomBits of an element.

    x: any shape and dtype, of which only the shape is read. step: int64 scalar. u: float32, the
    shape of x; f is a multiple of 2^-24, so that nothing is rounded before the product.
    """,
    signature="DrawUniform <low, scale, seed> (x, step) => (u)",
    body="""
        bits = bnnopt.RandomBits <seed: int = @seed> (x, step)
        dropped = Constant <value_int = 256> ()
        kept = Div (bits, dropped)
        real = Cast <to = 1> (kept)
        unit = Constant <value_float = 5.9604644775390625e-08> ()
        fraction = Mul (real, unit)
        scale_value = Constant <value_float: float = @scale> ()
        low_value = Constant <value_float: float = @low> ()
        scaled = Mul (fraction, scale_value)
        u = Add (scaled, low_value)
    """,
    type_rule=lambda node: [(ir.DataType.FLOAT, dims(node.inputs[0]))],
)

OPERATORS = (RANDOM_BITS, DROPOUT, DRAW_UNIFORM)
