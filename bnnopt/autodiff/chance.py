"""What draws random numbers: in the training step by its number, in an evaluation not at all."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bnnopt.frontend import setting
from bnnopt.ops import Emitter, dims, traits
from bnnopt.training_step import is_constant, step_input

_SEEDS_APART = 0x85EBCA77


def train_dropout(emit: Emitter, graph: ir.Graph, node: ir.Node, seed: int) -> None:
    """Replace a standard Dropout by the one that goes by the step."""
    ratio = setting(node, 1, 0.5)
    emit(
        "Dropout",
        *(node.inputs[0], step_input(graph, emit.unique)),
        name=str(node.name),
        n_outputs=2,
        threshold=round(ratio * 2**32),
        scale=1 / (1 - ratio),
        seed=seed * _SEEDS_APART % 2**32,
    )
    substitute(graph, node, emit)


def draw(emit: Emitter, graph: ir.Graph, node: ir.Node, seed: int) -> None:
    """Replace a RandomUniformLike by numbers that go by the step."""
    low, high = _range(node)
    emit(
        "DrawUniform",
        *(node.inputs[0], step_input(graph, emit.unique)),
        name=str(node.name),
        low=low,
        scale=high - low,
        seed=seed * _SEEDS_APART % 2**32,
    )
    substitute(graph, node, emit)


def take_middle(emit: Emitter, graph: ir.Graph, node: ir.Node) -> None:
    """Replace a RandomUniformLike by the middle of its range."""
    middle, no_step = sum(_range(node)) / 2, emit.constant(0, np.int64)
    name = str(node.name)
    emit("DrawUniform", node.inputs[0], no_step, name=name, low=middle, scale=0.0, seed=0)
    substitute(graph, node, emit)


def masked(node: ir.Node) -> ir.Value | None:
    """What a product with a random mask masks; None if it is none.

    A mask is ``u < p`` as a number, with u random and p constant, and may be divided by p: the
    stochastic depth of arXiv:1603.09382.
    """
    if node.op_type != "Mul":
        return None
    for x, mask in (node.inputs, reversed(node.inputs)):
        if x is not None and _is_mask(mask) and dims(x) == dims(node.outputs[0]):
            return x
    return None


def _is_mask(value: ir.Value | None) -> bool:
    node = value.producer() if value is not None else None
    if node is None or not node.inputs or node.inputs[0] is None:
        return False
    if node.op_type == "Cast" or (node.op_type == "Div" and _is_fixed(node.inputs[1])):
        return _is_mask(node.inputs[0])
    if not traits(node).compares:
        return False
    random = [v for v in node.inputs if v is not None and _is_random(v)]
    return len(random) == 1 and any(_is_fixed(v) for v in node.inputs)


def _is_random(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and node.op_type == "RandomUniformLike"


def _is_fixed(value: ir.Value | None) -> bool:
    return value is not None and is_constant(value)


def _range(node: ir.Node) -> tuple[float, float]:
    low, high = node.attributes.get("low"), node.attributes.get("high")
    return (0.0 if low is None else low.as_float(), 1.0 if high is None else high.as_float())


def substitute(graph: ir.Graph, node: ir.Node, emit: Emitter) -> None:
    """Put the emitted node where `node` was; the first output keeps its name."""
    (new,) = emit.nodes
    new.outputs[0].name = node.outputs[0].name
    new.name = node.name
    graph.insert_before(node, emit.nodes)
    for old, replacement in zip(node.outputs, new.outputs, strict=False):
        if not old.uses() and not old.is_graph_output():
            continue
        old.replace_all_uses_with(replacement, replace_graph_outputs=True)
    graph.remove(node, safe=True)
