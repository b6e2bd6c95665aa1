"""``demo`` does what it prints."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from bnnopt.models.digits import digits_data
from tests.cli.helpers import Cli


@pytest.mark.slow
def test_it_trains_real_digits_and_exports_the_network(bnnopt: Cli, workspace: Path) -> None:
    found = bnnopt("demo", "-o", "here")
    assert found.exit_code == 0, found
    assert "PASS: " in found.stdout
    accuracy = float(re.search(r"accuracy +([\d.]+)%", found.stdout)[1])
    assert accuracy > 90
    assert {path.name for path in workspace.iterdir()} == {"here"}
    assert "<html" in (workspace / "here" / "memory.html").read_text()
    _, (x, y) = digits_data()
    runner = ort.InferenceSession(workspace / "here" / "trained.onnx")
    (logits,) = runner.run(None, {"x": (x / 8 - 1).astype(np.float32)})
    assert abs(100 * (logits.argmax(1) == y).mean() - accuracy) < 1


def test_it_writes_over_nothing(mistake: Callable[..., str], workspace: Path) -> None:
    (workspace / "bnnopt-demo").mkdir()
    assert "is there already" in mistake("demo")


def test_the_digits_are_whole() -> None:
    (x, y), (x_test, y_test) = digits_data()
    assert x.shape == (1400, 1, 8, 8)
    assert x_test.shape == (397, 1, 8, 8)
    assert (x.dtype, int(x.max())) == (np.uint8, 16)
    assert set(y.tolist()) == set(y_test.tolist()) == set(range(10))
