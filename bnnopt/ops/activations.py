"""Activations whose gradient, or whose own formula, is more than a few nodes."""

from __future__ import annotations

import onnx_ir as ir

from bnnopt.ops.operator import Operator, TypedDims, dims, dtype, like

_CONSTANTS = """
        one_value = Constant <value_float = 1.0> ()
        half_value = Constant <value_float = 0.5> ()
        one = CastLike (one_value, x)
        half = CastLike (half_value, x)
"""

_PHI = f"""{_CONSTANTS}
        root_value = Constant <value_float = 0.7071067811865476> ()
        root = CastLike (root_value, x)
        scaled = Mul (x, root)
        unit = Erf (scaled)
        above = Add (unit, one)
        phi = Mul (above, half)
"""

GELU = Operator(
    summary="""y = x Phi(x) = x (1 + erf(x / sqrt(2))) / 2: ONNX's Gelu before its opset 20.

    `approximate` is "none". x, y: the same shape and floating dtype. Source: arXiv:1606.08415.
    """,
    signature="Gelu <approximate> (x) => (y)",
    body=f"{_PHI} y = Mul (x, phi)",
    type_rule=like(0),
    in_place={0: 0},
)

GELU_GRAD = Operator(
    summary="""dx = dy (Phi(x) + x phi(x)), phi(x) = exp(-x^2 / 2) / sqrt(2 pi): of y = x Phi(x).

    dy, x, dx: the same shape and floating dtype.
    """,
    signature="GeluGrad (dy, x) => (dx)",
    body=f"""{_PHI}
        height_value = Constant <value_float = -0.9189385332046727> ()
        height = CastLike (height_value, x)
        square = Mul (x, x)
        halved = Mul (square, half)
        exponent = Sub (height, halved)
        density = Exp (exponent)
        along = Mul (x, density)
        slope = Add (phi, along)
        dx = Mul (dy, slope)
    """,
    type_rule=like(0),
    in_place={0: 0},
)

TANH_GELU_GRAD = Operator(
    summary="""dx = dy ((1 + t) / 2 + x (1 - t^2) a (1 + 3 b x^2) / 2): of y = x (1 + t) / 2.

    t = tanh(a (x + b x^3)), a = sqrt(2 / pi), b = 0.044715. dy, x, dx: the same shape and floating
    dtype.
    """,
    signature="TanhGeluGrad (dy, x) => (dx)",
    body=f"""{_CONSTANTS}
        a_value = Constant <value_float = 0.7978845608028654> ()
        b_value = Constant <value_float = 0.044715> ()
        three_value = Constant <value_float = 3.0> ()
        a = CastLike (a_value, x)
        b = CastLike (b_value, x)
        three = CastLike (three_value, x)
        square = Mul (x, x)
        cubic = Mul (square, b)
        line = Add (cubic, one)
        slanted = Mul (line, a)
        u = Mul (slanted, x)
        t = Tanh (u)
        above = Add (t, one)
        phi = Mul (above, half)
        t_square = Mul (t, t)
        rest = Sub (one, t_square)
        steep = Mul (cubic, three)
        steeper = Add (steep, one)
        tilted = Mul (steeper, a)
        inner = Mul (tilted, half)
        weighted = Mul (rest, inner)
        along = Mul (x, weighted)
        slope = Add (phi, along)
        dx = Mul (dy, slope)
    """,
    type_rule=like(0),
    in_place={0: 0},
)

SOFTMAX_GRAD = Operator(
    summary="""dx = y (dy - sum(dy y)) along an axis: of y = softmax(x).

    dy, y, dx: the same shape and floating dtype.
    """,
    signature="SoftmaxGrad <axis> (dy, y) => (dx)",
    body="""
        axis_value = Constant <value_int: int = @axis> ()
        vector = Constant <value_ints = [1]> ()
        axes = Reshape (axis_value, vector)
        product = Mul (dy, y)
        total = ReduceSum <keepdims = 1> (product, axes)
        rest = Sub (dy, total)
        dx = Mul (y, rest)
    """,
    type_rule=like(0),
    in_place={0: 0},
)


def _prelu_grad(node: ir.Node) -> list[TypedDims]:
    return [(dtype(value), dims(value)) for value in (node.inputs[0], node.inputs[2])]


PRELU_GRAD = Operator(
    summary="""dx = dy where x > 0, else slope dy; dslope = sum over `axes` of x dy where x <= 0.

    dy, x, dx: the same shape and floating dtype. slope, dslope: the same shape, which stretches to
    that of x along `axes`. Source: arXiv:1502.01852.
    """,
    signature="PReluGrad <axes> (dy, x, slope) => (dx, dslope)",
    body="""
        nil_value = Constant <value_float = 0.0> ()
        nil = CastLike (nil_value, x)
        nil_like = CastLike (nil_value, dy)
        positive = Greater (x, nil)
        scaled = Mul (dy, slope)
        dx = Where (positive, dy, scaled)
        product = Mul (dy, x)
        part = Where (positive, nil_like, product)
        axes_value = Constant <value_ints: ints = @axes> ()
        total = ReduceSum <keepdims = 0, noop_with_empty_axes = 1> (part, axes_value)
        slope_shape = Shape (slope)
        dslope = Reshape (total, slope_shape)
    """,
    type_rule=_prelu_grad,
    in_place={0: 0},
)

OPERATORS = (GELU, GELU_GRAD, TANH_GELU_GRAD, SOFTMAX_GRAD, PRELU_GRAD)
