"""redirect-consumers: let the backward pass read what lives on anyway."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from bnnopt.analysis import is_from_forward, is_persistent, kept_values
from bnnopt.ops import Cheap, Emitter, is_view, traits
from bnnopt.passes.infra.base import Pass, Trace
from bnnopt.passes.shared.rebuilding import Rebuilder
from bnnopt.passes.shared.rewriting import late, redirect
from bnnopt.training_step import TrainingStep


@dataclass(frozen=True)
class RedirectConsumers(Pass):
    """Rebuild what depends on weights alone where the backward pass needs it, and keep none of it.

    Forward:   wb = sign(w) (or any cheap function of weights);  y = x @ wb
    Backward:  dx = dy @ wb.T reads sign(w), taken again from w, which is there until its update.
    Saves:     all bytes of wb.  Numbers: bit-exact, the same operators on the same values.
    Skips:     values that depend on the batch.
    """

    name: ClassVar[str] = "redirect-consumers"

    def run(self, step: TrainingStep, trace: Trace) -> int:
        """See `Pass.run`."""
        rebuilder = Rebuilder(may_copy=_is_cheap, may_read=is_persistent)
        count = 0
        for root, views in kept_values(step).items():
            if root.producer() is None:
                continue
            if rebuilder.obstacle(root) is not None:
                continue
            for value in filter(is_from_forward, views):
                for node in late(value):
                    count += _rebuild_for(step, rebuilder, node, value)
        return count


def _is_cheap(node: ir.Node) -> bool:
    return is_view(node) or Cheap.OF_WEIGHTS in traits(node).cheap


def _rebuild_for(step: TrainingStep, rebuilder: Rebuilder, node: ir.Node, value: ir.Value) -> int:
    emit = Emitter(step.graph, "rebuild")
    redirect(node, value, rebuilder.rebuild(value, emit))
    step.graph.insert_before(node, emit.nodes)
    return 1
