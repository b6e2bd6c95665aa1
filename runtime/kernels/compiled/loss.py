"""The compiled softmax cross-entropy and its gradient."""

from __future__ import annotations

import math

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled.calls import Arrays, Attributes, covered
from bnnopt.runtime.kernels.compiled.functions import CFunction
from bnnopt.runtime.kernels.compiled.kernel import CompiledKernel

FORWARD = CFunction(
    "int bnn_softmax_cross_entropy_f32(float*, i64*, float*, float*, i64, i64, i64)"
)
BACKWARD = CFunction(
    "int bnn_softmax_cross_entropy_grad_f32(float*, float*, i64*, float*, i64, i64, i64)"
)


def softmax_cross_entropy(
    inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array
) -> bool:
    """`loss.softmax_cross_entropy`, with sums in float64; log_prob may be the logits."""
    (logits, labels), (loss, log_prob) = inputs, outputs
    if not covered(logits, loss, log_prob) or not covered(labels, dtype=np.int64):
        return False
    sizes = _sizes(logits, labels)
    return sizes is not None and FORWARD(logits, labels, loss, log_prob, *sizes)


def softmax_cross_entropy_grad(
    inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array
) -> bool:
    """`loss.softmax_cross_entropy_grad`; dlogits may be log_prob."""
    (dloss, log_prob, labels), dlogits = inputs, outputs[0]
    if not covered(dloss, log_prob, dlogits) or not covered(labels, dtype=np.int64):
        return False
    sizes = _sizes(log_prob, labels)
    return sizes is not None and BACKWARD(dloss, log_prob, labels, dlogits, *sizes)


def _sizes(x: Array | None, labels: Array | None) -> tuple[int, int, int] | None:
    """(n, classes, inner) of (N, classes, ...); None if there is nothing, or labels do not fit."""
    assert x is not None
    assert labels is not None
    if x.ndim < 2 or x.size == 0 or labels.shape != (*x.shape[:1], *x.shape[2:]):
        return None
    return x.shape[0], x.shape[1], math.prod(x.shape[2:])


KERNELS: dict[str, CompiledKernel] = {
    "SoftmaxCrossEntropy": CompiledKernel(softmax_cross_entropy),
    "SoftmaxCrossEntropyGrad": CompiledKernel(softmax_cross_entropy_grad),
}
