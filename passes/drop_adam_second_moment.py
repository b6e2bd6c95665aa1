"""drop-adam-second-moment: keep no second moment of a gradient whose size is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from bnnopt.ops import Emitter, Form, form, plain, traits
from bnnopt.passes.infra.base import Pass, Trace
from bnnopt.passes.shared.rewriting import replace_node
from bnnopt.training_step import Role, TrainingStep, role


@dataclass(frozen=True)
class DropAdamSecondMoment(Pass):
    """Drop Adam's second moment where the gradient is kept as signs: it is a constant.

    Update:    dw = +-1 / sqrt(fan-in), so v / (1 - b2^t) = 1 / fan-in;
               w = w - lr m / (1 - b1^t) / (1 / sqrt(fan-in) + epsilon). AdamW likewise: its decay
               reads no moment, and its epsilon is divided by sqrt(1 - b2^t).
    Saves:     32 bits a weight, of the state and of a checkpoint.
    Numbers:   the same but for rounding while |w| <= 1. Where the estimator cancelled the share c
               of an element's latest gradients (weighted as b2 does), Adam's step would be
               1 / sqrt(1 - c) times ours: ours is the shorter one.
    Skips:     gradients with sizes, as those of biases and batch norms: they keep exact Adam.
    Source:    follows from Wang et al., arXiv:2102.04270, algorithm 2, and arXiv:1412.6980.
    """

    name: ClassVar[str] = "drop-adam-second-moment"
    level: ClassVar[int] = 2
    after: ClassVar[Mapping[str, str]] = {
        "binary-weight-gradients": "drops the moment of gradients that are signs",
    }
    lossless: ClassVar[bool] = False
    changes_storage: ClassVar[bool] = True

    def run(self, step: TrainingStep, trace: Trace) -> int:
        """See `Pass.run`."""
        for node in step.graph:
            if traits(node).second_moment and node.inputs[0] is not None:
                trace.skip(node.inputs[0], "its gradient is not kept as signs")
        known = [node for node in step.graph if _is_known(node)]
        for node in known:
            _drop(step, node)
        return len(known)


def _is_known(node: ir.Node) -> bool:
    """Whether it is a step with a second moment, of a gradient that is kept as signs."""
    return form(node) == Form.SIGNS and plain(node).second_moment


def _drop(step: TrainingStep, node: ir.Node) -> None:
    w, packed, m, v, rate, count = node.inputs
    attributes = {name: a.value for name, a in node.attributes.items()}
    if node.op_type == "SignAdamStep":  # takes the bias out before it adds epsilon
        attributes |= {"beta2": 0.0, "decay": 0.0}
    assert v is not None
    assert role(v) is Role.STATE
    step.graph.outputs.remove(node.outputs[2])
    node.resize_outputs(2)
    emit = Emitter(step.graph, "update")
    emit(
        "SignFirstMomentStep",
        *(w, packed, m, rate, count),
        name=str(node.name),
        n_outputs=2,
        root=attributes["scale"],
        **attributes,
    )
    replace_node(step, node, emit)
    step.graph.inputs.remove(v)
