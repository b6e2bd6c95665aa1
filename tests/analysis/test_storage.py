"""What is kept, what it takes, and what class it is of."""

from __future__ import annotations

import functools

import pytest

from bnnopt.analysis import (
    VariableClass,
    buffers,
    classify,
    kept_values,
    late_readers,
    roots,
    saved_bytes,
    size_bytes,
)
from bnnopt.plan import make_plan
from bnnopt.training_step import PERSISTENT, TrainingStep, role
from tests.graphs import SAME_KERNELS, network, value, zoo
from tests.passes.networks import small
from tests.zoo import FIRST

MIB = 1 << 20
ALL = SAME_KERNELS


@functools.cache
def step_of(name: str, level: str, batch: int = 100) -> TrainingStep:
    net = zoo(name, batch, "adam")
    return net.with_passes(*(ALL if level == "O1" else ()))


@pytest.mark.slow
def test_binarynet_keeps_a_fortieth_at_o1() -> None:
    assert saved_bytes(step_of("binarynet", "O0")) >= 420 * MIB
    assert saved_bytes(step_of("binarynet", "O1")) <= 12 * MIB


@pytest.mark.slow
@pytest.mark.parametrize("level", ["O0", "O1"])
@pytest.mark.parametrize("name", FIRST)
def test_classes_add_up_to_the_peak(name: str, level: str) -> None:
    plan = make_plan(step_of(name, level))
    assert sum(plan.classes.values()) == plan.peak_bytes
    assert all(n_bytes >= 0 for n_bytes in plan.classes.values())
    assert set(plan.classes) == set(VariableClass)
    assert plan.peak_bytes == plan.arena_bytes + plan.persistent_bytes
    weights = sum(size_bytes(v) for v in step_of(name, level).graph.inputs if role(v) in PERSISTENT)
    constants = plan.persistent_bytes - weights
    assert 0 <= constants < 64 * 1024


def test_adam_state_is_twice_the_parameters() -> None:
    plan = make_plan(step_of("mlp", "O1"))
    parameters = sum(size_bytes(v) for v in step_of("mlp", "O1").inputs(*PERSISTENT))
    assert plan.classes[VariableClass.OPTIMIZER_STATE] > 0.6 * parameters


def test_saved_groups_a_value_with_its_views() -> None:
    step = small("binary").step()
    kept = kept_values(step)
    assert [v.name for v in kept[value(step, "s2")]] == ["s2", "f"]
    assert roots(step)[value(step, "f")] is value(step, "s2")
    assert value(step, "f") not in kept
    assert all(late_readers(views) for views in kept.values())


def test_weights_are_not_saved_and_the_batch_is() -> None:
    step = small("binary").step()
    kept = {root.name for root in kept_values(step)}
    assert {"x", "labels"} <= kept
    assert not kept & {"w1", "w2", "g1", "m1", "learning_rate"}


def test_a_buffer_lives_from_its_definition_to_its_last_reader() -> None:
    step = small("binary").step()
    nodes = list(step.graph)
    home = {v: buffer for buffer in buffers(step) for v in buffer.values}
    s2 = home[value(step, "s2")]
    assert s2.values == (value(step, "s2"), value(step, "f"))
    assert s2.first == nodes.index(value(step, "s2").producer())
    readers = late_readers(s2.values)
    assert s2.last == max(nodes.index(reader) for reader in readers)
    assert home[step.loss].last == len(nodes)
    assert home[value(step, "x")].first == -1
    assert home[value(step, "w1")].persistent
    assert home[value(step, "w1.next")] is home[value(step, "w1")]


CLASSES = {
    "x": "retained_activations",
    "n1": "retained_activations",
    "p2.indices": "masks_and_indices",
    "labels": "retained_activations",
    "n1.3": "batch_norm_statistics",
    "w1": "weights",
    "m1": "batch_norm_statistics",
    "w1.grad": "weight_gradients",
    "s1.grad": "transient_activations_and_gradients",
    "c2": "transient_activations_and_gradients",
    "w1.adam_m": "optimizer_state",
    "w1.next": "weights",
}


def test_classes_of_values() -> None:
    step = small("binary", optimizer="adam").step()
    everything = buffers(step)
    kinds = classify(step, everything)
    home = {v.name: kinds[buffer].value for buffer in everything for v in buffer.values}
    assert {name: home[name] for name in CLASSES} == CLASSES


def test_classes_of_encoded_values() -> None:
    step = small("binary").with_passes(*ALL)
    everything = buffers(step)
    kinds = classify(step, everything)
    home = {v.name: kinds[buffer].value for buffer in everything for v in buffer.values}
    assert home["s1.signs"] == "retained_activations"
    assert home["n1.mask"] == "masks_and_indices"
    assert home["p2.indices.packed"] == "masks_and_indices"


def test_a_scalar_takes_one_element() -> None:
    step = network("g (float[batch,2] x) => (float[batch,3] y) { y = Gemm (x, w) }", {"w": [2, 3]})
    assert size_bytes(value(step.step(), "learning_rate")) == 4
