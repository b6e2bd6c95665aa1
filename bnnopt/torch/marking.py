"""Markers of a traced module become metadata of standard operators, which other tools ignore."""

from __future__ import annotations

from collections.abc import Set

import onnx

from bnnopt.frontend.marks import GRADIENT, GRADIENTS, NO_GRADIENT, OF_THIRD, TRAINED, WRITTEN

PREFIX = "module."
MARKER = 0x626E6E6F7074  # "bnnopt"
_IR_VERSION = 10  # the first with metadata on nodes


def mark(model: onnx.ModelProto, trained: Set[str]) -> None:
    """Rewrite a model in place: names of the module's own, markers as metadata.

    Parameters
    ----------
    model : onnx.ModelProto
        With ``bnnopt.Stop`` and ``bnnopt.StraightThrough`` nodes.
    trained : set of str
        Names of parameters; buffers, constants and parameters without a gradient are no part of it.
    """
    _rename(model.graph)
    _clear(model)
    _find_markers(model.graph)
    always = "bnnopt.true"
    for node in model.graph.node:
        if node.domain != "bnnopt":
            continue
        if node.op_type == "Stop":
            node.op_type = "Identity"
            _put(node.metadata_props, GRADIENT, NO_GRADIENT)
        else:
            node.op_type = "Where"
            node.input.insert(0, always)
            _put(node.metadata_props, GRADIENT, OF_THIRD)
        node.domain = ""
    if any(always in node.input for node in model.graph.node):
        true = onnx.helper.make_tensor(always, onnx.TensorProto.BOOL, [], [True])
        model.graph.initializer.append(true)
    for tensor in model.graph.initializer:
        if tensor.name not in trained:
            _put(tensor.metadata_props, TRAINED, "no")
    kept = [entry for entry in model.opset_import if entry.domain != "bnnopt"]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    model.ir_version = max(model.ir_version, _IR_VERSION)
    _put(model.metadata_props, GRADIENTS, WRITTEN)


def _find_markers(graph: onnx.GraphProto) -> None:
    """Write the markers that are a ``Where`` of `MARKER` as the others are."""
    numbers = {n.output[0] for n in graph.node if n.op_type == "Constant" and _is_marker(n)}
    conditions = {
        n.output[0] for n in graph.node if n.op_type == "Equal" and numbers.issuperset(n.input)
    }
    for node in graph.node:
        if node.op_type == "Where" and node.input[0] in conditions:
            node.domain = "bnnopt"
            del node.input[0]
            node.op_type = "Stop" if node.input[0] == node.input[1] else "StraightThrough"
            if node.op_type == "Stop":
                del node.input[1]


def _is_marker(node: onnx.NodeProto) -> bool:
    attribute = node.attribute[0]
    if attribute.HasField("t"):
        array = onnx.numpy_helper.to_array(attribute.t)
        return bool(array.shape == () and array.dtype.kind == "i" and int(array) == MARKER)
    return bool(attribute.name == "value_int" and attribute.i == MARKER)


def _clear(model: onnx.ModelProto) -> None:
    """Drop what an exporter says of itself, and the bodies of the markers."""
    graph = model.graph
    values = (*graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info)
    for entry in (model, graph, *values):
        del entry.metadata_props[:]
    kept = [function for function in model.functions if function.domain != "bnnopt"]
    del model.functions[:]
    model.functions.extend(kept)


def _put(entries: object, key: str, value: str) -> None:
    entries.add(key=key, value=value)  # type: ignore[attr-defined]


def _rename(graph: onnx.GraphProto) -> None:
    """The names of the module that was wrapped."""

    def own(name: str) -> str:
        return name.removeprefix(PREFIX)

    for tensor in graph.initializer:
        tensor.name = own(tensor.name)
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = own(value.name)
    for node in graph.node:
        node.name = node.name.replace("/module/", "/", 1)
        for names in (node.input, node.output):
            names[:] = [own(name) for name in names]
