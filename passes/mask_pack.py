"""mask-pack: keep one bit per element where the backward pass only asks for a mask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from bnnopt.analysis import is_from_forward, kept_values, late_readers, roots
from bnnopt.ops import Emitter, dims, is_view, traits
from bnnopt.passes.infra.base import Pass, Trace
from bnnopt.passes.shared.rewriting import (
    insert_after_definition,
    late,
    read_late,
    redirect,
    replace_node,
)
from bnnopt.training_step import TrainingStep


@dataclass(frozen=True)
class MaskPack(Pass):
    """Keep the bits of low <= x <= high (STE, Clip) or y > 0 (ReLU), not x or y.

    Forward:   xb = sign(x), or y = relu(x)
    Backward:  dx = dxb where |x| <= 1, or dx = dy where y > 0: both read one bit an element.
    Saves:     32 bits an element become 1; the 8 of a boolean mask become 1.  Numbers: bit-exact.
    Skips:     x is kept anyway, because another backward node reads its value; a scalar.
    Source:    Wang et al., arXiv:2102.04270, algorithm 2, line 13; Gist (ISCA 2018) for ReLU.
    """

    name: ClassVar[str] = "mask-pack"
    after: ClassVar[Mapping[str, str]] = {
        "rebuild-activations": "packs a mask where no value is read any more",
    }

    def run(self, step: TrainingStep, trace: Trace) -> int:
        """See `Pass.run`."""
        root_of = roots(step)
        kept = kept_values(step)
        count = sum(
            self._pack_grad(step, trace, node, kept[root_of[source]])
            for node in list(step.graph)
            if _compares(node) and (source := node.inputs[1]) is not None
            if root_of[source] in kept
        )
        booleans = [
            value
            for values in kept.values()
            for value in read_late(values)
            if value.dtype == ir.DataType.BOOL
        ]
        return count + sum(_pack_boolean(step, trace, value) for value in booleans)

    def _pack_grad(
        self, step: TrainingStep, trace: Trace, node: ir.Node, views: list[ir.Value]
    ) -> int:
        x, dy = node.inputs[1], node.inputs[0]
        assert x is not None
        others = [n for n in late_readers(views) if not (_compares(n) or is_view(n))]
        if others:
            kept_for = f"kept anyway: {others[0].op_type} {others[0].name!r} reads its value"
            return trace.skip(node, f"{x.name!r} is {kept_for}")
        if not is_from_forward(x):
            return trace.skip(node, f"{x.name!r} is a view made in the backward pass")
        if not dims(x):
            return trace.skip(node, f"{x.name!r} is a scalar, which has no rows of bits")
        emit = Emitter(step.graph, "forward")
        packed = _mask_of(node, x, emit)
        insert_after_definition(step, x, emit.nodes)
        emit = Emitter(step.graph, "backward")
        emit("MaskedGrad", dy, packed, name=str(node.name), shape=list(dims(x)[1:]))
        replace_node(step, node, emit)
        return 1


def _compares(node: ir.Node) -> bool:
    return traits(node).compared_input is not None


def _mask_of(node: ir.Node, x: ir.Value, emit: Emitter) -> ir.Value:
    name = f"{x.name}.mask"
    if node.op_type == "ReluGrad":
        return emit("SignPack", x, name=name)
    low, high = node.attributes["low"].as_float(), node.attributes["high"].as_float()
    return emit("RangePack", x, name=name, low=low, high=high)


def _pack_boolean(step: TrainingStep, trace: Trace, mask: ir.Value) -> int:
    if not dims(mask):
        return trace.skip(mask, "a scalar has no rows of bits")
    emit = Emitter(step.graph, "forward")
    packed = emit("PackBits", mask, name=f"{mask.name}.packed")
    insert_after_definition(step, mask, emit.nodes)
    for node in late(mask):
        emit = Emitter(step.graph, "rebuild")
        shape = list(dims(mask)[1:])
        redirect(node, mask, emit("UnpackBits", packed, name=f"{mask.name}.unpacked", shape=shape))
        step.graph.insert_before(node, emit.nodes)
    return 1
