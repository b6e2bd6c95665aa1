"""prune-stored: keep of a layer's input only its largest elements, for the weight gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from bnnopt.analysis import kept_values, size_bytes
from bnnopt.ops import Emitter, dims, packed_row_bytes
from bnnopt.passes.bitmap import FLOAT_BYTES, read_bitmap
from bnnopt.passes.infra.base import Pass, Trace
from bnnopt.passes.shared.rewriting import insert_after_definition, late_beyond_mask
from bnnopt.training_step import TrainingStep, phase


@dataclass(frozen=True)
class PruneStored(Pass):
    """Prune the stored copy of a layer's input: the forward pass sees all of it.

    Forward:   z = conv(y) of the whole y; kept: bitmap and values of the largest |y| of each sample
    Backward:  dw reads the pruned y; dx and the masks of activations stay exact.
    Saves:     of 32 bits an element all but 1 + 32 x (1 - sparsity), a size known beforehand.
    Numbers:   lossy, in weight gradients only: they lack the terms of the smallest activations. How
               far they turn is measured and expected, not bounded: see `min_cosine`.
    Skips:     the network's own input; a backward node other than a weight gradient reads y.
    Source:    Jiang et al., Back Razor (NeurIPS 2022).

    Attributes
    ----------
    sparsity : float
        The share of each sample that is left out of the copy.
    """

    name: ClassVar[str] = "prune-stored"
    level: ClassVar[None] = None
    after: ClassVar[Mapping[str, str]] = {
        "rebuild-activations": "what is rebuilt needs no copy",
    }
    lossless: ClassVar[bool] = False
    sparsity: float = 0.8

    def __post_init__(self) -> None:
        if not 0 < self.sparsity < 1:
            self.refuse("sparsity", self.sparsity, "a number between 0 and 1")

    @property
    def min_cosine(self) -> float:
        """Half of sqrt(1 - sparsity), which is what is expected, and nothing that is proved.

        Of one sample of a dense layer dw = dy y^T, and the cosine is |y'| / |y|: the largest
        elements keep their share of the squares or more, so it is sqrt(1 - sparsity) or more. Over
        the samples of a batch and the places of a convolution terms may cancel, and in the worst
        case nothing holds; the half is for that.
        """
        return math.sqrt(1 - self.sparsity) / 2

    def run(self, step: TrainingStep, trace: Trace) -> int:
        """See `Pass.run`."""
        return sum(
            self._prune(step, trace, root, [r for r in late_beyond_mask(views) if dims(r[0])])
            for root, views in kept_values(step).items()
            if root.dtype == ir.DataType.FLOAT and root.producer() is not None
        )

    def _prune(
        self,
        step: TrainingStep,
        trace: Trace,
        root: ir.Value,
        read: list[tuple[ir.Value, ir.Node]],
    ) -> int:
        if not any(_is_weight_gradient(node, value) for value, node in read):
            return 0
        others = [node for value, node in read if not _is_weight_gradient(node, value)]
        if others:
            return trace.skip(root, f"kept anyway: {others[0].op_type} {others[0].name!r} reads it")
        if any(dims(value)[:1] != dims(root)[:1] for value, _ in read):
            return trace.skip(root, "a reader sees it with other rows")
        rows, row = dims(root)[0], math.prod(dims(root)[1:])
        keep = max(1, round((1 - self.sparsity) * row))
        capacity = 1 + rows * keep
        n_bytes = rows * packed_row_bytes(dims(root)) + FLOAT_BYTES * capacity
        if n_bytes >= size_bytes(root):
            return trace.skip(root, f"pruned {n_bytes} B, dense {size_bytes(root)} B")
        trace.choose(root, f"pruned {n_bytes} B, dense {size_bytes(root)} B")
        emit = Emitter(step.graph, "forward")
        name = f"{root.name}.pruned"
        emit("PrunedBitmapPack", root, name=name, n_outputs=2, capacity=capacity, keep=[keep])
        bits, values = emit.nodes[0].outputs
        insert_after_definition(step, root, emit.nodes)
        for value, node in read:
            read_bitmap(step, node, value, (bits, values))
        return 1


def _is_weight_gradient(node: ir.Node, x: ir.Value) -> bool:
    """Whether a backward node multiplies x by the gradient of a layer's output over the batch."""
    if phase(node) != "backward":
        return False
    if node.op_type == "ConvWeightGrad":
        return node.inputs[0] is x
    if node.op_type != "Gemm" or x not in node.inputs[:2]:
        return False
    turned = {name: node.attributes[name].as_int() for name in ("transA", "transB")}
    return (node.inputs[0] is x and turned["transA"] == 1) or (
        node.inputs[1] is x and turned["transB"] == 0
    )
