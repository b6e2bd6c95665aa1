"""Gradients that are clipped together or summed over parts, against PyTorch's own loop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bnnopt
from bnnopt.errors import UsageError
from tests.graphs import write
from tests.passes.networks import BINARY, BINARY_WEIGHTS, DROPOUT, DROPOUT_WEIGHTS

torch = pytest.importorskip("torch")

import bnnopt.torch  # noqa: E402
from tests.torch.modules import function, window  # noqa: E402

pytestmark = pytest.mark.oracle
BATCH, STEPS, RATE = 12, 3, 0.5
sign = function(lambda x: torch.where(x >= 0, 1.0, -1.0), window)


class Network(torch.nn.Module):
    """A real layer, a batch norm and a binary layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = torch.nn.Linear(6, 5), torch.nn.BatchNorm1d(5)
        self.weight = torch.nn.Parameter(torch.randn(3, 5) / 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        signs = sign(self.norm(self.first(x)))
        return torch.nn.functional.linear(signs, sign(self.weight))


def batches() -> list[tuple[Any, Any]]:
    random = np.random.default_rng(1)
    return [
        (random.standard_normal((BATCH, 6)).astype(np.float32), random.integers(0, 3, BATCH))
        for _ in range(STEPS)
    ]


def by_torch(module: Any, parts: Sequence[slice], most: float | None) -> None:
    """Train in place; `most` is the largest norm."""
    optimizer = torch.optim.SGD(module.parameters(), RATE)
    for x, y in batches():
        optimizer.zero_grad()
        for part in parts:
            inputs, labels = torch.from_numpy(x[part]), torch.from_numpy(y[part])
            loss = torch.nn.functional.cross_entropy(module(inputs), labels)
            (loss * len(labels) / BATCH).backward()
        if most is not None:
            torch.nn.utils.clip_grad_norm_(module.parameters(), most)
        optimizer.step()


def trained(path: Path, out: Path, level: str, **options: Any) -> bnnopt.TrainingSession:
    net = bnnopt.optimize(
        path, level=level, batch_size=BATCH, optimizer="sgd", momentum=0, **options
    )
    net.save(out)
    session = bnnopt.TrainingSession(out)
    for x, y in batches():
        session.step(x, y, RATE)
    return session


@pytest.mark.parametrize("level", ["O0", "O1"])
@pytest.mark.parametrize(("parts", "most"), [(1, 0.1), (3, None), (4, 0.1)])
def test_weights_are_those_of_pytorch(
    level: str, parts: int, most: float | None, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module = Network()
    path = bnnopt.torch.export(module.train(), torch.zeros(BATCH, 6), tmp_path / "net.onnx")
    session = trained(path, tmp_path / "out", level, clip_grad_norm=most, accumulate=parts)
    edges = range(0, BATCH, BATCH // parts)
    by_torch(module, [slice(start, start + BATCH // parts) for start in edges], most)
    found = session.parameters()
    for name, expected in module.state_dict().items():
        if not name.endswith(("num_batches_tracked", "running_var")):  # ONNX's is of n, not n - 1
            np.testing.assert_allclose(found[name], expected.numpy(), atol=2e-6, err_msg=name)


def test_the_control_sees_the_whole_batch_at_once(tmp_path: Path) -> None:
    """With one part a batch norm sees other statistics, and without a clip steps are longer."""
    torch.manual_seed(0)
    module = Network()
    path = bnnopt.torch.export(module.train(), torch.zeros(BATCH, 6), tmp_path / "net.onnx")
    session = trained(path, tmp_path / "out", "O1")
    for parts, most in ((4, None), (1, 0.1)):
        other = Network()
        other.load_state_dict(module.state_dict())
        size = BATCH // parts
        by_torch(other, [slice(s, s + size) for s in range(0, BATCH, size)], most)
        gap = np.abs(session.parameters()["first.weight"] - other.first.weight.detach().numpy())
        assert gap.max() > 1e-3


@pytest.mark.parametrize("optimizer", ["adam", "bop"])
def test_lossy_passes_leave_sizes_to_what_counts_them(optimizer: str, tmp_path: Path) -> None:
    path = write(BINARY, BINARY_WEIGHTS, tmp_path)
    options: dict[str, Any] = {"clip_grad_norm": 1e-3, "accumulate": 2, "optimizer": optimizer}
    net = bnnopt.optimize(path, batch_size=8, level="O2", **options)
    net.save(tmp_path / "out")
    session = bnnopt.TrainingSession(tmp_path / "out")
    assert session.batch_size == 8
    random = np.random.default_rng(0)
    for n in (8, 8, 5, 3):
        x = random.standard_normal((n, 2, 6, 6)).astype(np.float32)
        assert np.isfinite(session.step(x, random.integers(0, 3, n)))
    assert any("2 parts of 4" in note for note in net.report.notes)


def test_parts_draw_numbers_of_their_own(tmp_path: Path) -> None:
    """With one mask for both parts, equal samples would give equal gradients."""
    path = write(DROPOUT, DROPOUT_WEIGHTS, tmp_path)
    x, y = np.ones((4, 6), np.float32), np.zeros(4, np.int64)
    options: dict[str, Any] = {"optimizer": "sgd", "momentum": 0}
    weights = []
    for batch, parts, given in ((2, 1, 2), (4, 2, 4)):
        bnnopt.optimize(path, batch_size=batch, accumulate=parts, **options).save(tmp_path / "out")
        session = bnnopt.TrainingSession(tmp_path / "out")
        session.step(x[:given], y[:given], 1.0)
        weights.append(session.parameters()["w1"])
    assert np.abs(weights[0] - weights[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 9, "accumulate": 2}, "expected a multiple of 2"),
        ({"accumulate": 2}, "no --batch-size"),
        ({"batch_size": 8, "accumulate": 2, "ignore_index": 0}, "not with --class-weights"),
        ({"batch_size": 8, "accumulate": 0}, "1 or more"),
        ({"batch_size": 8, "clip_grad_norm": 0.0}, "above 0"),
    ],
)
def test_what_makes_no_sense_is_refused(
    options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=words):
        bnnopt.optimize(write(BINARY, BINARY_WEIGHTS, tmp_path), **options)


def test_parts_are_for_the_native_backend(tmp_path: Path) -> None:
    path = write(BINARY, BINARY_WEIGHTS, tmp_path)
    bnnopt.optimize(path, batch_size=8, accumulate=2).save(tmp_path / "out")
    with pytest.raises(UsageError, match="--accumulate"):
        bnnopt.TrainingSession(tmp_path / "out", backend="onnxruntime")


@pytest.mark.parametrize("level", ["O0", "O1"])
def test_an_interrupted_sum_leaves_no_trace(level: str, tmp_path: Path) -> None:
    """A step whose second part is refused changes nothing, and the next one is as if alone."""
    path = write(BINARY, BINARY_WEIGHTS, tmp_path)
    bnnopt.optimize(path, batch_size=8, accumulate=2, level=level).save(tmp_path / "out")
    session, fresh = (bnnopt.TrainingSession(tmp_path / "out") for _ in range(2))
    random = np.random.default_rng(0)
    x, y = random.standard_normal((8, 2, 6, 6)).astype(np.float32), random.integers(0, 3, 8)
    bad = x.copy()
    bad[5:] = 3e38
    with pytest.raises(bnnopt.errors.DivergedError, match="nothing has changed"):
        session.step(bad, y)
    assert session.step(x, y) == fresh.step(x, y)
    for name, array in fresh.parameters().items():
        np.testing.assert_array_equal(session.parameters()[name], array)
