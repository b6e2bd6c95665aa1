"""Signs inside an estimator: in the s of (b - s) + s they are numbers, without a gradient.

``s = -sign(x) x^2 / 2 + ..`` is somebody's derivative, integrated. Its signs are those of torch,
whose gradient is 0: they are no binarisations, which are b.
"""

from __future__ import annotations

import onnx_ir as ir

from bnnopt.frontend.marks import nothing, stops
from bnnopt.frontend.straight_through import straight_through_nodes
from bnnopt.ops import DOMAIN, traits


def stop_signs(graph: ir.Graph) -> None:
    """Stop the gradient of every Sign between what b rounds and s."""
    for node in straight_through_nodes(graph):
        b, s = node.inputs
        if b is None or s is None or stops(node):
            continue
        rounded = {v for inner in _cone(b) if traits(inner).jumps for v in inner.inputs}
        between = _cone(s)
        for inner in between:
            if inner.op_type != "Sign" or inner.outputs[0] is s:
                continue
            x = inner.inputs[0]
            if x is None or x in rounded or any(not rounded.isdisjoint(n.inputs) for n in _cone(x)):
                _stop(graph, inner.outputs[0], between)


def _cone(value: ir.Value) -> list[ir.Node]:
    """The elementwise nodes that make a value, up to the first others."""
    found: dict[ir.Node, None] = {}
    waiting = [value]
    while waiting:
        node = waiting.pop().producer()
        if node is not None and traits(node).elementwise and node not in found:
            found[node] = None
            waiting += [v for v in node.inputs if v is not None]
    return list(found)


def _stop(graph: ir.Graph, value: ir.Value, readers: list[ir.Node]) -> None:
    """Let these readers of a value read it without a gradient."""
    maker = value.producer()
    assert maker is not None
    stopped = ir.Value(name=f"{value.name}.stopped", shape=value.shape, type=value.type)
    stop = ir.Node(DOMAIN, "StraightThrough", [value, nothing(graph)], outputs=[stopped])
    stop.name = f"{maker.name}.stop"
    graph.insert_after(maker, stop)
    for reader in readers:
        for i, read in enumerate(reader.inputs):
            if read is value:
                reader.replace_input_with(i, stopped)
