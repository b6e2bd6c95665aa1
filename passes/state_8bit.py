"""state-8bit: keep the momentum of the optimiser in int8."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from bnnopt.metadata import Key
from bnnopt.ops import Emitter, Form, dims, family, form, in_form
from bnnopt.ops.optimizer_forms import N_PEAKS
from bnnopt.passes.infra.base import Pass, Trace
from bnnopt.passes.shared.rewriting import stand_for
from bnnopt.training_step import Role, TrainingStep, mark_update, set_role, store_as

HEADROOM = 2.0  # Adam's and SGD's with momentum grow fast at first
BOP_HEADROOM = 1.125  # its gamma is small, and so is the step of its momentum


@dataclass(frozen=True)
class State8bit(Pass):
    """Keep the momentum of each weight in int8, with a unit a filter, rounded stochastically.

    Update:    m = q u, then as before in float32; q = round(m / u) by chance, u = h max|m| / 127
               over the filter after the step before, h the headroom: u is known before the first
               element is rounded, so that tiles of a filter are stepped in any order.
    Saves:     8 bits a weight, but for 16 B a filter.
    Numbers:   lossy: the momentum's mean is exact, its noise a step is at most u / 2. What grows by
               more than h = 2 (Bop: 1.125) from one step to the next is cut off at 127 u, and the
               first step's momentum is lost, as its filter has had no maximum yet.
    Skips:     a weight that float16-state has left in float32; filters of 16 elements or fewer.
               Second moments stay in float16: drop-adam-second-moment removes them.
    Source:    Dettmers et al., arXiv:2110.02861 (8-bit states; there by blocks of 2,048 elements);
               Micikevicius et al., arXiv:2209.05433, for scales that follow the step before.
    """

    name: ClassVar[str] = "state-8bit"
    level: ClassVar[int] = 3
    after: ClassVar[Mapping[str, str]] = {
        "float16-state": "narrows what that has narrowed",
    }
    lossless: ClassVar[bool] = False
    min_cosine: ClassVar[float] = 0.999
    changes_storage: ClassVar[bool] = True

    def run(self, step: TrainingStep, trace: Trace) -> int:
        """See `Pass.run`."""
        steps = [node for node in step.graph if Key.PARAMETER in node.metadata_props]
        return sum(self._narrow(step, trace, node) for node in steps)

    def _narrow(self, step: TrainingStep, trace: Trace, node: ir.Node) -> int:
        w, gradient, *kept = node.inputs
        assert w is not None
        wanted = in_form(family(node), form(node) & ~Form.HALF | Form.BYTES)
        if wanted is None or Form.BYTES in form(node) or len(dims(w)) < 2:
            return 0  # float16-state leaves vectors as they are
        if Form.HALF not in form(node):
            return trace.skip(w, "its momentum is not in float16")
        momentum = kept[0]
        assert momentum is not None
        n_filters, *shape = dims(momentum)
        if math.prod(shape) <= 4 * N_PEAKS:
            return trace.skip(w, f"a filter of {math.prod(shape)} elements: its unit needs as much")
        store_as(momentum, ir.DataType.INT8)
        emit = Emitter(step.graph, "update")
        peaks = ir.val(
            emit.unique(f"{momentum.name}.peaks"),
            dtype=ir.DataType.FLOAT,
            shape=(n_filters, N_PEAKS),
        )
        step.graph.inputs.append(set_role(peaks, Role.STATE))
        emit(
            wanted,
            *(w, gradient, peaks, *kept),
            name=str(node.name),
            n_outputs=len(node.outputs) + 1,
            headroom=BOP_HEADROOM if family(node) == "BopStep" else HEADROOM,
            **{name: attribute.value for name, attribute in node.attributes.items()},
        )
        step.graph.outputs.append(mark_update(emit.nodes[-1].outputs[1], peaks))
        (new,) = emit.nodes
        step.graph.insert_before(node, new)
        stand_for(step, node, new, [new.outputs[0], *new.outputs[2:]])
        return 1
