"""rebuild-activations: apply batch norm and ReLU again instead of keeping what they gave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from bnnopt.analysis import is_persistent, kept_values, size_bytes
from bnnopt.metadata import Key
from bnnopt.ops import Cheap, Emitter, dims, is_view, traits
from bnnopt.passes.infra.base import Pass, Trace
from bnnopt.passes.shared.leaving import REASON, leaves
from bnnopt.passes.shared.rebuilding import Rebuilder
from bnnopt.passes.shared.rewriting import late_beyond_mask, redirect
from bnnopt.training_step import TrainingStep


@dataclass(frozen=True)
class RebuildActivations(Pass):
    """Rebuild the input of a layer from that of the batch norm before it, which is kept anyway.

    Forward:   n = batch_norm(x);  y = relu(n + shortcut);  z = conv(y)
    Backward:  d(batch_norm) reads x;  dw reads y, rebuilt from x and the shortcut right before it.
    Saves:     all bytes of y, for one or two passes over it.  Numbers: bit-exact: the statistics
               are kept, and the operators are the same.
               The levels of a quantiser between them (a clip, a rounding), norms of rows and GELU
               are rebuilt as well.
    Skips:     the chain of steps down to what is kept is longer than `longest`: then y is kept, and
               what follows is rebuilt from it.
               And the values that `leave` names, with | between them: a budget does that.
    Source:    Chen et al., arXiv:1604.06174; Bulo et al., arXiv:1712.02616, which keeps y, not x.
    """

    name: ClassVar[str] = "rebuild-activations"
    longest: int = 20
    leave: str = ""

    def __post_init__(self) -> None:
        if self.longest < 0:
            self.refuse("longest", self.longest, "a number of steps")

    def run(self, step: TrainingStep, trace: Trace) -> int:
        """See `Pass.run`."""
        kept = {root: views for root, views in kept_values(step).items() if late_beyond_mask(views)}
        candidates = [root for root in kept if dims(root) and _is_cheap(root)]
        return sum(self._rebuild(step, trace, root, kept) for root in candidates)

    def _rebuild(
        self, step: TrainingStep, trace: Trace, root: ir.Value, kept: dict[ir.Value, list[ir.Value]]
    ) -> int:
        """Rebuild `root` for all its readers, and take it out of `kept`."""
        if leaves(self.leave, root):
            return trace.skip(root, REASON)
        rebuilder = Rebuilder(
            may_copy=lambda node: is_view(node) or Cheap.OF_MAPS in traits(node).cheap,
            may_read=lambda v: is_persistent(v) or (v in kept and v is not root),
        )
        obstacle = rebuilder.obstacle(root)
        if obstacle is not None:
            return trace.skip(root, obstacle)
        n_copies = rebuilder.n_copies(root)
        if n_copies > self.longest:
            return trace.skip(root, f"kept: the chain behind it has {n_copies} steps")
        trace.choose(root, f"rebuilt in {n_copies} steps: 0 B, dense {size_bytes(root)} B")
        for value, node in late_beyond_mask(kept.pop(root)):
            emit = Emitter(step.graph, "rebuild")
            redirect(node, value, rebuilder.rebuild(value, emit))
            step.graph.insert_before(node, emit.nodes)
            if is_view(node):
                node.metadata_props[Key.PHASE] = "rebuild"
        return 1


def _is_cheap(root: ir.Value) -> bool:
    producer = root.producer()
    if producer is None or root is not producer.outputs[0]:
        return False
    return Cheap.OF_MAPS in traits(producer).cheap
