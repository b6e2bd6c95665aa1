"""block-filters: a convolution, its pooling and its batch norm by half of the filters at a time."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir as ir

from bnnopt.analysis import size_bytes
from bnnopt.ops import OPERATORS, Emitter, blocked_name, dims, family
from bnnopt.passes.infra.base import Pass, Trace
from bnnopt.passes.shared.rewriting import take_over
from bnnopt.runtime.kernels.compiled.kernel import Sizes
from bnnopt.runtime.kernels.compiled.table import scratch_bytes
from bnnopt.training_step import TrainingStep, phase, readers

OF_WINDOW = ("kernel_shape", "strides", "pads", "dilations")


@dataclass(frozen=True)
class BlockFilters(Pass):
    """Run a convolution, its pooling and its batch norm by half of the filters at a time.

    Forward:   y[c] = x * w[c];  z[c] = max_pool(y[c]);  signs[c], mask[c] = batch_norm(z[c])
               for the filters c of a block, as none of the three reads another channel.
    Saves:     half of y and of z; at -O1 and -O2 the backward pass holds more than these maps.
    Numbers:   bit-exact, the same kernels.
    Skips:     something else reads y or z; groups; 32 filters or fewer; a map of less than
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
        return sum(self._block(step, trace, norm) for norm in norms)

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
        for node, reader in itertools.pairwise(chain):
            others = [r for r in readers(node.outputs[0]) if r is not reader]
            if others:
                return trace.skip(y, f"{others[0].op_type} {others[0].name!r} reads it too")
        inputs, attributes = _operands(chain), _attributes(chain)
        needed = scratch_bytes(name, Sizes([dims(v) for v in inputs], [], attributes))
        whole = size_bytes(y) + _scratch(product)
        if not 0 < needed < whole:
            return trace.skip(y, f"it needs {whole} B, a block of it {needed} B")
        trace.choose(y, f"it needs {whole} B, a block of it {needed} B")
        _replace(step, chain, name, inputs, attributes)
        return 1


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
    x, w, y = (dims(value) for value in (*product.inputs, product.outputs[0]))
    return scratch_bytes(product.op_type, Sizes([x, w], [y], own))


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


def _replace(
    step: TrainingStep,
    chain: list[ir.Node],
    name: str,
    inputs: list[ir.Value],
    attributes: dict[str, Any],
) -> None:
    product, *pool, norm = chain
    old = [*norm.outputs, *(node.outputs[1] for node in pool)]
    emit = Emitter(step.graph, phase(norm))
    emit(name, *inputs, name=str(norm.name), n_outputs=len(old), **attributes)
    (new,) = emit.nodes
    step.graph.insert_before(norm, new)
    for value, replacement in zip(old, new.outputs, strict=True):
        take_over(value, replacement)
    step.graph.remove([norm, *pool, product], safe=True)
    new.name = product.name
