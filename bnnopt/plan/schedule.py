"""A memory-aware order of the nodes.

List scheduling: of the nodes that are ready, run the one after which the least memory is alive;
among equals the one that comes first today. An order is only taken when its peak is lower.
"""

from __future__ import annotations

import onnx_ir as ir

from bnnopt.analysis import Buffer, buffers
from bnnopt.plan.workspace import workspace_bytes
from bnnopt.training_step import TrainingStep, readers


def dependencies(step: TrainingStep) -> dict[ir.Node, set[ir.Node]]:
    """What must run before each node: producers, and every other reader of what it overwrites."""
    before = {
        node: {p for value in node.inputs if value is not None and (p := value.producer())}
        for node in step.graph
    }
    for target, output in step.updates():
        producer = output.producer()
        assert producer is not None
        before[producer] |= {node for node in readers(target) if node is not producer}
    return before


def memory_order(step: TrainingStep) -> list[ir.Node]:
    """The nodes in an order chosen for a low peak."""
    nodes = list(step.graph)
    rank = {node: i for i, node in enumerate(nodes)}
    before = dependencies(step)
    after: dict[ir.Node, list[ir.Node]] = {node: [] for node in nodes}
    for node, earlier in before.items():
        for other in earlier:
            after[other].append(node)
    waiting = {node: len(before[node]) for node in nodes}
    tracker = _Tracker(step)
    ready = {node for node in nodes if not waiting[node]}
    order: list[ir.Node] = []
    while ready:
        node = min(ready, key=lambda n: (tracker.growth(n), rank[n]))
        ready.remove(node)
        order.append(node)
        tracker.run(node)
        for other in after[node]:
            waiting[other] -= 1
            if not waiting[other]:
                ready.add(other)
    return order


class _Tracker:
    """How many reads of each buffer are left, and what running a node would add and free."""

    def __init__(self, step: TrainingStep) -> None:
        self._home: dict[ir.Value, Buffer] = {}
        self._left: dict[Buffer, int] = {}
        self._alive: set[Buffer] = set()
        outputs = set(step.graph.outputs)
        for buffer in buffers(step):
            self._home.update(dict.fromkeys(buffer.values, buffer))
            kept = any(value in outputs for value in buffer.values)
            self._left[buffer] = sum(len(readers(v)) for v in buffer.values) + kept
            if buffer.first < 0:
                self._alive.add(buffer)

    def growth(self, node: ir.Node) -> tuple[int, int]:
        """Bytes alive after the node more than before; then what it needs while it runs."""
        made = {self._home[v] for v in node.outputs if not self._home[v].persistent}
        new = sum(buffer.n_bytes for buffer in made - self._alive)
        freed = sum(
            buffer.n_bytes
            for buffer in {*self._read(node), *made}
            if not buffer.persistent and self._left[buffer] == self._reads(node, buffer)
        )
        return new - freed, new + workspace_bytes(node)

    def run(self, node: ir.Node) -> None:
        """Account for the node."""
        self._alive.update(self._home[v] for v in node.outputs)
        for buffer in self._read(node):
            self._left[buffer] -= self._reads(node, buffer)

    def _read(self, node: ir.Node) -> set[Buffer]:
        return {self._home[v] for v in node.inputs if v is not None}

    def _reads(self, node: ir.Node, buffer: Buffer) -> int:
        return len({v for v in node.inputs if v is not None and self._home[v] is buffer})


def reorder(step: TrainingStep, order: list[ir.Node]) -> None:
    """Put the graph's nodes in `order`."""
    step.graph.remove(order)
    step.graph.extend(order)
