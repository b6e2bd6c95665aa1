"""Networks deeper than Python's stack: nothing recurses, and work grows with the nodes."""

from __future__ import annotations

import cProfile
import gc
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import bnnopt
from bnnopt.compiler.garbage import NEW_OBJECTS
from bnnopt.errors import UsageError
from bnnopt.models.wang2023 import from_listing
from tests.graphs import write


def chain(n: int, folder: Path) -> Path:
    links = "".join(f"a{i + 1} = Relu (a{i})\n" for i in range(n))
    text = f"g (float[batch,6] x) => (float[batch,3] y) {{ a0 = Relu (x)\n{links}"
    return write(f"{text} y = MatMul (a{n}, w) }}", {"w": [6, 3]}, folder)


@pytest.mark.parametrize(
    "n", [100, *(pytest.param(n, marks=pytest.mark.slow) for n in (400, 1000))]
)
def test_a_chain_of_relus(n: int, tmp_path: Path) -> None:
    path = chain(n, tmp_path)
    for level in ("O1", "O2"):
        bnnopt.optimize(path, batch_size=4, level=level).save(tmp_path / "out")
        session = bnnopt.TrainingSession(tmp_path / "out")
        assert np.isfinite(session.step(np.ones((4, 6)), np.arange(4) % 3))


def test_a_parameter_that_a_relu_reads_into_the_loss(tmp_path: Path) -> None:
    """What depends on weights alone may wait for itself by way of its readers."""
    text = """g (float[batch,6] x) => (float l) {
        r = Relu (u)
        q = Mul (r, v)
        a = ReduceSum <keepdims = 0> (q)
        h = MatMul (x, w)
        b = ReduceMean <keepdims = 0> (h)
        l = Add (a, b)
    }"""
    path = write(text, {"w": [6, 3], "u": [3, 4, 5], "v": [3, 4, 5]}, tmp_path)
    results, before = {}, {}
    for level in ("O0", "O1", "O2"):
        bnnopt.optimize(
            path, batch_size=4, level=level, loss="none", optimizer="sgd", learning_rate=0.5
        ).save(tmp_path / level)
        session = bnnopt.TrainingSession(tmp_path / level)
        before = before or session.parameters()  # of -O0, before float16
        session.step(np.ones((4, 6)))
        results[level] = session.parameters()
    u, v, w = (before[name].astype(np.float64) for name in "uvw")
    np.testing.assert_allclose(results["O1"]["v"], v - 0.5 * np.maximum(u, 0), rtol=1e-6)
    np.testing.assert_allclose(results["O1"]["u"], u - 0.5 * v * (u > 0), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(results["O1"]["w"], w - 0.5 / 3, rtol=1e-5, atol=1e-6)
    for name in "uvw":
        np.testing.assert_array_equal(results["O0"][name], results["O1"][name])


def calls_a_node(n: int, folder: Path) -> float:
    """Calls of functions, of the standard library and onnx_ir too, to compile a chain of layers."""
    path = folder / f"{n}.onnx"
    listing = " | ".join(["C16,BN,S"] * n + ["FC10,BN"])
    ir.save(from_listing("chain", listing, (3, 8, 8), seed=0, pad=1), path)
    profile = cProfile.Profile(builtins=False)
    made = profile.runcall(bnnopt.optimize, path, batch_size=4, level="O3")
    n_calls = sum(entry.callcount for entry in profile.getstats())
    return n_calls / len(made.training.graph)


@pytest.mark.slow
def test_work_grows_with_the_nodes(tmp_path: Path) -> None:
    calls_a_node(2, tmp_path)  # what is imported when it is first needed
    assert calls_a_node(50, tmp_path) < 1.07 * calls_a_node(10, tmp_path)


def test_garbage_is_looked_for_as_before_once_a_model_is_compiled(tmp_path: Path) -> None:
    before, during = gc.get_threshold(), list[int]()
    bnnopt.optimize(
        chain(2, tmp_path),
        batch_size=4,
        progress=lambda line: during.append(gc.get_threshold()[0]),
    )
    assert set(during) == {NEW_OBJECTS}
    with pytest.raises(UsageError):
        bnnopt.optimize(tmp_path / "no.onnx", level="O7")
    assert gc.get_threshold() == before
