"""Losses and metrics of predictions, in numpy, summed up batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
LossSum = Callable[[Array, Array], tuple[float, int]]
"""(predictions, targets) to the sum of the loss over its terms, and their number."""


def cross_entropy(logits: Array, labels: Array) -> tuple[float, int]:
    """-log softmax(logits)[label]; logits (n, classes, ...), labels (n, ...) integers."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_total = np.log(np.exp(shifted, dtype=np.float64).sum(axis=1, keepdims=True))
    picked = np.take_along_axis(shifted - log_total, labels[:, None], axis=1)
    return -float(picked.sum(dtype=np.float64)), labels.size


def mean_squared_error(prediction: Array, target: Array) -> tuple[float, int]:
    """(prediction - target)^2; both (n, ...)."""
    error = np.subtract(prediction, target, dtype=np.float64)
    return float((error * error).sum()), error.size


def squared_hinge(logits: Array, labels: Array) -> tuple[float, int]:
    """max(0, 1 - t logits)^2, t = +1 for the label's class and -1 for the others."""
    target = np.full(logits.shape, -1.0)
    np.put_along_axis(target, labels[:, None], 1.0, axis=1)
    shortfall = np.maximum(0, 1 - target * logits)
    return float((shortfall * shortfall).sum()), shortfall.size


LOSS_SUMS: Mapping[str, LossSum] = {
    "cross-entropy": cross_entropy,
    "mse": mean_squared_error,
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

    Attributes
    ----------
    samples : int
        Seen so far.
    confusion : ndarray of int64, (classes, classes)
        Row: label; column: prediction. Empty for a regression.
    """

    def __init__(self, loss: str, classes: int) -> None:
        self._sum = LOSS_SUMS.get(loss)
        self._total, self._terms = 0.0, 0
        self._absolute = 0.0
        self._in_top5 = 0
        self.classes = classes
        self.samples = 0
        self.confusion = np.zeros((classes, classes), np.int64)

    def add(self, predictions: Array, targets: Array) -> None:
        """Take down a batch: predictions (n, ...), targets as the loss takes them."""
        self.samples += len(predictions)
        if self._sum is not None:
            total, terms = self._sum(predictions, targets)
            self._total, self._terms = self._total + total, self._terms + terms
        if self.classes:
            self._count(predictions, targets)
        else:
            self._absolute += float(np.abs(np.subtract(predictions, targets, dtype="f8")).sum())

    def _count(self, logits: Array, labels: Array) -> None:
        pairs = labels.astype(np.int64) * self.classes + logits.argmax(axis=1)
        found = np.bincount(pairs.reshape(-1), minlength=self.classes**2)
        self.confusion += found.reshape(self.classes, self.classes)
        at_label = np.take_along_axis(logits, labels[:, None], axis=1)
        self._in_top5 += int(((logits > at_label).sum(axis=1) < 5).sum())

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
        return self._absolute / self._terms if self._terms and not self.classes else None

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
