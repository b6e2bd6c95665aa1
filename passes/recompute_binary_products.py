"""recompute-binary-products: keep no output of a binary convolution or dense layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from bnnopt.analysis import (
    is_binary_product,
    is_persistent,
    kept_values,
    late_readers,
)
from bnnopt.ops import Cheap, Emitter, is_view, traits
from bnnopt.passes.infra.base import Pass, Trace
from bnnopt.passes.shared.leaving import REASON, leaves
from bnnopt.passes.shared.rebuilding import Rebuilder
from bnnopt.passes.shared.rewriting import late, read_late, redirect
from bnnopt.training_step import TrainingStep, is_constant


@dataclass(frozen=True)
class RecomputeBinaryProducts(Pass):
    """Compute the input of a batch norm again from sign bits instead of keeping it.

    Forward:   y = pool(xb * wb);  z = batch_norm(y)      xb kept as bits, wb = sign(w)
    Backward:  d(batch_norm) reads y, computed again by the same operators from the same values.
    Saves:     all bytes of y, for one more binary product.  Numbers: bit-exact.
    Skips:     a product of two real tensors (recomputing it costs too much time); an operand that
               is not kept anyway; a reader that sees it through a view.
               And the values that `leave` names, with | between them: a budget does that.
    Source:    Chen et al., arXiv:1604.06174 (recomputation).
    """

    name: ClassVar[str] = "recompute-binary-products"
    leave: str = ""

    def run(self, step: TrainingStep, trace: Trace) -> int:
        """See `Pass.run`."""
        return sum(self._rebuild(step, trace, *entry) for entry in kept_values(step).items())

    def _rebuild(
        self, step: TrainingStep, trace: Trace, root: ir.Value, views: list[ir.Value]
    ) -> int:
        producer = root.producer()
        if producer is None or not _ends_in_product(root):
            return 0
        if leaves(self.leave, root):
            return trace.skip(root, REASON)
        rebuilder = Rebuilder(
            may_copy=_may_copy,
            may_read=lambda v: is_persistent(v) or (v is not root and bool(late_readers([v]))),
        )
        through_view = bool(read_late(v for v in views if v is not root))
        obstacle = "it is read through a view" if through_view else rebuilder.obstacle(root)
        if obstacle is not None:
            return trace.skip(root, obstacle)
        readers = late(root)
        emit = Emitter(step.graph, "rebuild")
        rebuilt = rebuilder.rebuild(root, emit)
        step.graph.insert_before(readers[0], emit.nodes)
        for node in readers:
            redirect(node, root, rebuilt)
        return 1


def _may_copy(node: ir.Node) -> bool:
    if traits(node).product:
        return is_binary_product(node)
    is_beside = Cheap.BESIDE_PRODUCTS in traits(node).cheap
    return is_view(node) or is_beside or _is_of_weights(node)


def _is_of_weights(node: ir.Node) -> bool:
    """Whether the node is one of the cheap steps from a weight to the operand of a product."""
    is_cheap = is_view(node) or Cheap.OF_WEIGHTS in traits(node).cheap
    return is_cheap and all(
        value is None
        or is_persistent(value)
        or is_constant(value)
        or ((producer := value.producer()) is not None and _is_of_weights(producer))
        for value in node.inputs
    )


def _ends_in_product(value: ir.Value | None) -> bool:
    """Whether a product lies behind the value, with nothing but cheap steps after it."""
    producer = value.producer() if value is not None else None
    if producer is None or value is not producer.outputs[0]:
        return False
    if traits(producer).product:
        return True
    if not (is_view(producer) or Cheap.BEHIND_PRODUCTS in traits(producer).cheap):
        return False
    return any(_ends_in_product(source) for source in producer.inputs)
