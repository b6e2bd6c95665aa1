"""Rematerialisation: compute a value again from what is still there in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from bnnopt.metadata import Key
from bnnopt.ops import Emitter, dims, family
from bnnopt.training_step import readers

FARTHEST = 1000  # steps behind a value that are looked at: no chain worth rebuilding is as long


@dataclass(frozen=True)
class Rebuilder:
    """Copies the nodes behind a value, down to values that may be read in the backward pass.

    Attributes
    ----------
    may_copy : callable
        Whether a node may run a second time.
    may_read : callable
        Whether a value is still there, as it is or as sign bits (see `packed_form`).
    """

    may_copy: Callable[[ir.Node], bool]
    may_read: Callable[[ir.Value], bool]

    def obstacle(self, value: ir.Value) -> str | None:
        """Why the value cannot be rebuilt; None if it can."""
        seen: set[ir.Value] = set()
        pending = [value]
        while pending:
            value = pending.pop()
            if value in seen or self._is_there(value):
                continue
            seen.add(value)
            producer = value.producer()
            if producer is None:
                return f"{value.name!r} is not kept"
            if not self.may_copy(producer):
                return f"it comes from {producer.op_type} {producer.name!r}"
            if value is not producer.outputs[0]:
                return f"it is a side output of {producer.op_type} {producer.name!r}"
            if len(seen) > FARTHEST:
                return f"the chain behind it has more than {FARTHEST} steps"
            pending += [source for source in reversed(_sources(producer)) if source is not None]
        return None

    def n_copies(self, value: ir.Value) -> int:
        """Nodes that `rebuild` would emit, counting those that are needed twice twice.

        `obstacle` must be None.
        """
        counts: dict[ir.Value, int] = {}
        pending = [value]
        while pending:
            value = pending[-1]
            producer = value.producer()
            if self._is_there(value) or producer is None:
                counts[value] = int(packed_form(value) is not None and not self.may_read(value))
                pending.pop()
                continue
            sources = [source for source in _sources(producer) if source is not None]
            unknown = [source for source in sources if source not in counts]
            pending += unknown
            if not unknown:
                counts[value] = 1 + sum(counts[source] for source in sources)
                pending.pop()
        return counts[value]

    def _is_there(self, value: ir.Value) -> bool:
        return self.may_read(value) or packed_form(value) is not None

    def rebuild(self, value: ir.Value, emit: Emitter) -> ir.Value:
        """Emit the copies and return the rebuilt value; `obstacle` must be None."""
        return self._rebuild(value, emit, {}, is_goal=True)

    def _rebuild(
        self, value: ir.Value, emit: Emitter, done: dict[ir.Value, ir.Value], is_goal: bool
    ) -> ir.Value:
        if value in done:
            return done[value]
        if not is_goal and self.may_read(value):
            return value
        packed = packed_form(value)
        producer = value.producer()
        if packed is not None:
            shape = list(dims(value)[1:])
            done[value] = emit("SignUnpack", packed, name=f"{value.name}.unpacked", shape=shape)
        else:
            assert producer is not None, "obstacle() would have named it"
            inputs = _sources(producer)
            sources = [v and self._rebuild(v, emit, done, is_goal=False) for v in inputs]
            done[value] = _copy(producer, sources, emit)
        return done[value]


def is_batch_norm(node: ir.Node) -> bool:
    """Whether BatchNormalizationApply gives its output again, with the statistics it leaves."""
    return family(node) == "BatchNormalizationTraining"


def packed_form(value: ir.Value) -> ir.Value | None:
    """The sign bits of `value`, where the sign-pack pass keeps them."""
    packs = [node for node in readers(value) if node.op_type == "SignPack"]
    kept = [node for node in packs if node.metadata_props.get(Key.CODEC) == "sign1"]
    return kept[0].outputs[0] if kept else None


def _sources(node: ir.Node) -> list[ir.Value | None]:
    """What a copy of the node reads: of a batch norm the statistics that it found."""
    if is_batch_norm(node):
        return [*node.inputs[:3], *node.outputs[3:5]]
    return list(node.inputs)


def _copy(node: ir.Node, inputs: list[ir.Value | None], emit: Emitter) -> ir.Value:
    name = f"{node.outputs[0].name}.rebuilt"
    if is_batch_norm(node):
        dtype = node.attributes["dtype"].as_int()
        return emit("BatchNormalizationApply", *inputs, name=name, dtype=dtype)
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    return emit(node.op_type, *inputs, name=name, **attributes)
