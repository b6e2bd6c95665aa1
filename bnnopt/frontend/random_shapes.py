"""Random numbers of a constant shape take it from a value that the graph has, batch and all."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir

from bnnopt.ops import Emitter, dims
from bnnopt.training_step import Role, is_constant, role


def free_random(graph: ir.Graph, node: ir.Node, batch: int) -> None:
    """Let a RandomUniformLike of a constant read another value's shape, so that any batch runs.

    That of one of the same shape which is there anyway, or the batch of the first input.
    """
    like = node.inputs[0]
    if like is None or not is_constant(like):
        return
    before = itertools.takewhile(lambda other: other is not node, graph)
    values = (*graph.inputs, *(y for other in before for y in other.outputs if y.name))
    same = next((value for value in values if dims(value) == dims(like)), None)
    if same is None and dims(like)[:1] == (batch,):
        emit = Emitter(graph, "forward")
        same = _samples(emit, graph, dims(like)[1:], f"{node.name}.like")
        graph.insert_before(node, emit.nodes)
    if same is not None:
        node.replace_input_with(0, same)


def _samples(emit: Emitter, graph: ir.Graph, inner: tuple[int, ...], name: str) -> ir.Value:
    """A value of shape (batch, *inner), of one element of each sample."""
    data = next(value for value in graph.inputs if role(value) is Role.DATA)
    axes = np.arange(1, len(dims(data)))
    limits = [emit.constant(np.full_like(axes, end), np.int64, name) for end in (0, 1)]
    first = emit("Slice", data, *limits, emit.constant(axes, np.int64, name), name=name)
    shape = emit.constant([0] + [1] * len(inner), np.int64, name)
    column = emit("Reshape", first, shape, name=name)
    if not inner or max(inner) == 1:
        return column
    return emit("Expand", column, emit.constant([1, *inner], np.int64, name), name=name)
