"""Weights pruned while they are trained: the schedule, the kernel, and resuming."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import bnnopt
from bnnopt.runtime.library import library
from bnnopt.runtime.pruning import Pruning, prune
from tests.cli.helpers import MODELS

RNG = np.random.default_rng(0)
X = RNG.standard_normal((8, 3, 32, 32)).astype(np.float32)
Y = RNG.integers(0, 10, 8)
END = 4


def zeros(array: np.ndarray) -> float:
    return float(np.mean(array == 0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pruned") / "out"
    model = MODELS / "relu-mini.onnx"
    bnnopt.optimize(model, batch_size=8, prune_weights=0.7, prune_end=END).save(path)
    return path


@pytest.mark.parametrize("shape", [(1,), (2, 3), (64, 7, 3, 3), (300, 1000)])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.999])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_smallest_magnitudes_go(shape: tuple[int, ...], share: float, dtype: type) -> None:
    weight = RNG.standard_normal(shape).astype(dtype)
    old = weight.copy()
    prune(weight, share)
    n_pruned = int(share * weight.size)
    order = np.sort(np.abs(old), axis=None)
    expected = np.where(np.abs(old) < order[n_pruned], dtype(0), old)
    assert weight.tobytes() == expected.tobytes()


@pytest.mark.skipif(library() is None, reason="built without a C compiler")
def test_equal_magnitudes_and_nan_stay() -> None:
    weight = np.array([0.5, -0.5, 0.5, 0.1, -0.0, np.nan, -3, 0.5], np.float32)
    prune(weight, 0.5)
    np.testing.assert_array_equal(weight, [0.5, -0.5, 0.5, 0, 0, np.nan, -3, 0.5])


def test_the_schedule_is_cubic() -> None:
    pruning = Pruning(0.8, 10, ())
    assert pruning.share_at(0) == 0
    assert pruning.share_at(5) == pytest.approx(0.8 * (1 - 0.125))
    assert pruning.share_at(10) == pruning.share_at(99) == 0.8


@pytest.mark.parametrize("backend", ["native", "onnxruntime"])
def test_training_prunes_the_weights_of_layers(folder: Path, backend: str) -> None:
    session = bnnopt.TrainingSession(folder, backend=backend)
    shares = []
    for _ in range(END + 1):
        session.step(X, Y)
        weights = session.parameters()
        shares.append(zeros(weights["conv.weight" if "conv.weight" in weights else first(weights)]))
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(0.7, abs=0.01)
    for name, array in session.parameters().items():
        expected = 0.7 if array.ndim > 1 else 0.0
        assert zeros(array) == pytest.approx(expected, abs=0.03) or array.ndim == 1, name


def first(weights: dict[str, np.ndarray]) -> str:
    return next(name for name, array in weights.items() if array.ndim > 1)


def test_a_resumed_run_goes_on_along_the_schedule(folder: Path, tmp_path: Path) -> None:
    whole, half = bnnopt.TrainingSession(folder), bnnopt.TrainingSession(folder)
    losses = [whole.step(X, Y) for _ in range(4)]
    for _ in range(2):
        half.step(X, Y)
    half.save(tmp_path / "half.safetensors")
    rest = bnnopt.TrainingSession(folder)
    rest.resume(tmp_path / "half.safetensors")
    assert [rest.step(X, Y) for _ in range(2)] == losses[2:]
    expected = whole.parameters()
    assert all(a.tobytes() == expected[n].tobytes() for n, a in rest.parameters().items())
