"""check_graph: every way in which a rewrite can break a step is found."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import pytest

from bnnopt.ops import Emitter
from bnnopt.passes import PASSES, BrokenGraph, check_graph
from bnnopt.passes.infra import graph_check
from bnnopt.passes.infra.graph_check import Typed, interface
from bnnopt.training_step import TrainingStep
from tests.graphs import node, value
from tests.passes.networks import NETWORKS, small


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_good_graph_passes(name: str, optimizer: str) -> None:
    net = small(name, optimizer=optimizer)
    before = interface(net.step())
    check_graph(net.step(), before)
    check_graph(net.with_passes(*(p.name for p in PASSES if not p.changes_storage)), before)
    check_graph(net.evaluation_step())


def move_first_to_the_end(step: TrainingStep) -> None:
    first = next(iter(step.graph))
    step.graph.remove(first)
    step.graph.append(first)


def remove_a_node(step: TrainingStep) -> None:
    step.graph.remove(node(step, "MaxPool"))


def wrong_type(step: TrainingStep) -> None:
    value(step, "s1").dtype = ir.DataType.DOUBLE


def wrong_shape(step: TrainingStep) -> None:
    value(step, "s1").shape = ir.Shape([4, 4, 6, 5])


def no_shape(step: TrainingStep) -> None:
    value(step, "s1").shape = None


def unknown_operator(step: TrainingStep) -> None:
    node(step, "Binarize", 1).op_type = "Binarise"


def missing_attribute(step: TrainingStep) -> None:
    node(step, "ConvInputGrad").attributes.pop("group")


def shapes_that_do_not_fit(step: TrainingStep) -> None:
    node(step, "Gemm").replace_input_with(0, value(step, "n1"))


def duplicate_name(step: TrainingStep) -> None:
    value(step, "s1").name = "s2"


def name_of_an_input(step: TrainingStep) -> None:
    value(step, "s1").name = "x"


def missing_phase(step: TrainingStep) -> None:
    del node(step, "MaxPool").metadata_props["phase"]


def unknown_phase(step: TrainingStep) -> None:
    node(step, "MaxPool").metadata_props["phase"] = "sideways"


def missing_role(step: TrainingStep) -> None:
    del value(step, "x").metadata_props["role"]


def read_after_update(step: TrainingStep) -> None:
    update = next(n for n in step.graph if n.outputs[0].name == "w2.next")
    grad = value(step, "w2b.grad").producer()
    assert grad is not None
    emit = Emitter(step.graph, "backward")
    emit("Neg", value(step, "w2"), name="late")
    step.graph.insert_after(update, emit.nodes)


def update_before_the_last_reader(step: TrainingStep) -> None:
    """The statistic's own batch norm is its first reader; a later one sees what it wrote."""
    emit = Emitter(step.graph, "backward")
    emit("Neg", value(step, "m1"), name="late")
    step.graph.insert_after(node(step, "Gemm", 1), emit.nodes)


def overwrite_what_is_read_later(step: TrainingStep) -> None:
    node(step, "Binarize", 1).metadata_props["in_place"] = "0:0"  # n1: the estimator reads it


def overwrite_through_a_view(step: TrainingStep) -> None:
    """f shows s2; whoever reads s2 later would see what was written to f."""
    emit = Emitter(step.graph, "forward")
    emit("Neg", value(step, "f"), name="over")
    emit.nodes[0].metadata_props["in_place"] = "0:0"
    step.graph.insert_after(value(step, "f").producer(), emit.nodes)


def lose_the_update(step: TrainingStep) -> None:
    step.graph.outputs.pop()


def output_of_no_node(step: TrainingStep) -> None:
    stranger = ir.val("stranger", dtype=ir.DataType.FLOAT, shape=())
    step.graph.outputs[0] = stranger


def update_of_no_input(step: TrainingStep) -> None:
    step.graph.outputs[-1].metadata_props["updates"] = "nothing"


def lose_an_input(step: TrainingStep) -> None:
    step.graph.inputs[:] = [v for v in step.graph.inputs if v.name != "labels"]


def another_role(step: TrainingStep) -> None:
    value(step, "w1").metadata_props["role"] = "frozen"


CORRUPTIONS: dict[Callable[[TrainingStep], None], str] = {
    move_first_to_the_end: "reads 'w1b' before it is made",
    remove_a_node: "reads 'p2' before it is made",
    wrong_type: "DOUBLE",
    wrong_shape: "became",
    no_shape: "has no shape",
    unknown_operator: "there is no operator bnnopt.Binarise",
    missing_attribute: "'group'",
    shapes_that_do_not_fit: "(Gemm)",
    duplicate_name: "two values are called 's2'",
    name_of_an_input: "two values are called 'x'",
    missing_phase: "has no phase",
    unknown_phase: "has no phase",
    missing_role: "input 'x' has no role",
    read_after_update: "overwrites what 'late' reads later",
    update_before_the_last_reader: "overwrites what 'late' reads later",
    overwrite_what_is_read_later: "reads later",
    overwrite_through_a_view: "reads later",
    lose_the_update: "the output that updates 'w3' is lost",
    output_of_no_node: "output 'stranger' is made by no node",
    update_of_no_input: "updates 'nothing', which is no input",
    lose_an_input: "'labels'",
    another_role: "input 'w1' is",
}


@pytest.mark.parametrize("corrupt", CORRUPTIONS, ids=lambda f: f.__name__)
def test_a_broken_graph_is_found(corrupt: Callable[[TrainingStep], None]) -> None:
    step = small("binary").step()
    expected = interface(step)
    corrupt(step)
    with pytest.raises(BrokenGraph) as caught:
        check_graph(step, expected)
    assert CORRUPTIONS[corrupt] in str(caught.value)


TYPES = (wrong_type, wrong_shape, no_shape, unknown_operator, missing_attribute)


@pytest.mark.parametrize("corrupt", [*TYPES, shapes_that_do_not_fit], ids=lambda f: f.__name__)
def test_what_was_right_before_is_found(corrupt: Callable[[TrainingStep], None]) -> None:
    step, right = small("binary").step(), Typed()
    check_graph(step, right=right)
    assert right.keys() == set(step.graph)
    corrupt(step)
    with pytest.raises(BrokenGraph) as caught:
        check_graph(step, right=right)
    assert CORRUPTIONS[corrupt] in str(caught.value)


def test_what_stayed_is_not_worked_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    step, right = small("binary").step(), Typed()
    check_graph(step, right=right)
    again = list[ir.Node]()
    monkeypatch.setattr(graph_check, "_check_types", lambda node, opset: again.append(node))
    changed = node(step, "MaxPool")
    changed.attributes.add(ir.AttrInt64s("strides", [1, 1]))
    check_graph(step, right=right)
    assert again == [changed]


def test_verify_leaves_no_trace() -> None:
    step = small("binary").step()
    uses = {v.name: len(v.uses()) for n in step.graph for v in n.outputs}
    check_graph(step)
    assert {v.name: len(v.uses()) for n in step.graph for v in n.outputs} == uses
