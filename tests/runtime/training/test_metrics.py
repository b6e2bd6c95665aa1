"""Losses and metrics against what their definitions give, element by element."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from bnnopt.runtime.training.metrics import LOSS_SUMS, Scores

RNG = np.random.default_rng(0)
LOGITS = RNG.standard_normal((40, 7)).astype(np.float32)
LABELS = RNG.integers(0, 7, 40)


def scores(
    loss: str, classes: int, *batches: tuple[np.ndarray, np.ndarray], options: Any = None
) -> Scores:
    found = Scores(loss, classes, options or {})
    for predictions, targets in batches:
        found.add(predictions, targets)
    return found


def halves(x: np.ndarray, y: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(x[:15], y[:15]), (x[15:], y[15:])]


def test_cross_entropy() -> None:
    each = [
        math.log(sum(math.exp(v) for v in row)) - row[label]
        for row, label in zip(LOGITS.astype(float), LABELS, strict=True)
    ]
    found = scores("cross-entropy", 7, *halves(LOGITS, LABELS))
    assert found.loss == pytest.approx(sum(each) / 40, rel=1e-6)
    assert LOSS_SUMS["cross-entropy"](np.array([[1e4, 0.0]]), np.array([1]), {})[0] == 1e4


def test_squared_hinge() -> None:
    each = [
        max(0.0, 1 - (1 if c == label else -1) * row[c]) ** 2
        for row, label in zip(LOGITS.astype(float), LABELS, strict=True)
        for c in range(7)
    ]
    found = scores("squared-hinge", 7, *halves(LOGITS, LABELS))
    assert found.loss == pytest.approx(sum(each) / 280, rel=1e-6)


def test_a_regression() -> None:
    found = scores("mse", 0, (np.array([[1.0, 2.0]]), np.array([[0.0, 4.0]])))
    assert found.loss == 2.5
    assert found.mean_absolute_error == 1.5
    assert found.accuracy is None


def test_accuracy_top5_and_confusion() -> None:
    found = scores("cross-entropy", 7, *halves(LOGITS, LABELS))
    ranks = [int((row > row[y]).sum()) for row, y in zip(LOGITS, LABELS, strict=True)]
    assert found.accuracy == sum(rank == 0 for rank in ranks) / 40
    assert found.top5 == sum(rank < 5 for rank in ranks) / 40
    for label, predicted in zip(LABELS, LOGITS.argmax(1), strict=True):
        found.confusion[label, predicted] -= 1
    assert not found.confusion.any()


def test_mean_intersection_over_union_of_pixels() -> None:
    truth = np.array([[[0, 0, 1], [1, 1, 1]]])
    guess = np.array([[[0, 1, 1], [1, 1, 0]]])
    logits = np.eye(3)[guess].transpose(0, 3, 1, 2)
    found = scores("cross-entropy", 3, (logits, truth))
    assert found.mean_iou == pytest.approx((1 / 3 + 3 / 5) / 2)  # class 2 does not occur
    assert found.accuracy == 4 / 6


def test_an_own_loss_has_no_mean() -> None:
    assert scores("none", 0, (np.zeros((2, 1)), np.zeros((2, 1)))).loss is None
