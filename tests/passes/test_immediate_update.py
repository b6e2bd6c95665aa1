"""immediate-update: a weight is stepped as soon as its gradient is there."""

from __future__ import annotations

import pytest

from bnnopt.passes.immediate_update import ImmediateUpdate
from bnnopt.passes.redirect_consumers import RedirectConsumers
from bnnopt.plan import dependencies, make_plan
from bnnopt.training_step import TrainingStep, phase
from tests.graphs import apply, network, ops, text_of, zoo
from tests.passes.networks import NETWORKS, small

PASS = ImmediateUpdate()


def is_immediate(step: TrainingStep) -> bool:
    """Between every update and the last node that it waits for stand updates only."""
    nodes = list(step.graph)
    position = {node: i for i, node in enumerate(nodes)}
    before = dependencies(step)
    return all(
        phase(other) == "update"
        for node in nodes
        if phase(node) == "update"
        for other in nodes[max(position[n] for n in before[node]) + 1 : position[node]]
    )


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_each_update_follows_what_it_waits_for(name: str, optimizer: str) -> None:
    step = small(name, optimizer=optimizer).step()
    assert not is_immediate(step)
    others = [op for op in ops(step) if not op.endswith("Step")]
    count, skipped = apply(PASS, step)
    assert count > 0
    assert not skipped
    assert is_immediate(step)
    assert [op for op in ops(step) if not op.endswith("Step")] == others
    assert apply(PASS, step) == (0, [])


def test_an_update_waits_for_every_other_reader_of_its_weight() -> None:
    """The input's gradient reads w2 after the gradient of w2 is there, or the other way round."""
    step = small("float").step()
    apply(PASS, step)
    nodes = list(step.graph)
    for update in nodes:
        if phase(update) != "update":
            continue
        weight = update.inputs[0]
        readers = {use.node for use in weight.uses()} - {update}
        assert all(nodes.index(reader) < nodes.index(update) for reader in readers)


def test_an_update_waits_for_the_weight_that_is_rebuilt() -> None:
    step = small("dense").step()
    apply(RedirectConsumers(), step)
    apply(PASS, step)
    lines = [line for line in text_of(step).splitlines() if line[:8].strip() != ""]
    update = next(i for i, line in enumerate(lines) if "w2.next" in line and "Step" in line)
    rebuilt = [i for i, line in enumerate(lines) if line.startswith("rebuild") and "(w2)" in line]
    assert rebuilt
    assert max(rebuilt) < update


def test_one_layer_needs_nothing() -> None:
    step = network(
        "g (float[batch,5] x) => (float[batch,3] y) { y = Gemm (x, w) }", {"w": [5, 3]}
    ).step()
    assert apply(PASS, step) == (0, [])


@pytest.mark.parametrize("name", ["mlp", "cnv"])
def test_weight_gradients_no_longer_add_up(name: str) -> None:
    step = zoo(name).step()
    gradients = make_plan(step).classes["weight_gradients"]
    before = make_plan(step).peak_bytes
    apply(PASS, step)
    assert make_plan(step).classes["weight_gradients"] < 0.7 * gradients
    assert make_plan(step).peak_bytes < before
