"""``--freeze-batch-norm``: frozen norms on their running statistics, as PyTorch's ``bn.eval()``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bnnopt
from bnnopt import TrainingSession
from bnnopt.errors import UsageError
from tests.graphs import write
from tests.passes.networks import BINARY, BINARY_WEIGHTS

FROZEN = ("g1", "b1")


def notes_of(path: Path, **options: Any) -> list[str]:
    notes = bnnopt.optimize(path, batch_size=4, level="O0", **options).report.notes
    return [note for note in notes if "batch norm" in note]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(BINARY, BINARY_WEIGHTS, tmp_path)


def test_a_note_advises_it_where_it_changes_something(path: Path) -> None:
    (note,) = notes_of(path, freeze=FROZEN)
    assert note.startswith("1 frozen batch norms")
    assert note.endswith("--freeze-batch-norm keeps those")
    assert not notes_of(path, freeze=FROZEN, freeze_batch_norm=True)
    assert not notes_of(path, freeze=FROZEN[:1])
    assert not notes_of(path)


def test_without_a_frozen_norm_it_is_refused(path: Path) -> None:
    with pytest.raises(UsageError, match="--freeze-batch-norm: no batch norm is frozen"):
        bnnopt.optimize(path, batch_size=4, freeze_batch_norm=True)


@pytest.mark.parametrize("level", ["O0", "O1", "O2"])
def test_running_statistics_of_frozen_norms_stay(path: Path, tmp_path: Path, level: str) -> None:
    options: dict[str, Any] = {"batch_size": 4, "level": level, "freeze": FROZEN}
    bnnopt.optimize(path, **options, freeze_batch_norm=True).save(tmp_path / "out")
    session, rng = TrainingSession(tmp_path / "out"), np.random.default_rng(0)
    before = session.parameters()
    session.step(rng.uniform(-1, 1, (4, 2, 6, 6)), rng.integers(0, 3, 4))
    moved = {n for n, array in session.parameters().items() if (array != before[n]).any()}
    assert {"m1", "var1", *FROZEN}.isdisjoint(moved)
    assert {"m2", "var2", "w1"} <= moved


@pytest.mark.oracle
@pytest.mark.parametrize("evaluates", [True, False])
def test_the_step_is_pytorchs(tmp_path: Path, evaluates: bool) -> None:
    torch = pytest.importorskip("torch")
    from bnnopt.torch import export

    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(),
        torch.nn.Flatten(), torch.nn.Linear(64, 3),
    )  # fmt: skip
    module[1].running_mean.uniform_(-0.3, 0.3), module[1].running_var.uniform_(0.5, 1.5)
    x, y = torch.randn(8, 2, 6, 6), torch.arange(8) % 3
    path = export(module, x, tmp_path / "model.onnx")
    bnnopt.optimize(
        path, batch_size=8, level="O1", optimizer="sgd", momentum=0.0,
        freeze=["1.*"], freeze_batch_norm=evaluates,
    ).save(tmp_path / "out")  # fmt: skip
    session = TrainingSession(tmp_path / "out")
    loss = session.step(x.numpy(), y.numpy(), lr=0.1)
    module[1].eval()
    expected = torch.nn.functional.cross_entropy(module(x), y)
    expected.backward()
    found = session.parameters()["0.weight"]
    wanted = (module[0].weight - 0.1 * module[0].weight.grad).detach().numpy()
    agrees = loss == pytest.approx(expected.item(), abs=1e-5) and np.allclose(
        found, wanted, atol=1e-5
    )
    assert agrees == evaluates
