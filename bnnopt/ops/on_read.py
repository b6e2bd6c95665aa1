"""What is kept narrow and read as floats: samples that are fed as bytes, weights in float16."""

from __future__ import annotations

import onnx_ir as ir

from bnnopt.ops.operator import Operator, TypedDims, dims


def _floats(node: ir.Node) -> list[TypedDims]:
    return [(ir.DataType.FLOAT, dims(node.inputs[0]))]


NORMALIZE_BYTES = Operator(
    summary="""y = x * factor + shift, rounded after each of the two.

    x: (N, C, ...) uint8. factor, shift: (1, C, 1, ...) float32. y: float32, the shape of x.
    """,
    signature="NormalizeBytes (x, factor, shift) => (y)",
    body="""
        wide = Cast <to = 1> (x)
        scaled = Mul (wide, factor)
        y = Add (scaled, shift)
    """,
    type_rule=_floats,
)

NORMALIZE_ON_READ = Operator(
    summary="""What NormalizeBytes gives, where every reader normalises the bytes as it reads them.

    Inputs and output are its. The output is the buffer of x: no float of it is kept anywhere.
    """,
    signature="NormalizeOnRead (x, factor, shift) => (y)",
    body="""
        y = bnnopt.NormalizeBytes (x, factor, shift)
    """,
    type_rule=_floats,
)

WIDEN_ON_READ = Operator(
    summary="""y = x in float32, where every reader widens x as it reads it.

    x: any shape, float16. y: float32. The output is the buffer of x: no float of it is kept
    anywhere.
    """,
    signature="WidenOnRead (x) => (y)",
    body="""
        y = Cast <to = 1> (x)
    """,
    type_rule=_floats,
)

OPERATORS = (NORMALIZE_BYTES, NORMALIZE_ON_READ, WIDEN_ON_READ)
