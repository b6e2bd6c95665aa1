"""immediate-update: step a weight as soon as its gradient is complete."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bnnopt.passes.infra.base import Pass, Trace
from bnnopt.plan import dependencies
from bnnopt.training_step import TrainingStep, phase


@dataclass(frozen=True)
class ImmediateUpdate(Pass):
    """Move each optimiser step behind the last node that it has to wait for.

    Backward:  dw = ...;  w = step(w, dw);  the next layer's dw takes the same memory.
    Saves:     all weight gradients but one layer's.  Numbers: bit-exact.
    Skips:     nothing: a step waits for its gradient and for every other reader of its weight.
    """

    name: ClassVar[str] = "immediate-update"

    def run(self, step: TrainingStep, trace: Trace) -> int:
        """See `Pass.run`."""
        before = dependencies(step)
        nodes = list(step.graph)
        position = {node: i for i, node in enumerate(nodes)}
        updates = [node for node in nodes if phase(node) == "update"]

        count = 0
        for node in updates:
            last = max(before[node], key=position.__getitem__, default=None)
            if last is None:
                continue
            between = nodes[position[last] + 1 : position[node]]
            if all(phase(other) == "update" for other in between):
                continue
            step.graph.remove(node)
            step.graph.insert_after(last, node)
            count += 1
        return count
