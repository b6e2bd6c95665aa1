"""The gradient of a layer normalisation."""

from __future__ import annotations

import onnx_ir as ir

from bnnopt.ops.operator import Operator, TypedDims, dims, dtype


def _grad(node: ir.Node) -> list[TypedDims]:
    dy, scale = node.inputs[0], (dtype(node.inputs[2]), dims(node.inputs[2]))
    return [(dtype(dy), dims(dy)), scale, scale]


LAYER_NORMALIZATION_GRAD = Operator(
    summary="""Gradients of y = normal scale + bias, normal = (x - mean) / sqrt(var + epsilon).

    With a = dy scale: dx = (a - mean(a) - normal mean(a normal)) / sqrt(var + epsilon), dscale =
    sum over rows of dy normal, dbias = sum of dy. A row has the axes of the scale, the last ones of
    x; its mean and variance are taken from x once more.

    dy, x, dx: the same shape and floating dtype. scale, dscale, dbias: the same shape.
    Source: arXiv:1607.06450.
    """,
    signature="LayerNormalizationGrad <epsilon> (dy, x, scale) => (dx, dscale, dbias)",
    body="""
        epsilon_value = Constant <value_float: float = @epsilon> ()
        epsilon_like = CastLike (epsilon_value, x)
        columns = Constant <value_ints = [1]> ()
        all_rows = Constant <value_ints = [0]> ()
        minus_one = Constant <value_ints = [-1]> ()
        length = Size (scale)
        length_vector = Reshape (length, minus_one)
        row_shape = Concat <axis = 0> (minus_one, length_vector)
        rows = Reshape (x, row_shape)
        dy_rows = Reshape (dy, row_shape)
        scale_row = Flatten <axis = 0> (scale)
        mean = ReduceMean (rows, columns)
        centred = Sub (rows, mean)
        square = Mul (centred, centred)
        variance = ReduceMean (square, columns)
        shifted = Add (variance, epsilon_like)
        std = Sqrt (shifted)
        normal = Div (centred, std)
        a = Mul (dy_rows, scale_row)
        level = ReduceMean (a, columns)
        product = Mul (a, normal)
        slope = ReduceMean (product, columns)
        above = Sub (a, level)
        along = Mul (normal, slope)
        rest = Sub (above, along)
        dx_rows = Div (rest, std)
        x_shape = Shape (x)
        dx = Reshape (dx_rows, x_shape)
        scale_shape = Shape (scale)
        of_scale = Mul (dy_rows, normal)
        dscale_row = ReduceSum (of_scale, all_rows)
        dscale = Reshape (dscale_row, scale_shape)
        dbias_row = ReduceSum (dy_rows, all_rows)
        dbias = Reshape (dbias_row, scale_shape)
    """,
    type_rule=_grad,
    in_place={0: 0},
)

OPERATORS = (LAYER_NORMALIZATION_GRAD,)
