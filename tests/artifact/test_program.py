"""Programs: the plan as the device reads it."""

from __future__ import annotations

import pytest

from bnnopt.artifact import make_program
from bnnopt.artifact.program import scaled_shapes
from bnnopt.plan import make_plan
from bnnopt.runtime.format import Program
from bnnopt.training_step import PERSISTENT
from tests.artifact.test_portable import FIXED
from tests.graphs import SAME_KERNELS, Network, network, zoo
from tests.passes.networks import small

ALL = SAME_KERNELS


def program_of(net: Network, *passes: str) -> Program:
    step = net.with_passes(*passes)
    return make_program(step, make_plan(step), net.batch)


@pytest.mark.parametrize("name", ["mlp", "resnet-e-mini", "relu-mini"])
def test_json_and_back(name: str) -> None:
    program = program_of(zoo(name), *ALL)
    assert Program.from_json(program.to_json()) == program


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "cnv", "resnet-e-mini", "relu-mini"])
def test_shapes_scale_to_those_of_a_smaller_batch(name: str) -> None:
    """Every shape, worked out from two samples of the batch, is the one of a graph built so."""
    large, small_ = program_of(zoo(name), *ALL), program_of(zoo(name, 3), *ALL)
    assert not large.fixed_batch
    by_name = {v.name: v for v in small_.values}
    shared = [v for v in large.values if v.name in by_name]
    assert len(shared) > 0.9 * len(large.values)
    for value in shared:
        assert value.shape_at(3) == by_name[value.name].shape_at(3), value.name
        assert value.n_bytes(3) <= value.n_bytes(4)


def test_a_graph_that_is_tied_to_its_batch() -> None:
    net = network(FIXED, {"w": [6, 6]}, loss="mse")
    step = net.step()
    assert scaled_shapes(step, net.batch) is None
    program = program_of(net, *ALL)
    assert program.fixed_batch
    assert all(d >= 0 for value in program.values for d in value.shape)


def test_places() -> None:
    net = small("binary", optimizer="adam")
    step = net.with_passes(*ALL)
    program = make_program(step, make_plan(step), net.batch)
    by_name = {v.name: v for v in program.values}
    persistent = {str(v.name) for v in step.inputs(*PERSISTENT)}
    for name in persistent:
        assert (by_name[name].place, by_name[name].buffer) == ("persistent", name)
    assert by_name["w1.next"].buffer == "w1"
    assert by_name["w1.next.2"].buffer == "w1.adam_v"
    assert by_name["f"].offset == by_name["s2"].offset
    assert [program.values[i].name for i in program.roles["data"]] == ["x"]
    assert [program.values[i].name for i in program.roles["step"]] == ["step"]
    assert [program.values[i].name for i in program.outputs] == ["loss"]
    assert set(program.gradients) == set(step.gradients())
    views = [s for s in program.steps if s.is_view]
    assert {s.operator for s in views} <= {"Flatten", "Reshape"}
