"""pool-before-join: pool the parts of a joined map, and scatter their gradients one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from bnnopt.ops import Emitter, dims
from bnnopt.passes.infra.base import Pass, Trace
from bnnopt.passes.shared.rewriting import take_over
from bnnopt.training_step import TrainingStep, phase, readers


@dataclass(frozen=True)
class PoolBeforeJoin(Pass):
    """Join channels behind a max pooling, not in front of it.

    Forward:   y, i = max_pool(concat(a, b))  ->  y = concat(max_pool(a), max_pool(b))
    Backward:  da, db = split(scatter(dy, i))  ->  da = scatter(dy_a, i_a); db = scatter(dy_b, i_b)
    Saves:     the joined map and the gradient that the pooling scatters over it, each as large as
               all parts together.  Numbers: bit-exact, a window never spans channels.
    Skips:     what is joined along another axis; another reader of the joined map, of its indices
               or of its gradient.
    """

    name: ClassVar[str] = "pool-before-join"

    def run(self, step: TrainingStep, trace: Trace) -> int:
        """See `Pass.run`."""
        pools = [node for node in step.graph if node.op_type == "MaxPool"]
        return sum(_exchange(step, trace, node) for node in pools)


def _exchange(step: TrainingStep, trace: Trace, pool: ir.Node) -> int:
    joined = pool.inputs[0]
    assert joined is not None
    join = joined.producer()
    if join is None or join.op_type != "Concat":
        return 0
    grads = readers(pool.outputs[1]) if len(pool.outputs) > 1 else []
    reason = _obstacle(joined, join, pool, grads)
    if reason is not None:
        return trace.skip(pool, reason)
    emit = Emitter(step.graph, phase(pool))
    pools = [_pooled(emit, pool, part, bool(grads)) for part in join.inputs if part is not None]
    y = emit("Concat", *(node.outputs[0] for node in pools), name=str(join.name), axis=1)
    step.graph.insert_before(pool, emit.nodes)
    for grad in grads:
        _scatter_parts(step, grad, [node.outputs[1] for node in pools])
    take_over(pool.outputs[0], y)
    step.graph.remove(pool, safe=True)
    step.graph.remove(join, safe=True)
    return 1


def _obstacle(
    joined: ir.Value, join: ir.Node, pool: ir.Node, grads: Sequence[ir.Node]
) -> str | None:
    """Why the parts cannot be pooled by themselves; None if they can."""
    if join.attributes["axis"].as_int() % len(dims(joined)) != 1:
        return "what it pools is not joined by channel"
    if readers(joined) != [pool] or joined.is_graph_output():
        return "something else reads the joined map"
    sizes = [dims(part)[1] for part in join.inputs]
    if not all(_is_split(grad, sizes) for grad in grads):
        return "something else reads its indices, or their gradient"
    return None


def _is_split(grad: ir.Node, sizes: list[int]) -> bool:
    """Whether `grad` scatters a gradient of which nothing is read but the parts."""
    if grad.op_type != "MaxPoolGrad" or len(readers(grad.outputs[0])) != 1:
        return False
    (split,) = readers(grad.outputs[0])
    return split.op_type == "Split" and [dims(part)[1] for part in split.outputs] == sizes


def _pooled(emit: Emitter, pool: ir.Node, part: ir.Value, with_indices: bool) -> ir.Node:
    """Pool one part as `pool` does them all."""
    own = {name: attribute.value for name, attribute in pool.attributes.items()}
    emit("MaxPool", part, name=f"{part.name}.pooled", n_outputs=1 + with_indices, **own)
    return emit.nodes[-1]


def _scatter_parts(step: TrainingStep, grad: ir.Node, indices: list[ir.Value]) -> None:
    """Split the gradient of the pooled map, and scatter each part by itself."""
    (split,) = readers(grad.outputs[0])
    emit = Emitter(step.graph, phase(grad))
    dy, space = grad.inputs[0], list(grad.attributes["input_shape"].as_ints())
    assert dy is not None
    emit("Split", dy, split.inputs[1], name=f"{dy.name}.parts", n_outputs=len(indices), axis=1)
    parts = list(emit.nodes[0].outputs)
    for part, places, old in zip(parts, indices, split.outputs, strict=True):
        dx = emit("MaxPoolGrad", part, places, name=str(old.name), input_shape=space)
        take_over(old, dx)
    step.graph.insert_before(grad, emit.nodes)
    step.graph.remove(split, safe=True)
    step.graph.remove(grad, safe=True)
