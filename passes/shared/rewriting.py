"""What the passes share: where an encoded form goes, and how a late reader gets a value back."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from bnnopt.analysis import is_from_forward
from bnnopt.ops import Emitter, is_view, traits
from bnnopt.training_step import TrainingStep, phase


def insert_after_definition(step: TrainingStep, value: ir.Value, nodes: list[ir.Node]) -> None:
    """Put `nodes` right behind the node that makes `value`, or first if it is fed in."""
    producer = value.producer()
    if producer is not None:
        step.graph.insert_after(producer, nodes)
    else:
        step.graph.insert_before(step.graph.node(0), nodes)


def redirect(node: ir.Node, old: ir.Value, new: ir.Value) -> None:
    """Let `node` read `new` wherever it reads `old`."""
    for index, value in enumerate(node.inputs):
        if value is old:
            node.replace_input_with(index, new)


def replace_node(
    step: TrainingStep, node: ir.Node, emit: Emitter, added: Collection[int] = ()
) -> None:
    """Put the emitted nodes in the place of `node`; the last one's outputs take over its names.

    It has outputs that `node` has not at the indices `added`.
    """
    new = emit.nodes[-1]
    taken = [output for i, output in enumerate(new.outputs) if i not in added]
    step.graph.insert_before(node, emit.nodes)
    for old, replacement in zip(node.outputs, taken, strict=True):
        old.replace_all_uses_with(replacement, replace_graph_outputs=True)
        replacement.metadata_props.update(old.metadata_props)
    new.metadata_props.update(node.metadata_props)
    step.graph.remove(node, safe=True)
    new.name = node.name
    for old, replacement in zip(node.outputs, taken, strict=True):
        replacement.name = old.name


def take_over(old: ir.Value | None, new: ir.Value) -> None:
    """Let `new` have the readers and the name of `old`; no name where there is nothing to read."""
    if old is None or not (old.uses() or old.is_graph_output()):
        new.name = ""
        return
    new.metadata_props.update(old.metadata_props)
    name, old.name = old.name, None
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    new.name = name


def late(value: ir.Value) -> list[ir.Node]:
    """The backward and update nodes that read this very value, in graph order, each once."""
    found = {use.node for use in value.uses() if phase(use.node) != "forward"}
    graph = next(iter(found)).graph if len(found) > 1 else None
    return [node for node in graph if node in found] if graph is not None else [*found]


def drop_unread(step: TrainingStep) -> None:
    """Remove the nodes that nothing reads."""
    outputs = set(step.graph.outputs)
    for node in reversed(list(step.graph)):
        if not any(output.uses() or output in outputs for output in node.outputs):
            step.graph.remove(node, safe=True)


def late_beyond_mask(views: list[ir.Value]) -> list[tuple[ir.Value, ir.Node]]:
    """The late readers that ask for more than mask-pack keeps, each with the view that it reads."""
    return [
        (value, node)
        for value in views
        if is_from_forward(value)
        for node in late(value)
        if not traits(node).by_mask and not is_view(node)
    ]
