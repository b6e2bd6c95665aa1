"""schedule: reorder the nodes for a lower peak."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from bnnopt.passes.infra.base import Pass, Trace
from bnnopt.plan import live_bytes, memory_order, peak_bytes, reorder
from bnnopt.training_step import TrainingStep


@dataclass(frozen=True)
class Schedule(Pass):
    """Run, of the nodes that are ready, the one after which the least memory is alive.

    Saves:     what a value waits for its reader longer than it has to.  Numbers: bit-exact, the
               same operators on the same values.
    Skips:     all of it, where the order found has no lower peak than the one that is there.
    """

    name: ClassVar[str] = "schedule"
    after: ClassVar[Mapping[str, str]] = {
        "immediate-update": "begins with the best order known",
        "fuse-updates": "orders the nodes that are left",
        "stream-gradients": "keeps what is written over another value behind its readers",
        "in-place": "keeps what is written over another value behind its readers",
    }

    def run(self, step: TrainingStep, trace: Trace) -> int:
        """See `Pass.run`."""
        present = list(step.graph)
        if not present:  # an output that is an input
            return 0
        peak, alive = peak_bytes(step), max(live_bytes(step))
        reorder(step, memory_order(step))
        found = peak_bytes(step)
        if (found, max(live_bytes(step))) >= (peak, alive):
            reorder(step, present)
            trace.skip(present[0], "the order found has no lower peak than the present one")
            return 0
        return sum(old is not new for old, new in zip(present, step.graph, strict=True))
