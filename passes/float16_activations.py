"""float16-activations: outputs of real convolutions in half precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from bnnopt.ops import Emitter, dims, window
from bnnopt.ops.emit import Attribute
from bnnopt.passes.base import Pass, Trace
from bnnopt.passes.precision import READS_X
from bnnopt.passes.rewriting import replace_node
from bnnopt.training_step import TrainingStep, phase, readers


@dataclass(frozen=True)
class Float16Activations(Pass):
    """Write the output of a real convolution in float16 where only batch norm reads it.

    Forward:   y = conv(x, wb) of a real x, as in the first layer; z = batch_norm(y)
    Backward:  y, kept or computed again, is float16 as well.
    Saves:     16 bits an element of y.
    Numbers:   lossy: y is summed in float32 and rounded to 11 digits (at most 65504). A sign whose
               input is next to 0 may turn, some 1 in 10^5; a deep binary network with random
               weights amplifies even that (CNV: to a third of the last layer's signs), so this is
               another function, and gradients are compared with its own; training is not hurt.
    Skips:     an output that something else reads; a convolution with a bias, or not in float32.
    Source:    Wang et al., arXiv:2102.04270, algorithm 2 (Y in float16).
    """

    name: ClassVar[str] = "float16-activations"
    level: ClassVar[int] = 2
    lossless: ClassVar[bool] = False
    changes_function: ClassVar[bool] = True

    def run(self, step: TrainingStep, trace: Trace) -> int:
        """See `Pass.run`."""
        convolutions = [node for node in step.graph if node.op_type == "Conv"]
        return sum(self._narrow(step, trace, node) for node in convolutions)

    def _narrow(self, step: TrainingStep, trace: Trace, node: ir.Node) -> int:
        y, w = node.outputs[0], node.inputs[1]
        users = readers(y)
        others = [user for user in users if not _reads_any(user, y)]
        if others or not users:
            reader = others[0].op_type if others else "nothing"
            return trace.skip(node, f"{reader} reads it, in float32")
        if len(node.inputs) > 2 or y.dtype != ir.DataType.FLOAT:
            return trace.skip(node, "it has a bias, or is not in float32")
        emit = Emitter(step.graph, phase(node))
        group = node.attributes.get("group")
        attributes: dict[str, Attribute] = {
            "dtype": int(ir.DataType.FLOAT16),
            "group": group.as_int() if group is not None else 1,
            **window(node, dims(w)[2:]).attributes(),
        }
        emit("RealConv", *node.inputs, name=str(node.name), n_outputs=1, **attributes)
        replace_node(step, node, emit)
        return 1


def _reads_any(node: ir.Node, y: ir.Value) -> bool:
    return node.op_type in READS_X and node.inputs[READS_X[node.op_type]] is y
