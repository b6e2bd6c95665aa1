"""binary-output-int16: give the integer output of a binary layer 16 bits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from bnnopt.ops import family, infer_types, ints, is_view, traits
from bnnopt.passes.infra.base import Pass, Trace
from bnnopt.passes.shared.pooling import obstacle, pack_places
from bnnopt.training_step import TrainingStep, readers

INT16_MAX = 32767


@dataclass(frozen=True)
class BinaryOutputInt16(Pass):
    """Let binary convolutions and dense layers write int16, and pooling and batch norm read it.

    Forward:   y = xb * wb, both of -1 and +1: an integer of at most the fan-in.
    Backward:  batch norm reads y, kept or computed again.
    Saves:     half of the bytes of y and of its pooled values, at any time.  Numbers: bit-exact.
    Skips:     a fan-in above 32,767; another reader, which needs floats; products that do not run
               on bits (see packed-products).
    """

    name: ClassVar[str] = "binary-output-int16"
    after: ClassVar[Mapping[str, str]] = {
        "packed-products": "only kernels that read bits write int16",
        "pool-index": "only pooling that writes places reads int16",
    }

    def run(self, step: TrainingStep, trace: Trace) -> int:
        """See `Pass.run`."""
        nodes = [node for node in step.graph if traits(node).on_bits]
        return sum(self._narrow(step, trace, node) for node in nodes)

    def _narrow(self, step: TrainingStep, trace: Trace, product: ir.Node) -> int:
        y = product.outputs[0]
        if y.dtype != ir.DataType.FLOAT:
            return 0
        bound = math.prod(ints(product, "w_shape"))
        if bound > INT16_MAX:
            return trace.skip(y, f"its magnitude can reach {bound}, above {INT16_MAX}")
        reader = _reader_of_floats(y)
        if reader is not None:
            return trace.skip(y, reader)
        product.attributes["dtype"] = ir.AttrInt64("dtype", int(ir.DataType.INT16))
        infer_types(product, step.opset)
        _narrow_readers(step, y)
        return 1


def _hands_on(node: ir.Node) -> bool:
    """Whether the node's output has the elements, or some, and the type of its first input."""
    return is_view(node) or family(node) == "MaxPool"


def _reader_of_floats(value: ir.Value) -> str | None:
    """Who needs the value, or what is handed on of it, as floats; None if nobody does."""
    if value.is_graph_output():
        return f"{value.name!r} is an output"
    for use in value.uses():
        node = use.node
        if _hands_on(node):
            reason = _pooled_otherwise(node) or _reader_of_floats(node.outputs[0])
        else:
            reads = traits(node).map_input == use.idx
            reason = None if reads else f"{node.op_type} {node.name!r} reads it"
        if reason is not None:
            return reason
    return None


def _pooled_otherwise(node: ir.Node) -> str | None:
    if node.op_type != "MaxPool":
        return None
    if any(output.uses() for output in node.outputs[1:]):
        return f"MaxPool {node.name!r} gives indices"
    return obstacle(node)


def _narrow_readers(step: TrainingStep, value: ir.Value) -> None:
    for node in filter(_hands_on, readers(value)):
        handed_on = node.outputs[0]
        if node.op_type == "MaxPool":
            handed_on = _pooled(step, node)
        else:
            infer_types(node, step.opset)
        _narrow_readers(step, handed_on)


def _pooled(step: TrainingStep, pool: ir.Node) -> ir.Value:
    """A pooling that reads integers in the place of `pool`; its places are not written."""
    node = pack_places(step, pool).producer()
    assert node is not None
    node.outputs[1].name = ""
    step.graph.remove(pool, safe=True)
    return node.outputs[0]
