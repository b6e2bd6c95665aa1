"""Networks of papers: PyTorch's gradients, the bits of -O0 at -O1, and something saved."""

from __future__ import annotations

from pathlib import Path

import pytest

import bnnopt

torch = pytest.importorskip("torch")

import bnnopt.torch  # noqa: E402
from bnnopt.verification import verify_folder  # noqa: E402
from tests.torch.papers import PAPERS, make  # noqa: E402

pytestmark = pytest.mark.oracle
QUICK = {"ReActNet", "TWN"}
NAMES = [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in PAPERS]


@pytest.mark.parametrize("name", NAMES)
def test_a_network_of_a_paper(name: str, tmp_path: Path) -> None:
    module, x = make(name)
    optimized = bnnopt.optimize(module, example=x, level="O1")
    optimized.save(tmp_path / "out")
    found = bnnopt.torch.check(module, x, tmp_path / "out")
    assert {row.name for row in found.rows} == dict(module.named_parameters()).keys()
    assert verify_folder(tmp_path / "out", "native").bit_equal
    assert optimized.report.optimized.saved_bytes < optimized.report.baseline.saved_bytes
