"""ternary-pack: keep two bits of a tensor of -1, 0 and +1 for the backward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from bnnopt.analysis import kept_values
from bnnopt.ops import Emitter, dims
from bnnopt.passes.infra.base import Pass, Trace
from bnnopt.passes.shared.rewriting import insert_after_definition, late, read_late, redirect
from bnnopt.training_step import TrainingStep

_BOOL = int(ir.DataType.BOOL)


@dataclass(frozen=True)
class TernaryPack(Pass):
    """Keep two bits an element of xt, not xt, for the backward pass.

    Forward:   xt = sign(x), with sign(0) = 0;  z = xt @ w      x: (N, K) float32, w: (K, M)
    Backward:  dw = xt.T @ dz reads what two bits give back: xt > 0, else -1; 0 where xt is 0.
    Saves:     32 bits an element of xt become 2.
    Numbers:   bit-exact.
    Skips:     a scalar; a view with other rows.
    """

    name: ClassVar[str] = "ternary-pack"
    after: ClassVar[Mapping[str, str]] = {
        "rebuild-activations": "packs what can be computed again from what is kept anyway",
    }

    def run(self, step: TrainingStep, trace: Trace) -> int:
        """See `Pass.run`."""
        return sum(
            self._pack(step, trace, root, read_late(values))
            for root, values in kept_values(step).items()
            if _is_ternary(root)
        )

    def _pack(self, step: TrainingStep, trace: Trace, root: ir.Value, read: list[ir.Value]) -> int:
        if not read:
            return 0
        if not dims(root):
            return trace.skip(root, "a scalar has no rows of bits")
        if any(dims(value)[:1] != dims(root)[:1] for value in read):
            return trace.skip(root, "a reader sees it with other rows")
        signs, others = _encode(step, root)
        for value in read:
            for node in late(value):
                _decode(step, node, value, signs, others)
        return 1


def _is_ternary(root: ir.Value) -> bool:
    node = root.producer()
    return node is not None and node.op_type == "Ternarize"


def _encode(step: TrainingStep, root: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The bits of xt > 0, and those of xt != 0."""
    emit = Emitter(step.graph, "forward")
    signs = emit("SignPack", root, name=f"{root.name}.signs")
    others = emit("Cast", root, to=_BOOL, name=f"{root.name}.is_not_zero")
    others = emit("PackBits", others, name=f"{root.name}.not_zero")
    insert_after_definition(step, root, emit.nodes)
    return signs, others


def _decode(
    step: TrainingStep, node: ir.Node, value: ir.Value, signs: ir.Value, others: ir.Value
) -> None:
    emit = Emitter(step.graph, "rebuild")
    shape = list(dims(value)[1:])
    x = emit("SignUnpack", signs, name=f"{value.name}.unpacked", shape=shape)
    redirect(node, value, emit("MaskedGrad", x, others, name=f"{value.name}.ternary", shape=shape))
    step.graph.insert_before(node, emit.nodes)
