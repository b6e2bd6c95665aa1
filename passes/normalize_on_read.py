"""normalize-on-read: normalise images of 8 bits in the kernels that read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from bnnopt.analysis import is_persistent, shown_by, size_bytes
from bnnopt.ops import Emitter, is_view
from bnnopt.passes.infra.base import Pass, Trace
from bnnopt.passes.shared.on_read import reads
from bnnopt.passes.shared.rebuilding import Rebuilder
from bnnopt.passes.shared.rewriting import redirect, replace_node
from bnnopt.runtime.kernels.compiled.table import reads_bytes
from bnnopt.training_step import TrainingStep, drop_unread, phase, readers


@dataclass(frozen=True)
class NormalizeOnRead(Pass):
    """Let the first layer read images as bytes, and normalise what it reads a piece at a time.

    Forward:   y = conv(x * factor + shift, w), where x is fed as bytes
    Backward:  dw = (x * factor + shift) correlated with dy.
    Saves:     the normalised images, four times the bytes of x, in both passes.
    Numbers:   bit-exact: kernels round what they read as a normalisation in front of them does.
    Skips:     a reader whose kernel takes floats alone: it gets floats that are made right before
               it, and not kept.
    """

    name: ClassVar[str] = "normalize-on-read"

    def run(self, step: TrainingStep, trace: Trace) -> int:
        """See `Pass.run`."""
        found = [node for node in step.graph if node.op_type == "NormalizeBytes"]
        return sum(_read_as_bytes(step, trace, node) for node in found)


def _read_as_bytes(step: TrainingStep, trace: Trace, node: ir.Node) -> int:
    x, floats = node.inputs[0], node.outputs[0]
    shown = shown_by(floats)
    if any(value.is_graph_output() for value in shown):
        return trace.skip(node, f"{floats.name!r} is an output")
    rebuilder = Rebuilder(
        may_copy=lambda n: n is node or is_view(n), may_read=lambda v: v is x or is_persistent(v)
    )
    trace.choose(floats, f"read as bytes: 0 B, dense {size_bytes(floats)} B")
    for value in shown:
        for reader in [n for n in readers(value) if not is_view(n)]:
            if not reads(reads_bytes, reader, value):
                trace.skip(reader, f"{reader.op_type} takes floats: made right before it")
                _make_before(step, reader, value, rebuilder)
    emit = Emitter(step.graph, phase(node))
    emit("NormalizeOnRead", *node.inputs, name=str(floats.name))
    replace_node(step, node, emit)
    drop_unread(step.graph)
    return 1


def _make_before(
    step: TrainingStep, reader: ir.Node, value: ir.Value, rebuilder: Rebuilder
) -> None:
    emit = Emitter(step.graph, "forward" if phase(reader) == "forward" else "rebuild")
    redirect(reader, value, rebuilder.rebuild(value, emit))
    step.graph.insert_before(reader, emit.nodes)
