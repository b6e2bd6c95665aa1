"""block-filters: a convolution and its batch norm, there and back, by some filters at a time."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir as ir

from bnnopt.analysis import size_bytes
from bnnopt.ops import (
    OPERATORS,
    Emitter,
    blocked_gradient_name,
    blocked_name,
    dims,
    family,
)
from bnnopt.passes.infra.base import Pass, Trace
from bnnopt.passes.shared.rewriting import take_over
from bnnopt.runtime.kernels.compiled.kernel import Sizes
from bnnopt.runtime.kernels.compiled.table import scratch_bytes
from bnnopt.training_step import TrainingStep, phase, readers

OF_WINDOW = ("kernel_shape", "strides", "pads", "dilations")


@dataclass(frozen=True)
class BlockFilters(Pass):
    """Run a convolution and its batch norm by some filters at a time, and so the way back.

    Forward:   y[c] = x * w[c];  z[c] = max_pool(y[c]);  signs[c], mask[c] = batch_norm(z[c])
               for one half of the filters c, then for the other: none of it reads another channel.
    Backward:  dx[c] = dy * w[c];  dy1[c] = d batch_norm(dx[c]);  dw1[c] = x1^T dy1[c]
               for 24 channels c, where the first layer is behind a binary one.
    Saves:     half of y and of z, and nearly all of the first layer's gradient map. While that of
               the second is float16, -O1 and -O2, it is written over that and costs nothing.
    Numbers:   bit-exact, the same kernels.
    Skips:     something else reads a map; groups; 32 filters or fewer; a map of less than
               `least_kib` KiB, or than the block's memory.

    Attributes
    ----------
    least_kib : int
        Of a map that is worth the time: the input is prepared for each block.
    """

    name: ClassVar[str] = "block-filters"
    level: ClassVar[int] = 3
    after: ClassVar[Mapping[str, str]] = {
        "fuse-batch-norm-signs": "takes in the norm that writes bits",
        "pool-index": "takes in the pooling that writes places",
        "binary-output-int16": "writes the type of map that was chosen",
        "float16-activations": "writes the type of map that was chosen",
    }
    least_kib: int = 64

    def __post_init__(self) -> None:
        if self.least_kib < 0:
            self.refuse("least_kib", self.least_kib, "0 or more")

    def run(self, step: TrainingStep, trace: Trace) -> int:
        """See `Pass.run`."""
        norms = [n for n in step.graph if family(n) == "BatchNormalizationSigns"]
        grads = [n for n in step.graph if n.op_type == "BatchNormalizationSignsGrad"]
        count = sum(self._block(step, trace, norm) for norm in norms)
        return count + sum(self._block_gradient(step, trace, grad) for grad in grads)

    def _block(self, step: TrainingStep, trace: Trace, norm: ir.Node) -> int:
        source = _producer(norm)
        pool = source if source is not None and source.op_type == "PackedMaxPool" else None
        product = source if pool is None else _producer(pool)
        if product is None:
            return 0
        name = blocked_name(product.op_type, pool is not None, norm.op_type)
        y = product.outputs[0]
        if name not in OPERATORS or size_bytes(y) < 1024 * self.least_kib:
            return 0
        chain = [product, *([pool] if pool is not None else []), norm]
        old = [*norm.outputs, *(pool.outputs[1:] if pool is not None else [])]
        return _put(step, trace, chain, name, _operands(chain), _attributes(chain), old)

    def _block_gradient(self, step: TrainingStep, trace: Trace, norm: ir.Node) -> int:
        dx = norm.inputs[0]
        product = dx.producer() if dx is not None else None
        last = next(iter(readers(norm.outputs[0])), None)
        if product is None or last is None or last.op_type != "ConvWeightGrad":
            return 0
        name = blocked_gradient_name(product.op_type)
        y = product.outputs[0]
        if name not in OPERATORS or size_bytes(y) < 1024 * self.least_kib:
            return 0
        if last.attributes["group"].as_int() != 1:
            return trace.skip(y, "the first layer has groups")
        inputs = [*product.inputs, *norm.inputs[1:], last.inputs[0]]
        operands = [value for value in inputs if value is not None]
        attributes = _attributes([product, norm])
        attributes |= {f"conv_{key}": last.attributes[key].value for key in OF_WINDOW}
        old = [last.outputs[0], *norm.outputs[1:]]
        return _put(step, trace, [product, norm, last], name, operands, attributes, old)


def _producer(node: ir.Node) -> ir.Node | None:
    """What makes the map that a node reads in the forward pass, if that is all it makes it for."""
    value = node.inputs[0]
    maker = value.producer() if value is not None else None
    if maker is None or value is None or value.is_graph_output() or phase(maker) != "forward":
        return None
    return maker


def _scratch(product: ir.Node) -> int:
    """What it needs beside its map."""
    own = {name: attribute.value for name, attribute in product.attributes.items()}
    read = [dims(value) for value in product.inputs]
    return scratch_bytes(product.op_type, Sizes(read, [dims(product.outputs[0])], own))


def _operands(chain: list[ir.Node]) -> list[ir.Value]:
    values = [*chain[0].inputs, *(value for node in chain[1:] for value in node.inputs[1:])]
    return [value for value in values if value is not None]


def _attributes(chain: list[ir.Node]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for node in chain:
        own = {name: attribute.value for name, attribute in node.attributes.items()}
        if node.op_type == "PackedMaxPool":
            own = {f"pool_{k}" if k in OF_WINDOW else k: value for k, value in own.items()}
        found |= own
    return found


def _put(
    step: TrainingStep,
    trace: Trace,
    chain: list[ir.Node],
    name: str,
    inputs: list[ir.Value],
    attributes: dict[str, Any],
    old: list[ir.Value],
) -> int:
    """Put the operator `name`, which gives what was `old`, in the place of a chain, if it pays."""
    y = chain[0].outputs[0]
    for node, reader in itertools.pairwise(chain):
        others = [r for r in readers(node.outputs[0]) if r is not reader]
        if others:
            return trace.skip(y, f"{others[0].op_type} {others[0].name!r} reads it too")
    needed = scratch_bytes(name, Sizes([dims(v) for v in inputs], [], attributes))
    whole = size_bytes(y) + _scratch(chain[0])
    if not 0 < needed < whole:
        return trace.skip(y, f"it needs {whole} B, a block of it {needed} B")
    trace.choose(y, f"it needs {whole} B, a block of it {needed} B")
    emit = Emitter(step.graph, phase(chain[-1]))
    emit(name, *inputs, name=str(chain[0].name), n_outputs=len(old), **attributes)
    (new,) = emit.nodes
    step.graph.insert_before(chain[-1], new)
    for value, replacement in zip(old, new.outputs, strict=False):
        take_over(value, replacement)
    step.graph.remove(chain[::-1], safe=True)
    new.name = chain[0].name
    return 1
