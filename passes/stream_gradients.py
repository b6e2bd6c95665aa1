"""stream-gradients: one gradient map for a layer's input and output."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_ir as ir

from bnnopt.analysis import Buffer, size_bytes
from bnnopt.metadata import Key
from bnnopt.ops import OPERATORS, family
from bnnopt.passes.in_place import homes, is_free, write_over
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
        nodes = [node for node in step.graph if _streams(node)]
        return sum(self._stream(step, trace, node) for node in nodes)

    def _stream(self, step: TrainingStep, trace: Trace, node: ir.Node) -> int:
        dy, dx = node.inputs[0], node.outputs[0]
        assert dy is not None
        if Key.IN_PLACE in node.metadata_props:
            return 0
        home = homes(step)
        if home[dy].n_bytes > size_bytes(dx):
            return trace.skip(node, f"dy has {home[dy].n_bytes} bytes, dx only {size_bytes(dx)}")
        position = {other: i for i, other in enumerate(step.graph)}
        late = [n for n in _readers(home[dy]) if position[n] > position[node]]
        first = _with_what_they_need(late, dependencies(step), position, position[node])
        if node in first:
            return trace.skip(node, "its dy is read by something that needs its dx")
        last = max(map(position.__getitem__, _readers(home[dy])))
        dying = replace(home[dy], last=position[node]) if home[dy].last == last else home[dy]
        if not is_free(node, (0, 0), {**home, dy: dying}, position[node]):
            return trace.skip(node, "its dy is kept, or read twice")
        ordered = sorted(first, key=position.__getitem__)
        step.graph.remove(ordered)
        step.graph.insert_before(node, ordered)
        write_over(node, (0, 0))
        return 1


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
