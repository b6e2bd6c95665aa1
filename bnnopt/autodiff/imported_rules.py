"""The rules for the nodes of an onnxruntime-training graph's backward pass, in one table.

Its gradient operators are traced back to their forward nodes, whose rules in `GRADIENTS` apply: the
same formulas under other names. Standard nodes are taken over as they are, and a product with the
mask of a range, which is how the file spells the gradient of Clip and the straight-through
estimator, becomes `ClipGrad`. Sizes of values stay symbolic, so that a smaller batch runs too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from bnnopt.autodiff.context import UnknownInput
from bnnopt.autodiff.imported_nodes import Node, Operand, Results, ShapeOf, SizeOf
from bnnopt.frontend import evaluate, one_line
from bnnopt.metadata import Key
from bnnopt.ops import OPERATORS, dims, dtype
from bnnopt.training_step import is_constant

Rule = Callable[[Node], Results]


# Standard operators -------------------------------------------------------------------------------


def standard(node: Node) -> Results:
    """The node as it is; worked out here where it reads constants only."""
    if node.proto.op_type in OPERATORS and node.proto.op_type != "Dropout":
        raise UnknownInput("ONNX has no such operator")
    inputs, attributes = node.values(), node.attributes()
    texts = {
        k: v.decode(errors="replace") if isinstance(v, bytes) else v for k, v in attributes.items()
    }
    if all(value is None or is_constant(value) for value in inputs):
        return _folded(node, inputs)
    n_outputs = len(node.proto.output)
    name = node.proto.output[0]
    op_type = node.proto.op_type
    first = node.importer.emit(op_type, *inputs, name=name, n_outputs=n_outputs, **texts)
    made = first.producer()
    assert made is not None
    return made.outputs


def _folded(node: Node, inputs: list[ir.Value | None]) -> Results:
    attributes = [ir.from_proto(attribute) for attribute in node.proto.attribute]
    outputs = [ir.Value(name=name) for name in node.proto.output]
    stand_in = ir.Node("", node.proto.op_type, inputs, attributes, outputs=outputs)
    try:
        arrays = [np.asarray(array) for array in evaluate(stand_in)]
    except Exception as error:  # the evaluator raises whatever numpy does with a wrong constant
        raise UnknownInput(f"its constant cannot be computed: {one_line(error)}") from None
    finally:
        stand_in.resize_inputs(0)
    names = node.proto.output
    return [node.importer.emit.constant(a, a.dtype, n) for n, a in zip(names, arrays, strict=False)]


def identity(node: Node) -> Results:
    """y = x."""
    return [node.operand(0)]


def shape(node: Node) -> Results:
    """The shape of a value, kept symbolic; a part of it is a node."""
    attributes = node.attributes()
    whole = attributes.get("start", 0) == 0 and "end" not in attributes
    return [ShapeOf(node.value(0))] if whole else standard(node)


def size(node: Node) -> Results:
    """The number of elements of a value, kept symbolic."""
    return [SizeOf(node.value(0))]


def div(node: Node) -> Results:
    """y = a / b; of two sizes, kept symbolic."""
    a, b = node.operand(0), node.operand(1)
    if isinstance(a, SizeOf) and isinstance(b, SizeOf) and a.over is None and b.over is None:
        return [SizeOf(a.value, over=b.value)]
    return standard(node)


def sum_(node: Node) -> Results:
    """y = a + b + .., from left to right."""
    total = node.value(0)
    for index in range(1, len(node.proto.input)):
        total = node.emit("Add", total, node.value(index))
    return [total]


def reshape(node: Node) -> Results:
    """y = x in another shape, mostly that of a forward value."""
    target = node.operand(1)
    if not isinstance(target, ShapeOf):
        return standard(node)
    x, like = node.value(0), target.value
    return [node.within(like, x, lambda g: g.reshape_like(x, like))]


def expand(node: Node) -> Results:
    """y = x broadcast, mostly to the shape of a forward value."""
    target = node.operand(1)
    x = node.value(0)
    if not isinstance(target, ShapeOf) or len(dims(x)) != len(dims(target.value)):
        return standard(node)
    like = target.value
    return [node.within(like, x, lambda g: g.expand_like(x, like))]


def mul(node: Node) -> Results:
    """y = a b; of a gradient and the mask of a range, as Clip and the clipped estimator have it."""
    for dy, factor in ((0, 1), (1, 0)):
        found = _range(_uncast(node.operand(factor)))
        if found is not None and dims(found.x) == dims(node.value(dy)):
            return [node.emit("ClipGrad", node.value(dy), found.x, low=found.low, high=found.high)]
    return standard(node)


@dataclass(frozen=True)
class _Range:
    """Where low <= x <= high."""

    x: ir.Value
    low: float
    high: float


LEAST, MOST = float(np.finfo(np.float32).min), float(np.finfo(np.float32).max)


def _uncast(value: Operand | None) -> ir.Node | None:
    """The node that makes the booleans behind a cast."""
    cast = value.producer() if isinstance(value, ir.Value) else None
    if cast is None or cast.op_type != "Cast" or cast.inputs[0] is None:
        return None
    return cast.inputs[0].producer()


def _range(node: ir.Node | None) -> _Range | None:
    """The range whose mask a node computes."""
    if node is None or None in node.inputs:
        return None
    inputs = [value for value in node.inputs if value is not None]
    if node.op_type == "And":
        a, b = (_range(value.producer()) for value in inputs)
        if a is None or b is None or a.x is not b.x:
            return None
        return _Range(a.x, max(a.low, b.low), min(a.high, b.high))
    if node.op_type != "GreaterOrEqual" and node.op_type != "LessOrEqual":
        return None
    x, bound = inputs[0], inputs[1].const_value
    if bound is None or bound.size != 1:
        return None
    limit = float(bound.numpy().item())
    if node.op_type == "GreaterOrEqual":
        return _Range(x, limit, MOST)
    maker = x.producer()
    if maker is not None and maker.op_type == "Abs" and maker.inputs[0] is not None:
        return _Range(maker.inputs[0], -limit, limit)
    return _Range(x, LEAST, limit)


# Operators of com.microsoft that are no gradient --------------------------------------------------


def scale(node: Node) -> Results:
    """y = x / s, or x s."""
    x, factor = node.value(0), node.value(1)
    if dtype(factor) != dtype(x):
        if is_constant(factor) and factor.const_value is not None:
            array = factor.const_value.numpy().astype(dtype(x).numpy())
            factor = node.importer.emit.constant(array, array.dtype, "scale")
        else:
            factor = node.emit("Cast", factor, to=int(dtype(x)))
    return [node.emit("Div" if node.attributes().get("scale_down") else "Mul", x, factor)]


def fused_matmul(node: Node) -> Results:
    """y = alpha a b, the last two axes of a or b exchanged."""
    attributes, operands = node.attributes(), []
    if attributes.get("transBatchA") or attributes.get("transBatchB"):
        raise UnknownInput("transBatchA and transBatchB are not supported")
    for index, name in enumerate(("transA", "transB")):
        x = node.value(index)
        rank = len(dims(x))
        if attributes.get(name) and rank > 1:
            x = node.emit("Transpose", x, perm=[*range(rank - 2), rank - 1, rank - 2])
        operands.append(x)
    product = node.emit("MatMul", *operands)
    alpha = attributes.get("alpha", 1.0)
    if alpha == 1:
        return [product]
    factor = node.importer.emit.constant(alpha, dtype(product).numpy(), "alpha")
    return [node.emit("Mul", product, factor)]


# Gradient operators -------------------------------------------------------------------------------

Finder = Callable[[Node], ir.Node]


def maker(index: int) -> Finder:
    """The forward node that makes input `index`."""
    return lambda node: node.importer.maker(node.name(index))


def reader(op_type: str, start: int = 1, stop: int | None = None) -> Finder:
    """The forward node that reads inputs `start` to `stop`, a shape standing for its value."""

    def find(node: Node) -> ir.Node:
        stop_at = len(node.proto.input) if stop is None else stop
        operands = [node.operand(i) for i in range(start, max(stop_at, start + 1))]
        inputs = [o.value if isinstance(o, ShapeOf) else o for o in operands]
        first = inputs[0]
        if isinstance(first, ir.Value):
            for use in first.uses():
                if use.node.op_type == op_type and _matches(use.node, inputs, node.attributes()):
                    return use.node
        raise UnknownInput(f"no forward {op_type} reads {node.name(start)!r} as it says")

    return find


def _matches(forward: ir.Node, inputs: Sequence[Operand], attributes: Mapping[str, Any]) -> bool:
    """Whether a forward node reads these inputs first, and has no attribute that differs."""
    if forward.metadata_props.get(Key.PHASE) != "forward" or len(forward.inputs) < len(inputs):
        return False
    own = {name: attribute.value for name, attribute in forward.attributes.items()}
    same = (_text(own[name]) == _text(value) for name, value in attributes.items() if name in own)
    return all(same) and all(map(_equal, forward.inputs, inputs))


def _text(value: object) -> object:
    """Attributes as one type each: texts, and lists for sequences."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return list(value) if isinstance(value, tuple | list) else value


def _equal(a: ir.Value | None, b: Operand) -> bool:
    """Whether two values are the same, or constants with the same elements."""
    if a is b:
        return True
    if a is None or not isinstance(b, ir.Value) or a.const_value is None or b.const_value is None:
        return False
    return np.array_equal(a.const_value.numpy(), b.const_value.numpy())


def relu(node: Node) -> ir.Node:
    """The forward node of a ReluGrad, which reads its output, or its input, of the same sign."""
    found = node.value(1).producer()
    return found if found is not None and found.op_type == "Relu" else reader("Relu")(node)


def average_pool(node: Node) -> ir.Node:
    """The forward node of an AveragePoolGrad, which reads the gradient alone: by its name."""
    return node.importer.maker(node.name(0).removesuffix("_grad"))


def gradient(op_type: str, find: Finder, dy: int = 0) -> Rule:
    """The rule of a gradient operator: that of its forward node, for the outputs that it has.

    Input `dy` is the gradient of the forward node's first output.
    """

    def apply(node: Node) -> Results:
        forward = find(node)
        if forward.op_type != op_type:
            raise UnknownInput(f"it belongs to {forward.op_type}, expected {op_type}")
        wanted = {index for index, name in enumerate(node.proto.output) if name}
        grad, shape = node.value(dy), dims(forward.outputs[0])
        if dims(grad) != shape:
            raise UnknownInput(f"dy has shape {list(dims(grad))}, expected {list(shape)}")
        grads = node.importer.differentiate(forward, grad, wanted)
        return [grads.get(index) for index in range(len(node.proto.output))]

    return apply


STANDARD: dict[str, Rule] = {
    "Div": div,
    "Expand": expand,
    "Identity": identity,
    "Mul": mul,
    "Reshape": reshape,
    "Shape": shape,
    "Size": size,
    "Sum": sum_,
    # Without a domain, although ONNX does not have them.
    "AveragePoolGrad": gradient("AveragePool", average_pool),
    "MaxPoolGrad": gradient("MaxPool", maker(1)),
}

MICROSOFT: dict[str, Rule] = {
    "BatchNormalizationGrad": gradient("BatchNormalizationTraining", maker(3)),
    "ConvGrad": gradient("Conv", reader("Conv")),
    "DivGrad": gradient("Div", reader("Div")),
    "DropoutGrad": gradient("Dropout", maker(1)),
    "FusedMatMul": fused_matmul,
    "GatherGrad": gradient("Gather", reader("Gather", 0, 2), dy=2),
    "LeakyReluGrad": gradient("LeakyRelu", maker(1)),
    "LogSoftmaxGrad_13": gradient("LogSoftmax", maker(1)),
    "ReluGrad": gradient("Relu", relu),
    "Scale": scale,
    "SigmoidGrad": gradient("Sigmoid", maker(1)),
    "SliceGrad": gradient("Slice", reader("Slice")),
    "SoftmaxCrossEntropyLossGrad": gradient("SoftmaxCrossEntropy", maker(1)),
    "SoftmaxGrad_13": gradient("Softmax", maker(1)),
    "SplitTraining": gradient("Concat", maker(1)),
    "TanhGrad": gradient("Tanh", maker(1)),
}


def rule_of(node: Node) -> Rule:
    """The rule of a node.

    Raises
    ------
    UnknownInput
        If there is none.
    """
    domain, op_type = node.proto.domain, node.proto.op_type
    if domain in ("", "ai.onnx"):
        return STANDARD.get(op_type, standard)
    if domain == "com.microsoft" and op_type in MICROSOFT:
        return MICROSOFT[op_type]
    raise UnknownInput(f"{domain}.{op_type} is not known")
