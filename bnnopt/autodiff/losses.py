"""Losses, appended to the forward graph."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from bnnopt.errors import ModelError
from bnnopt.ops import Emitter, dims, dtype
from bnnopt.training_step import Role, set_role

Loss = Callable[[Emitter, ir.Value], tuple[ir.Value, ir.Value]]


def cross_entropy(emit: Emitter, logits: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Mean over samples of -log softmax(logits)[label]; labels (N,) int64."""
    labels = _labels(emit, logits)
    return emit("SoftmaxCrossEntropy", logits, labels, name="loss", n_outputs=2), labels


def mean_squared_error(emit: Emitter, prediction: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Mean over all elements of (prediction - target)^2; targets float32, the same shape."""
    target = ir.val(emit.unique("targets"), dtype=dtype(prediction), shape=dims(prediction))
    error = emit("Sub", prediction, target, name="error")
    square = emit("Mul", error, error, name="squared_error")
    return emit("ReduceMean", square, name="loss", keepdims=0), target


def squared_hinge(emit: Emitter, logits: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Mean of max(0, 1 - t logits)^2, t = +1 for the label's class and -1 for the others.

    Labels (N,) int64. Source: Courbariaux et al., arXiv:1602.02830, section 2.
    """
    labels = _labels(emit, logits)
    kind = dtype(logits).numpy()
    depth = emit.constant(np.array([dims(logits)[1]]), np.int64, "n_classes")
    values = emit.constant(np.array([-1.0, 1.0]), kind, "off_on")
    target = emit("OneHot", labels, depth, values, name="target", axis=1)
    product = emit("Mul", logits, target, name="margin")
    shortfall = emit("Sub", emit.constant(1.0, kind, "one"), product, name="shortfall")
    hinge = emit("Relu", shortfall, name="hinge")
    square = emit("Mul", hinge, hinge, name="squared_hinge")
    return emit("ReduceMean", square, name="loss", keepdims=0), labels


LOSSES: dict[str, Loss] = {
    "cross-entropy": cross_entropy,
    "mse": mean_squared_error,
    "squared-hinge": squared_hinge,
}


def add_loss(graph: ir.Graph, name: str) -> ir.Value:
    """Append loss `name` to the graph's first output and return it.

    ``none`` means that the first output is already a scalar loss. The labels become an input.
    """
    prediction = graph.outputs[0]
    if dtype(prediction) != ir.DataType.FLOAT:
        kind = dtype(prediction).name.lower()
        raise ModelError(f"output {prediction.name!r} is {kind}, expected float32")
    if name == "none":
        return _existing(prediction)
    emit = Emitter(graph, "forward")
    loss, labels = LOSSES[name](emit, prediction)
    graph.inputs.append(set_role(labels, Role.LABELS))
    graph.extend(emit.nodes)
    return loss


def _existing(loss: ir.Value) -> ir.Value:
    if dims(loss) not in ((), (1,)):
        raise ModelError(
            f"--loss none: output {loss.name!r} has shape {list(dims(loss))}, expected a scalar "
            "loss; choose a loss, or end the graph in one"
        )
    return loss


def _labels(emit: Emitter, logits: ir.Value) -> ir.Value:
    shape = dims(logits)
    if len(shape) < 2 or shape[1] < 2:
        raise ModelError(
            f"output {logits.name!r} has shape {list(shape)}, expected (batch, classes); "
            "choose --loss mse for a regression"
        )
    name = emit.unique("labels")
    return ir.val(name, dtype=ir.DataType.INT64, shape=(shape[0], *shape[2:]))
