"""int4-gradients: the gradient of a binary layer's output in four bits, summed as integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from bnnopt.analysis import size_bytes
from bnnopt.ops import Emitter, Form, dims, family, int4_row_bytes
from bnnopt.passes.float16_state import SEED_STRIDE
from bnnopt.passes.infra.base import Pass, Trace
from bnnopt.passes.shared.narrow_gradients import read_by_products_alone, read_narrow
from bnnopt.passes.shared.rewriting import insert_after_definition
from bnnopt.training_step import TrainingStep, step_input

FIRST_SEED = 0x2545F491  # apart from those of the weights, and of integers in int8


@dataclass(frozen=True)
class Int4Gradients(Pass):
    """Keep the gradient of a binary layer's output in four bits, and sum its integers.

    Backward:  q = round(dy / unit) by chance, two to a byte; unit = reach / 7, where reach follows
               the map: its largest magnitude, halved as long as one element in `one_in` at most is
               beyond, which is cut off. dw and dx are exact sums of q, times unit.
    Saves:     half of what int8-gradients leaves of a dy, but behind a pooling, where that pass
               keeps the pooled map and scatters integers.
    Numbers:   lossy: rounding is stochastic, and right in the mean but for what is cut off.
               Infinity and NaN make unit NaN, so all of dw and dx, and the step refuses to go on.
               Measured over all layers of BinaryNet: cosines of weights 0.88 and more.
    Skips:     a dy that something else reads, which is kept as it is anyway; one that a pooling
               makes.
    Source:    Sun et al., Ultra-Low Precision 4-bit Training of Deep Neural Networks, NeurIPS 2020
               (a scale of its own for each layer); Gupta et al., arXiv:1502.02551 (rounding).
    """

    one_in: int = 128

    name: ClassVar[str] = "int4-gradients"
    level: ClassVar[None] = None
    after: ClassVar[Mapping[str, str]] = {
        "packed-products": "narrows the dy of kernels that read bits",
        "float16-gradients": "dx has the type that dy had",
    }
    lossless: ClassVar[bool] = False
    min_cosine: ClassVar[float] = 0.7
    changes_storage: ClassVar[bool] = True  # the step's number, for the random bits

    def __post_init__(self) -> None:
        if not 2 <= self.one_in <= 2**20:
            self.refuse("one_in", self.one_in, "2 to 1048576")

    def run(self, step: TrainingStep, trace: Trace) -> int:
        """See `Pass.run`."""
        count = 0
        for dy, nodes in read_by_products_alone(step, Form.INT4, trace):
            maker = dy.producer()
            if maker is not None and family(maker) == "MaxPoolGrad":
                trace.skip(dy, "a pooling makes it: int8-gradients scatters integers")
                continue
            n_bytes = dims(dy)[0] * int4_row_bytes(dims(dy))
            trace.choose(dy, f"packed {n_bytes} B, dense {size_bytes(dy)} B")
            self._narrow(step, dy, nodes, (FIRST_SEED + count * SEED_STRIDE) % 2**32)
            count += 1
        return count

    def _narrow(self, step: TrainingStep, dy: ir.Value, nodes: list[ir.Node], seed: int) -> None:
        emit = Emitter(step.graph, "backward")
        number, name = step_input(step.graph, emit.unique), f"{dy.name}.int4"
        own = {"seed": seed, "one_in": self.one_in}
        packed = emit("Int4Pack", dy, number, name=name, n_outputs=2, **own)
        unit = emit.nodes[0].outputs[1]
        for node in nodes:
            read_narrow(step, node, (packed, unit), Form.INT4, dy_shape=list(dims(dy)[1:]))
        insert_after_definition(step, dy, emit.nodes)
