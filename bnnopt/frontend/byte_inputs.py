"""Samples that are fed as bytes: the network begins with their normalisation."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from bnnopt.errors import UsageError
from bnnopt.frontend.normalize import ForwardGraph
from bnnopt.ops import Emitter, dims
from bnnopt.training_step import Role, role, set_role, store_as


def feed_bytes(forward: ForwardGraph, path: Path) -> tuple[ir.Value, ir.Value]:
    """Let the network take uint8 where it takes float32, and normalise it first.

    Returns
    -------
    tuple of Value
        Factor and shift, inputs of the graph from now on, one number for each channel.

    Raises
    ------
    UsageError
        If it has several inputs, or takes something else.
    """
    graph = forward.graph
    data = [value for value in graph.inputs if role(value) is Role.DATA]
    if [value.dtype for value in data] != [ir.DataType.FLOAT]:
        found = ", ".join(f"{v.name} {str(v.dtype).lower()}" for v in data)
        raise UsageError(f"--input uint8: {path} takes {found}; expected one input of float32")
    (x,) = data
    emit = Emitter(graph, "forward")
    factor, shift = (_of_channels(x, emit.unique(f"{x.name}.{n}")) for n in ("factor", "shift"))
    uses = list(x.uses())
    y = emit("NormalizeBytes", x, factor, shift, name=f"{x.name}.normalized")
    for node, index in uses:
        node.replace_input_with(index, y)
    graph.outputs[:] = [y if output is x else output for output in graph.outputs]
    store_as(x, ir.DataType.UINT8)
    graph.inputs.extend((factor, shift))
    graph.insert_before(graph.node(0), emit.nodes)
    return factor, shift


def _of_channels(x: ir.Value, name: str) -> ir.Value:
    """A number for each channel of x, (1, C, 1, ...)."""
    shape = (1, *dims(x)[1:2], *[1] * (len(dims(x)) - 2))
    return set_role(ir.val(name, dtype=ir.DataType.FLOAT, shape=shape), Role.NORMALIZATION)
