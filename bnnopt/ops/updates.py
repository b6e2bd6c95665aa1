"""Products whose weight gradient goes straight to the optimiser, so that it is nowhere kept.

For every operator that makes a weight gradient, and every optimiser step, one that does both:
BinaryConvWeightGrad and AdamStep are BinaryConvAdamStep, and with Pow2, Int8 or Int4 behind
BinaryConv where dy is packed powers of two or integers. Its kernel finishes the gradient tile by
tile, over the whole batch, and steps the weights of each tile at once. A dense layer of real
numbers has a Gemm for its weight gradient: Gemm and AdamStep are GemmAdamStep.
"""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir

from bnnopt.ops.binary_products import BINARY_CONV_WEIGHT_GRAD, BINARY_GEMM_WEIGHT_GRAD
from bnnopt.ops.convolution import CONV_WEIGHT_GRAD
from bnnopt.ops.int4 import BINARY_CONV_WEIGHT_GRAD_INT4, BINARY_GEMM_WEIGHT_GRAD_INT4
from bnnopt.ops.int8 import BINARY_CONV_WEIGHT_GRAD_INT8, BINARY_GEMM_WEIGHT_GRAD_INT8
from bnnopt.ops.operator import MIN_OPSET, Form, Operator, TypeRule, dims, dtype, passed_on
from bnnopt.ops.optimizer_forms import OF_BITS, OF_FLOATS, OF_SIGNS
from bnnopt.ops.pow2 import BINARY_CONV_WEIGHT_GRAD_POW2, BINARY_GEMM_WEIGHT_GRAD_POW2


class _Product(NamedTuple):
    """What makes a weight gradient: its name, inputs and attributes, and the statement in ONNX."""

    name: str
    family: str
    form: Form
    inputs: tuple[str, ...]
    attributes: tuple[str, ...]
    statement: str

    @classmethod
    def of(cls, operator: Operator) -> _Product:
        """An operator of this domain."""
        made = operator.function(MIN_OPSET)
        call = f"bnnopt.{operator.name} {passed_on(made.attribute)} ({', '.join(made.input)})"
        return cls(
            operator.name,
            operator.base,
            operator.form,
            (*made.input,),
            (*made.attribute,),
            f"raw = {call}",
        )


_GRADIENTS = (
    BINARY_CONV_WEIGHT_GRAD,
    BINARY_CONV_WEIGHT_GRAD_INT4,
    BINARY_CONV_WEIGHT_GRAD_INT8,
    BINARY_CONV_WEIGHT_GRAD_POW2,
    BINARY_GEMM_WEIGHT_GRAD,
    BINARY_GEMM_WEIGHT_GRAD_INT4,
    BINARY_GEMM_WEIGHT_GRAD_INT8,
    BINARY_GEMM_WEIGHT_GRAD_POW2,
    CONV_WEIGHT_GRAD,
)
FUSED_PRODUCTS = tuple(map(_Product.of, _GRADIENTS))
DENSE = _Product("Gemm", "Gemm", Form.PLAIN, ("a", "b"), (), "raw = Gemm <transA = 1> (a, b)")

# How the gradient dw of a step comes from what the product sums, `raw`, by its kind; and the
# attributes that this needs beside the step's own.
_OF_FLOATS = """
        limit_value = Constant <value_float: float = @limit> ()
        nil = Constant <value_float = 0.0> ()
        wide_w = Cast <to = 1> (w)
        magnitude = Abs (wide_w)
        inside = LessOrEqual (magnitude, limit_value)
        everywhere = Less (limit_value, nil)
        passes = Or (inside, everywhere)
        factor = Cast <to = 1> (passes)
        clipped = Mul (raw, factor)
        scale_value = Constant <value_float: float = @scale> ()
        dw = Mul (clipped, scale_value)"""
_OF_BITS = """
        scale_value = Constant <value_float: float = @scale> ()
        dw = Mul (raw, scale_value)"""
_OF_SIGNS = f"""
        packed = bnnopt.BinarizePack <zero = 1.0> (raw)
        dw = bnnopt.SignGrad {passed_on(["shape", "scale", "limit"])} (packed, w)"""
_KINDS = (
    (OF_FLOATS, _OF_FLOATS, ("scale", "limit"), "`scale` times it, 0 where |w| > `limit` >= 0"),
    (OF_BITS, _OF_BITS, ("scale",), "`scale` times it"),
    (OF_SIGNS, _OF_SIGNS, (), "SignGrad of its signs"),
)


def fused_name(product: str, step: str) -> str:
    """The operator that makes a weight gradient, or its signs, as `product`, and steps by it."""
    return product.replace("WeightGrad", "").replace("Signs", "") + step


def _type_rule(in_place: dict[int, int], like_dw: int) -> TypeRule:
    """Each output as the input that it replaces; last the gradient, of the shape of an input."""
    return lambda node: [
        *((dtype(node.inputs[i]), dims(node.inputs[i])) for i in in_place.values()),
        (ir.DataType.FLOAT, dims(node.inputs[like_dw])),
    ]


def _fused(
    product: _Product, step: Operator, gradient: str, own: tuple[str, ...], meaning: str
) -> Operator:
    second = step.function(MIN_OPSET)
    w, _, *rest = second.input
    outputs = ", ".join(second.output)
    attributes = ", ".join([*product.attributes, *own, *second.attribute])
    read = ", ".join([w, *product.inputs, *rest])
    more = len(product.inputs) - 1  # instead of the gradient
    in_place = {output: i and i + more for output, i in step.in_place.items()}
    return Operator(
        summary=f"""{step.name} by the gradient that {product.name} makes, nowhere kept.

        {", ".join(product.inputs)} as in {product.name}, all other inputs and all outputs as in
        {step.name}; so are the attributes. The step reads {meaning}; that is also `dw`, float32, in
        the shape of the weights, where an output for it is named.
        """,
        signature=(
            f"{fused_name(product.name, step.name)} <{attributes}> ({read}) => ({outputs}, dw)"
        ),
        body=f"""
        {product.statement}
        {gradient.strip()}
        {outputs} = bnnopt.{step.name} {passed_on(second.attribute)} ({", ".join(second.input)})
        """,
        type_rule=_type_rule(in_place, [*second.input].index("m") + more if step in OF_BITS else 0),
        in_place=in_place,
        family=fused_name(product.family, step.base),
        form=product.form | step.form | Form.FUSED,
    )


OPERATORS = tuple(
    _fused(product, step, gradient, own, meaning)
    for steps, gradient, own, meaning in _KINDS
    for product in (*FUSED_PRODUCTS, *((DENSE,) if steps is OF_FLOATS else ()))
    for step in steps
)
