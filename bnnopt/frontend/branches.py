"""An If whose condition is a constant, as shapes make it, is the branch that it takes."""

from __future__ import annotations

import onnx_ir as ir

from bnnopt.ops import InferenceError
from bnnopt.training_step import is_constant


def take_branch(graph: ir.Graph, node: ir.Node) -> list[ir.Node]:
    """Put the nodes of the branch where the If was, under names of their own.

    Raises
    ------
    InferenceError
        If the condition is no constant.
    """
    condition = node.inputs[0]
    if condition is None or not is_constant(condition) or condition.const_value is None:
        raise InferenceError("its condition depends on the data, expected one that shapes decide")
    value = condition.const_value.numpy()
    if value.size != 1:
        raise InferenceError(f"its condition has {value.size} elements, expected one")
    taken = "then_branch" if value.item() else "else_branch"
    branch = node.attributes[taken].as_graph()
    nodes, results = list(branch), list(branch.outputs)
    for inside in [*branch.initializers.values(), *(y for inner in nodes for y in inner.outputs)]:
        inside.name = f"{node.name}/{inside.name}" if inside.name else ""
    for inner in nodes:
        inner.name = f"{node.name}/{inner.name or inner.outputs[0].name}"
    constants = list(branch.initializers.values())
    branch.outputs.clear()
    branch.initializers.clear()
    branch.remove(nodes)
    for constant in constants:
        graph.register_initializer(constant)
    graph.insert_before(node, nodes)
    for old, new in zip(node.outputs, results, strict=True):
        name = old.name
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        new.name = name
    graph.remove(node, safe=True)
    return nodes
