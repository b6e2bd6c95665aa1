"""Latent weights of binary layers in int8: there is none that is 0, so that each has a sign.

An element q from -128 to 127 stands for (q + 1/2) units; the sign is that of q, with 0 for plus.
"""

from __future__ import annotations

import onnx_ir as ir

from bnnopt.ops.operator import Operator, TypedDims, TypeRule, dims


def _of(kind: ir.DataType) -> TypeRule:
    def rule(node: ir.Node) -> list[TypedDims]:
        return [(kind, dims(node.inputs[0]))]

    return rule


WIDEN_LATENTS = Operator(
    summary="""w = (q + 1/2) unit.

    q: any shape, int8; w: float32.
    """,
    signature="WidenLatents <unit> (q) => (w)",
    body="""
        places = Cast <to = 1> (q)
        half = Constant <value_float = 0.5> ()
        middles = Add (places, half)
        size = Constant <value_float: float = @unit> ()
        w = Mul (middles, size)
    """,
    type_rule=_of(ir.DataType.FLOAT),
)

ROUND_TO_LATENTS = Operator(
    summary="""q = x / unit - 1/2 in int8, up or down by chance, so that its mean is that.

    x: any shape, float32; step: int64 scalar; q: int8, from -128 to 127. q is the whole number
    below x / unit + f - 1/2, f being the upper 13 of the element's RandomBits, over 2^13.
    """,
    signature="RoundToLatents <unit, seed> (x, step) => (q)",
    body="""
        one = Constant <value_float = 1.0> ()
        nil = Constant <value_float = 0.0> ()
        size = Constant <value_float: float = @unit> ()
        is_size = Greater (size, nil)
        divisor = Where (is_size, size, one)
        inverse = Div (one, divisor)
        places = Mul (x, inverse)
        bits = bnnopt.RandomBits <seed: int = @seed> (x, step)
        cut = Constant <value_int = 524288> ()
        drawn64 = Div (bits, cut)
        drawn = Cast <to = 1> (drawn64)
        share = Constant <value_float = 0.0001220703125> ()
        half = Constant <value_float = 0.5> ()
        fraction = Mul (drawn, share)
        centred = Sub (fraction, half)
        moved = Add (places, centred)
        below = Floor (moved)
        highest = Constant <value_float = 127.0> ()
        lowest = Constant <value_float = -128.0> ()
        is_under = Less (below, highest)
        under = Where (is_under, below, highest)
        is_over = Greater (under, lowest)
        inside = Where (is_over, under, lowest)
        q = Cast <to = 3> (inside)
    """,
    type_rule=_of(ir.DataType.INT8),
)

OPERATORS = (WIDEN_LATENTS, ROUND_TO_LATENTS)
