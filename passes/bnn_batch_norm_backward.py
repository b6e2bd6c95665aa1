"""bnn-batch-norm-backward: the gradient of a batch norm from the bits of its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from bnnopt.ops import Emitter, Form, dims, family, form
from bnnopt.passes.infra.base import Pass, Trace
from bnnopt.passes.shared.rewriting import take_over
from bnnopt.training_step import TrainingStep, drop_unread, phase, readers


@dataclass(frozen=True)
class BnnBatchNormBackward(Pass):
    """Differentiate a batch norm behind a sign from its sign bits and its mask, without its input.

    Forward:   y = xb * wb;  x = batch_norm(y);  xb = sgn(x), mask = |x| <= 1
               levels = mean of xh = (y - mu) inv, by channel, where the two bits are such and such
    Backward:  d = dxb . mask;  v = gamma inv d;  dy = v - mean(v) - mean(v . xh) xh, where xh is
               the level of each element's two bits;  dgamma = sum(d . xh).
    Saves:     y: it is neither kept nor computed again.  Time: one product less, and the mask is
               applied on the way.
    Numbers:   lossy: xh has four values a channel instead of its own. The paper has one size and a
               sign, dy = v - mean(v) - mean(v . omega . xb) xb; four levels take no more bits than
               are kept. Least cosine of a parameter's gradient in BinaryNet, batch 20, with L1:
               0.995 (the paper's form: 0.966). That of a trained gamma is near 0.87, as the levels
               have 3/4 of the variance of xh where the mask is set; it is 0 where all bits of a
               channel are the same. Levels follow gamma's sign and stay bounded as it goes to 0.
    Skips:     a batch norm whose result is not only signs and mask, as in a residual network or in
               the last layer; an estimator other than the clipped one.
    Source:    Wang et al., arXiv:2102.04270, algorithm 2, lines 10 to 13.
    """

    name: ClassVar[str] = "bnn-batch-norm-backward"
    level: ClassVar[int] = 2
    after: ClassVar[Mapping[str, str]] = {
        "l1-batch-norm": "differentiates the norm that is there",
        "fuse-batch-norm-signs": "reads the bits that the norm writes",
    }
    lossless: ClassVar[bool] = False
    min_cosine: ClassVar[float] = 0.7

    def run(self, step: TrainingStep, trace: Trace) -> int:
        """See `Pass.run`."""
        nodes = [node for node in step.graph if family(node) == "BatchNormalizationGrad"]
        count = sum(self._replace(step, trace, node) for node in nodes)
        if count:
            drop_unread(step.graph)
        return count

    def _replace(self, step: TrainingStep, trace: Trace, grad: ir.Node) -> int:
        dy, _, scale, mean, inv_std = grad.inputs
        assert dy is not None
        assert mean is not None
        norm, masking = mean.producer(), dy.producer()
        assert norm is not None
        if family(norm) != "BatchNormalizationSigns":
            return trace.skip(grad, f"the result of {norm.name!r} is not only signs and mask")
        signs, mask = norm.outputs[:2]
        is_masked = masking is not None and masking.op_type == "MaskedGrad"
        if masking is None or not is_masked or masking.inputs[1] is not mask or not signs.name:
            return trace.skip(grad, "its estimator is not the clipped one")
        if readers(dy) != [grad]:
            return trace.skip(grad, f"{dy.name!r} has another reader")
        tables = _tables(step, norm)
        emit = Emitter(step.graph, phase(grad))
        emit(
            "BatchNormalizationSignsGrad",
            *(masking.inputs[0], signs, mask, scale, inv_std, *tables),
            name="grad",
            n_outputs=3,
            shape=list(dims(dy)[1:]),
        )
        (new,) = emit.nodes
        step.graph.insert_before(grad, new)
        for old, replacement in zip(grad.outputs, new.outputs, strict=True):
            take_over(old, replacement)
        step.graph.remove([grad, masking], safe=True)
        new.name = grad.name
        return 1


def _tables(step: TrainingStep, norm: ir.Node) -> list[ir.Value]:
    """The batch norm's levels and slopes, which are read from now on: the same one in L2."""
    levels, slopes = norm.outputs[6:]
    names = Emitter(step.graph, phase(norm))
    levels.name = levels.name or names.unique(f"{norm.name}.levels")
    if Form.L1 not in form(norm):
        return [levels, levels]
    slopes.name = slopes.name or names.unique(f"{norm.name}.slopes")
    return [levels, slopes]
