"""Metadata that says what PyTorch does with a gradient, in files of `bnnopt.torch.export`.

It stands on standard operators and initialisers, so that other tools read the same network:

======================================  ==================================================
``bnnopt.gradients = as-written``       on the model: no estimator is missing, signs and
                                        roundings without one have no gradient, sign(0) is 0
``bnnopt.gradient = none``              on an Identity: no gradient passes
``bnnopt.gradient = of-third``          on ``Where(true, b, s)``: the gradient goes to s
``bnnopt.trained = no``                 on an initialiser: a buffer, a frozen parameter, a constant
======================================  ==================================================
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from bnnopt.ops import DOMAIN, DOMAIN_VERSION

GRADIENTS, WRITTEN = "bnnopt.gradients", "as-written"
GRADIENT, NO_GRADIENT, OF_THIRD = "bnnopt.gradient", "none", "of-third"
TRAINED = "bnnopt.trained"


def has_gradients(proto: onnx.ModelProto) -> bool:
    """Whether the file says how each gradient goes."""
    return any(e.key == GRADIENTS and e.value == WRITTEN for e in proto.metadata_props)


def untrained(proto: onnx.ModelProto) -> set[str]:
    """The initialisers that are not trained."""
    return {
        tensor.name
        for tensor in proto.graph.initializer
        if any(e.key == TRAINED and e.value == "no" for e in tensor.metadata_props)
    }


def settle_marks(graph: ir.Graph) -> None:
    """Turn the nodes that say where a gradient goes into `StraightThrough` nodes."""
    graph.opset_imports[DOMAIN] = DOMAIN_VERSION
    for node in list(graph):
        mark = node.metadata_props.get(GRADIENT)
        if mark == NO_GRADIENT and node.op_type == "Identity":
            _replace(graph, node, node.inputs[0], nothing(graph))
        elif mark == OF_THIRD and node.op_type == "Where":
            _replace(graph, node, node.inputs[1], node.inputs[2])


def nothing(graph: ir.Graph) -> ir.Value:
    """A constant: as the s of a `StraightThrough` it stops the gradient."""
    name = "bnnopt.no_gradient"
    if name not in graph.initializers:
        zero = ir.tensor(np.float32(0))
        value = ir.val(name, dtype=ir.DataType.FLOAT, shape=(), const_value=zero)
        graph.register_initializer(value)
    return graph.initializers[name]


def stops(node: ir.Node) -> bool:
    """Whether a node is a `StraightThrough` that stops the gradient."""
    return (
        node.domain == DOMAIN
        and node.op_type == "StraightThrough"
        and node.inputs[1] is not None
        and node.inputs[1].is_initializer()
    )


def stop_gradient(graph: ir.Graph, value: ir.Value) -> None:
    """Let all that reads a value read it behind a stop."""
    node = value.producer()
    assert node is not None
    b = ir.Value(name=f"{value.name}.value", shape=value.shape, type=value.type)
    stop = ir.Node(DOMAIN, "StraightThrough", [value, nothing(graph)], outputs=[b])
    value.replace_all_uses_with(b, replace_graph_outputs=True)
    stop.replace_input_with(0, value)
    stop.name = f"{node.name}.stop"
    graph.insert_after(node, stop)


def _replace(graph: ir.Graph, node: ir.Node, b: ir.Value | None, s: ir.Value | None) -> None:
    old = node.outputs[0]
    new = ir.Node(
        DOMAIN, "StraightThrough", [b, s], outputs=[ir.Value(name=old.name)], name=node.name
    )
    new.metadata_props.update(node.metadata_props)
    graph.insert_before(node, new)
    old.replace_all_uses_with(new.outputs[0], replace_graph_outputs=True)
    graph.remove(node, safe=True)
