"""sign-pack: keep the sign bits of a binary tensor for the backward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from bnnopt.analysis import (
    ScaledSigns,
    is_binary,
    is_persistent,
    kept_values,
    scaled_signs,
)
from bnnopt.metadata import Key
from bnnopt.ops import Emitter, dims, ints
from bnnopt.passes.infra.base import Pass, Trace
from bnnopt.passes.shared.rebuilding import packed_form
from bnnopt.passes.shared.rewriting import insert_after_definition, late, read_late, redirect
from bnnopt.training_step import TrainingStep, is_constant


@dataclass(frozen=True)
class SignPack(Pass):
    """Keep the sign bits of xb, not xb, for the backward pass.

    Forward:   xb = sign(x);  z = xb @ wb                 x: (N, K) float32, wb: (K, M)
    Backward:  dwb = xb.T @ dz reads the bits, unpacked right before it.
    Saves:     32 bits an element of xb become 1, also of a xb with a scale a that stays.
    Numbers:   bit-exact.
    Rows:      of a transpose whose rows are others (w.T @ x.T), the bits of what it transposes, and
               it is transposed again: products read the bits as they are.
    Skips:     a value that can be 0 (--sign-zero keep); a scalar; a view with other rows.
    Source:    Wang et al., arXiv:2102.04270, algorithm 2, line 1.
    """

    name: ClassVar[str] = "sign-pack"
    after: ClassVar[Mapping[str, str]] = {
        "redirect-consumers": "signs of weights are taken again, not packed",
    }

    def run(self, step: TrainingStep, trace: Trace) -> int:
        """See `Pass.run`."""
        return sum(
            self._pack(step, trace, root, read_late(values))
            for root, values in kept_values(step).items()
        )

    def _pack(self, step: TrainingStep, trace: Trace, root: ir.Value, read: list[ir.Value]) -> int:
        if not read:
            return 0
        scaled = scaled_signs(root)
        if scaled is not None and scaled.scales and all(map(_stays, scaled.scales)):
            return _pack_scaled(step, read, scaled)
        if not is_binary(root):
            producer = root.producer()
            if producer is not None and producer.op_type == "Ternarize":
                trace.skip(root, "it can be 0, a third value, which takes two bits (ternary-pack)")
            return 0
        if not dims(root):
            return trace.skip(root, "a scalar has no rows of bits")
        if any(dims(value)[:1] != dims(root)[:1] for value in read):
            return trace.skip(root, "a reader sees it with other rows")
        source, turns = _before_turns(root)
        if turns and any(dims(value) != dims(root) for value in read):
            return trace.skip(root, "a reader sees a transpose of it in another shape")
        packed = packed_form(source) or _encode(step, source)
        for value in read:
            for node in late(value):
                _decode(step, node, value, packed, dims(source if turns else value), turns)
        return 1


def _stays(scale: ir.Value) -> bool:
    return is_constant(scale) or is_persistent(scale)


def _before_turns(value: ir.Value) -> tuple[ir.Value, list[list[int]]]:
    """What `value` is a transpose of, where its rows are others, and the axes of each transpose.

    Samples are rows there, so that the bits of a smaller batch are fewer of them.
    """
    turns: list[list[int]] = []
    node = value.producer()
    while node is not None and node.op_type == "Transpose":
        rank = len(dims(value))
        axes = ints(node, "perm") if "perm" in node.attributes else list(range(rank))[::-1]
        source = node.inputs[0]
        if axes[0] == 0 or source is None:
            break
        turns.insert(0, axes)
        value, node = source, source.producer()
    return value, turns


def _pack_scaled(step: TrainingStep, read: list[ir.Value], scaled: ScaledSigns) -> int:
    """Keep the bits of a scaled sign, and multiply by the scales again."""
    signs = scaled.signs
    if not dims(signs) or any(dims(value) != dims(signs) for value in read):
        return 0
    packed = packed_form(signs) or _encode(step, signs)
    for value in read:
        for node in late(value):
            emit = Emitter(step.graph, "rebuild")
            shape = list(dims(value)[1:])
            rebuilt = emit("SignUnpack", packed, name=f"{value.name}.unpacked", shape=shape)
            for scale in scaled.scales:
                rebuilt = emit("Mul", rebuilt, scale, name=f"{value.name}.rebuilt")
            redirect(node, value, rebuilt)
            step.graph.insert_before(node, emit.nodes)
    return 1


def _encode(step: TrainingStep, root: ir.Value) -> ir.Value:
    emit = Emitter(step.graph, "forward")
    packed = emit("SignPack", root, name=f"{root.name}.signs")
    emit.nodes[0].metadata_props[Key.CODEC] = "sign1"
    insert_after_definition(step, root, emit.nodes)
    return packed


def _decode(
    step: TrainingStep,
    node: ir.Node,
    value: ir.Value,
    packed: ir.Value,
    shape: tuple[int, ...],
    turns: list[list[int]],
) -> None:
    emit = Emitter(step.graph, "rebuild")
    unpacked = emit("SignUnpack", packed, name=f"{value.name}.unpacked", shape=list(shape[1:]))
    for axes in turns:
        unpacked = emit("Transpose", unpacked, name=f"{value.name}.rebuilt", perm=axes)
    redirect(node, value, unpacked)
    step.graph.insert_before(node, emit.nodes)
