"""Markers of a traced module become metadata of standard operators, which other tools ignore."""

from __future__ import annotations

from collections.abc import Set

import onnx

from bnnopt.frontend.marks import GRADIENT, GRADIENTS, NO_GRADIENT, OF_THIRD, TRAINED, WRITTEN

PREFIX = "module."
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
    always = "bnnopt.true"
    for node in model.graph.node:
        del node.metadata_props[:]
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
        del tensor.metadata_props[:]
        if tensor.name not in trained:
            _put(tensor.metadata_props, TRAINED, "no")
    kept = [entry for entry in model.opset_import if entry.domain != "bnnopt"]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    model.ir_version = max(model.ir_version, _IR_VERSION)
    _put(model.metadata_props, GRADIENTS, WRITTEN)


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
