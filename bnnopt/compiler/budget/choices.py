"""Tries a set of passes: the plan that it leads to, its loss class and the time of its step."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnnopt.analysis import fan_in, is_binary_product, kept_values, size_bytes
from bnnopt.ops import dims, dtype, is_view, traits
from bnnopt.passes import Pass, Skip, apply_passes, in_order
from bnnopt.passes.shared.leaving import REASON, written
from bnnopt.plan import MemoryPlan, live_bytes, make_plan, process_bytes
from bnnopt.report.spending import Point
from bnnopt.training_step import PERSISTENT, TrainingStep, phase, role

# How fast a core is. Only ratios of times are used: `benchmarks.predicted_times` measures them.
BINARY_MACS = 5e11  # a second
GRADIENT_MACS = 2.7e11  # of a binary product
REAL_MACS = 5e10
BYTES = 1e10
# Reads and writes of a value that its codec costs: a bitmap is written, read and scattered.
TRAVERSALS = {"bitmap": 4, "rebuild-activations": 4, "recompute-binary-products": 2}
FUNCTION_CHANGES = 10.0  # a changed function counts more than all turned gradients together
A_PASS = 1e-3  # of two sets with the same bounds the smaller one


def loss_of(candidate: Pass) -> float:
    """The loss class of a pass: how far it may turn a gradient, as -ln of the least cosine."""
    if candidate.lossless:
        return 0.0
    changed = FUNCTION_CHANGES if candidate.changes_function else 0.0
    return changed + A_PASS - math.log(candidate.min_cosine)


@dataclass(frozen=True)
class Trial:
    """A point with its step, its plan, and what its passes left alone."""

    point: Point
    step: TrainingStep
    plan: MemoryPlan
    skipped: Mapping[str, Sequence[Skip]]


class Trials:
    """Tries sets of passes on one reference, each once."""

    def __init__(self, reference: TrainingStep, kernels: Sequence[Pass]) -> None:
        self.reference = reference
        self._kernels = kernels
        self._done: dict[tuple[Pass, ...], Trial] = {}
        producers = {str(v.name): n for n in reference.graph for v in n.outputs if v.name}
        self._producers = producers
        self.least_time = _time_of(reference)

    def __call__(self, passes: Sequence[Pass]) -> Trial:
        """The outcome of a set, in whatever order it is given."""
        chosen = tuple(in_order(passes))
        if chosen not in self._done:
            self._done[chosen] = self._tried(chosen)
        return self._done[chosen]

    @property
    def points(self) -> list[Point]:
        """All that was tried."""
        return [trial.point for trial in self._done.values()]

    def best(self, n_bytes: int) -> Trial:
        """Of those that were tried and fit, at least one, the cheapest."""
        fitting = (trial for trial in self._done.values() if trial.point.needed_bytes <= n_bytes)
        return min(fitting, key=lambda trial: (trial.point.price, trial.point.needed_bytes))

    def _tried(self, chosen: tuple[Pass, ...]) -> Trial:
        step = TrainingStep(self.reference.model.clone())
        found = apply_passes(step, in_order([*self._kernels, *chosen]))
        plan = make_plan(step)
        active = [p for p in chosen if found[p.name][0] and not p.lossless]
        skipped = {name: trace.skipped for name, (_, trace) in found.items()}
        left = {s.node for notes in skipped.values() for s in notes if s.reason == REASON}
        point = Point(
            tuple(p for p in chosen if p.lossless or p in active),
            plan.peak_bytes,
            tuple(p.name for p in active),
            math.fsum(map(loss_of, active)),
            self._time(step),
            len(left),
            process_bytes(step),
        )
        return Trial(point, step, plan, skipped)

    def _time(self, step: TrainingStep) -> float:
        """The predicted time of a step, of that which computes nothing twice."""
        twice = sum(_node_time(node) for node in step.graph if _is_again(node))
        kept = {str(v.name) for v in kept_values(step)}
        coded = (v for v in kept_values(self.reference) if f"{v.name}.bitmap" in kept)
        twice += TRAVERSALS["bitmap"] * sum(map(size_bytes, coded)) / BYTES
        return 1 + twice / self.least_time

    def cost_of(self, name: str, names: Collection[str], kept: Collection[str]) -> float:
        """Seconds that it costs to keep less of a value.

        Parameters
        ----------
        name : str
            Of the value, as the reference has it.
        names : collection of str
            The passes that run.
        kept : collection of str
            What is kept instead, by name: it tells the codec.
        """
        node = self._producers.get(name)
        if node is None:
            return 0.0
        value = next(v for v in node.outputs if v.name == name)
        if f"{name}.bitmap" in kept:
            return TRAVERSALS["bitmap"] * size_bytes(value) / BYTES
        if f"{name}.signs" in kept or f"{name}.mask" in kept:
            return 0.0  # as fast to write and to read as the value itself
        product = _product_behind(node)
        if product is not None and "recompute-binary-products" in names:
            own = TRAVERSALS["recompute-binary-products"] * size_bytes(value) / BYTES
            return _product_time(product, BINARY_MACS) + own
        if value is node.outputs[0] and "rebuild-activations" in names:
            return TRAVERSALS["rebuild-activations"] * size_bytes(value) / BYTES
        return 0.0


def leaving(passes: Sequence[Pass], names: Sequence[str]) -> tuple[Pass, ...]:
    """The passes, told to leave the values of these names as they are."""
    option = written(sorted(names))
    return tuple(replace(p, **{"leave": option}) if hasattr(p, "leave") else p for p in passes)


def left_names(trial: Trial) -> list[str]:
    """The values that passes left because they were told to."""
    notes = (note for notes in trial.skipped.values() for note in notes)
    return sorted({note.node for note in notes if note.reason == REASON})


class Axis:
    """A time axis that versions of a step share: the nodes of one, found by name in the others."""

    def __init__(self, step: TrainingStep) -> None:
        self._position = {str(node.name): i for i, node in enumerate(step.graph)}
        self.length = len(self._position)

    def positions(self, step: TrainingStep) -> list[int]:
        """For each node of a version its place: its own, or that of the last one before it."""
        found, last = [], 0
        for node in step.graph:
            last = self._position.get(str(node.name), last)
            found.append(last)
        return found

    def bytes_alive(self, trial: Trial) -> NDArray[np.float64]:
        """The most that is alive at each place, weights and state included."""
        alive = np.zeros(self.length)
        for place, n_bytes in zip(self.positions(trial.step), live_bytes(trial.step), strict=True):
            alive[place] = max(alive[place], n_bytes)
        gaps = trial.plan.arena_bytes - alive.max()
        empty = alive == 0
        alive[empty] = np.interp(np.flatnonzero(empty), np.flatnonzero(~empty), alive[~empty])
        total: NDArray[np.float64] = alive + (trial.plan.persistent_bytes + max(gaps, 0))
        return total


def _time_of(step: TrainingStep) -> float:
    """Seconds of a step that computes nothing twice: each product and its two gradients, and each
    value written and read.
    """
    seconds = 0.0
    for node in step.graph:
        if phase(node) == "forward" and traits(node).product:
            seconds += _product_time(node, BINARY_MACS) + 2 * _product_time(node, GRADIENT_MACS)
        seconds += 2 * sum(size_bytes(v) for v in node.outputs if v.name) / BYTES
    return seconds


def _is_again(node: ir.Node) -> bool:
    """Whether it computes a value of the batch again; to pack bits is part of every version."""
    first = node.inputs[0]
    packs = dtype(node.outputs[0]) == ir.DataType.UINT8
    return (
        phase(node) == "rebuild"
        and not packs
        and first is not None
        and role(first) not in PERSISTENT
    )


def _node_time(node: ir.Node) -> float:
    """Seconds of a forward node: what it reads and writes, and what it multiplies."""
    values = (v for v in (*node.inputs, *node.outputs) if v is not None and v.name)
    seconds = 0.0 if is_view(node) else sum(map(size_bytes, values)) / BYTES
    if traits(node).on_bits and "w_shape" in node.attributes:
        terms = math.prod(node.attributes["w_shape"].as_ints())
        return seconds + math.prod(dims(node.outputs[0])) * terms / BINARY_MACS
    return seconds + (_product_time(node, BINARY_MACS) if traits(node).product else 0.0)


def _product_time(node: ir.Node, binary: float) -> float:
    """Seconds of a product, of a binary one at a rate of its own."""
    rate = binary if is_binary_product(node) else REAL_MACS
    return math.prod(dims(node.outputs[0])) * fan_in(node) / rate


def _product_behind(node: ir.Node) -> ir.Node | None:
    """The product of which a node's result is, with cheap steps in between."""
    while True:
        if traits(node).product:
            return node if is_binary_product(node) else None
        sources = [v.producer() for v in node.inputs[:1] if v is not None]
        if not sources or sources[0] is None or traits(node).makes_mask:
            return None
        step = traits(node)
        if not (step.passes_on or step.view or step.casts):
            return None
        node = sources[0]
