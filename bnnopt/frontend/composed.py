"""Operators that are written out in others, which have kernels and gradients.

Each is an ONNX function that gives what the operator gives, also where the definition in the ONNX
standard overflows (Elu of large numbers) or cancels (LayerNormalization of numbers far from 0).
"""

from __future__ import annotations

import functools

import onnx
import onnx.inliner

DOMAIN = "bnnopt.composed"
LAYER_NORMALIZATION = """
LayerNormalization <axis: int = -1, epsilon: float = 0.00001> (x, g, b) => (y)
{
    one = Constant <value_ints = [1]> ()
    eps = Constant <value_float: float = @epsilon> ()
    rows = Flatten <axis: int = @axis> (x)
    mean = ReduceMean (rows, one)
    centred = Sub (rows, mean)
    square = Mul (centred, centred)
    variance = ReduceMean (square, one)
    above = Add (variance, eps)
    deviation = Sqrt (above)
    normal = Div (centred, deviation)
    scale = Flatten <axis = 0> (g)
    shift = Flatten <axis = 0> (b)
    scaled = Mul (normal, scale)
    shifted = Add (scaled, shift)
    shape = Shape (x)
    y = Reshape (shifted, shape)
}"""
# alpha (exp(x) - 1) below 0, and x above
ELU = """Elu <alpha: float = 1.0> (x) => (y) {
    none = Constant <value_float = 0.0> () one = Constant <value_float = 1.0> ()
    a = Constant <value_float: float = @alpha> ()
    low = Clip (x, , none) e = Exp (low) m = Sub (e, one) below = Mul (m, a)
    above = Relu (x) y = Add (above, below) }"""
CELU = """Celu <alpha: float = 1.0> (x) => (y) {
    none = Constant <value_float = 0.0> () one = Constant <value_float = 1.0> ()
    a = Constant <value_float: float = @alpha> ()
    low = Clip (x, , none) d = Div (low, a) e = Exp (d) m = Sub (e, one) below = Mul (m, a)
    above = Relu (x) y = Add (above, below) }"""
SELU = """Selu <alpha: float = 1.67326319, gamma: float = 1.05070102> (x) => (y) {
    none = Constant <value_float = 0.0> () one = Constant <value_float = 1.0> ()
    a = Constant <value_float: float = @alpha> () g = Constant <value_float: float = @gamma> ()
    low = Clip (x, , none) e = Exp (low) m = Sub (e, one) below = Mul (m, a)
    above = Relu (x) s = Add (above, below) y = Mul (s, g) }"""
MISH = "Mish (x) => (y) { s = Softplus (x) t = Tanh (s) y = Mul (x, t) }"
SOFTSIGN = """Softsign (x) => (y) {
    one = Constant <value_float = 1.0> () a = Abs (x) d = Add (a, one) y = Div (x, d) }"""
REDUCE_L1 = """ReduceL1 <keepdims: int = 1> (x, axes) => (y) {
    a = Abs (x) y = ReduceSum <keepdims: int = @keepdims> (a, axes) }"""
REDUCE_L2 = """ReduceL2 <keepdims: int = 1> (x, axes) => (y) {
    s = Mul (x, x) r = ReduceSum <keepdims: int = @keepdims> (s, axes) y = Sqrt (r) }"""
REDUCE_SUM_SQUARE = """ReduceSumSquare <keepdims: int = 1> (x, axes) => (y) {
    s = Mul (x, x) y = ReduceSum <keepdims: int = @keepdims> (s, axes) }"""
TEXTS = {
    text.split()[0]: text
    for text in (
        *(LAYER_NORMALIZATION, ELU, CELU, SELU, MISH, SOFTSIGN),
        *(REDUCE_L1, REDUCE_L2, REDUCE_SUM_SQUARE),
    )
}


def write_out(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The model, of this `opset`, without the operators of `TEXTS`."""
    found = set()
    for node in model.graph.node:
        text = TEXTS.get(node.op_type)
        if text is not None and not node.domain and _fits(node, function(text, opset)):
            _set_defaults(node, function(text, opset))
            node.domain = DOMAIN
            found.add(text)
    if not found:
        return model
    model.functions.extend(function(text, opset) for text in sorted(found))
    model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    return onnx.inliner.inline_local_functions(model)


@functools.cache
def function(text: str, opset: int) -> onnx.FunctionProto:
    """One of `TEXTS` in the standard operators of `opset`."""
    header = f'<domain: "{DOMAIN}", opset_import: ["": {opset}]>'
    return onnx.parser.parse_function(f"{header} {text}")


def _fits(node: onnx.NodeProto, body: onnx.FunctionProto) -> bool:
    """Whether nothing is asked that the body does not do: an output or attribute, or no bias."""
    known = {attribute.name for attribute in body.attribute_proto} | {"stash_type"}
    return (
        [bool(name) for name in node.input] == [True] * len(body.input)
        and not any(node.output[1:])
        and {attribute.name for attribute in node.attribute} <= known
    )


def _set_defaults(node: onnx.NodeProto, body: onnx.FunctionProto) -> None:
    """The inliner takes attributes from the node alone."""
    given = {attribute.name for attribute in node.attribute}
    node.attribute.extend(a for a in body.attribute_proto if a.name not in given)
