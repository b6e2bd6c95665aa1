"""The checker rejects every kind of wrong plan."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from bnnopt.artifact import make_program
from bnnopt.plan import OverlapError, check_program, make_plan
from bnnopt.runtime.format import Program, StepSpec, ValueSpec
from tests.graphs import SAME_KERNELS, evaluation, zoo
from tests.passes.networks import small
from tests.zoo import FIRST

ALL = SAME_KERNELS


@functools.cache
def good() -> Program:
    step = small("binary").with_passes(*ALL)
    return make_program(step, make_plan(step), 4)


def index_of(program: Program, name: str) -> int:
    return next(i for i, v in enumerate(program.values) if v.name == name)


def with_value(program: Program, name: str, **fields: object) -> Program:
    at = index_of(program, name)
    values = list(program.values)
    values[at] = values[at]._replace(**fields)
    return program._replace(values=tuple(values))


def with_step(program: Program, operator: str, **fields: object) -> Program:
    steps = list(program.steps)
    at = next(i for i, s in enumerate(steps) if s.operator == operator and s.workspace_bytes)
    steps[at] = steps[at]._replace(**fields)
    return program._replace(steps=tuple(steps))


def at(name: str) -> int:
    return good().values[index_of(good(), name)].offset


@pytest.mark.slow
@pytest.mark.parametrize("level", [(), ALL], ids=["O0", "O1"])
@pytest.mark.parametrize("name", FIRST)
def test_plans_of_the_zoo_pass(name: str, level: list[str]) -> None:
    net = zoo(name)
    for step in (net.with_passes(*level), net.evaluation_step()):
        check_program(make_program(step, make_plan(step), net.batch))


def onto_another(program: Program) -> Program:
    return with_value(program, "s1.signs", offset=at("n1.mask"))


def swapped(program: Program) -> Program:
    a, b = at("s1"), at("x")
    assert a != b
    return with_value(with_value(program, "s1", offset=b), "x", offset=a)


def freed_too_early(program: Program) -> Program:
    """The largest later value takes the place of the signs, which the backward pass reads."""
    grad = next(v for v in program.values if v.name.endswith("c2.rebuilt"))
    return with_value(program, grad.name, offset=at("s1.signs") // 64 * 64)


def outside(program: Program) -> Program:
    return with_value(program, "s1", offset=program.arena_bytes - 64)


def before_the_start(program: Program) -> Program:
    return with_value(program, "s1", offset=-64)


def unaligned(program: Program) -> Program:
    return with_value(program, "loss", offset=at("loss") + 4)


def too_small_an_arena(program: Program) -> Program:
    return program._replace(arena_bytes=program.arena_bytes - 64)


def scratch_over_an_input(program: Program) -> Program:
    conv = next(s for s in program.steps if s.operator == "Conv" and s.workspace_bytes)
    return with_step(program, "Conv", workspace_offset=program.values[conv.inputs[0]].offset)


def scratch_outside(program: Program) -> Program:
    return with_step(program, "Conv", workspace_offset=program.arena_bytes)


def scratch_over_what_is_kept(program: Program) -> Program:
    grad = with_step(program, "ConvSgdStep", workspace_offset=0, workspace_bytes=64)
    kept = index_of(program, "x")
    return with_value(grad, program.values[kept].name, offset=0)


def read_before_it_is_made(program: Program) -> Program:
    steps = list(program.steps)
    return program._replace(steps=(*steps[1:], steps[0]))


def weight_read_after_its_update(program: Program) -> Program:
    steps = list(program.steps)
    update = next(s for s in steps if s.operator == "SgdStep")
    steps.remove(update)
    first_read = next(i for i, s in enumerate(steps) if update.inputs[0] in s.inputs)
    made = next(i for i, s in enumerate(steps) if update.inputs[1] in s.outputs)
    late = StepSpec("Neg", "late", "backward", update.inputs[:1], (0,), {}, False, 0, 0)
    assert first_read < made
    return program._replace(steps=(*steps[: made + 1], update, late, *steps[made + 1 :]))


def product_over_its_operand(program: Program) -> Program:
    """A convolution that writes to the place that it reads, as only elementwise nodes may."""
    conv = next(s for s in program.steps if s.operator == "ConvInputGrad")
    source = program.values[conv.inputs[0]]
    return with_value(program, program.values[conv.outputs[0]].name, offset=source.offset)


def outputs_over_each_other(program: Program) -> Program:
    bn = next(s for s in program.steps if s.operator == "BatchNormalizationGrad")
    dgamma, dbeta = (program.values[i] for i in bn.outputs[1:])
    return with_value(program, dgamma.name, offset=dbeta.offset)


CORRUPTIONS: list[Callable[[Program], Program]] = [
    onto_another,
    swapped,
    freed_too_early,
    outside,
    before_the_start,
    unaligned,
    too_small_an_arena,
    scratch_over_an_input,
    scratch_outside,
    scratch_over_what_is_kept,
    read_before_it_is_made,
    weight_read_after_its_update,
    product_over_its_operand,
    outputs_over_each_other,
]


@pytest.mark.parametrize("corrupt", CORRUPTIONS, ids=lambda f: f.__name__)
def test_a_wrong_plan_is_rejected(corrupt: Callable[[Program], Program]) -> None:
    check_program(good())
    with pytest.raises(OverlapError) as caught:
        check_program(corrupt(good()))
    assert "\n" not in str(caught.value)


def test_any_two_values_on_one_place_are_found_or_never_live_together() -> None:
    """Mutation: every value of the arena put where every other is."""
    program = good()
    arena = [v for v in program.values if v.place == "arena"]
    n_rejected = 0
    for moved in arena[::3]:
        for other in arena[::3]:
            try:
                check_program(with_value(program, moved.name, offset=other.offset))
            except OverlapError:
                n_rejected += 1
    assert n_rejected > 0.3 * len(arena[::3]) ** 2


def test_a_view_of_a_weight_is_no_update() -> None:
    step = evaluation(
        """g (float[batch,2,3,3] x) => (float[batch,2,3,3] y) {
            shape = Constant <value_ints = [1, 2, 1, 1]> ()
            scale = Reshape (alpha, shape)
            y = Mul (x, scale)
        }""",
        {"alpha": [2]},
    )
    check_program(make_program(step, make_plan(step), 4))


def test_unread_values_need_no_memory_of_their_own() -> None:
    values = (
        ValueSpec("x", "float32", (4,), "arena", 0, ""),
        ValueSpec("y", "float32", (4,), "arena", 0, ""),
    )
    step = StepSpec("Relu", "relu", "forward", (0,), (1,), {}, False, 0, 0)
    program = Program(4, True, 64, values, (step,), {"data": [0]}, (1,), {}, -1)
    check_program(program)  # in place
    with pytest.raises(OverlapError, match="as it reads it"):
        check_program(program._replace(steps=(step._replace(operator="MatMul"),)))
