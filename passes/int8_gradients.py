"""int8-gradients: the gradient of a binary layer's output in int8, summed as integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from bnnopt.analysis import size_bytes
from bnnopt.ops import Emitter, Form
from bnnopt.passes.float16_state import SEED_STRIDE
from bnnopt.passes.in_place import homes, is_free, write_over
from bnnopt.passes.infra.base import Pass, Trace
from bnnopt.passes.shared.narrow_gradients import products_by_dy, read_narrow
from bnnopt.passes.shared.rewriting import insert_after_definition
from bnnopt.training_step import TrainingStep, readers, step_input

FIRST_SEED = 0x5851F42D  # apart from those of the weights


@dataclass(frozen=True)
class Int8Gradients(Pass):
    """Keep the gradient of a binary layer's output in int8 with one unit, and sum its integers.

    Backward:  q = round(dy / unit) by chance, unit = max |dy| / 127, written over dy; dw and dx are
               sums of q, in int16 and without an error, then times unit.
    Saves:     half of a float16 dy while dw is made; and time: twice as many lanes to a vector, and
               to a table of signed sums.
    Numbers:   lossy: rounding is stochastic, so dw and dx are right in the mean. Infinity and NaN
               make unit NaN, so all of dw and dx, and the step refuses to go on. Measured over all
               layers of MLP, CNV, BinaryNet and a small ResNetE: cosines of 0.997 and more.
    Skips:     a dy that something else reads, which is kept as it is anyway.
    Source:    Gupta et al., arXiv:1502.02551 (stochastic rounding).
    """

    name: ClassVar[str] = "int8-gradients"
    level: ClassVar[None] = None
    after: ClassVar[Mapping[str, str]] = {
        "packed-products": "narrows the dy of kernels that read bits",
        "float16-gradients": "dx has the type that dy had",
    }
    lossless: ClassVar[bool] = False
    min_cosine: ClassVar[float] = 0.98
    changes_storage: ClassVar[bool] = True  # the step's number, for the random bits

    def run(self, step: TrainingStep, trace: Trace) -> int:
        """See `Pass.run`."""
        count = 0
        for dy, nodes in products_by_dy(step, Form.INT8).items():
            others = [node for node in readers(dy) if node not in nodes]
            if others or dy.is_graph_output():
                reader = f"{others[0].op_type} {others[0].name!r}" if others else "the caller"
                trace.skip(dy, f"kept anyway: {reader} reads it")
                continue
            trace.choose(dy, f"{size_bytes(dy)} B are packed")
            _narrow(step, dy, nodes, (FIRST_SEED + count * SEED_STRIDE) % 2**32)
            count += 1
        return count


def _narrow(step: TrainingStep, dy: ir.Value, nodes: list[ir.Node], seed: int) -> None:
    emit = Emitter(step.graph, "backward")
    count, name = step_input(step.graph, emit.unique), f"{dy.name}.int8"
    q = emit("Int8Pack", dy, count, name=name, n_outputs=2, seed=seed)
    (pack,) = emit.nodes
    for node in nodes:
        read_narrow(step, node, (q, pack.outputs[1]), Form.INT8)
    insert_after_definition(step, dy, emit.nodes)
    if is_free(pack, (0, 0), homes(step), [*step.graph].index(pack)):
        write_over(pack, (0, 0))
