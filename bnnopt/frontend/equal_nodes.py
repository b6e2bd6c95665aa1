"""Nodes that compute the same, written twice: ``x.clamp(-1, 1)`` in two places is one value."""

from __future__ import annotations

from collections.abc import Hashable

import onnx_ir as ir

from bnnopt.ops import traits
from bnnopt.training_step import is_constant


def merge_equal(graph: ir.Graph) -> None:
    """Let the readers of each node's copy read the first node of that kind."""
    first: dict[Hashable, ir.Node] = {}
    for node in list(graph):
        if traits(node).draws or traits(node).statistics:  # each draws or moves its own
            continue
        kept = first.setdefault(_key(node), node)
        if kept is node or any(value.is_graph_output() for value in node.outputs):
            continue
        for old, new in zip(node.outputs, kept.outputs, strict=True):
            old.replace_all_uses_with(new)
        graph.remove(node, safe=True)


def _key(node: ir.Node) -> Hashable:
    inputs = [_operand(value) for value in node.inputs]
    if traits(node).commutes:
        inputs.sort(key=repr)
    attributes = tuple(sorted((name, repr(a.value)) for name, a in node.attributes.items()))
    return (node.domain, node.op_type, attributes, tuple(inputs), len(node.outputs))


def _operand(value: ir.Value | None) -> Hashable:
    """What makes two operands one: constants by what they hold."""
    if value is None or not is_constant(value) or value.const_value is None:
        return id(value)
    array = value.const_value.numpy()
    return (array.dtype.str, array.shape, array.tobytes())
