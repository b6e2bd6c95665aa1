"""The backward pass of an onnxruntime-training graph, in the operators that the compiler knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx
import onnx_ir as ir

from bnnopt.autodiff.context import UnknownInput
from bnnopt.autodiff.imported_nodes import Importer, Node
from bnnopt.autodiff.imported_rules import rule_of
from bnnopt.errors import ModelError
from bnnopt.frontend import Binarized, TrainingArtifacts, one_line
from bnnopt.ops import InferenceError, dims

AGAIN = "generate the artifacts again"
WITHOUT = "generate the artifacts from a model without it, or pass the forward model"


def import_backward(
    graph: ir.Graph, artifacts: TrainingArtifacts, values: Mapping[str, ir.Value]
) -> dict[str, ir.Value]:
    """Append the backward nodes of the artifacts to the graph.

    Parameters
    ----------
    graph : onnx_ir.Graph
        The typed forward nodes in training mode.
    artifacts : TrainingArtifacts
        What they come from.
    values : mapping of str to Value
        The forward values that the backward nodes read, by their names in the file.

    Returns
    -------
    dict
        Parameter to gradient.

    Raises
    ------
    ModelError
        If a node has no rule; it is named.
    """
    importer = Importer(graph, artifacts, values)
    for proto in artifacts.backward:
        _add(importer, proto)
    weights = artifacts.forward.weights
    gradients = {
        parameter: _gradient(importer, name, weights[parameter].shape)
        for parameter, name in artifacts.gradients.items()
        if parameter in weights
    }
    graph.extend(importer.emit.nodes)
    return gradients


def _add(importer: Importer, proto: onnx.NodeProto) -> None:
    where = f"node {proto.name!r} ({proto.op_type})"
    if not proto.output:
        raise ModelError(f"{where}: it has no output; {AGAIN}")
    node = Node(proto, importer)
    try:
        importer.define(proto.output, rule_of(node)(node))
    except UnknownInput as error:
        raise ModelError(f"{where}: no rule for it: {error}; {WITHOUT}") from None
    except InferenceError as error:
        raise ModelError(f"{where}: {one_line(error)}; {WITHOUT}") from None


def _gradient(importer: Importer, name: str, shape: tuple[int, ...]) -> ir.Value:
    """The gradient of a parameter of that shape."""
    try:
        value = importer.value(name)
    except UnknownInput:
        raise ModelError(f"gradient {name!r} is made by no node; {AGAIN}") from None
    if dims(value) != shape:
        found = f"has shape {list(dims(value))}, expected {list(shape)}"
        raise ModelError(f"gradient {name!r} {found}; {AGAIN}")
    return value


def recognize_estimators(graph: ir.Graph, binarized: list[Binarized]) -> None:
    """Say of each binarisation which estimator its gradient is, where it is the clipped identity.

    `binarized` is the report's list; the nodes' attributes are for the passes.
    """
    for index, entry in enumerate(binarized):
        node = next(n for n in graph if n.name == entry.name)
        (x,) = node.inputs
        assert x is not None
        masks = {use.node for use in x.uses() if use.node.op_type == "ClipGrad" and use.idx == 1}
        bounds = {(m.attributes["low"].as_float(), m.attributes["high"].as_float()) for m in masks}
        low, high = bounds.pop() if len(bounds) == 1 else (0.0, 0.0)
        if low == -high < 0:
            node.attributes["ste"] = ir.AttrString("ste", "clipped")
            node.attributes["clip"] = ir.AttrFloat32("clip", high)
            binarized[index] = replace(entry, ste="clipped")
