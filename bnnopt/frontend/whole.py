"""Chains of nodes that files write where there is one operator: Gelu, and the parts of a Split.

``x (1 + erf(x / sqrt(2))) / 2`` is ONNX's Gelu before opset 20, and what PyTorch exports; as one
operator it keeps x alone for its gradient. ``unbind`` is exported as one Gather for each place of
an axis, whose gradients would each be as large as all of them.
"""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import onnx_ir as ir

from bnnopt.frontend.marks import GRADIENT
from bnnopt.ops import Emitter, dims
from bnnopt.training_step import is_constant


def make_whole(graph: ir.Graph) -> None:
    """Put one operator in the place of each chain."""
    for node in list(graph):
        if node.op_type == "Erf":
            _gelu(graph, node)
    taken: dict[tuple[ir.Value, int], list[ir.Node]] = defaultdict(list)
    for node in graph:
        x = node.inputs[0] if node.inputs else None
        if node.op_type == "Gather" and x is not None and _index(node) is not None:
            taken[x, _axis(node)].append(node)
    for (x, axis), nodes in taken.items():
        nodes.sort(key=_place)
        if 1 < len(nodes) == dims(x)[axis] and [*map(_place, nodes)] == [*range(len(nodes))]:
            _split(graph, x, axis, nodes)


def _gelu(graph: ir.Graph, erf: ir.Node) -> None:
    scaled = _only_maker(erf.inputs[0])
    if scaled is None:
        return
    x, number = _by_number(scaled)
    root = 1 / number if scaled.op_type == "Div" and number else number
    if (
        x is None
        or scaled.op_type not in ("Div", "Mul")
        or not math.isclose(root, math.sqrt(0.5), rel_tol=1e-6)
    ):
        return
    above = _only_reader(erf.outputs[0])
    if above is None or above.op_type != "Add" or _by_number(above) != (erf.outputs[0], 1.0):
        return
    last = _product(above, x)
    if last is None:
        return
    emit = Emitter(graph, "forward")
    y = emit("Gelu", x, name=str(last.outputs[0].name), approximate="none")
    _replace(graph, last, emit, y)


def _product(node: ir.Node, x: ir.Value) -> ir.Node | None:
    """The last of the products of a node with x and with one half, in any order."""
    is_halved = has_x = False
    while not (is_halved and has_x):
        value, node_or_none = node.outputs[0], _only_reader(node.outputs[0])
        if node_or_none is None or node_or_none.op_type not in ("Mul", "Div"):
            return None
        node = node_or_none
        other, number = _by_number(node)
        half = 0.5 if node.op_type == "Mul" else 2.0
        if other is value and number == half and not is_halved:
            is_halved = True
            continue
        if node.op_type != "Mul":
            return None
        left, right = node.inputs
        factor = right if left is value else left
        if factor is x and not has_x:
            has_x = True
            continue
        maker = _only_maker(factor)
        if has_x or is_halved or maker is None or maker.op_type != "Mul":
            return None
        if _by_number(maker) != (x, 0.5):
            return None
        is_halved = has_x = True
    return node


def _split(graph: ir.Graph, x: ir.Value, axis: int, nodes: list[ir.Node]) -> None:
    emit = Emitter(graph, "forward")
    lengths = emit.constant(np.ones(len(nodes), np.int64), np.int64, "lengths")
    first = emit("Split", x, lengths, name=f"{x.name}.part", n_outputs=len(nodes), axis=axis)
    split = first.producer()
    assert split is not None
    graph.insert_before(min(nodes, key=list(graph).index), emit.nodes)
    axes = emit.constant(np.array([axis]), np.int64, "axes")
    for node, part in zip(nodes, split.outputs, strict=True):
        own = Emitter(graph, "forward")
        _replace(graph, node, own, own("Squeeze", part, axes, name=str(node.outputs[0].name)))


def _replace(graph: ir.Graph, node: ir.Node, emit: Emitter, made: ir.Value) -> None:
    """Put what was emitted in the place of a node, whose makers go if nobody else reads them."""
    old, maker = node.outputs[0], made.producer()
    assert maker is not None
    graph.insert_before(node, emit.nodes)
    old.replace_all_uses_with(made, replace_graph_outputs=True)
    made.name, maker.name = old.name, node.name
    waiting = [node]
    while waiting:
        gone = waiting.pop()
        if gone.graph is None or any(y.uses() or y.is_graph_output() for y in gone.outputs):
            continue
        waiting += [maker for v in gone.inputs if v is not None and (maker := v.producer())]
        graph.remove(gone, safe=True)


def _only_reader(value: ir.Value) -> ir.Node | None:
    """The node that reads a value, where it is the only one."""
    readers = {node for node, _ in value.uses()}
    if len(readers) != 1 or value.is_graph_output():
        return None
    (reader,) = readers
    return None if GRADIENT in reader.metadata_props else reader


def _only_maker(value: ir.Value | None) -> ir.Node | None:
    """The node that makes a value, where only one node reads that."""
    if value is None or _only_reader(value) is None:
        return None
    maker = value.producer()
    return None if maker is None or GRADIENT in maker.metadata_props else maker


def _by_number(node: ir.Node) -> tuple[ir.Value | None, float]:
    """What a node of two operands combines with one number; None and NaN of others."""
    a, b = node.inputs[:2]
    for value, other in ((a, b), (b, a)):
        if other is None or not is_constant(other) or other.const_value is None:
            continue
        if other.const_value.size == 1 and (other is b or node.op_type != "Div"):
            return value, float(other.const_value.numpy().reshape(-1)[0])
    return None, math.nan


def _index(node: ir.Node) -> int | None:
    """The one place that a Gather takes, if that is a number."""
    indices = node.inputs[1]
    if indices is None or indices.const_value is None or GRADIENT in node.metadata_props:
        return None
    return None if indices.const_value.shape.rank() else int(indices.const_value.numpy())


def _axis(node: ir.Node) -> int:
    x, found = node.inputs[0], node.attributes.get("axis")
    assert x is not None
    return (found.as_int() if found is not None else 0) % len(dims(x))


def _place(node: ir.Node) -> int:
    x, index = node.inputs[0], _index(node)
    assert x is not None
    assert index is not None
    return index % dims(x)[_axis(node)]
