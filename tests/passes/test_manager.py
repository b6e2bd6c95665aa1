"""The manager: which passes run, in which order, and who is blamed for a broken graph."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
import pytest

from bnnopt.analysis import saved_bytes
from bnnopt.errors import UsageError
from bnnopt.ops import DOMAIN, functions_for
from bnnopt.passes import LEVELS, PASSES, BrokenGraph, Pass, Trace, run_passes, select
from bnnopt.plan import make_plan
from bnnopt.training_step import TrainingStep
from tests.graphs import fingerprint, node
from tests.passes.networks import small

LOSSLESS = select("O1")
NAMES = [p.name for p in LOSSLESS]


def names(passes: Sequence[Pass]) -> list[str]:
    return [p.name for p in passes]


def test_levels() -> None:
    assert LEVELS == ("O0", "O1", "O2", "O3")
    assert select("O0") == []
    assert all(p.lossless for p in select("O1"))
    for low, high in itertools.pairwise(LEVELS):
        assert {p.name for p in select(low)} < {p.name for p in select(high)}
    assert names(select(LEVELS[-1])) == names([p for p in PASSES if p.level is not None])
    assert len(set(names(PASSES))) == len(PASSES)


def test_a_lossy_pass_states_its_bound() -> None:
    for p in PASSES:
        assert (p.min_cosine == 1) if p.lossless else (0 < p.min_cosine <= 1), p.name
        assert p.lossless or p.level != 1, p.name


def test_named_passes_run_in_their_own_order() -> None:
    assert names(select("O0", only=["schedule", "sign-pack"])) == ["sign-pack", "schedule"]
    assert names(select("O1", only=["pool-index"])) == ["pool-index"]


def test_disabled_passes_do_not_run() -> None:
    assert names(select("O1", disabled=["schedule"])) == NAMES[:-1]
    assert names(select("O1", only=["schedule", "in-place"], disabled=["in-place"])) == ["schedule"]
    assert select("O0", disabled=NAMES) == []


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("O9",), ["level 'O9'", "O0, O1"]),
        (("",), ["level ''"]),
        (("O1", ["sign_pack"]), ["pass 'sign_pack'", "did you mean 'sign-pack'?"]),
        (("O1", (), ["nothing"]), ["pass 'nothing'", "'bnnopt passes'"]),
    ],
)
def test_unknown_names_are_one_line(arguments: tuple[str, ...], parts: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        select(*arguments)
    assert "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in parts)


def test_the_ledger_has_a_line_a_pass() -> None:
    step = small("binary").step()
    told: list[str] = []
    records = run_passes(step, LOSSLESS, told.append)
    assert [record.name for record in records] == told == NAMES
    assert all(record.lossless for record in records)
    last = records[-1]
    assert last.peak_bytes == make_plan(step).peak_bytes
    assert last.saved_bytes == saved_bytes(step)


def test_no_pass_changes_nothing() -> None:
    step = small("binary").step()
    before = fingerprint(step)
    assert run_passes(step, []) == []
    assert fingerprint(step) == before


def test_the_functions_that_are_used_are_declared_and_no_others() -> None:
    step = small("binary").with_passes(*NAMES)
    used = {n.op_type for n in step.graph if n.domain == DOMAIN}
    declared = [name for _, name, _ in step.model.functions]
    assert used <= set(declared)
    assert declared == [function.name for function in functions_for(step.graph, step.opset)]


@dataclass(frozen=True)
class DoNothing(Pass):
    """Leave all as it is."""

    name: ClassVar[str] = "do-nothing"

    def run(self, step: TrainingStep, trace: Trace) -> int:
        return trace.skip(next(iter(step.graph)), "it is fine")


@dataclass(frozen=True)
class BreakOrder(Pass):
    """Put the first node last."""

    name: ClassVar[str] = "break-order"

    def run(self, step: TrainingStep, trace: Trace) -> int:
        first = next(iter(step.graph))
        step.graph.remove(first)
        step.graph.append(first)
        return 1


@dataclass(frozen=True)
class LoseUpdate(Pass):
    """Forget to update a weight."""

    name: ClassVar[str] = "lose-update"

    def run(self, step: TrainingStep, trace: Trace) -> int:
        step.graph.outputs.pop()
        return 1


@dataclass(frozen=True)
class LoseInput(Pass):
    """Rename an input."""

    name: ClassVar[str] = "lose-input"

    def run(self, step: TrainingStep, trace: Trace) -> int:
        step.graph.inputs[0].name = "other"
        return 1


@dataclass(frozen=True)
class Retype(Pass):
    """Give a value another type than its node gives it."""

    name: ClassVar[str] = "retype"

    def run(self, step: TrainingStep, trace: Trace) -> int:
        node(step, "Conv").outputs[0].dtype = ir.DataType.FLOAT16
        return 1


@pytest.mark.parametrize(
    ("culprit", "what"),
    [
        (BreakOrder(), "before it is made"),
        (LoseUpdate(), "the output that updates 'w3' is lost"),
        (LoseInput(), "input 'x' is lost"),
        (Retype(), "FLOAT16"),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_a_pass_that_breaks_the_graph_is_named(culprit: Pass, what: str) -> None:
    step = small("binary").step()
    with pytest.raises(BrokenGraph) as caught:
        run_passes(step, [DoNothing(), culprit, DoNothing()])
    text = str(caught.value)
    assert text.startswith(f"pass '{culprit.name}' (2 of 3) broke the graph: ")
    assert what in text


def test_what_a_pass_skips_is_in_its_record() -> None:
    step = small("binary").step()
    first = next(iter(step.graph)).name
    (record,) = run_passes(step, [DoNothing()])
    assert [(skip.node, skip.reason) for skip in record.skipped] == [(first, "it is fine")]
    assert record.rewrites == 0
    assert DoNothing().summary == "Leave all as it is."
