"""What a step allocates beside its arena: small objects, whatever the size of its maps."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import bnnopt
from bnnopt.runtime.kernels.reference import run
from bnnopt.runtime.library import library
from tests.graphs import write
from tests.zoo import build_small

pytestmark = pytest.mark.skipif(library() is None, reason="built without a C compiler")
LIMIT = 1 << 18  # bytes: some tiles of a numpy kernel
MAP = 1 << 20  # bytes that the largest map of every network here has, and more
ACTIVATIONS = """mobile (float[N, 3, 32, 32] x) => (float[N, 5] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w)
        b = HardSigmoid (a)
        c = LeakyRelu (b)
        d = PRelu (c, slope)
        e = Sigmoid (d)
        ratio = Constant <value_float = 0.3> ()
        train = Constant <value = bool {1}> ()
        f = Dropout (e, ratio, train)
        g = Concat <axis = 1> (d, f)
        h = GlobalAveragePool (g)
        i = Flatten (h)
        y = MatMul (i, v)
    }"""
WEIGHTS = {"w": (16, 3, 3, 3), "slope": (16, 1, 1), "v": (32, 5)}


def allocated(folder: Path) -> dict[str, int]:
    """The most that Python holds at once, more than before, in a step and in a prediction."""
    session = bnnopt.TrainingSession(folder)
    program = session._backend.training
    largest = max(v.n_bytes(session.batch_size) for v in program.values if v.place == "arena")
    assert largest >= MAP
    rng = np.random.default_rng(0)
    x = rng.standard_normal((session.batch_size, *session._inputs[0].shape[1:]), np.float32)
    y = rng.integers(0, 5, session.batch_size)
    found = {}
    for name, act in (
        ("step", lambda: session.step(x, y)),
        ("predict", lambda: session.predict(x)),
    ):
        act()  # views and prepared calls are made once
        tracemalloc.start()
        act()
        found[name] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "batch", "level"),
    [("mlp", 400, "O2"), ("cnv", 10, "O1"), ("relu-mini", 20, "O1"), ("resnet-e-mini", 40, "O2")],
)
def test_a_step_allocates_no_maps(name: str, batch: int, level: str, tmp_path: Path) -> None:
    ir.save(build_small(name), tmp_path / "net.onnx")
    bnnopt.optimize(tmp_path / "net.onnx", batch_size=batch, level=level).save(tmp_path / "out")
    assert max(allocated(tmp_path / "out").values()) < LIMIT


def test_numpy_kernels_allocate_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write(ACTIVATIONS, WEIGHTS, tmp_path)
    bnnopt.optimize(model, batch_size=20).save(tmp_path / "out")
    found = allocated(tmp_path / "out")
    assert max(found.values()) < LIMIT
    monkeypatch.setattr(run, "TILES", "of no kernel")
    assert all(n > MAP for n in allocated(tmp_path / "out").values())
