"""The evaluation graph shares the arena of the training step: it is small too."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

import bnnopt
from bnnopt.plan import make_plan
from tests.graphs import ops
from tests.zoo import build_small

SHRINKING = ["packed-products", "in-place", "schedule"]


def test_it_runs_on_bits_and_in_place(tmp_path: Path) -> None:
    ir.save(build_small("cnv"), tmp_path / "cnv.onnx")
    small = bnnopt.optimize(tmp_path / "cnv.onnx", batch_size=4, level="O0")
    plain = bnnopt.optimize(tmp_path / "cnv.onnx", batch_size=4, level="O0", disable=SHRINKING)
    assert "BinaryConv" in ops(small.evaluation)
    assert "BinaryConv" not in ops(plain.evaluation)
    sizes = [make_plan(o.evaluation).arena_bytes for o in (small, plain)]
    assert 1.9 * sizes[0] < sizes[1]
