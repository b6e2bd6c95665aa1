"""Lossy passes for tests: each does on a small scale what one of a level does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
import pytest

from bnnopt.ops import Emitter
from bnnopt.passes import PASSES, Pass, Trace
from bnnopt.passes.shared.rewriting import replace_node
from bnnopt.training_step import Role, TrainingStep, mark_update, phase, store_as

HALF, FLOAT = int(ir.DataType.FLOAT16), int(ir.DataType.FLOAT)


def updates_of(step: TrainingStep, op_type: str | None = None) -> list[ir.Node]:
    """The optimiser steps, or those of one operator."""
    found = [node for node in step.graph if phase(node) == "update"]
    return [node for node in found if op_type in (None, node.op_type)]


@dataclass(frozen=True)
class HalfWeights(Pass):
    """Store weights and optimiser state in float16."""

    name: ClassVar[str] = "half-weights"
    level: ClassVar[int] = 2
    lossless: ClassVar[bool] = False
    changes_storage: ClassVar[bool] = True
    min_cosine: ClassVar[float] = 0.99

    def run(self, step: TrainingStep, trace: Trace) -> int:
        outputs = dict(step.updates())
        stored = step.inputs(Role.PARAMETER, Role.STATE)
        for value in stored:
            self._store(step, value, outputs[value])
        return len(stored)

    def _store(self, step: TrainingStep, value: ir.Value, output: ir.Value) -> None:
        read, written = Emitter(step.graph, "forward"), Emitter(step.graph, "update")
        store_as(value, ir.DataType.FLOAT16)
        full = read("Cast", value, name=f"{value.name}.full", to=FLOAT)
        value.replace_all_uses_with(full)
        read.nodes[0].replace_input_with(0, value)
        step.graph.insert_before(step.graph.node(0), read.nodes)
        half = written("Cast", output, name=f"{value.name}.half", to=HALF)
        step.graph.extend(written.nodes)
        index = step.graph.outputs.index(output)
        del output.metadata_props["updates"]
        step.graph.outputs[index] = mark_update(half, value)


@dataclass(frozen=True)
class DropMomentum(Pass):
    """Step along the gradient itself, with no state."""

    name: ClassVar[str] = "drop-momentum"
    level: ClassVar[int] = 2
    lossless: ClassVar[bool] = False
    changes_storage: ClassVar[bool] = True

    def run(self, step: TrainingStep, trace: Trace) -> int:
        nodes = updates_of(step, "MomentumStep")
        for node in nodes:
            weight, gradient, state, rate = node.inputs
            step.graph.outputs.remove(node.outputs[1])
            node.resize_outputs(1)
            emit = Emitter(step.graph, "update")
            emit("SgdStep", weight, gradient, rate, name=str(node.name))
            replace_node(step, node, emit)
            step.graph.inputs.remove(state)
        return len(nodes)


@dataclass(frozen=True)
class HalfGradients(Pass):
    """Round the gradients of all parameters to float16."""

    name: ClassVar[str] = "half-gradients"
    level: ClassVar[int] = 2
    lossless: ClassVar[bool] = False
    min_cosine: ClassVar[float] = 0.999

    def run(self, step: TrainingStep, trace: Trace) -> int:
        for node in updates_of(step):
            emit = Emitter(step.graph, "backward")
            half = emit("Cast", node.inputs[1], name="half", to=HALF)
            node.replace_input_with(1, self.decoded(emit, half))
            step.graph.insert_before(node, emit.nodes)
        return len(updates_of(step))

    def decoded(self, emit: Emitter, half: ir.Value) -> ir.Value:
        """Back in float32."""
        return emit("Cast", half, name="full", to=FLOAT)


@dataclass(frozen=True)
class NegatedGradients(HalfGradients):
    """Break the promise of half-gradients."""

    name: ClassVar[str] = "negated-gradients"

    def decoded(self, emit: Emitter, half: ir.Value) -> ir.Value:
        return emit("Neg", super().decoded(emit, half), name="negated")


def install(monkeypatch: pytest.MonkeyPatch, *passes: Pass) -> None:
    """Let the manager know only these lossy passes, first in its order."""
    lossless = [p for p in PASSES if p.lossless]
    monkeypatch.setattr("bnnopt.passes.infra.manager.PASSES", (*passes, *lossless))
