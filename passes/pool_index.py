"""pool-index: keep where in its window each maximum was, in a few bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from bnnopt.analysis import kept_values
from bnnopt.passes.infra.base import Pass, Trace
from bnnopt.passes.shared.pooling import grad_from_places, obstacle, pack_places
from bnnopt.training_step import TrainingStep, readers


@dataclass(frozen=True)
class PoolIndex(Pass):
    """Keep the place of each maximum in its window, not its place in the whole input.

    Forward:   y, i = max_pool(x)                         i: (N, C, Ho, Wo) int64
    Backward:  dx = dy scattered to i
    Saves:     64 bits an output become ceil(log2(window)): 2 for 2x2, 4 for 3x3. Pooling writes and
               its gradient reads them: there is no int64 at any time.  Numbers: bit-exact.
    Skips:     other than 2-D pooling; a window of more than 256 elements, or with padding alone; a
               dilated kernel wider than the input; a reader other than the gradient.
    Source:    Gist (Jain et al., ISCA 2018), pool encoding.
    """

    name: ClassVar[str] = "pool-index"
    after: ClassVar[Mapping[str, str]] = {
        "pool-before-join": "packs the places of each pooling on its own",
    }

    def run(self, step: TrainingStep, trace: Trace) -> int:
        """See `Pass.run`."""
        return sum(self._pack(step, trace, root) for root in list(kept_values(step)))

    def _pack(self, step: TrainingStep, trace: Trace, indices: ir.Value) -> int:
        pool = indices.producer()
        if pool is None or pool.op_type != "MaxPool" or indices is pool.outputs[0]:
            return 0
        others = [node for node in readers(indices) if node.op_type != "MaxPoolGrad"]
        reason = f"{others[0].op_type} reads its indices" if others else obstacle(pool)
        if reason is not None:
            return trace.skip(pool, reason)
        grads = readers(indices)
        packed = pack_places(step, pool)
        for node in grads:
            grad_from_places(step, node, packed)
        step.graph.remove(pool, safe=True)
        return 1
