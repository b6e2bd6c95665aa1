"""Losses, appended to the forward graph.

All but plain cross-entropy are written in standard operators, whose gradients are known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import DTypeLike

from bnnopt.errors import ModelError, UsageError
from bnnopt.ops import Emitter, dims, dtype
from bnnopt.training_step import Role, mark_scores, set_role


@dataclass(frozen=True)
class LossOptions:
    """What changes a cross-entropy; each as in PyTorch's ``cross_entropy``.

    Attributes
    ----------
    label_smoothing : float
        This share of each label goes to all classes alike; 0 to below 1.
    class_weights : tuple of float
        One factor a class; empty for 1 each. The mean is over the weights of the labels.
    ignore_index : int, optional
        Labels of this value count for nothing, such as 255 for pixels without a class.
    """

    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] = ()
    ignore_index: int | None = None

    @property
    def is_plain(self) -> bool:
        """Whether nothing is changed."""
        return self == PLAIN


PLAIN = LossOptions()

Loss = Callable[[Emitter, ir.Value, LossOptions], tuple[ir.Value, ir.Value]]
"""(emitter, prediction, options) to the scalar loss and the targets, a new input."""


def cross_entropy(
    emit: Emitter, logits: ir.Value, options: LossOptions
) -> tuple[ir.Value, ir.Value]:
    """Mean over labels of -log softmax(logits)[label]; labels (N, ...) int64."""
    labels = _labels(emit, logits)
    if options.is_plain:
        loss = emit("SoftmaxCrossEntropy", logits, labels, name="loss", n_outputs=2)
        mark_scores(emit.nodes[-1].outputs[1])
        return loss, labels
    return _weighted_cross_entropy(emit, logits, labels, options), labels


def soft_cross_entropy(
    emit: Emitter, logits: ir.Value, options: LossOptions
) -> tuple[ir.Value, ir.Value]:
    """Mean over samples of -sum(target log softmax(logits)); targets float32, as the logits.

    Targets are probabilities: mixed labels, or what a teacher predicts (distillation).
    """
    _classes(logits)
    target = _targets(emit, logits)
    log_prob = emit("LogSoftmax", logits, name="log_prob", axis=1)
    return _mean_over_classes(emit, emit("Mul", target, log_prob, name="picked")), target


def binary_cross_entropy(
    emit: Emitter, logits: ir.Value, options: LossOptions
) -> tuple[ir.Value, ir.Value]:
    """Mean over all elements of ln(1 + exp(x)) - x t, x the logits: many labels a sample.

    Targets t float32 in [0, 1], the same shape.
    """
    target = _targets(emit, logits)
    total = emit("Softplus", logits, name="softplus")
    own = emit("Mul", logits, target, name="own")
    each = emit("Sub", total, own, name="each")
    return emit("ReduceMean", each, name="loss", keepdims=0), target


def mean_squared_error(
    emit: Emitter, prediction: ir.Value, options: LossOptions
) -> tuple[ir.Value, ir.Value]:
    """Mean over all elements of (prediction - target)^2; targets float32, the same shape."""
    target = _targets(emit, prediction)
    error = emit("Sub", prediction, target, name="error")
    square = emit("Mul", error, error, name="squared_error")
    return emit("ReduceMean", square, name="loss", keepdims=0), target


def mean_absolute_error(
    emit: Emitter, prediction: ir.Value, options: LossOptions
) -> tuple[ir.Value, ir.Value]:
    """Mean over all elements of |prediction - target|; targets float32, the same shape."""
    target = _targets(emit, prediction)
    error = emit("Sub", prediction, target, name="error")
    distance = emit("Abs", error, name="distance")
    return emit("ReduceMean", distance, name="loss", keepdims=0), target


def huber(emit: Emitter, prediction: ir.Value, options: LossOptions) -> tuple[ir.Value, ir.Value]:
    """Mean of d^2 / 2 where d = |prediction - target| is at most 1, else d - 1/2.

    Written as c (d - c / 2) with c = min(d, 1). Source: Huber, 1964, with delta = 1.
    """
    target = _targets(emit, prediction)
    kind = dtype(prediction).numpy()
    error = emit("Sub", prediction, target, name="error")
    distance = emit("Abs", error, name="distance")
    low, high = (emit.constant(bound, kind, "bound") for bound in (0.0, 1.0))
    near = emit("Clip", distance, low, high, name="near")
    half = emit("Mul", near, emit.constant(0.5, kind, "half"), name="half_near")
    rest = emit("Sub", distance, half, name="rest")
    each = emit("Mul", near, rest, name="each")
    return emit("ReduceMean", each, name="loss", keepdims=0), target


def squared_hinge(
    emit: Emitter, logits: ir.Value, options: LossOptions
) -> tuple[ir.Value, ir.Value]:
    """Mean of max(0, 1 - t logits)^2, t = +1 for the label's class and -1 for the others.

    Labels (N, ...) int64. Source: Courbariaux et al., arXiv:1602.02830, section 2.
    """
    labels = _labels(emit, logits)
    kind = dtype(logits).numpy()
    target = _one_hot(emit, logits, labels, -1.0)
    product = emit("Mul", logits, target, name="margin")
    shortfall = emit("Sub", emit.constant(1.0, kind, "one"), product, name="shortfall")
    hinge = emit("Relu", shortfall, name="hinge")
    square = emit("Mul", hinge, hinge, name="squared_hinge")
    return emit("ReduceMean", square, name="loss", keepdims=0), labels


LOSSES: dict[str, Loss] = {
    "cross-entropy": cross_entropy,
    "soft-cross-entropy": soft_cross_entropy,
    "bce": binary_cross_entropy,
    "mse": mean_squared_error,
    "l1": mean_absolute_error,
    "huber": huber,
    "squared-hinge": squared_hinge,
}


def add_loss(graph: ir.Graph, name: str, options: LossOptions) -> ir.Value:
    """Append loss `name` to the graph's first output and return it.

    ``none`` means that the first output is already a scalar loss. The labels become an input.
    """
    prediction = graph.outputs[0]
    if dtype(prediction) != ir.DataType.FLOAT:
        kind = dtype(prediction).name.lower()
        raise ModelError(f"output {prediction.name!r} is {kind}, expected float32")
    if name != "cross-entropy" and not options.is_plain:
        raise UsageError(
            f"--loss {name}: --label-smoothing, --class-weights and --ignore-index are for "
            "cross-entropy"
        )
    if name == "none":
        return _existing(prediction)
    emit = Emitter(graph, "forward")
    loss, labels = LOSSES[name](emit, prediction, options)
    graph.inputs.append(set_role(labels, Role.LABELS))
    graph.extend(emit.nodes)
    return loss


def _weighted_cross_entropy(
    emit: Emitter, logits: ir.Value, labels: ir.Value, options: LossOptions
) -> ir.Value:
    """-sum(w_c t_c log p_c) / sum(w_label), t the smoothed labels of those that count.

    w are the class weights; the second sum is the number of labels where all of them are 1.
    """
    kind, share = dtype(logits).numpy(), options.label_smoothing
    n_classes = _classes(logits)
    weights = np.array(options.class_weights or [1.0] * n_classes, kind)
    if weights.shape != (n_classes,):
        raise UsageError(
            f"--class-weights: {weights.size} numbers, expected {n_classes}, one a class"
        )
    weights = weights.reshape(-1, *[1] * (len(dims(logits)) - 2))
    hot = _one_hot(emit, logits, labels, 0.0)
    own = emit("Mul", hot, emit.constant(weights, kind, "weights"), name="own")
    spread = emit.constant(weights * share / n_classes, kind, "spread")
    if options.ignore_index is not None:
        counts = _counting(emit, labels, options.ignore_index, kind)
        own = emit("Mul", own, counts, name="counted")
        spread = emit("Mul", spread, counts, name="counted_spread")
    target = own
    if share:
        kept = emit("Mul", own, emit.constant(1 - share, kind, "rest"), name="kept")
        target = emit("Add", kept, spread, name="smoothed")
    log_prob = mark_scores(emit("LogSoftmax", logits, name="log_prob", axis=1))
    total = emit("ReduceSum", emit("Mul", target, log_prob, name="picked"), name="sum", keepdims=0)
    weight = emit("ReduceSum", own, name="weight", keepdims=0)
    least = emit.constant(np.finfo(kind).tiny, kind, "least")  # where no label counts the loss is 0
    mean = emit("Div", total, emit("Max", weight, least, name="least_weight"), name="mean")
    return emit("Neg", mean, name="loss")


def _counting(emit: Emitter, labels: ir.Value, ignored: int, kind: DTypeLike) -> ir.Value:
    """1 where a label counts, 0 where it is ignored, with an axis for the classes."""
    axis = emit.constant([1], np.int64, "class_axis")
    same = emit("Equal", labels, emit.constant(ignored, np.int64, "ignored"), name="ignored")
    to = int(ir.DataType.from_numpy(np.dtype(kind)))
    counts = emit("Cast", emit("Not", same, name="is_counted"), name="counts", to=to)
    return emit("Unsqueeze", counts, axis, name="counting")


def _one_hot(emit: Emitter, logits: ir.Value, labels: ir.Value, off: float) -> ir.Value:
    """1 at the label's class, `off` at the others, in the shape of the logits."""
    depth = emit.constant(np.array([dims(logits)[1]]), np.int64, "n_classes")
    values = emit.constant(np.array([off, 1.0]), dtype(logits).numpy(), "off_on")
    return emit("OneHot", labels, depth, values, name="target", axis=1)


def _mean_over_classes(emit: Emitter, picked: ir.Value) -> ir.Value:
    """Minus the mean over samples of the sum over axis 1."""
    axis = emit.constant([1], np.int64, "class_axis")
    each = emit("ReduceSum", picked, axis, name="each", keepdims=0)
    return emit("Neg", emit("ReduceMean", each, name="mean", keepdims=0), name="loss")


def _existing(loss: ir.Value) -> ir.Value:
    if dims(loss) not in ((), (1,)):
        raise ModelError(
            f"--loss none: output {loss.name!r} has shape {list(dims(loss))}, expected a scalar "
            "loss; choose a loss, or end the graph in one"
        )
    return loss


def _targets(emit: Emitter, prediction: ir.Value) -> ir.Value:
    return ir.val(emit.unique("targets"), dtype=dtype(prediction), shape=dims(prediction))


def _classes(logits: ir.Value) -> int:
    shape = dims(logits)
    if len(shape) < 2 or shape[1] < 2:
        raise ModelError(
            f"output {logits.name!r} has shape {list(shape)}, expected (batch, classes); "
            "choose --loss mse for a regression, bce for one label of two values"
        )
    return shape[1]


def _labels(emit: Emitter, logits: ir.Value) -> ir.Value:
    _classes(logits)
    shape = dims(logits)
    name = emit.unique("labels")
    return ir.val(name, dtype=ir.DataType.INT64, shape=(shape[0], *shape[2:]))
