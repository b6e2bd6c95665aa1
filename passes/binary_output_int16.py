"""binary-output-int16: keep the integer output of a binary layer in 16 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from bnnopt.analysis import integer_bound, is_binary, is_kept, saved
from bnnopt.ops import Emitter
from bnnopt.passes.base import Pass, Trace
from bnnopt.passes.rewriting import insert_after_definition, late, redirect
from bnnopt.training_step import TrainingStep

INT16_MAX = 32767


@dataclass(frozen=True)
class BinaryOutputInt16(Pass):
    """Keep the output of a binary convolution or dense layer as int16.

    Forward:   y = xb * wb, both of -1 and +1: an integer of at most the fan-in.
    Backward:  batch norm reads y, cast back.
    Saves:     32 bits an element become 16, without computing y again (see
               recompute-binary-products, which saves all 32).  Numbers: bit-exact.
    Skips:     a fan-in above 32,767; a product with a real operand.
    """

    name: ClassVar[str] = "binary-output-int16"

    def run(self, step: TrainingStep, trace: Trace) -> int:
        """See `Pass.run`."""
        kept = [value for values in saved(step).values() for value in values if is_kept(value)]
        return sum(self._narrow(step, trace, value) for value in kept)

    def _narrow(self, step: TrainingStep, trace: Trace, y: ir.Value) -> int:
        bound = integer_bound(y)
        if bound is None or is_binary(y) or y.dtype != ir.DataType.FLOAT or not late(y):
            return 0
        if bound > INT16_MAX:
            return trace.skip(y, f"its magnitude can reach {bound}, above {INT16_MAX}")
        emit = Emitter(step.graph, "forward")
        narrow = emit("Cast", y, name=f"{y.name}.int16", to=int(ir.DataType.INT16))
        insert_after_definition(step, y, emit.nodes)
        for node in late(y):
            emit = Emitter(step.graph, "rebuild")
            wide = emit("Cast", narrow, name=f"{y.name}.wide", to=int(ir.DataType.FLOAT))
            redirect(node, y, wide)
            step.graph.insert_before(node, emit.nodes)
        return 1
