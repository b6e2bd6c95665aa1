"""Readers that make floats of what is kept narrow, a piece at a time as they read it."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from bnnopt.ops import Emitter, dims, is_view
from bnnopt.passes.shared.rewriting import redirect
from bnnopt.runtime.kernels.compiled.kernel import Sizes
from bnnopt.runtime.kernels.compiled.table import reads_halves
from bnnopt.training_step import TrainingStep, phase, readers


def reads(rule: Callable[[str, Sizes], frozenset[int]], reader: ir.Node, value: ir.Value) -> bool:
    """Whether a kernel takes a value in the form that `rule` is of, wherever it reads it."""
    inputs, outputs = (
        [() if v is None or not v.name else dims(v) for v in values]
        for values in (reader.inputs, reader.outputs)
    )
    attributes = {name: attribute.value for name, attribute in reader.attributes.items()}
    may_be = rule(reader.op_type, Sizes(inputs, outputs, attributes))
    return all(i in may_be for i, v in enumerate(reader.inputs) if v is value)


def read_wide(step: TrainingStep, reader: ir.Node, w: ir.Value) -> None:
    """Let `reader` read w, float16 now, in float32: piece by piece, or cast right before it."""
    emit = Emitter(step.graph, "forward" if phase(reader) == "forward" else "rebuild")
    name = f"{w.name}.wide"
    if _widens(reader, w):
        wide = emit("WidenOnRead", w, name=name)
    else:
        wide = emit("Cast", w, name=name, to=int(ir.DataType.FLOAT))
    redirect(reader, w, wide)
    step.graph.insert_before(reader, emit.nodes)


def _widens(reader: ir.Node, value: ir.Value) -> bool:
    """Whether it widens the value as it reads it; of a view, whatever reads that."""
    if not is_view(reader):
        return reads(reads_halves, reader, value)
    shown = [output for output in reader.outputs if output.name]
    is_read = all(_widens(node, output) for output in shown for node in readers(output))
    return is_read and not any(output.is_graph_output() for output in shown)
