"""Learning-rate schedules: closed forms, plateaus, and use with a session."""

from __future__ import annotations

import doctest
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bnnopt
from bnnopt.errors import UsageError
from bnnopt.runtime import schedules
from bnnopt.runtime.schedules import Constant, Cosine, Plateau, StepDecay


def test_examples() -> None:
    found = doctest.testmod(schedules)
    assert found.attempted >= 4
    assert found.failed == 0


def test_cosine_against_its_formula() -> None:
    schedule = Cosine(0.3, steps=100, final=0.1)
    for step in range(101):
        want = 0.1 + 0.1 * (1 + math.cos(math.pi * step / 100))
        assert schedule(step) == pytest.approx(want, rel=1e-12)
    assert schedule(10_000) == pytest.approx(0.1)


def test_cosine_warms_up_to_its_rate_and_never_rises_again() -> None:
    rates = [Cosine(1.0, steps=20, warmup=5)(step) for step in range(25)]
    assert rates[:6] == [pytest.approx((i + 1) / 6) for i in range(6)]
    assert rates[5:] == sorted(rates[5:], reverse=True)


def test_step_decay() -> None:
    rates = [StepDecay(1.0, every=3, factor=0.5)(step) for step in range(7)]
    assert rates == [1, 1, 1, 0.5, 0.5, 0.5, 0.25]


def test_plateau_halves_after_its_patience_and_stops_at_the_least() -> None:
    schedule = Plateau(1.0, patience=3, least=0.3)
    rates = [schedule.observe(loss) for loss in [5, 4, 4, 4, 4, 3, 3, 3, math.nan, 3, 3, 3]]
    assert rates == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.3, 0.3, 0.3, 0.3]


def test_plateau_takes_negative_losses() -> None:
    schedule = Plateau(1.0, patience=2)
    assert [schedule.observe(loss) for loss in [-1, -2, -2, -2]] == [1, 1, 1, 0.5]


def test_plateau_goes_on_after_a_restart() -> None:
    losses = [1.0, 0.9, 0.91, 0.92, 0.9, 0.95, 0.8]
    whole, first, second = (Plateau(1.0, patience=2) for _ in range(3))
    rates = [whole.observe(loss) for loss in losses]
    begun = [first.observe(loss) for loss in losses[:3]]
    second.restore(first.state())
    assert begun + [second.observe(loss) for loss in losses[3:]] == rates


@pytest.mark.parametrize(
    "make",
    [
        lambda: Constant(-1),
        lambda: Constant(math.nan),
        lambda: StepDecay(1, every=0),
        lambda: StepDecay(1, every=1, factor=0),
        lambda: Cosine(1, steps=0),
        lambda: Cosine(1, steps=5, final=2),
        lambda: Cosine(1, steps=5, warmup=5),
        lambda: Plateau(1, patience=0),
        lambda: Plateau(1, factor=1),
        lambda: Plateau(1, least=2),
    ],
)
def test_nonsense_is_one_line(make) -> None:
    with pytest.raises(UsageError, match="schedule: ") as caught:
        make()
    assert "expected" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_session_steps_at_the_schedules_rate(tmp_path: Path) -> None:
    """With rate 0 at its end the weights stand still."""
    bnnopt.optimize("models/mlp.onnx", batch_size=2, optimizer="sgd").save(tmp_path / "out")
    session = bnnopt.TrainingSession(tmp_path / "out")
    schedule = bnnopt.schedules.Cosine(0.1, steps=2)
    x = np.random.default_rng(0).standard_normal((2, 784)).astype(np.float32)
    y = np.array([0, 1])
    changes = []
    for _ in range(3):
        before = session.parameters()["fc1.weight"]
        session.step(x, y, lr=schedule(session.steps_done))
        changes.append(np.abs(session.parameters()["fc1.weight"] - before).max())
    assert changes[0] > 0
    assert changes[2] == 0


def test_the_device_side_needs_nothing_but_numpy() -> None:
    code = "import sys, bnnopt.runtime.schedules; print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert not set(output.decode().split()) & {"onnx", "onnx_ir", "onnxruntime", "rich"}
