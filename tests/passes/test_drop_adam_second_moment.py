"""drop-adam-second-moment: a constant is no state."""

from __future__ import annotations

import numpy as np
import pytest

from bnnopt.analysis import size_bytes
from bnnopt.passes.binary_weight_gradients import BinaryWeightGradients
from bnnopt.passes.drop_adam_second_moment import DropAdamSecondMoment
from bnnopt.plan import make_plan
from bnnopt.runtime.kernels.reference.table import KERNELS
from bnnopt.training_step import Role, TrainingStep
from tests.graphs import Network, apply, node, ops, run_native, run_stock, zoo
from tests.passes.networks import NETWORKS, small

PASS = DropAdamSecondMoment()
SIGNS = BinaryWeightGradients()
BINARY = ("w1", "w2", "w3")


def with_signs(net: Network) -> TrainingStep:
    step = net.step()
    apply(SIGNS, step)
    return step


def rewritten(net: Network) -> TrainingStep:
    step = with_signs(net)
    assert apply(PASS, step)[0] > 0
    return step


def states(step: TrainingStep) -> set[str]:
    return {str(v.name) for v in step.inputs(Role.STATE)}


@pytest.mark.parametrize(("optimizer", "rule"), [("adam", "AdamStep"), ("adamw", "AdamWStep")])
def test_binary_weights_lose_their_second_moment_and_nothing_else_does(
    optimizer: str, rule: str
) -> None:
    net = small("binary", optimizer=optimizer)
    before, step = states(with_signs(net)), rewritten(net)
    assert before - states(step) == {f"{w}.adam_v" for w in BINARY}
    assert ops(step, "update").count("SignFirstMomentStep") == len(BINARY)
    assert ops(step, "update").count(rule) == 4
    assert apply(PASS, step)[0] == 0


def test_what_keeps_exact_adam_is_named() -> None:
    step = with_signs(small("binary", optimizer="adam"))
    _, skipped = apply(PASS, step)
    assert {name for name, _ in skipped} == {"g1", "b1", "g2", "b2"}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_real_gradients_are_left_alone(name: str, optimizer: str) -> None:
    count, _ = apply(PASS, small(name, optimizer=optimizer).step())
    assert count == 0


def test_the_saving_is_the_size_of_the_weights() -> None:
    whole, less = with_signs(zoo("mlp", 4, "adam")), rewritten(zoo("mlp", 4, "adam"))
    weights = sum(size_bytes(v) for v in less.inputs(Role.PARAMETER) if len(v.shape) > 1)
    saved = make_plan(whole).persistent_bytes - make_plan(less).persistent_bytes
    assert saved == weights


@pytest.mark.slow
@pytest.mark.parametrize("run", [run_native, run_stock])
@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_identity_gives_the_steps_of_adam(run, optimizer: str) -> None:
    """No estimator cancels an update, so nothing but rounding differs."""
    net = small("binary", optimizer=optimizer, ste=["identity"])
    exact, found = run(net, with_signs(net), 4), run(net, rewritten(net), 4)
    np.testing.assert_allclose(found.losses, exact.losses, rtol=1e-6)
    for w in net.weights:
        np.testing.assert_allclose(found.persistent[w], exact.persistent[w], rtol=0, atol=1e-6)


def two_steps_of(w: float, signs: list[int], operator: str, n: int = 400) -> float:
    """Where a weight goes under `signs`, over and over; root 0.1."""
    attributes = {"shape": [1], "scale": 0.1, "limit": 1.0, "beta1": 0.9, "epsilon": 1e-8}
    weight, m, v = (np.array([[x]]) for x in (w, 0.0, 0.0))
    for t in range(1, n + 1):
        packed, count, lr = (
            np.array([[signs[t % len(signs)]]], np.uint8),
            np.array(t),
            np.array(0.01),
        )
        if operator == "SignAdamStep":
            weight, m, v = KERNELS[operator](
                weight, packed, m, v, lr, count, beta2=0.999, **attributes
            )
        else:
            weight, m = KERNELS[operator](
                weight, packed, m, lr, count, beta2=0.0, decay=0.0, root=0.1, **attributes
            )
    return float(weight[0, 0])


def test_deviation_is_the_share_of_cancelled_updates() -> None:
    """Inside the estimator's range no difference; at its edge ours takes the shorter step."""
    inside = [two_steps_of(0.0, [0, 1], op) for op in ("SignAdamStep", "SignFirstMomentStep")]
    assert inside[0] == pytest.approx(inside[1], abs=1e-9)
    # Pushed outwards for ever: a weight at the edge is stopped there by the estimator.
    adam, ours = (two_steps_of(0.99, [0], op) for op in ("SignAdamStep", "SignFirstMomentStep"))
    assert 1 < ours < adam < 1.2


def test_training_goes_down() -> None:
    net = zoo("mlp", 8, "adam")
    losses = run_native(net, rewritten(net), 8, repeat=True).losses
    assert losses[-1] < 0.9 * losses[0]


def test_a_wrong_root_is_noticed() -> None:
    """The negative control of the comparison with Adam."""
    net = small("binary", optimizer="adam", ste=["identity"])
    step = rewritten(net)
    wrong = node(step, "SignFirstMomentStep")
    attribute = wrong.attributes["root"]
    wrong.attributes["root"] = type(attribute)("root", attribute.type, attribute.value * 1.01)
    exact, found = run_native(net, with_signs(net), 1), run_native(net, step, 1)
    name = wrong.metadata_props["parameter"]
    assert np.abs(found.persistent[name] - exact.persistent[name]).max() > 1e-4
