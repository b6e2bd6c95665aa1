"""in-place: let an output take over the buffer of an input that nobody reads again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from bnnopt.analysis import Buffer, buffers, in_place_pairs, size_bytes
from bnnopt.metadata import Key
from bnnopt.ops import DOMAIN, OPERATORS, dims, traits
from bnnopt.passes.infra.base import Pass, Trace
from bnnopt.training_step import TrainingStep


@dataclass(frozen=True)
class InPlace(Pass):
    """Write elementwise results over their dying operand.

    Backward:  dx = dy where mask: dx takes over dy's buffer, so one gradient map serves a chain of
               masks, batch norms and scalings; that of a batch norm takes over x's where a shortcut
               reads dy.
    Saves:     one buffer per such node.  Numbers: bit-exact.
    Skips:     the operand is read later, is an input of the step, or has another size.
    """

    name: ClassVar[str] = "in-place"
    after: ClassVar[Mapping[str, str]] = {
        "float16-gradients": "a pair has one type",
    }

    def run(self, step: TrainingStep, trace: Trace) -> int:
        """See `Pass.run`."""
        count, home = 0, homes(step)
        for index, node in enumerate(step.graph):
            if in_place_pairs(node):
                continue
            free = [pair for pair in _candidates(node) if is_free(node, pair, home, index)]
            if free:
                o, i = free[0]
                write_over(node, free[0])
                merge(home, node.outputs[o], node.inputs[i])
                count += 1
        return count


def homes(step: TrainingStep) -> dict[ir.Value, Buffer]:
    """Every value's buffer."""
    return {value: buffer for buffer in buffers(step) for value in buffer.values}


def write_over(node: ir.Node, pair: tuple[int, int]) -> None:
    """Let an output of `node`, by its index, live in the buffer of an input."""
    node.metadata_props[Key.IN_PLACE] = "{}:{}".format(*pair)


def merge(home: dict[ir.Value, Buffer], output: ir.Value, taken: ir.Value | None) -> None:
    """Let the buffers of two values be one."""
    assert taken is not None
    a, b = home[taken], home[output]
    merged = Buffer(
        values=a.values + b.values,
        n_bytes=max(a.n_bytes, b.n_bytes),
        first=min(a.first, b.first),
        last=max(a.last, b.last),
        persistent=a.persistent or b.persistent,
    )
    home.update(dict.fromkeys(merged.values, merged))


def _candidates(node: ir.Node) -> list[tuple[int, int]]:
    if node.domain == DOMAIN:
        own = OPERATORS[node.op_type]
        pairs = [*own.in_place.items(), *own.or_in_place.items()]
        return [pair for pair in pairs if _same_size(node, pair)]
    if not traits(node).in_place:
        return []
    return [
        (0, i)
        for i, value in enumerate(node.inputs)
        if value is not None
        and dims(value) == dims(node.outputs[0])
        and value.dtype == node.outputs[0].dtype
    ]


def _same_size(node: ir.Node, pair: tuple[int, int]) -> bool:
    """Whether both are there and as large; an output without a name is left out."""
    output, value = node.outputs[pair[0]], node.inputs[pair[1]]
    return bool(output.name) and value is not None and size_bytes(value) == size_bytes(output)


def is_free(node: ir.Node, pair: tuple[int, int], home: dict[ir.Value, Buffer], index: int) -> bool:
    """Whether the input's buffer dies here, and no other input of the node lives in it."""
    output, value = node.outputs[pair[0]], node.inputs[pair[1]]
    if value is None:
        return False
    buffer, target = home[value], home[output]
    alone = [v for v in node.inputs if v is not None and home[v] is buffer] == [value]
    return (
        alone
        and not buffer.persistent
        and not target.persistent
        and buffer.first >= 0
        and buffer.last == index
    )
