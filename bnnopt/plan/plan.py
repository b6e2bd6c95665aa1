"""The memory plan of a step in its present order: an offset for every value, and the peak."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import onnx_ir as ir

from bnnopt.analysis import Buffer, VariableClass, buffers, classify, saved_bytes, size_bytes
from bnnopt.ops import dtype, traits
from bnnopt.plan.arena import Interval, place
from bnnopt.plan.workspace import workspace_bytes
from bnnopt.runtime.kernels.compiled.kernel import MAX_THREADS
from bnnopt.training_step import TrainingStep


@dataclass(frozen=True)
class MemoryPlan:
    """Where everything lives, and what it adds up to.

    Attributes
    ----------
    offsets : dict of Value to int
        Place of every value that is not persistent, in bytes from the arena's start.
    workspace : dict of Node to (offset, bytes)
        Scratch memory of the nodes that need any.
    arena_bytes, persistent_bytes, peak_bytes, saved_bytes : int
        The peak is the sum of the first two; saved is what is kept for the backward pass.
    spill_bytes : int
        What may be needed outside of the arena, if no tensor of the bitmap codec had a zero.
    classes : dict of VariableClass to int
        The peak by variable class: everything alive at the fullest moment of the arena. What
        alignment and gaps cost stands under workspace.
    types : dict of VariableClass to str
        What they are stored as, the largest share first.
    """

    offsets: dict[ir.Value, int]
    workspace: dict[ir.Node, tuple[int, int]]
    arena_bytes: int
    persistent_bytes: int
    saved_bytes: int
    spill_bytes: int
    classes: dict[VariableClass, int]
    types: dict[VariableClass, str]

    @property
    def peak_bytes(self) -> int:
        """Weights, optimiser state, statistics, and the arena with its workspace."""
        return self.arena_bytes + self.persistent_bytes


class _Layout(NamedTuple):
    """Of all buffers those in the arena, and then scratch, have a place each."""

    everything: list[Buffer]
    scratch: list[tuple[int, int]]  # position of the node, bytes
    places: Sequence[int]
    arena_bytes: int

    @property
    def persistent_bytes(self) -> int:
        return sum(buffer.n_bytes for buffer in self.everything if buffer.persistent)

    @property
    def peak_bytes(self) -> int:
        return self.arena_bytes + self.persistent_bytes


def _lay_out(step: TrainingStep, n_threads: int = MAX_THREADS) -> _Layout:
    everything = buffers(step)
    in_arena = [buffer for buffer in everything if not buffer.persistent]
    needs = ((i, workspace_bytes(node, n_threads)) for i, node in enumerate(step.graph))
    scratch = [(i, n_bytes) for i, n_bytes in needs if n_bytes]
    home = {value: i for i, buffer in enumerate(in_arena) for value in buffer.values}
    intervals = [
        Interval(b.n_bytes, b.first, b.last, None if b.onto is None else home[b.onto])
        for b in in_arena
    ]
    intervals += [Interval(n_bytes, i, i) for i, n_bytes in scratch]
    return _Layout(everything, scratch, *place(intervals))


def peak_bytes(step: TrainingStep) -> int:
    """The peak of the plan that `make_plan` would give, for less work."""
    return _lay_out(step).peak_bytes


def arena_bytes(step: TrainingStep, n_threads: int = MAX_THREADS) -> int:
    """The arena of the plan that `make_plan` would give, for less work."""
    return _lay_out(step, n_threads).arena_bytes


def make_plan(step: TrainingStep, n_threads: int = MAX_THREADS) -> MemoryPlan:
    """Place all values of the step, in the order in which its nodes stand.

    Workspace is for kernels of at most so many threads; classes are always those of `MAX_THREADS`.
    """
    nodes, layout = list(step.graph), _lay_out(step, n_threads)
    in_arena = [buffer for buffer in layout.everything if not buffer.persistent]
    at_peak = _at_peak(step, layout.everything)
    classes = {kind: sum(shares.values()) for kind, shares in at_peak.items()}
    classes[VariableClass.WORKSPACE] = layout.peak_bytes - sum(classes.values())
    return MemoryPlan(
        offsets={
            value: offset
            for buffer, offset in zip(in_arena, layout.places, strict=False)
            for value in buffer.values
        },
        workspace={
            nodes[i]: (offset, n_bytes)
            for (i, n_bytes), offset in zip(
                layout.scratch, layout.places[len(in_arena) :], strict=True
            )
        },
        arena_bytes=layout.arena_bytes,
        persistent_bytes=layout.persistent_bytes,
        saved_bytes=saved_bytes(step),
        classes=classes,
        types={kind: _types(shares) for kind, shares in at_peak.items()},
        spill_bytes=_spill_bytes(nodes),
    )


def _spill_bytes(nodes: list[ir.Node]) -> int:
    """Bytes of the values of all bitmap-coded tensors without a zero, the 0 in front included."""
    dense = [node.inputs[0] for node in nodes if traits(node).grows]
    return sum(size_bytes(x) + math.ceil(dtype(x).itemsize) for x in dense if x is not None)


def live_bytes(step: TrainingStep) -> list[int]:
    """Bytes alive in the arena at each node, workspace included: the least any placement needs."""
    return _alive(step, buffers(step))


def _alive(step: TrainingStep, everything: list[Buffer]) -> list[int]:
    nodes = list(step.graph)
    change = [0] * (len(nodes) + 2)
    for buffer in everything:
        if not buffer.persistent:
            change[max(buffer.first, 0)] += buffer.n_bytes
            change[min(buffer.last, len(nodes) - 1) + 1] -= buffer.n_bytes
    alive, total = [], 0
    for node, difference in zip(nodes, change, strict=False):
        total += difference
        alive.append(total + workspace_bytes(node))
    return alive


def _at_peak(step: TrainingStep, everything: list[Buffer]) -> dict[VariableClass, dict[str, int]]:
    """Bytes alive at the fullest moment of the arena, by class and type."""
    alive = _alive(step, everything)
    fullest = max(range(len(alive)), key=alive.__getitem__, default=0)
    totals: dict[VariableClass, dict[str, int]] = {kind: {} for kind in VariableClass}
    for buffer, kind in classify(step, everything).items():
        if buffer.persistent or buffer.first <= fullest <= buffer.last:
            name = str(dtype(buffer.values[0]).numpy())
            totals[kind][name] = totals[kind].get(name, 0) + buffer.n_bytes
    return totals


def _types(shares: dict[str, int]) -> str:
    """The names of at most two types; a packed byte is eight bits."""
    names = sorted(shares, key=lambda name: -shares[name])
    large = [name for name in names[:2] if shares[name] * 100 >= sum(shares.values()) > 0]
    return ", ".join("bits" if name == "uint8" else name for name in large)
