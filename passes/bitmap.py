"""bitmap: keep sparse activations as one bit per element and the elements that are not zero."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from bnnopt.analysis import (
    expected_density,
    kept_values,
    measured_density,
    size_bytes,
)
from bnnopt.ops import Emitter, dims, family, packed_row_bytes
from bnnopt.passes.infra.base import Pass, Trace
from bnnopt.passes.shared.leaving import REASON, leaves
from bnnopt.passes.shared.rewriting import (
    insert_after_definition,
    late,
    read_late,
    redirect,
    replace_node,
)
from bnnopt.training_step import TrainingStep

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Bitmap(Pass):
    """Keep of a sparse activation a bitmap and its non-zero values.

    Forward:   y = relu(x), pooled or dropped out, then convolved; kept: bits(y), values(y)
    Backward:  the ReLU gradient and the weight gradient of a convolution read bits and values, and
               decode a tile at a time; any other reader gets y decoded right before it, so that
               the dense y is there only while its layer is worked on.
    Saves:     of 32 bits an element all but 1 + 32 x density.  Numbers: bit-exact, -0.0 and NaN
               too. The density is what a calibration batch showed, times `margin`, else a default
               by operator; a batch that has more spills out of the arena, and is lossless as well.
    Skips:     too dense to gain; a view with other rows reads it; a gradient that a pooling
               scatters, at least 75 % zeros, is masked in place and read by its own layer at once.
               And the values that `leave` names, with | between them: a budget does that.
    Source:    Hosny et al., arXiv:2110.15362.
    """

    name: ClassVar[str] = "bitmap"
    after: ClassVar[Mapping[str, str]] = {
        "rebuild-activations": "what is rebuilt needs no copy",
        "prune-stored": "what is pruned has its bitmap",
        "mask-pack": "a ReLU that reads bits needs no values",
    }
    margin: float = 1.05
    leave: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.margin < math.inf:
            self.refuse("margin", self.margin, "a number of 1 or more")

    def run(self, step: TrainingStep, trace: Trace) -> int:
        """See `Pass.run`."""
        for node in step.graph:
            if family(node) == "MaxPoolGrad":
                dx = node.outputs[0]
                trace.skip(
                    dx, f"scattered by a pooling, {size_bytes(dx)} B: read at once, not kept"
                )
        return sum(
            self._encode(step, trace, root, read_late(views))
            for root, views in kept_values(step).items()
        )

    def _encode(
        self, step: TrainingStep, trace: Trace, root: ir.Value, read: list[ir.Value]
    ) -> int:
        density, how = self._density(root)
        if density is None or not read or root.dtype != ir.DataType.FLOAT or not dims(root):
            return 0
        if leaves(self.leave, root):
            return trace.skip(root, REASON)
        capacity = 1 + math.ceil(density * math.prod(dims(root)))
        n_bytes = dims(root)[0] * packed_row_bytes(dims(root)) + FLOAT_BYTES * capacity
        cost = f"bitmap {n_bytes} B at density {density:.2f} ({how}), dense {size_bytes(root)} B"
        if n_bytes >= size_bytes(root):
            return trace.skip(root, f"too dense to gain: {cost}")
        if any(dims(value)[:1] != dims(root)[:1] for value in read):
            return trace.skip(root, "a reader sees it with other rows")
        trace.choose(root, cost)
        emit = Emitter(step.graph, "forward")
        name = str(root.name)
        bits = emit("BitmapPack", root, name=f"{name}.bitmap", n_outputs=2, capacity=capacity)
        values = emit.nodes[0].outputs[1]
        insert_after_definition(step, root, emit.nodes)
        for value in read:
            for node in late(value):
                read_bitmap(step, node, value, (bits, values))
        return 1

    def _density(self, root: ir.Value) -> tuple[float | None, str]:
        """What to plan for, and where that comes from; None for what has no zeros to speak of."""
        measured, expected = measured_density(root), expected_density(root)
        if measured is None:
            return expected, "expected"
        padded = min(measured * self.margin, 1.0)
        return padded if padded < 1 or expected is not None else None, "measured, with a margin"


def read_bitmap(
    step: TrainingStep, node: ir.Node, value: ir.Value, encoded: tuple[ir.Value, ir.Value]
) -> None:
    """Let `node` read the encoded form of `value`: as it is, or a decoded copy of its own."""
    shape = list(dims(value)[1:])
    if [v for v in node.inputs if v is value] == [value] and _reads_bitmap(node, value):
        emit = Emitter(step.graph, "backward")
        if node.op_type == "ReluGrad":
            emit("BitmapReluGrad", node.inputs[0], *encoded, name=str(node.name), shape=shape)
        else:
            own = {name: attribute.value for name, attribute in node.attributes.items()}
            dy = node.inputs[1]
            emit("BitmapConvWeightGrad", *encoded, dy, name=str(node.name), shape=shape, **own)
        replace_node(step, node, emit)
        return
    emit = Emitter(step.graph, "rebuild")
    decoded = emit("BitmapUnpack", *encoded, name=f"{value.name}.decoded", shape=shape)
    redirect(node, value, decoded)
    step.graph.insert_before(node, emit.nodes)


def _reads_bitmap(node: ir.Node, value: ir.Value) -> bool:
    """Whether a kernel does the work of `node` on bits and values."""
    if node.op_type == "ConvWeightGrad":
        return node.inputs[0] is value and len(dims(value)) <= 4  # volumes are left to numpy
    return node.op_type == "ReluGrad" and node.inputs[1] is value
