"""Fixed-sign training: the signs stay, a scale an output channel is trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import bnnopt
from bnnopt.errors import UsageError
from bnnopt.ops import dims
from bnnopt.runtime import TrainingSession
from bnnopt.training_step import Role
from tests.graphs import SAME_KERNELS, assert_bit_equal, run_native, write, zoo
from tests.passes.networks import BINARY, BINARY_WEIGHTS, small

SCALES = {"w1.scale": (4, 1, 1), "w2.scale": (4, 1, 1), "w3.scale": (3,)}


def test_signs_are_frozen_bits_and_scales_are_parameters() -> None:
    step = small("binary", optimizer="fixed-sign").step()
    frozen = step.inputs(Role.FROZEN)
    assert {str(v.name) for v in frozen} == {"w1", "w2", "w3"}
    assert all(v.dtype == ir.DataType.UINT8 for v in frozen)
    trained = {str(v.name): dims(v) for v in step.inputs(Role.PARAMETER)}
    assert SCALES.items() <= trained.items()
    assert not {str(v.name) for v in step.inputs(Role.STATE) if "w1.adam" in str(v.name)}


def test_ones_change_nothing_at_first() -> None:
    """And the scale's gradient is the sum of dy y over its channel."""
    plain = small("binary", ste=["w*=identity"])
    fixed = small("binary", optimizer="fixed-sign")
    losses = [run_native(net, net.step(), 1).losses[0] for net in (plain, fixed)]
    assert losses[0] == losses[1]
    gradient = run_native(fixed, fixed.step(), 1).gradients[0]["w3.scale"].astype(np.float64)
    step = 1e-3
    shifted = []
    for sign in (-1, 1):
        weights = {**fixed.weights, "w3.scale": np.float32([1 + sign * step, 1, 1])}
        net = type(fixed)(fixed.training, fixed.evaluation, weights, fixed.batch)
        shifted.append(float(run_native(net, net.step(), 1).losses[0]))
    assert (shifted[1] - shifted[0]) / (2 * step) == pytest.approx(gradient[0], rel=1e-2, abs=1e-3)


def test_lossless_passes_change_no_bit() -> None:
    net = small("binary", optimizer="fixed-sign")
    assert_bit_equal(run_native(net, net.with_passes(*SAME_KERNELS)), run_native(net, net.step()))


def test_training_goes_down_and_signs_stay() -> None:
    net = zoo("mlp", 8, "fixed-sign")
    found = run_native(net, net.step(), 12, repeat=True)
    assert found.losses[-1] < found.losses[0]
    np.testing.assert_array_equal(found.persistent["fc1.weight"], net.weights["fc1.weight"])


@pytest.mark.slow
def test_a_session_evaluates_with_the_scales(tmp_path: Path) -> None:
    path = write(BINARY.replace("batch", "4"), BINARY_WEIGHTS, tmp_path)
    bnnopt.optimize(path, optimizer="fixed-sign", level="O1").save(tmp_path / "out")
    session = TrainingSession(tmp_path / "out")
    x = np.random.default_rng(0).standard_normal((4, 2, 6, 6)).astype(np.float32)
    before = session.predict(x)
    for _ in range(3):
        session.step(x, np.array([0, 1, 2, 0]), lr=0.1)
    parameters = session.parameters()
    assert set(np.unique(parameters["w2"])) == {-1.0, 1.0}
    assert np.abs(parameters["w3.scale"] - 1).max() > 0.1
    assert np.abs(session.predict(x) - before).max() > 0.1


def test_a_network_without_binary_weights_is_one_line(tmp_path: Path) -> None:
    text = "g (float[2,5] x) => (float[2,3] y) { y = MatMul (x, w) }"
    path = write(text, {"w": [5, 3]}, tmp_path)
    with pytest.raises(
        UsageError, match="--optimizer fixed-sign: no weight is binarised by Sign alone"
    ):
        bnnopt.optimize(path, optimizer="fixed-sign")
