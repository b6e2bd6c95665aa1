"""Softmax cross-entropy and its gradient."""

from __future__ import annotations

import onnx_ir as ir

from bnnopt.ops.operator import Operator, TypedDims, dims, dtype, like


def _forward(node: ir.Node) -> list[TypedDims]:
    logits = node.inputs[0]
    return [(dtype(logits), ()), (dtype(logits), dims(logits))]


SOFTMAX_CROSS_ENTROPY = Operator(
    summary="""loss = mean over samples of -log softmax(logits)[label].

    logits, log_prob: (N, classes) or (N, classes, ...) float. labels: (N) or (N, ...) int64 in
    [0, classes). loss: scalar.
    """,
    signature="SoftmaxCrossEntropy (logits, labels) => (loss, log_prob)",
    body="""
        log_prob = LogSoftmax <axis = 1> (logits)
        class_axis = Constant <value_ints = [1]> ()
        index = Unsqueeze (labels, class_axis)
        picked = GatherElements <axis = 1> (log_prob, index)
        mean = ReduceMean <keepdims = 0> (picked)
        loss = Neg (mean)
    """,
    type_rule=_forward,
)

SOFTMAX_CROSS_ENTROPY_GRAD = Operator(
    summary="""dlogits = (softmax(logits) - one_hot(labels)) dloss / number of labels.

    dloss: scalar. log_prob, dlogits: (N, classes, ...) float. labels: (N, ...) int64.
    """,
    signature="SoftmaxCrossEntropyGrad (dloss, log_prob, labels) => (dlogits)",
    body="""
        prob = Exp (log_prob)
        class_dim = Shape <start = 1, end = 2> (log_prob)
        depth = Squeeze (class_dim)
        pair = Constant <value_floats = [0.0, 1.0]> ()
        off_on = CastLike (pair, log_prob)
        one_hot = OneHot <axis = 1> (labels, depth, off_on)
        difference = Sub (prob, one_hot)
        count_int = Size (labels)
        count = CastLike (count_int, log_prob)
        factor = Div (dloss, count)
        dlogits = Mul (difference, factor)
    """,
    type_rule=like(1),
    in_place={0: 1},
)

OPERATORS = (SOFTMAX_CROSS_ENTROPY, SOFTMAX_CROSS_ENTROPY_GRAD)
