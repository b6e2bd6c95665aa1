"""int8-latents: keep the latent weights of binary layers in int8."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from bnnopt.metadata import Key
from bnnopt.ops import Emitter, Form, form, traits
from bnnopt.passes.infra.base import Pass, Trace
from bnnopt.passes.shared.rewriting import replace_node
from bnnopt.training_step import TrainingStep, phase, readers, store_as

PLACES = 128.0  # on either side of 0


@dataclass(frozen=True)
class Int8Latents(Pass):
    """Keep the latent weights of binary layers in int8, rounded stochastically.

    Forward:   sign(w) = sign(q), where q stands for w = (q + 1/2) unit: none is 0.
    Update:    in float32 as before; q = floor(w / unit - 1/2 + f), f from 0 to 1 by chance, from
               -128 to 127. So a weight stays within 128 units of 0, where a clipped estimator
               lets all gradients pass.
    Saves:     8 of the 16 bits a latent weight that float16-state leaves.
    Numbers:   lossy: the mean of w is exact, its noise a step is at most half a unit; smaller units
               make less noise, and end sooner.
    Skips:     a weight that something reads for more than its sign or a scale; a step in float32,
               as without float16-state; an estimator that ends within 128 units.
    Source:    Gupta et al., arXiv:1502.02551 (stochastic rounding).

    Attributes
    ----------
    unit : float
        Between two weights; 2^-9 of the default, for weights up to 1/4.
    """

    unit: float = 2.0**-9

    name: ClassVar[str] = "int8-latents"
    level: ClassVar[None] = None
    after: ClassVar[Mapping[str, str]] = {
        "float16-state": "narrows what that has narrowed",
    }
    lossless: ClassVar[bool] = False
    min_cosine: ClassVar[float] = 0.999
    changes_storage: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.unit < math.inf:
            self.refuse("unit", self.unit, "a number above 0")

    def run(self, step: TrainingStep, trace: Trace) -> int:
        """See `Pass.run`."""
        steps = [node for node in step.graph if Key.PARAMETER in node.metadata_props]
        return sum(self._narrow(step, trace, node) for node in steps)

    def _narrow(self, step: TrainingStep, trace: Trace, node: ir.Node) -> int:
        w = node.inputs[0]
        assert w is not None
        others = [n for n in readers(w) if n is not node]
        if not any(_takes_signs(n) for n in others):
            return 0
        if w.dtype != ir.DataType.FLOAT16:
            return 0 if w.dtype == ir.DataType.INT8 else trace.skip(w, "it is not in float16")
        strange = [n for n in others if not (n.op_type == "Cast" or _packs_signs(n))]
        if strange:
            return trace.skip(w, f"{strange[0].op_type} {strange[0].name!r} reads it")
        limit = node.attributes["limit"].as_float() if Form.SIGNS in form(node) else math.inf
        if limit < PLACES * self.unit:
            return trace.skip(w, f"its estimator ends at {limit:g}, {PLACES:g} units do not fit")
        for cast in [n for n in others if n.op_type == "Cast"]:
            self._widen(step, cast, w)
        store_as(w, ir.DataType.INT8)
        node.outputs[0].type = ir.TensorType(ir.DataType.INT8)
        node.attributes["w_unit"] = ir.AttrFloat32("w_unit", self.unit)
        if Form.SIGNS in form(node):
            node.attributes["limit"] = ir.AttrFloat32("limit", PLACES)  # of q: none is beyond
        return 1

    def _widen(self, step: TrainingStep, cast: ir.Node, w: ir.Value) -> None:
        """Read w as floats in the place of a cast, and where its gradient ends, everywhere."""
        reach = PLACES * self.unit
        for node in [n for n in readers(cast.outputs[0]) if n.op_type == "ClipGrad"]:
            low, high = (node.attributes[name].as_float() for name in ("low", "high"))
            if low <= -reach and reach <= high and node.inputs[1] is cast.outputs[0]:
                assert node.inputs[0] is not None
                node.outputs[0].replace_all_uses_with(node.inputs[0])
                step.graph.remove(node, safe=True)
        if not cast.outputs[0].uses():
            step.graph.remove(cast, safe=True)
            return
        emit = Emitter(step.graph, phase(cast))
        emit("WidenLatents", w, name=str(cast.outputs[0].name), unit=self.unit)
        replace_node(step, cast, emit)


def _packs_signs(node: ir.Node) -> bool:
    """Whether it packs signs with that of 0 for plus, as q has it."""
    return node.op_type == "BinarizePack" and node.attributes["zero"].as_float() > 0


def _takes_signs(node: ir.Node) -> bool:
    """Whether it is for the signs of a weight, perhaps behind a cast."""
    if node.op_type == "Cast":
        return any(traits(n).binarizes or _packs_signs(n) for n in readers(node.outputs[0]))
    return _packs_signs(node)
