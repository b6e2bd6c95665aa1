"""The user's own graph without its weights; `bnnopt.runtime.source` puts trained ones in."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import Message  # type: ignore[import-untyped]

from bnnopt.runtime.source import LACKING


def without_weights(
    model: onnx.ModelProto, names: Sequence[str], plus: Collection[str]
) -> onnx.ModelProto:
    """The graph as it predicts, without the values of the weights that are named.

    Parameters
    ----------
    model : ModelProto
        As the user's file has it; changed in place.
    names : sequence of str
        Initialisers, inputs, or outputs of Constant nodes; what is none of these is left out.
    plus : collection of str
        The Sign nodes that were trained with sign(0) = +1, by their name, or else their output's.
    """
    graph, wanted = model.graph, set(names)
    kept = [tensor for tensor in graph.initializer if tensor.name not in wanted]
    nodes = [n for n in graph.node if n.op_type != "Constant" or n.output[0] not in wanted]
    had = {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
    had |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    _replace(graph.initializer, kept)
    _replace(graph.node, nodes)
    _replace(graph.input, [value for value in graph.input if value.name not in wanted])
    for node in list(all_nodes(graph)):
        _set_inference(node)
    _write_signs(graph, plus)
    del model.metadata_props[:]
    model.metadata_props.add(key=LACKING, value=json.dumps([n for n in names if n in had]))
    return model


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of the graphs in its nodes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in chain([attribute.g] if attribute.HasField("g") else [], attribute.graphs):
                yield from all_nodes(inner)


def _set_inference(node: onnx.NodeProto) -> None:
    """Batch norm reads running statistics, dropout passes on."""
    if node.domain not in ("", "ai.onnx"):
        return
    if node.op_type == "BatchNormalization":
        del node.output[1:]
        _replace(node.attribute, [a for a in node.attribute if a.name != "training_mode"])
    elif node.op_type == "Dropout":
        del node.input[2:]


def _write_signs(graph: onnx.GraphProto, plus: Collection[str]) -> None:
    """Sign(x) as Where(x >= 0, 1, -1): what was trained where x is exactly 0."""
    signs = [n for n in graph.node if _is_sign(n) and (n.name or n.output[0]) in plus]
    if not signs:
        return
    one, minus, zero = "bnnopt.one", "bnnopt.minus_one", "bnnopt.zero"
    for name, value in ((one, 1.0), (minus, -1.0), (zero, 0.0)):
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, np.float32), name))
    written: list[onnx.NodeProto] = []
    for node in graph.node:
        if node not in signs:
            written.append(node)
            continue
        above = f"{node.output[0]}.not_negative"
        written.append(onnx.helper.make_node("GreaterOrEqual", [node.input[0], zero], [above]))
        written.append(
            onnx.helper.make_node("Where", [above, one, minus], [node.output[0]], node.name)
        )
    _replace(graph.node, written)


def _is_sign(node: onnx.NodeProto) -> bool:
    return node.op_type == "Sign" and node.domain in ("", "ai.onnx")


def _replace(repeated: Any, items: Sequence[Message]) -> None:
    del repeated[:]
    repeated.extend(items)
