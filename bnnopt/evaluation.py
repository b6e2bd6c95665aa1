"""Fits the evaluation graph to the training step with which it shares its weights."""

from __future__ import annotations

import onnx_ir as ir

from bnnopt.ops import Emitter, dtype
from bnnopt.training_step import PERSISTENT, TrainingStep, readers, store_as


def adopt_storage(evaluation: TrainingStep, training: TrainingStep) -> None:
    """Let `evaluation` read its weights as `training` stores them.

    A weight in another type than before is cast back right before the first node that reads it.
    """
    stored = {value.name: value for value in training.inputs(*PERSISTENT)}
    for value in evaluation.inputs(*PERSISTENT):
        twin = stored.get(value.name)
        if twin is not None and twin.dtype != value.dtype:
            _retype(evaluation, value, dtype(twin))


def _retype(step: TrainingStep, value: ir.Value, stored: ir.DataType) -> None:
    """Give an input another type, and its readers what they read before."""
    users, before = set(readers(value)), dtype(value)
    store_as(value, stored)
    emit = Emitter(step.graph, "forward")
    cast = emit("Cast", value, name=f"{value.name}.cast", to=int(before))
    value.replace_all_uses_with(cast)
    (node,) = emit.nodes
    node.replace_input_with(0, value)
    first = next(other for other in step.graph if other in users)
    step.graph.insert_before(first, node)
