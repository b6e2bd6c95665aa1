"""Bop: binary weights without latent ones, as bits from the start to the end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import bnnopt
from bnnopt.errors import UsageError
from bnnopt.runtime import TrainingSession
from bnnopt.runtime.kernels.reference.packing import sign_unpack
from bnnopt.runtime.kernels.reference.table import KERNELS
from bnnopt.training_step import Role
from tests.graphs import SAME_KERNELS, assert_bit_equal, ops, run_native, run_stock, write
from tests.passes.networks import BINARY, BINARY_WEIGHTS, small

SHAPES = {name: shape for name, shape in BINARY_WEIGHTS.items() if name.startswith("w")}


def test_weights_are_bits_and_the_rest_is_adams() -> None:
    step = small("binary", optimizer="bop").step()
    for v in step.inputs(Role.PARAMETER):
        assert (v.dtype == ir.DataType.UINT8) == (v.name in SHAPES)
    assert ops(step, "update").count("BopStep") == len(SHAPES)
    assert ops(step, "update").count("AdamStep") == 4
    assert {str(v.name) for v in step.inputs(Role.STATE)} >= {f"{w}.bop_m" for w in SHAPES}


@pytest.mark.parametrize("run", [run_native, run_stock])
def test_a_step_is_algorithm_1(run) -> None:
    """The very gradient that a latent weight would get before its estimator; then the flips."""
    net = small("binary", optimizer="bop")
    latent = small("binary", ste=["w*=identity"])
    gradients = run(latent, latent.step(), 1).gradients[0]
    found = run(net, net.step(), 1)
    for name, shape in SHAPES.items():
        gradient = gradients[name]
        inside = np.abs(found.gradients[0][name] - gradient) <= 1e-5 * np.abs(gradient).max()
        assert inside.all()
        before = np.where(latent.weights[name] < 0, -1.0, 1.0)
        momentum = 1e-4 * found.gradients[0][name]
        turned = (np.abs(momentum) > 1e-8) & (np.sign(momentum) == before)
        assert 0 < turned.sum() < turned.size
        after = sign_unpack(found.persistent[name], shape=shape[1:])
        np.testing.assert_array_equal(after, np.where(turned, -before, before))


@pytest.mark.slow
def test_lossless_passes_change_no_bit() -> None:
    net = small("binary", optimizer="bop")
    for run in (run_native, run_stock):
        assert_bit_equal(run(net, net.with_passes(*SAME_KERNELS)), run(net, net.step()))


def test_momentum_in_float16_follows_a_small_rate() -> None:
    """To nearest a rate of 1e-4 would move nothing; stochastically the mean is right."""
    w, m = np.zeros((1, 512), np.uint8), np.full((1, 4096), 1024e-3, np.float16)
    dw = np.full((1, 4096), 2e-3, np.float32)
    options = {"shape": [4096], "gamma": 1e-4, "tau": 1.0}
    for t in range(1, 501):
        _, m = KERNELS["HalfBopStep"](w, dw, m, np.array(t), seed=1, **options)
    want = 2e-3 - 1e-3 * (1 - 1e-4) ** 500
    assert float(m.astype(np.float64).mean()) / 1024 == pytest.approx(want, rel=2e-3)


def test_a_session_gives_plus_and_minus_one_and_resumes(tmp_path: Path) -> None:
    path = write(BINARY.replace("batch", "4"), BINARY_WEIGHTS, tmp_path)
    bnnopt.optimize(path, optimizer="bop", gamma=0.5, level="O2").save(tmp_path / "out")
    x = np.random.default_rng(0).standard_normal((4, 2, 6, 6)).astype(np.float32)
    y = np.array([0, 1, 2, 0])
    session = TrainingSession(tmp_path / "out")
    before = session.parameters()
    session.step(x, y)
    session.save(tmp_path / "checkpoint.safetensors")
    loss = session.step(x, y)
    after = session.parameters()
    for name, shape in SHAPES.items():
        assert after[name].shape == tuple(shape)
        assert set(np.unique(after[name])) <= {-1.0, 1.0}
    assert any((before[name] != after[name]).any() for name in SHAPES)
    other = TrainingSession(tmp_path / "out")
    other.resume(tmp_path / "checkpoint.safetensors")
    assert other.step(x, y) == loss
    np.testing.assert_array_equal(other.predict(x), session.predict(x))


def test_a_network_without_binary_weights_is_one_line(tmp_path: Path) -> None:
    path = write(
        "g (float[2,5] x) => (float[2,3] y) { y = MatMul (x, w) }", {"w": [5, 3]}, tmp_path
    )
    with pytest.raises(UsageError, match="no weight is binarised by Sign alone"):
        bnnopt.optimize(path, optimizer="bop")
    with pytest.raises(UsageError, match="--gamma 2"):
        bnnopt.optimize(path, optimizer="bop", gamma=2.0)
