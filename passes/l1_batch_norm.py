"""l1-batch-norm: divide by the mean absolute deviation instead of the standard deviation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from bnnopt.ops import Emitter, Form, in_form
from bnnopt.passes.infra.base import Pass, Trace
from bnnopt.passes.shared.rewriting import take_over
from bnnopt.training_step import TrainingStep, phase


@dataclass(frozen=True)
class L1BatchNorm(Pass):
    """Normalise by the mean absolute deviation of each channel, without squares and roots.

    Forward:   psi = mean|y - mu|;  x = (y - mu) / psi * gamma + beta
    Backward:  dy = v - mean(v) - mean(v . xh) (s - mean(s)),  xh = (y - mu) / psi,  s = sgn(xh),
               v = gamma dx / psi: the exact derivative.
    Update:    the running variance follows psi^2, so that evaluation divides by psi as well.
    Numbers:   another function: for a normal distribution psi is sqrt(2 / pi) = 0.8 of the standard
               deviation, x - beta is as much larger, and other elements pass the estimator.
    Saves:     arithmetic, not memory.
    Source:    Wang et al., arXiv:2102.04270, algorithm 2, line 4; Wu et al., arXiv:1802.09769.
    """

    name: ClassVar[str] = "l1-batch-norm"
    level: ClassVar[int] = 2
    lossless: ClassVar[bool] = False
    changes_function: ClassVar[bool] = True

    def run(self, step: TrainingStep, trace: Trace) -> int:
        """See `Pass.run`."""
        nodes = [node for node in step.graph if in_form(node.op_type, Form.L1)]
        for node in nodes:
            _replace(step, node)
        return len(nodes)


def _replace(step: TrainingStep, node: ir.Node) -> None:
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    emit = Emitter(step.graph, phase(node))
    n_outputs = len(node.outputs)
    name = in_form(node.op_type, Form.L1)
    assert name is not None
    emit(name, *node.inputs, name="l1", n_outputs=n_outputs, **attributes)
    (new,) = emit.nodes
    step.graph.insert_before(node, new)
    new.metadata_props.update(node.metadata_props)
    for old, replacement in zip(node.outputs, new.outputs, strict=True):
        take_over(old, replacement)
    step.graph.remove(node, safe=True)
    new.name = node.name
