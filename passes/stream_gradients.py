"""stream-gradients: one gradient map for a layer's input and output."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_ir as ir

from bnnopt.analysis import Buffer, shown_by, size_bytes
from bnnopt.metadata import Key
from bnnopt.ops import OPERATORS, family
from bnnopt.passes.in_place import homes, is_free, merge, write_over
from bnnopt.passes.infra.base import Pass, Trace
from bnnopt.plan import dependencies
from bnnopt.training_step import TrainingStep, readers


@dataclass(frozen=True)
class StreamGradients(Pass):
    """Write the gradient of a layer's input over that of its output, some samples at a time.

    Backward:  dw = x correlated with dy, over the whole batch; then dx[n] over dy[n].
    Saves:     the smaller of the two gradient maps of a layer.  Numbers: bit-exact; the kernel
               copies some samples of dy at a time.
    Skips:     a dx that is smaller than dy: it would keep the larger buffer alive; a dy that is
               read by something that needs dx.
    Source:    Wang et al., arXiv:2102.04270, algorithm 2 (one buffer for all gradient maps).
    """

    name: ClassVar[str] = "stream-gradients"
    after: ClassVar[Mapping[str, str]] = {
        "packed-products": "asks the kernels that were chosen whether they stream",
    }

    def run(self, step: TrainingStep, trace: Trace) -> int:
        """See `Pass.run`."""
        count, order = 0, _Order.of(step)
        for node in [node for node in step.graph if _streams(node)]:
            if Key.IN_PLACE in node.metadata_props:
                continue
            earlier = _what_has_to_go_first(node, order)
            if isinstance(earlier, str):
                trace.skip(node, earlier)
                continue
            step.graph.remove(earlier)
            step.graph.insert_before(node, earlier)
            write_over(node, (0, 0))
            count += 1
            order.written_over(node, step)
        return count


@dataclass
class _Order:
    """Where nodes stand, what they wait for, and which values share a buffer."""

    position: dict[ir.Node, int]
    before: dict[ir.Node, set[ir.Node]]
    home: dict[ir.Value, Buffer]

    @classmethod
    def of(cls, step: TrainingStep) -> _Order:
        return cls(_positions(step), dependencies(step), homes(step))

    def written_over(self, node: ir.Node, step: TrainingStep) -> None:
        """Follow what was done: `node` has taken the buffer of its dy, and others stand before it.

        Buffers keep the first and last positions that they had.
        """
        dy, dx = node.inputs[0], node.outputs[0]
        assert dy is not None
        others = (reader for value in shown_by(dy) for reader in readers(value))
        self.before[node].update(reader for reader in others if reader is not node)
        merge(self.home, dx, dy)
        self.position = _positions(step)


def _positions(step: TrainingStep) -> dict[ir.Node, int]:
    return {node: i for i, node in enumerate(step.graph)}


def _what_has_to_go_first(node: ir.Node, order: _Order) -> list[ir.Node] | str:
    """What is to move before the node, so that it may write dx over dy; else why it may not."""
    dy, dx = node.inputs[0], node.outputs[0]
    assert dy is not None
    home, position = order.home[dy], order.position
    if home.n_bytes > size_bytes(dx):
        return f"dy has {home.n_bytes} bytes, dx only {size_bytes(dx)}"
    late = [n for n in _readers(home) if position[n] > position[node]]
    first = _with_what_they_need(late, order.before, position, position[node])
    if node in first:
        return "its dy is read by something that needs its dx"
    is_output = any(v.is_graph_output() for v in home.values)
    dying = replace(home, last=len(position) if is_output else position[node])
    if not is_free(node, (0, 0), {**order.home, dy: dying}, position[node]):
        return "its dy is kept, or read twice"
    return sorted(first, key=position.__getitem__)


def _streams(node: ir.Node) -> bool:
    """Whether its kernel writes dx over dy."""
    return family(node) == "BinaryConvInputGrad" and 0 in OPERATORS[node.op_type].in_place


def _readers(buffer: Buffer) -> list[ir.Node]:
    return [node for value in buffer.values for node in readers(value)]


def _with_what_they_need(
    nodes: Iterable[ir.Node],
    before: Mapping[ir.Node, set[ir.Node]],
    position: Mapping[ir.Node, int],
    start: int,
) -> set[ir.Node]:
    """The nodes and all that has to run before them, of what stands at `start` or behind."""
    found: set[ir.Node] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node not in found and position[node] >= start:
            found.add(node)
            pending += before[node]
    return found
