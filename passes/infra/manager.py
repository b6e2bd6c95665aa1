"""Chooses passes, runs them, checks the graph after each and measures what it saves."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from bnnopt.analysis import saved_bytes
from bnnopt.errors import UsageError, did_you_mean
from bnnopt.metadata import Key
from bnnopt.ops import functions_for, shared_names
from bnnopt.passes.infra.base import Pass, Skip, Trace
from bnnopt.passes.infra.graph_check import BrokenGraph, Typed, check_graph, interface
from bnnopt.passes.infra.spec import read_spec
from bnnopt.passes.infra.stages import LEVELS, PASSES
from bnnopt.plan import peak_bytes
from bnnopt.training_step import TrainingStep


@dataclass(frozen=True)
class PassRecord:
    """One line of the ledger: what a pass did, and the memory after it."""

    name: str
    spec: str
    lossless: bool
    min_cosine: float
    numbers: str
    rewrites: int
    peak_bytes: int
    saved_bytes: int
    skipped: tuple[Skip, ...]
    chosen: tuple[Skip, ...] = ()


def make_pass(spec: str) -> Pass:
    """The pass that a spec names, such as ``prune-stored{sparsity=0.98}``.

    Raises
    ------
    UsageError
        If there is no such pass or option, or the option takes something else.
    """
    name, options = read_spec(spec)
    known = {p.name: p for p in PASSES}
    if name not in known:
        hint = did_you_mean(name, known) or "; 'bnnopt passes' lists them"
        raise UsageError(f"pass {name!r} is not known{hint}")
    return known[name].configured(options)


def select(
    level: str,
    only: Sequence[str] = (),
    disabled: Sequence[str] = (),
    enabled: Sequence[str] = (),
) -> list[Pass]:
    """The passes to run, in their order.

    Parameters
    ----------
    level : str
        One of `LEVELS`; not used where `only` names passes.
    only, enabled : sequence of str
        Specs of passes; `enabled` are there beside those of the level, or of `only`, or in their
        place where they have other options.
    disabled : sequence of str
        Names of passes.

    Raises
    ------
    UsageError
        If a level, a pass or an option is not known.
    """
    if level not in LEVELS:
        near = f"O{level.strip('-oO')}"
        hint = f"; did you mean {near!r}?" if near in LEVELS else ""
        raise UsageError(f"level {level!r} is not known; expected {', '.join(LEVELS)}{hint}")
    chosen = [make_pass(spec) for spec in only] or of_level(int(level[1:]))
    chosen += [make_pass(spec) for spec in enabled]
    left_out = {_without_options(spec) for spec in disabled}
    return in_order([p for p in chosen if p.name not in left_out])


def of_level(level: int) -> list[Pass]:
    """The passes of an ``-O`` level, with their defaults."""
    return [p for p in PASSES if p.level is not None and p.level <= level]


def _without_options(spec: str) -> str:
    """The name of a pass that is left out."""
    if read_spec(spec)[1]:
        raise UsageError(f"pass {spec!r} is left out with any options; give its name alone")
    return make_pass(spec).name


def run_passes(
    step: TrainingStep, passes: Sequence[Pass], report: Callable[[str], None] = lambda name: None
) -> list[PassRecord]:
    """Run the passes over `step`, verify it after each, and measure what each saves.

    `report` is called with the name of each pass before it runs. The order is the caller's; see
    `in_order`.

    Raises
    ------
    BrokenGraph
        A defect of a pass; the message names it.
    """
    records: list[PassRecord] = []
    for candidate, rewrites, trace in _checked(step, passes, report):
        if rewrites or not records:
            size = peak_bytes(step), saved_bytes(step)
        records.append(
            PassRecord(
                name=candidate.name,
                spec=candidate.spec,
                lossless=candidate.lossless,
                min_cosine=candidate.min_cosine,
                numbers=candidate.numbers,
                rewrites=rewrites,
                peak_bytes=size[0],
                saved_bytes=size[1],
                skipped=tuple(trace.skipped),
                chosen=tuple(trace.chosen),
            )
        )
    _declare_functions(step)
    return records


def rewrite(step: TrainingStep, passes: Sequence[Pass]) -> None:
    """Run the passes over `step` and verify it after each, as `run_passes` does; measure nothing.

    Raises
    ------
    BrokenGraph
        A defect of a pass; the message names it.
    """
    for _ in _checked(step, passes):
        pass
    _declare_functions(step)


def _checked(
    step: TrainingStep, passes: Sequence[Pass], report: Callable[[str], None] = lambda name: None
) -> Iterator[tuple[Pass, int, Trace]]:
    """Each pass with its rewrites and its trace, after it has run and its graph was checked."""
    right: Typed = {}
    for position, candidate in enumerate(passes, 1):
        report(candidate.name)
        trace = Trace()
        storage = not candidate.changes_storage
        expected = interface(step, storage)
        before = _looks(step)
        with shared_names(step.graph):
            rewrites = candidate.run(step, trace)
        _sign(step, before, candidate.name)
        try:
            check_graph(step, expected, storage, right)
        except BrokenGraph as error:
            place = f"pass {candidate.name!r} ({position} of {len(passes)}) broke the graph"
            raise BrokenGraph(f"{place}: {error}") from None
        yield candidate, rewrites, trace


def apply_passes(step: TrainingStep, passes: Sequence[Pass]) -> dict[str, tuple[int, Trace]]:
    """Run the passes over `step` without a check or a measurement in between: to try a choice.

    Returns the rewrites of each pass by its name, and what it left alone and chose.
    """
    found = {}
    for candidate in passes:
        trace = Trace()
        found[candidate.name] = candidate.run(step, trace), trace
    return found


Look = tuple[ir.DataType | None, ir.ShapeProtocol | None, str | None]


def _looks(step: TrainingStep) -> dict[str | None, Look]:
    """Type and shape of each value, by name, and the pass that made it so."""
    return {
        value.name: (value.dtype, value.shape, value.metadata_props.get(Key.MADE_BY))
        for value in _values(step)
    }


def _values(step: TrainingStep) -> Iterator[ir.Value]:
    yield from step.graph.inputs
    yield from (value for node in step.graph for value in node.outputs if value.name)


def _sign(step: TrainingStep, before: Mapping[str | None, Look], name: str) -> None:
    """Write on each value that is new, or kept in another way than before, the pass `name`."""
    for value in _values(step):
        kind, shape, made_by = before.get(value.name, (None, None, None))
        made_by = made_by if (kind, shape) == (value.dtype, value.shape) else name
        if made_by is not None:
            value.metadata_props[Key.MADE_BY] = made_by


def in_order(passes: Iterable[Pass]) -> list[Pass]:
    """The passes in the order in which they run, each once; of two of a name the later one."""
    by_name = {p.name: p for p in passes}
    return [by_name[p.name] for p in PASSES if p.name in by_name]


def by_loss(passes: Sequence[Pass]) -> list[list[Pass]]:
    """Sets of passes, each lossier than the one before: the lossless ones, then all.

    The lossy ones join in the order of their bounds, the mildest first; last what changes the
    function.
    """
    lossy = [p for p in passes if not p.lossless]
    mildest_first = sorted(lossy, key=lambda p: (p.changes_function, -p.min_cosine))
    sets = [
        {p for p in passes if p.lossless}.union(mildest_first[:n])
        for n in range(len(mildest_first) + 1)
    ]
    return [in_order(chosen) for chosen in sets]


def kernel_passes(disabled: Collection[str] = ()) -> list[Pass]:
    """The passes that run at every level: they choose kernels, and all levels share them."""
    return [p for p in PASSES if p.maps_kernels and p.name not in disabled]


def least_cosine(passes: Collection[Pass]) -> float | None:
    """The bound of passes that ran: the least cosine of a gradient with them and without them.

    The product of their own bounds, as the errors of different passes do not correlate. None where
    all passes are lossless: bits are to be equal then.
    """
    if all(p.lossless for p in passes):
        return None
    return math.prod(p.min_cosine for p in passes)


def map_kernels(reference: TrainingStep, passes: Iterable[Pass]) -> TrainingStep:
    """A copy of a step that computes the function, and runs on the kernels, of such passes.

    What is bit-equal is bit-equal on the same kernels: this is the reference to compare with.
    """
    step = TrainingStep(reference.model.clone())
    rewrite(step, [p for p in passes if _changes_reference(p)])
    return step


def _changes_reference(candidate: Pass) -> bool:
    return candidate.maps_kernels or candidate.changes_function


def _declare_functions(step: TrainingStep) -> None:
    """Give the model the functions of the operators that it now uses, and no others."""
    step.model.functions.clear()
    for function in functions_for(step.graph, step.opset):
        step.model.functions[function.identifier()] = function
