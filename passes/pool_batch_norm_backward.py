"""pool-batch-norm-backward: the gradient of a pooled batch norm from the pool and a bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from bnnopt.ops import Emitter, dims
from bnnopt.passes.infra.base import Pass, Trace
from bnnopt.passes.shared.rewriting import insert_after_definition, take_over
from bnnopt.training_step import TrainingStep, drop_unread, phase, readers

_PLACES = (
    *("input_shape", "plane", "width", "kernel_width", "row_dilation", "column_dilation"),
    *("bit_values", "bit_shape"),
)


@dataclass(frozen=True)
class PoolBatchNormBackward(Pass):
    """Differentiate an L1 batch norm in front of a max pool without its input.

    Forward:   n = l1_batch_norm(x);  y = max_pool(n), or max_pool(relu(n)); as in a ResNet's stem
               signs = n >= beta: on which side of its mean x is
    Backward:  d = dy, where y > 0 if there is a ReLU, scattered to where the maxima were;
               dx = gamma inv (d - mean(d) - (s - mean(s)) mean|xh| mean(d xh)),  s = sgn(xh)
               d is 0 but at the maxima, and there xh = (y - beta) / gamma.
    Saves:     x and the bits of the ReLU, for one bit an element of x.  Time: three passes over
               the largest map become one.
    Numbers:   lossy by rounding alone: y and x are on two grids of float16, so that s turns where
               x is within one step of its mean, and xh has 11 digits. Of a trained gamma next to 0
               the gradient is less exact, and 0 where gamma is.
    Skips:     L2 batch norm, whose gradient needs all of x; another reader between the two;
               pooling whose places are not kept (see pool-index).
    Source:    the exact derivative of L1 batch norm, Wu et al., arXiv:1802.09769; Bulo et al.,
               arXiv:1712.02616 (xh from the output).
    """

    name: ClassVar[str] = "pool-batch-norm-backward"
    level: ClassVar[int] = 2
    after: ClassVar[Mapping[str, str]] = {
        "l1-batch-norm": "differentiates L1 batch norm alone",
        "mask-pack": "reads the mask of a ReLU between the two",
        "pool-index": "scatters to the places that are kept",
    }
    lossless: ClassVar[bool] = False
    min_cosine: ClassVar[float] = 0.995

    def run(self, step: TrainingStep, trace: Trace) -> int:
        """See `Pass.run`."""
        grads = [node for node in step.graph if node.op_type == "PackedMaxPoolGrad"]
        count = sum(self._replace(step, trace, node) for node in grads)
        if count:
            drop_unread(step.graph)
        return count

    def _replace(self, step: TrainingStep, trace: Trace, pool_grad: ir.Node) -> int:
        packed = pool_grad.inputs[1]
        pool = packed.producer() if packed is not None else None
        if pool is None or pool.op_type != "PackedMaxPool":
            return 0
        found = pool.inputs[0]
        relu = found.producer() if found is not None else None
        has_relu = relu is not None and relu.op_type == "Relu"
        normalized = relu.inputs[0] if has_relu and relu is not None else found
        norm = normalized.producer() if normalized is not None else None
        if norm is None or norm.op_type != "L1BatchNormalizationTraining":
            return trace.skip(pool_grad, "it pools something else than an L1 batch norm")
        chain = _chain(pool_grad, norm)
        if chain is None:
            return trace.skip(pool_grad, f"the gradient of {norm.name!r} comes from elsewhere too")
        between = [n for v in (normalized, found) if v is not None for n in readers(v)]
        others = [n for n in between if n not in (relu, pool) and n.op_type != "SignPack"]
        if others:
            return trace.skip(pool_grad, f"{others[0].op_type} {others[0].name!r} reads between")
        _emit(step, pool_grad, chain, norm, pool, relu=int(has_relu))
        return 1


def _chain(pool_grad: ir.Node, norm: ir.Node) -> list[ir.Node] | None:
    """From the gradient of the pool to that of the batch norm, where nothing branches off."""
    chain = [pool_grad]
    while True:
        after = readers(chain[-1].outputs[0])
        if len(after) != 1 or after[0].inputs[0] is not chain[-1].outputs[0]:
            return None
        chain.append(after[0])
        if after[0].op_type == "L1BatchNormalizationGrad":
            return chain if after[0].inputs[1] is norm.inputs[0] else None
        if after[0].op_type != "MaskedGrad" or len(chain) > 2:
            return None


def _emit(
    step: TrainingStep,
    pool_grad: ir.Node,
    chain: list[ir.Node],
    norm: ir.Node,
    pool: ir.Node,
    relu: int,
) -> None:
    grad, (_, scale, bias, *_) = chain[-1], norm.inputs
    pack = Emitter(step.graph, phase(norm))
    signs = pack("ThresholdPack", norm.outputs[0], bias, name=f"{norm.name}.sides")
    insert_after_definition(step, norm.outputs[0], pack.nodes)
    emit = Emitter(step.graph, phase(grad))
    emit(
        "L1BatchNormalizationPoolGrad",
        *(pool_grad.inputs[0], pool.outputs[0], *pool_grad.inputs[1:], signs, scale, bias),
        norm.outputs[4],
        name="grad",
        n_outputs=3,
        relu=relu,
        epsilon=norm.attributes["epsilon"].as_float(),
        shape=list(dims(norm.inputs[0])[1:]),
        **{name: pool_grad.attributes[name].value for name in _PLACES},
    )
    (new,) = emit.nodes
    step.graph.insert_before(grad, new)
    for old, replacement in zip(grad.outputs, new.outputs, strict=True):
        take_over(old, replacement)
    step.graph.remove(list(reversed(chain)), safe=True)
    new.name = grad.name
