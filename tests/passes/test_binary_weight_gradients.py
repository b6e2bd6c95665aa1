"""binary-weight-gradients: one bit of each gradient of a binarised weight."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from bnnopt.passes.binary_weight_gradients import NO_LIMIT, BinaryWeightGradients
from bnnopt.plan import make_plan
from bnnopt.runtime.kernels.reference.packing import unpack_bits
from bnnopt.training_step import Role, TrainingStep
from tests.graphs import (
    Arrays,
    Network,
    apply,
    initial,
    network,
    node,
    ops,
    run_native,
    run_stock,
    value,
    zoo,
)
from tests.passes.networks import small

PASS = BinaryWeightGradients()
RUNNERS = {"native": run_native, "onnxruntime": run_stock}
FAN_IN = {"w1": 18, "w2": 36, "w3": 36}
OPTIMIZERS: dict[str, dict[str, object]] = {
    "sgd": {},
    "momentum": {"momentum": 0.9},
    "adam": {"optimizer": "adam"},
}


def rewritten(net: Network) -> TrainingStep:
    step = net.step()
    count, skipped = apply(PASS, step)
    assert count > 0
    assert not skipped
    return step


def signs(packed: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.where(unpack_bits(packed, shape=list(shape[1:])), 1.0, -1.0)


@pytest.mark.slow
@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_first_step_is_that_of_the_signs(optimizer: str, runner: str) -> None:
    """w moves by its gradient's sign over the root of its fan-in, and not at all beyond 1."""
    net = small("binary", **OPTIMIZERS[optimizer])
    exact = RUNNERS[runner](net, net.step(), 1)
    found = RUNNERS[runner](net, rewritten(net), 1)
    assert found.losses == exact.losses
    for name, fan_in in FAN_IN.items():
        w = net.weights[name].astype(np.float64)
        bits, gradient = found.gradients[0][name], exact.gradients[0][name]
        inside = (np.abs(w) <= 1) & (gradient != 0)
        np.testing.assert_array_equal(signs(bits, w.shape)[inside], np.sign(gradient)[inside])
        dw = signs(bits, w.shape) / np.sqrt(fan_in) * (np.abs(w) <= 1)
        change = 0.02 * (np.sign(dw) if optimizer == "adam" else dw)
        np.testing.assert_allclose(found.persistent[name], w - change, rtol=0, atol=3e-7)
    for name in ("g1", "b1", "g2", "b2"):
        np.testing.assert_array_equal(found.persistent[name], exact.persistent[name])


def test_backends_agree_over_several_steps() -> None:
    net = small("binary", optimizer="adam")
    native, stock = (run(net, rewritten(net), 3) for run in RUNNERS.values())
    for parameter in net.weights:
        a, b = (t.persistent[parameter] for t in (native, stock))
        # An element whose gradient is 0 but for rounding may have either sign.
        assert np.mean(np.abs(a - b) > 1e-5) < 0.02, parameter


def test_weights_of_any_layout_are_found() -> None:
    """The one is transposed behind its sign, the other before."""
    net = small("dense")
    exact, found = run_native(net, net.step(), 1), run_native(net, rewritten(net), 1)
    for name in ("w1", "w2"):
        w, gradient = net.weights[name], exact.gradients[0][name]
        inside = (np.abs(w) <= 1) & (gradient != 0)
        bits = signs(found.gradients[0][name], w.shape)
        assert inside.sum() > 5
        np.testing.assert_array_equal(bits[inside], np.sign(gradient)[inside])
    scales = [n.attributes["scale"].as_float() for n in rewritten(net).graph if "Sign" in n.op_type]
    np.testing.assert_allclose(sorted(scales), [6**-0.5, 5**-0.5], rtol=1e-6)


def test_no_float_gradient_outlives_its_layer() -> None:
    step = rewritten(small("binary", optimizer="adam"))
    assert "ClipGrad" not in [n.op_type for n in step.graph if "w" in str(n.outputs[0].name)]
    for name in FAN_IN:
        packed = step.gradients()[name]
        assert packed.dtype.itemsize * 8 == 8
        product = packed.producer().inputs[0].producer()
        nodes = list(step.graph)
        assert nodes.index(packed.producer()) == nodes.index(product) + 1
    whole, bits = zoo("mlp").step(), zoo("mlp").step()
    apply(PASS, bits)
    gradients = [make_plan(s).classes["weight_gradients"] for s in (whole, bits)]
    assert gradients[1] < gradients[0] / 25


def test_identity_has_no_limit() -> None:
    net = small("binary", ste=["identity"])
    step = rewritten(net)
    assert node(step, "SignSgdStep").attributes["limit"].as_float() == np.float32(NO_LIMIT)
    w, after = net.weights["w2"], run_native(net, step, 1).persistent["w2"]
    assert np.abs(w).max() > 1
    np.testing.assert_allclose(np.abs(after - w), 0.02 / 6, atol=3e-7)


def test_other_estimators_are_left_alone() -> None:
    step = small("binary", ste=["approx-sign"]).step()
    count, skipped = apply(PASS, step)
    assert count == 0
    assert skipped == [(name, "its estimator, approx-sign, scales the gradient") for name in FAN_IN]


SCALED = """g (float[batch,6] x) => (float[batch,3] y) {
    s = Sign (w)
    a = Abs (w)
    k = ReduceMean <keepdims = 1> (a)
    ws = Mul (s, k)
    y = MatMul (x, ws)
}"""
LEARNT = """g (float[batch,6] x) => (float[batch,3] y) {
    s = Sign (w)
    ws = Mul (s, k)
    y = MatMul (x, ws)
}"""
READ = """g (float[batch,6] x) => (float[batch,3] y) {
    s = Sign (w)
    h = MatMul (x, s)
    m = ReduceMean <keepdims = 1> (s)
    y = Mul (h, m)
}"""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (SCALED, "Abs 'a' reads it too"),
        (READ, "its sign is not the weight of products of one fan-in"),
    ],
)
def test_a_weight_with_another_reader_is_left_alone(text: str, reason: str) -> None:
    count, skipped = apply(PASS, network(text, {"w": [6, 3]}).step())
    assert count == 0
    assert [r.split(" (")[0] for _, r in skipped] == [reason]


def test_a_scale_of_its_own_is_no_obstacle() -> None:
    step = network(LEARNT, {"w": [6, 3], "k": [3]}).step()
    assert apply(PASS, step) == (1, [])
    assert ops(step, "update") == ["SignSgdStep", "SgdStep"]


def test_real_weights_are_no_subject() -> None:
    assert apply(PASS, small("float").step()) == (0, [])


def test_a_shared_weight_keeps_the_sign_of_the_sum() -> None:
    net = network(
        """g (float[batch,5] x) => (float[batch,5] y) {
            s = Sign (w)
            h = MatMul (x, s)
            y = MatMul (h, s)
        }""",
        {"w": [5, 5]},
    )
    exact, found = run_native(net, net.step(), 1), run_native(net, rewritten(net), 1)
    gradient = exact.gradients[0]["w"]
    bits = signs(found.gradients[0]["w"], (5, 5))
    np.testing.assert_array_equal(bits[gradient != 0], np.sign(gradient)[gradient != 0])


def test_training_goes_down() -> None:
    net = zoo("mlp", 8, "adam")
    losses = run_native(net, rewritten(net), 8, repeat=True).losses
    assert losses[-1] < 0.9 * losses[0]


def test_a_flipped_sign_is_noticed() -> None:
    """The negative control of the first test."""
    net = small("binary")
    wrong = dataclasses.replace(net, weights={**net.weights, "w2": -net.weights["w2"]})
    found, other = (run_native(n, rewritten(n), 1) for n in (net, wrong))
    assert not np.array_equal(found.gradients[0]["w3"], other.gradients[0]["w3"])


def test_the_state_is_what_it_was() -> None:
    net = small("binary", optimizer="adam")
    states: Arrays = initial(rewritten(net), net.weights)
    assert states.keys() == initial(net.step(), net.weights).keys()
    assert value(rewritten(net), "w1.adam_v").metadata_props["role"] == Role.STATE
