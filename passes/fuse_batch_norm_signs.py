"""fuse-batch-norm-signs: let batch norm write the bits that are read of its output, and no more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from bnnopt.ops import Emitter, dims, family, form, in_form
from bnnopt.passes.infra.base import Pass, Trace
from bnnopt.passes.shared.rewriting import take_over
from bnnopt.training_step import TrainingStep, phase, readers

BITS = "BatchNormalizationSigns"


@dataclass(frozen=True)
class FuseBatchNormSigns(Pass):
    """Make the sign bits and the mask of a batch norm's output in one kernel, without the output.

    Forward:   y = batch_norm(x);  signs = y >= 0;  mask = |y| <= 1      y: (N, C, ...) float32
    Saves:     y, which was written once and read twice: time, and its bytes where it could not take
               over those of x.  Numbers: bit-exact, the same formula for every element.
    Skips:     y has another reader, as in a residual network.
    Source:    Wang et al., arXiv:2102.04270, algorithm 2, lines 4 and 5.
    """

    name: ClassVar[str] = "fuse-batch-norm-signs"
    after: ClassVar[Mapping[str, str]] = {
        "sign-pack": "writes the bits that are kept",
        "mask-pack": "writes the mask that is kept",
        "packed-products": "no product reads the floats any more",
    }

    def run(self, step: TrainingStep, trace: Trace) -> int:
        """See `Pass.run`."""
        nodes = [node for node in step.graph if family(node) == "BatchNormalizationTraining"]
        return sum(self._fuse(step, trace, node) for node in nodes)

    def _fuse(self, step: TrainingStep, trace: Trace, norm: ir.Node) -> int:
        y = norm.outputs[0]
        packs = {node.op_type: node for node in readers(y) if _packs_bits(node)}
        if not packs:
            return 0
        others = [node for node in readers(y) if node not in packs.values()]
        if others:
            return trace.skip(norm, f"{y.name!r} is read by {others[0].op_type} {others[0].name!r}")
        if y.is_graph_output() or any(phase(node) != "forward" for node in packs.values()):
            return trace.skip(norm, f"{y.name!r} is kept as it is")
        _replace(step, norm, packs)
        return 1


def _packs_bits(node: ir.Node) -> bool:
    return node.op_type == "BinarizePack" or node.op_type == "RangePack"


def _packed(pack: ir.Node | None) -> ir.Value | None:
    return pack.outputs[0] if pack is not None else None


def _replace(step: TrainingStep, norm: ir.Node, packs: dict[str, ir.Node]) -> None:
    attributes = {name: norm.attributes[name].value for name in ("epsilon", "momentum")}
    attributes |= {"zero": 1.0, "low": 0.0, "high": 0.0}  # of the bits that nobody reads
    attributes["shape"] = list(dims(norm.inputs[0])[1:])
    for pack in packs.values():
        attributes |= {name: attribute.value for name, attribute in pack.attributes.items()}
    bits = [_packed(packs.get("BinarizePack")), _packed(packs.get("RangePack"))]
    old = [*bits, *norm.outputs[1:], None, None]  # nor are the levels read
    emit = Emitter(step.graph, phase(norm))
    fused = in_form(BITS, form(norm))
    assert fused is not None
    emit(fused, *norm.inputs, name=str(norm.name), n_outputs=len(old), **attributes)
    (new,) = emit.nodes
    step.graph.insert_before(norm, new)
    for value, replacement in zip(old, new.outputs, strict=True):
        take_over(value, replacement)
    step.graph.remove([*packs.values(), norm], safe=True)
    new.name = norm.name
