"""Losses and metrics of predictions, in numpy, summed up batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Options = Mapping[str, Any]
LossSum = Callable[[Array, Array, Options], tuple[float, float]]
"""(predictions, targets, loss options) to the sum of the loss, and the weight of its terms."""


def log_softmax(logits: Array) -> Array:
    """Float64, along axis 1; logits (n, classes, ...)."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def cross_entropy(logits: Array, labels: Array, options: Options) -> tuple[float, float]:
    """-sum(w_c t_c log p_c), t the smoothed labels; logits (n, classes, ...), labels (n, ...).

    Weighed by the labels' class weights, as PyTorch's ``cross_entropy``.
    """
    n_classes, share = logits.shape[1], float(options.get("label_smoothing", 0))
    weights = np.array(options.get("class_weights") or [1.0] * n_classes)
    ignored = options.get("ignore_index")
    counts = np.ones(labels.shape, bool) if ignored is None else labels != ignored
    picked = np.moveaxis(log_softmax(logits), 1, -1)[counts]
    known = labels[counts]
    own = weights[known]
    hard = (own * picked[np.arange(len(known)), known]).sum()
    soft = (picked @ weights).sum() / n_classes
    return -float((1 - share) * hard + share * soft), float(own.sum())


def soft_cross_entropy(logits: Array, targets: Array, options: Options) -> tuple[float, float]:
    """-sum(target log p) over axis 1; both (n, classes, ...)."""
    return -float((targets * log_softmax(logits)).sum()), logits.size / logits.shape[1]


def binary_cross_entropy(logits: Array, targets: Array, options: Options) -> tuple[float, float]:
    """ln(1 + exp(x)) - x t; both (n, ...)."""
    x = logits.astype(np.float64)
    return float((np.logaddexp(x, 0) - x * targets).sum()), x.size


def mean_squared_error(prediction: Array, target: Array, options: Options) -> tuple[float, float]:
    """(prediction - target)^2; both (n, ...)."""
    error = np.subtract(prediction, target, dtype=np.float64)
    return float((error * error).sum()), error.size


def mean_absolute_error(prediction: Array, target: Array, options: Options) -> tuple[float, float]:
    """|prediction - target|; both (n, ...)."""
    error = np.subtract(prediction, target, dtype=np.float64)
    return float(np.abs(error).sum()), error.size


def huber(prediction: Array, target: Array, options: Options) -> tuple[float, float]:
    """d^2 / 2 where d = |prediction - target| is at most 1, else d - 1/2; both (n, ...)."""
    distance = np.abs(np.subtract(prediction, target, dtype=np.float64))
    each = np.where(distance <= 1, distance**2 / 2, distance - 0.5)
    return float(each.sum()), each.size


def squared_hinge(logits: Array, labels: Array, options: Options) -> tuple[float, float]:
    """max(0, 1 - t logits)^2, t = +1 for the label's class and -1 for the others."""
    target = np.full(logits.shape, -1.0)
    np.put_along_axis(target, labels[:, None], 1.0, axis=1)
    shortfall = np.maximum(0, 1 - target * logits)
    return float((shortfall * shortfall).sum()), shortfall.size


LOSS_SUMS: Mapping[str, LossSum] = {
    "cross-entropy": cross_entropy,
    "soft-cross-entropy": soft_cross_entropy,
    "bce": binary_cross_entropy,
    "mse": mean_squared_error,
    "l1": mean_absolute_error,
    "huber": huber,
    "squared-hinge": squared_hinge,
}
"""By the name that ``--loss`` gives them."""


class Scores:
    """What a network scores on samples that come batch by batch.

    Parameters
    ----------
    loss : str
        Name of the folder's loss; of one that is not in `LOSS_SUMS` there is no mean.
    classes : int
        Number of classes that labels name; 0 for a regression.
    options : mapping
        The folder's loss options.

    Attributes
    ----------
    samples : int
        Seen so far.
    confusion : ndarray of int64, (classes, classes)
        Row: label; column: prediction. Empty for a regression.
    """

    def __init__(self, loss: str, classes: int, options: Options) -> None:
        self._sum, self._options = LOSS_SUMS.get(loss), options
        self._total = self._terms = 0.0
        self._absolute, self._elements = 0.0, 0
        self._in_top5 = 0
        self.classes = classes
        self.samples = 0
        self.confusion = np.zeros((classes, classes), np.int64)

    def add(self, predictions: Array, targets: Array) -> None:
        """Take down a batch: predictions (n, ...), targets as the loss takes them."""
        self.samples += len(predictions)
        if self._sum is not None:
            total, terms = self._sum(predictions, targets, self._options)
            self._total, self._terms = self._total + total, self._terms + terms
        if self.classes:
            self._count(predictions, targets)
        else:
            self._elements += predictions.size
            self._absolute += float(np.abs(np.subtract(predictions, targets, dtype="f8")).sum())

    def _count(self, logits: Array, labels: Array) -> None:
        scores = np.moveaxis(logits, 1, -1)
        if self._options.get("ignore_index") is not None:
            counts = labels != self._options["ignore_index"]
            scores, labels = scores[counts], labels[counts]
        pairs = labels.astype(np.int64) * self.classes + scores.argmax(axis=-1)
        flat = pairs.reshape(-1).astype(np.intp)  # of 32 bits on a small device
        found = np.bincount(flat, minlength=self.classes**2)
        self.confusion += found.reshape(self.classes, self.classes)
        at_label = np.take_along_axis(scores, labels[..., None], axis=-1)
        self._in_top5 += int(((scores > at_label).sum(axis=-1) < 5).sum())

    @property
    def loss(self) -> float | None:
        """The mean loss; None where there is none."""
        return self._total / self._terms if self._terms else None

    @property
    def accuracy(self) -> float | None:
        """The share of labels whose score is the largest; None for a regression."""
        n = int(self.confusion.sum())
        return float(np.trace(self.confusion)) / n if n else None

    @property
    def top5(self) -> float | None:
        """The share of labels whose score is among the five largest."""
        n = int(self.confusion.sum())
        return self._in_top5 / n if n and self.classes > 5 else None

    @property
    def mean_iou(self) -> float | None:
        """Intersection over union over the classes that occur; of samples with many labels."""
        if self.confusion.sum() == self.samples:
            return None
        hits = np.diag(self.confusion)
        union = self.confusion.sum(0) + self.confusion.sum(1) - hits
        return float((hits[union > 0] / union[union > 0]).mean()) if union.any() else None

    @property
    def mean_absolute_error(self) -> float | None:
        """Of a regression."""
        return self._absolute / self._elements if self._elements else None

    def to_dict(self) -> dict[str, Any]:
        """All of them, for JSON."""
        return {
            "loss": self.loss,
            "accuracy": self.accuracy,
            "samples": self.samples,
            "top5": self.top5,
            "mean_iou": self.mean_iou,
            "mae": self.mean_absolute_error,
            "confusion": self.confusion.tolist(),
        }
