"""What the passes share: where an encoded form goes, and how a late reader gets a value back."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from bnnopt.analysis import is_from_forward
from bnnopt.ops import Emitter, is_view, traits
from bnnopt.training_step import TrainingStep, phase, readers, replace_uses


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


def replace_node(step: TrainingStep, node: ir.Node, emit: Emitter) -> None:
    """Put the emitted nodes in the place of `node`, which becomes the last of them itself.

    So its outputs keep their readers and names: to remove a node, or to move uses of a graph
    output, goes through all outputs of the graph, two for each weight and state.
    """
    *before, last = emit.nodes
    step.graph.insert_before(node, before)
    node.domain, node.op_type = last.domain, last.op_type
    node.attributes.clear()
    node.attributes.update(last.attributes)
    node.resize_inputs(len(last.inputs))
    for index, value in enumerate(last.inputs):
        node.replace_input_with(index, value)
    last.resize_inputs(0)
    for output, made in zip(node.outputs, last.outputs, strict=True):
        output.type, output.shape = made.type, made.shape


def take_over(old: ir.Value | None, new: ir.Value) -> None:
    """Let `new` have the readers and the name of `old`; no name where there is nothing to read."""
    if old is None or not (old.uses() or old.is_graph_output()):
        new.name = ""
        return
    new.metadata_props.update(old.metadata_props)
    name, old.name = old.name, None
    replace_uses(old, new)
    new.name = name


def stand_for(step: TrainingStep, old: ir.Node, new: ir.Node, outputs: Iterable[ir.Value]) -> None:
    """Let a node that is in the graph, and these of its outputs, stand for another, which goes."""
    for output, replacement in zip(old.outputs, outputs, strict=True):
        take_over(output, replacement)
    new.metadata_props.update(old.metadata_props)
    new.name = old.name
    step.graph.remove(old, safe=True)


def read_late(values: Iterable[ir.Value]) -> list[ir.Value]:
    """Those that are there before the backward pass and that it, or the update, reads."""
    return [
        value
        for value in values
        if is_from_forward(value) and any(phase(use.node) != "forward" for use in value.uses())
    ]


def late(value: ir.Value) -> list[ir.Node]:
    """The backward and update nodes that read this very value, in graph order, each once."""
    found = {use.node for use in value.uses() if phase(use.node) != "forward"}
    graph = next(iter(found)).graph if len(found) > 1 else None
    return [node for node in graph if node in found] if graph is not None else [*found]


def late_beyond_mask(views: list[ir.Value]) -> list[tuple[ir.Value, ir.Node]]:
    """The late readers that ask for more than mask-pack keeps, each with the view that it reads.

    A view that is made late is such a reader where one of its own readers is.
    """
    return [
        (value, node) for value in read_late(views) for node in late(value) if _asks_for_more(node)
    ]


def _asks_for_more(node: ir.Node) -> bool:
    if is_view(node):
        return any(_asks_for_more(reader) for reader in readers(node.outputs[0]))
    return not traits(node).by_mask
