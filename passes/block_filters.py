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
from bnnopt.passes.shared.stems import OF_WINDOW, Stretch, backward_stem, forward_stem
from bnnopt.runtime.kernels.compiled.kernel import Sizes
from bnnopt.runtime.kernels.compiled.table import scratch_bytes
from bnnopt.training_step import TrainingStep, phase, readers


@dataclass(frozen=True)
class BlockFilters(Pass):
    """Run a convolution and its batch norm by some filters at a time, and so the way back.

    Forward:   y[c] = x * w[c];  z[c] = max_pool(y[c]);  signs[c], mask[c] = batch_norm(z[c])
               for one half of the filters c, then for the other: none of it reads another channel.
               z[c] = max_pool(relu(batch_norm(y[c]))) as well, of real convolutions behind which
               pool-batch-norm-backward needs no y: the stem of a residual network.
    Backward:  dx[c] = dy * w[c];  dy1[c] = d batch_norm(dx[c]);  dw1[c] = x1^T dy1[c]
               for 24 channels c, where the first layer is behind a binary one; of the stem
               dy1[c] = d max_pool(relu(batch_norm)), for 16.
    Saves:     half of y and of z, and nearly all of the first layer's gradient map. While that of
               the second is float16, -O1 and -O2, it is written over that and costs nothing.
    Numbers:   bit-exact, the same kernels; but a maximum that a ReLU makes 0 may have another
               place, which its gradient does not ask for.
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
        "pool-batch-norm-backward": "takes in the gradient that needs no map",
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
        pooled = [n for n in step.graph if n.op_type == "L1BatchNormalizationPoolGrad"]
        count = sum(self._block(step, trace, norm) for norm in norms)
        count += sum(self._block_gradient(step, trace, grad) for grad in grads)
        return count + sum(self._block_stem(step, trace, grad) for grad in pooled)

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
        return _put_chain(
            step, trace, Stretch(y, chain, name, _operands(chain), _attributes(chain), old)
        )

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
        chain = [product, norm, last]
        return _put_chain(step, trace, Stretch(y, chain, name, operands, attributes, old))

    def _block_stem(self, step: TrainingStep, trace: Trace, grad: ir.Node) -> int:
        """A convolution, batch norm and pooling; what its gradient is of has to be there still."""
        dx = grad.outputs[0]
        if size_bytes(dx) < 1024 * self.least_kib:
            return 0
        count = 0
        for match in (forward_stem, backward_stem):
            found = match(grad)
            count += trace.skip(dx, found) if isinstance(found, str) else _put(step, trace, found)
        return count


def _producer(node: ir.Node) -> ir.Node | None:
    """What makes the map that a node reads in the forward pass, if that is all it makes it for."""
    value = node.inputs[0]
    maker = value.producer() if value is not None else None
    if maker is None or value is None or value.is_graph_output() or phase(maker) != "forward":
        return None
    return maker


def _scratch(node: ir.Node) -> int:
    """What it needs beside its operands."""
    own = {name: attribute.value for name, attribute in node.attributes.items()}
    read = [dims(value) if value is not None else () for value in node.inputs]
    return scratch_bytes(node.op_type, Sizes(read, [dims(node.outputs[0])], own))


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


def _put_chain(step: TrainingStep, trace: Trace, found: Stretch) -> int:
    """`_put` of nodes of which each is all that reads the one before."""
    for node, reader in itertools.pairwise(found.nodes):
        others = [r for r in readers(node.outputs[0]) if r is not reader]
        if others:
            return trace.skip(found.y, f"{others[0].op_type} {others[0].name!r} reads it too")
    return _put(step, trace, found)


def _put(step: TrainingStep, trace: Trace, found: Stretch) -> int:
    """Put one operator in the place of the nodes, if it pays."""
    y, maker, attributes = found.y, found.y.producer(), found.attributes
    assert maker is not None
    needed = scratch_bytes(found.name, Sizes([dims(v) for v in found.inputs], [], attributes))
    whole = size_bytes(y) + max(map(_scratch, found.nodes))
    if not 0 < needed < whole:
        return trace.skip(y, f"it needs {whole} B, a block of it {needed} B")
    trace.choose(y, f"it needs {whole} B, a block of it {needed} B")
    last, name = found.nodes[-1], str(maker.name)
    emit = Emitter(step.graph, phase(last))
    emit(found.name, *found.inputs, name=name, n_outputs=len(found.outputs), **attributes)
    (new,) = emit.nodes
    step.graph.insert_before(last, new)
    for value, replacement in zip(found.outputs, new.outputs, strict=False):
        take_over(value, replacement)
    step.graph.remove(found.nodes[::-1], safe=True)
    new.name = name
    return 1
