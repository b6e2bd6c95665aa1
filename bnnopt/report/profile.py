"""Where the memory of a step goes, node by node."""

from __future__ import annotations

from dataclasses import dataclass

from bnnopt.analysis import Buffer, VariableClass, buffers, classify
from bnnopt.plan import MemoryPlan, make_plan
from bnnopt.training_step import TrainingStep, phase


@dataclass(frozen=True)
class Profile:
    """The memory of one step over time.

    Attributes
    ----------
    title : str
        What was inspected.
    plan : MemoryPlan
        Its plan.
    classes : dict of Buffer to VariableClass
        All buffers.
    timeline : list of dict of VariableClass to int
        Bytes alive at each node, persistent ones included; alignment and gaps count as workspace
        everywhere, so that the fullest moment is the planned peak.
    phases : list of str
        The phase of each node.
    """

    title: str
    plan: MemoryPlan
    classes: dict[Buffer, VariableClass]
    timeline: list[dict[VariableClass, int]]
    phases: list[str]

    @property
    def fullest(self) -> int:
        """Position of the node at which most is alive."""
        totals = [sum(alive.values()) for alive in self.timeline]
        return max(range(len(totals)), key=totals.__getitem__)


def inspect_step(step: TrainingStep, title: str) -> Profile:
    """Profile a step in its present order."""
    plan = make_plan(step)
    classes = classify(step, buffers(step))
    nodes = list(step.graph)
    timeline = []
    for position, node in enumerate(nodes):
        alive = dict.fromkeys(VariableClass, 0)
        for buffer, kind in classes.items():
            if buffer.persistent or buffer.first <= position <= buffer.last:
                alive[kind] += buffer.n_bytes
        alive[VariableClass.WORKSPACE] += plan.workspace.get(node, (0, 0))[1]
        timeline.append(alive)
    gaps = plan.peak_bytes - max(sum(alive.values()) for alive in timeline)
    for alive in timeline:
        alive[VariableClass.WORKSPACE] += gaps
    return Profile(title, plan, classes, timeline, [phase(node) for node in nodes])
