"""pow2-gradients: the gradient of a layer's output as signed powers of two, in 5 bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from bnnopt.analysis import Buffer, in_place_pairs, size_bytes
from bnnopt.ops import Emitter, Form, dims, pow2_row_bytes, traits
from bnnopt.passes.in_place import homes
from bnnopt.passes.infra.base import Pass, Trace
from bnnopt.passes.shared.narrow_gradients import products_by_dy, read_narrow
from bnnopt.passes.shared.rewriting import insert_after_definition
from bnnopt.training_step import TrainingStep, readers


@dataclass(frozen=True)
class Pow2Gradients(Pass):
    """Keep the gradient of a binary layer's output in 5 bits while that of its input is made.

    Backward:  dy -> sign and 4-bit exponent, one unit a tensor; dw and dx are sums of the powers of
               two, which the kernels decode tile by tile: dy dies before dx is there.
    Saves:     beside dx, 5 bits an element of dy instead of 16 or 32.
    Numbers:   lossy: an element is up to half an octave off, below 2^-14.5 of the largest it is 0.
               The paper has no code for 0 and halves the largest; see Pow2Pack. Infinity and NaN
               make all of dw and dx NaN, and the step refuses to go on. Measured over
               all layers of MLP, CNV and BinaryNet: cosines of weights 0.82 and more, of the
               biases of batch norm, sums that all but cancel, 0.77 and more.
    Skips:     a dy that is packed already; a dx that is written over dy (stream-gradients,
               in-place): one map is less than a map and 5 bits; a dx smaller than the packed dy, or
               none, as packing needs room for both forms of dy; a dy that something else reads.
    Source:    Wang et al., arXiv:2102.04270v1.
    """

    name: ClassVar[str] = "pow2-gradients"
    level: ClassVar[None] = None
    after: ClassVar[Mapping[str, str]] = {
        "stream-gradients": "packs what is not written over",
    }
    lossless: ClassVar[bool] = False
    min_cosine: ClassVar[float] = 0.6

    def run(self, step: TrainingStep, trace: Trace) -> int:
        """See `Pass.run`."""
        layers, home = products_by_dy(step, Form.POW2, trace), homes(step)
        return sum(self._pack(step, trace, dy, nodes, home) for dy, nodes in layers.items())

    def _pack(
        self,
        step: TrainingStep,
        trace: Trace,
        dy: ir.Value,
        nodes: list[ir.Node],
        home: dict[ir.Value, Buffer],
    ) -> int:
        inner = [node for node in nodes if in_place_pairs(node)]
        if inner:
            return trace.skip(inner[0], f"its dx is written over its dy of {size_bytes(dy)} B")
        others = [node for node in _late_readers(step, home[dy], dy) if node not in nodes]
        if others:
            return trace.skip(dy, f"kept anyway: {others[0].op_type} {others[0].name!r} reads it")
        packed = dims(dy)[0] * pow2_row_bytes(dims(dy))
        beside = sum(size_bytes(n.outputs[0]) for n in nodes if traits(n).gives_dx)
        if packed >= min(beside, size_bytes(dy)):
            return trace.skip(dy, f"packed {packed} B, dx {beside} B: both forms of dy need more")
        trace.choose(dy, f"packed {packed} B, dense {size_bytes(dy)} B, beside dx of {beside} B")
        self._rewrite(step, dy, nodes)
        return 1

    def _rewrite(self, step: TrainingStep, dy: ir.Value, nodes: list[ir.Node]) -> None:
        emit = Emitter(step.graph, "backward")
        packed = emit("Pow2Pack", dy, name=f"{dy.name}.pow2", n_outputs=2)
        _, unit = emit.nodes[0].outputs
        for node in nodes:
            read_narrow(step, node, (packed, unit), Form.POW2, dy_shape=list(dims(dy)[1:]))
        insert_after_definition(step, dy, emit.nodes)


def _late_readers(step: TrainingStep, buffer: Buffer, dy: ir.Value) -> list[ir.Node]:
    """What reads the buffer of dy once dy is in it."""
    position = {node: i for i, node in enumerate(step.graph)}
    producer = dy.producer()
    made = position[producer] if producer is not None else -1
    found = (node for value in buffer.values for node in readers(value))
    return [node for node in found if position[node] > made]
