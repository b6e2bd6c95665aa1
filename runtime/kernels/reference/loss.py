"""Softmax cross-entropy and its gradient."""

from __future__ import annotations

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.reference.kernel import NumpyKernel


def softmax_cross_entropy(logits: Array, labels: Array) -> tuple[Array, Array]:
    """Return the mean over samples of -log softmax(logits)[label], and log softmax(logits).

    Parameters
    ----------
    logits : (N, classes, ...) float
    labels : (N, ...) int64 in [0, classes)
    """
    log_prob = logits - logits.max(axis=1, keepdims=True)
    log_prob -= np.log(np.exp(log_prob).sum(axis=1, keepdims=True))
    picked = np.take_along_axis(log_prob, np.expand_dims(labels, 1), axis=1)
    return np.asarray(-picked.mean()), log_prob


def softmax_cross_entropy_grad(dloss: Array, log_prob: Array, labels: Array) -> Array:
    """Return (softmax(logits) - one_hot(labels)) dloss / number of labels, like log_prob."""
    index = np.expand_dims(labels, 1)
    dlogits = np.exp(log_prob)
    of_label = np.take_along_axis(dlogits, index, axis=1)
    np.put_along_axis(dlogits, index, of_label - 1, axis=1)
    dlogits *= dloss / labels.size
    return dlogits


KERNELS: dict[str, NumpyKernel] = {
    "SoftmaxCrossEntropy": NumpyKernel(softmax_cross_entropy),
    "SoftmaxCrossEntropyGrad": NumpyKernel(softmax_cross_entropy_grad),
}
