"""The evaluation graph shares the arena of the training step: it is small too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import bnnopt
from bnnopt.compiler.evaluation import fit, in_parts, resized
from bnnopt.plan import make_plan
from tests.graphs import ops
from tests.zoo import build_small

SHRINKING = ["packed-products", "in-place", "schedule"]


@pytest.mark.slow
def test_it_runs_on_bits_and_in_place(tmp_path: Path) -> None:
    ir.save(build_small("cnv"), tmp_path / "cnv.onnx")
    small = bnnopt.optimize(tmp_path / "cnv.onnx", batch_size=4, level="O0")
    plain = bnnopt.optimize(tmp_path / "cnv.onnx", batch_size=4, level="O0", disable=SHRINKING)
    assert "BinaryConv" in ops(small.evaluation)
    assert "BinaryConv" not in ops(plain.evaluation)
    sizes = [make_plan(o.evaluation).arena_bytes for o in (small, plain)]
    assert 1.9 * sizes[0] < sizes[1]


@pytest.fixture(scope="module")
def cnv(tmp_path_factory: pytest.TempPathFactory) -> bnnopt.Optimized:
    path = tmp_path_factory.mktemp("cnv") / "cnv.onnx"
    ir.save(build_small("cnv"), path)
    return bnnopt.optimize(path, batch_size=12, level="O2")


@pytest.mark.slow
def test_a_batch_goes_in_as_few_parts_as_fit(cnv: bnnopt.Optimized) -> None:
    sizes = {n: make_plan(resized(cnv.evaluation, n)).arena_bytes for n in (12, 6, 5, 4, 2)}
    assert sizes[12] > sizes[6] > sizes[5] > sizes[4] > sizes[2]
    for limit, expected in ((sizes[12], 12), (sizes[12] - 1, 6), (sizes[5], 4), (0, 2)):
        part = in_parts(cnv.evaluation, limit)
        assert part.batch_size == expected
        assert make_plan(part).arena_bytes == sizes[expected]


def test_it_fits_the_arena_of_a_smaller_training_step(cnv: bnnopt.Optimized) -> None:
    large, limit = resized(cnv.evaluation, 40), make_plan(cnv.training).arena_bytes
    assert make_plan(large).arena_bytes > limit
    assert make_plan(fit(large, cnv.training)).arena_bytes <= limit


@pytest.mark.slow
def test_any_number_of_rows_is_predicted(cnv: bnnopt.Optimized, tmp_path: Path) -> None:
    replace(cnv, evaluation=resized(cnv.evaluation, 5)).save(tmp_path / "out")
    session = bnnopt.TrainingSession(tmp_path / "out")
    x = np.random.default_rng(0).standard_normal((27, 3, 32, 32), np.float32)
    single = np.concatenate([session.predict(x[i : i + 1]) for i in range(len(x))])
    for n in (1, 4, 5, 12, 27):
        np.testing.assert_allclose(session.predict(x[:n]), single[:n], rtol=1e-5, atol=1e-5)
    labels = single.argmax(axis=1)
    labels[:7] ^= 1
    assert session.evaluate(x, labels) == pytest.approx(20 / 27)
    session.step(x[:12], labels[:12])  # a step still takes a whole batch
