"""Operators that are written out in others, which have kernels and gradients.

A node is written out when its inputs are typed, so that a body may depend on shapes and constants.
Each gives what the operator gives, also where the definition in the ONNX standard overflows (Elu of
large numbers) or cancels (LayerNormalization of numbers far from 0).

To add one: a function in its family's file, from `Operands` to a `Body`, and a row of its `BODIES`.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir as ir

from bnnopt.frontend.composed import (
    einsum,
    elementwise,
    losses,
    normalization,
    quantizers,
    randomness,
    recurrent,
    resizing,
    shaping,
)
from bnnopt.frontend.composed.body import Body, Writer
from bnnopt.frontend.composed.schemas import function_of, has_function
from bnnopt.ops import QONNX_DOMAINS
from bnnopt.ops.operands import Operands

__all__ = ["BODIES", "Body", "Writer", "has_body", "written_out"]

BODIES: dict[str, Writer] = {
    **einsum.BODIES,
    **elementwise.BODIES,
    **losses.BODIES,
    **normalization.BODIES,
    **quantizers.BODIES,
    **randomness.BODIES,
    **recurrent.BODIES,
    **resizing.BODIES,
    **shaping.BODIES,
}


def has_body(graph: ir.Graph, node: ir.Node) -> bool:
    """Whether an operator may be written out; its output need not be typed then."""
    return _writer(node) is not None or has_function(node, graph.opset_imports[""])


def written_out(graph: ir.Graph, node: ir.Node) -> Sequence[ir.Node]:
    """The nodes, not typed yet, that do what a node with typed inputs does.

    They replace it in the graph. Empty where there is no body for it.

    Raises
    ------
    InferenceError
        If the node asks for something that its body does not do.
    """
    opset, writer = graph.opset_imports[""], _writer(node)
    if writer is None:
        function, body = function_of(node, opset), Body("")
    else:
        found = writer(Operands(node))
        function, body = (_parsed(found, opset), found) if found is not None else (None, Body(""))
    if function is None:
        return ()
    nodes = _instance(graph, node, body, function)
    graph.insert_before(node, nodes)
    graph.remove(node, safe=True)
    return nodes


def _writer(node: ir.Node) -> Writer | None:
    if node.domain in QONNX_DOMAINS:
        return quantizers.QONNX.get(node.op_type)
    return BODIES.get(node.op_type) if not node.domain else None


def _instance(
    graph: ir.Graph, node: ir.Node, body: Body, function: onnx.FunctionProto
) -> list[ir.Node]:
    prefix = next(str(y.name) for y in node.outputs if y.name)
    inputs = node.inputs if body.inputs is None else body.inputs
    given = [*inputs, *(None for _ in function.input[len(inputs) :])]
    values: dict[str, ir.Value | None] = {"": None}
    values |= dict(zip(function.input, given, strict=True))
    for name, array in body.constants.items():
        constant = ir.val(f"{prefix}/{name}", const_value=ir.tensor(array))
        graph.register_initializer(constant)
        values[name] = constant
    for name, output in zip(function.output, node.outputs, strict=False):
        values[name] = ir.Value(name=output.name)
    nodes = [_node(proto, values, prefix) for proto in function.node]
    for name, output in zip(function.output, node.outputs, strict=False):
        new = values[name]
        assert new is not None
        output.replace_all_uses_with(new, replace_graph_outputs=True)
    return nodes


def _parsed(body: Body, opset: int) -> onnx.FunctionProto:
    header = f'<domain: "composed", opset_import: ["": {opset}]>'
    return onnx.parser.parse_function(f"{header} body {body.text}")


def _node(proto: onnx.NodeProto, values: dict[str, ir.Value | None], prefix: str) -> ir.Node:
    """A node of a body; `values` gets its outputs, those that the body gives are there."""
    outputs = []
    for name in proto.output:
        if name not in values:
            values[name] = ir.Value(name=f"{prefix}/{name}")
        outputs.append(values[name] or ir.Value(name=""))
    return ir.Node(
        "",
        proto.op_type,
        [values[name] for name in proto.input],
        [ir.serde.deserialize_attribute(attribute) for attribute in proto.attribute],
        outputs=outputs,
        name=f"{prefix}/{proto.output[0]}",
    )
