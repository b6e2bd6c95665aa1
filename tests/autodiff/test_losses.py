"""Each loss: its value by the device's own formula, its gradient by differences and by PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

import bnnopt
from bnnopt.autodiff import LOSSES
from bnnopt.errors import BnnoptError
from bnnopt.runtime.training.metrics import LOSS_SUMS
from tests.graphs import write

Array = NDArray[Any]
DENSE = "g (float[batch,5] x) => (float[batch,4] y) { y = Gemm (x, w) }"
PIXELS = "g (float[batch,5,2,3] x) => (float[batch,4,2,3] y) { y = Conv (x, w) }"
NETWORKS = {"dense": (DENSE, [5, 4], (5,)), "pixels": (PIXELS, [4, 5, 1, 1], (5, 2, 3))}
WEIGHTS = (0.5, 1.0, 2.0, 0.0)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "cross-entropy": ("cross-entropy", {}),
    "smoothed": ("cross-entropy", {"label_smoothing": 0.2}),
    "weighted": ("cross-entropy", {"class_weights": WEIGHTS}),
    "ignoring": ("cross-entropy", {"ignore_index": 2}),
    "ignoring 255": ("cross-entropy", {"ignore_index": 255}),
    "all of it": (
        "cross-entropy",
        {"label_smoothing": 0.1, "class_weights": WEIGHTS, "ignore_index": -100},
    ),
    **{name: (name, {}) for name in LOSS_SUMS if name != "cross-entropy"},
}
each_case = pytest.mark.parametrize(("loss", "options"), CASES.values(), ids=CASES)
each_network = pytest.mark.parametrize("network", NETWORKS)


def step(
    network: str, loss: str, options: dict[str, Any], path: Path, n: int = 6
) -> tuple[Array, Array, Array, float, Array]:
    """x, targets, the weight before, and loss and gradient of a step on n of 6 samples."""
    text, shape, sample = NETWORKS[network]
    source = write(text, {"w": shape}, path)
    compiled = bnnopt.optimize(
        source, batch_size=6, loss=loss, optimizer="sgd", level="O1", **options
    )
    compiled.save(path / "out")
    session = bnnopt.TrainingSession(path / "out")
    rng = np.random.default_rng(0)
    x = (2 * rng.standard_normal((n, *sample))).astype(np.float32)
    before = session.parameters()["w"]
    y = targets(loss, options, session.predict(x), rng)
    value = session.step(x, y)
    session.save(path / "after.safetensors")
    return x, y, before, value, load_file(path / "after.safetensors")["w.momentum"]


def targets(loss: str, options: dict[str, Any], output: Array, rng: np.random.Generator) -> Array:
    if loss in ("cross-entropy", "squared-hinge"):
        labels = rng.integers(0, 4, (len(output), *output.shape[2:]))
        ignored = options.get("ignore_index")
        if ignored is not None:
            labels.reshape(-1)[::3] = ignored
        return labels
    t = rng.random(output.shape).astype(np.float32)
    return t / t.sum(axis=1, keepdims=True) if loss == "soft-cross-entropy" else 3 * t - 1


def outputs(network: str, x: Array, w: Array) -> Array:
    return x @ w if network == "dense" else np.einsum("oc,nchw->nohw", w[:, :, 0, 0], x)


@each_case
@each_network
@pytest.mark.parametrize("n", [6, pytest.param(4, marks=pytest.mark.slow)])
def test_value_and_gradient(
    network: str, loss: str, options: dict[str, Any], n: int, tmp_path: Path
) -> None:
    x, y, w, value, gradient = step(network, loss, options, tmp_path, n)
    x, w = x.astype(np.float64), w.astype(np.float64)

    def mean(w: Array) -> float:
        total, weight = LOSS_SUMS[loss](outputs(network, x, w), y, options)
        return total / weight

    assert value == pytest.approx(mean(w), rel=1e-5)
    rng, size = np.random.default_rng(1), 1e-6
    for _ in range(5):
        way = rng.standard_normal(w.shape)
        slope = (mean(w + size * way) - mean(w - size * way)) / (2 * size)
        assert (gradient * way).sum() == pytest.approx(slope, rel=2e-3, abs=1e-5)


def test_every_loss_has_a_case() -> None:
    assert {name for name, _ in CASES.values()} == set(LOSSES) == set(LOSS_SUMS)


def test_where_no_label_counts_nothing_is_learnt(tmp_path: Path) -> None:
    source = write(DENSE, {"w": [5, 4]}, tmp_path)
    bnnopt.optimize(source, batch_size=3, ignore_index=9).save(tmp_path / "out")
    session = bnnopt.TrainingSession(tmp_path / "out")
    before = session.parameters()["w"]
    assert session.step(np.ones((3, 5), np.float32), np.array([9, 9, 9])) == 0
    np.testing.assert_array_equal(session.parameters()["w"], before)


def test_accuracy_leaves_out_what_is_ignored(tmp_path: Path) -> None:
    source = write(DENSE, {"w": [5, 4]}, tmp_path)
    bnnopt.optimize(source, batch_size=4, ignore_index=9).save(tmp_path / "out")
    session = bnnopt.TrainingSession(tmp_path / "out")
    x = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
    y = session.predict(x).argmax(1)
    y[1] = 9
    assert session.evaluate(x, y) == 1.0
    assert session.scored_step(x, y)[1:] == (3, 3)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"label_smoothing": 1.0}, "--label-smoothing 1.0: expected"),
        ({"class_weights": [1.0, 2.0]}, "--class-weights: 2 numbers, expected 4"),
        ({"class_weights": [-1.0] * 4}, "expected numbers of 0 or more"),
        ({"loss": "mse", "label_smoothing": 0.1}, "are for cross-entropy"),
        ({"class_weights": "1,2"}, "class_weights is '1,2', expected Sequence"),
    ],
)
def test_mistakes(options: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with pytest.raises(BnnoptError, match=r"expected|are for") as caught:
        bnnopt.optimize(write(DENSE, {"w": [5, 4]}, tmp_path), batch_size=3, **options)
    assert expected in str(caught.value)


@pytest.mark.oracle
@each_case
@each_network
def test_pytorch_has_the_same(
    network: str, loss: str, options: dict[str, Any], tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    x, y, w, value, gradient = step(network, loss, options, tmp_path)
    weight = torch.tensor(w, dtype=torch.float64, requires_grad=True)
    inputs, target = torch.tensor(x, dtype=torch.float64), torch.tensor(y)
    out = inputs @ weight if network == "dense" else functional.conv2d(inputs, weight)
    if loss == "cross-entropy":
        given = dict(options)
        if "class_weights" in given:
            given["weight"] = torch.tensor(given.pop("class_weights"), dtype=torch.float64)
        found = functional.cross_entropy(out, target, **given)
    elif loss == "squared-hinge":
        signs = 2 * functional.one_hot(target, 4).moveaxis(-1, 1) - 1
        found = functional.relu(1 - out * signs).square().mean()
    else:
        theirs = {
            "soft-cross-entropy": functional.cross_entropy,
            "bce": functional.binary_cross_entropy_with_logits,
            "mse": functional.mse_loss,
            "l1": functional.l1_loss,
            "huber": functional.huber_loss,
        }
        found = theirs[loss](out, target.double())
    found.backward()
    assert value == pytest.approx(found.item(), rel=1e-5)
    np.testing.assert_allclose(gradient, weight.grad.numpy(), rtol=1e-4, atol=1e-6)
