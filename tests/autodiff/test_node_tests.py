"""ONNX's own node tests: values, and gradients by finite differences."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "onnx_node_tests.py"


def table(*operators: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *operators]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_none_is_wrong() -> None:
    found = table("--elements", "40")
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.slow
def test_an_estimator_is_told_from_a_derivative() -> None:
    """The control: the gradient of a rounding is not that of finite differences."""
    found = table("Round")
    assert found.returncode == 1
    assert "by differences 0" in found.stdout
