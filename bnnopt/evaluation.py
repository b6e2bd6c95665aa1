"""Fits the evaluation graph to the training step with which it shares its weights and arena."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from bnnopt.ops import Emitter, dtype
from bnnopt.passes import PASSES, run_passes
from bnnopt.passes.precision import READS_HALVES
from bnnopt.passes.rewriting import redirect
from bnnopt.training_step import PERSISTENT, TrainingStep, readers, store_as

_PASSES = ("packed-products", "in-place", "schedule")


def shrink(evaluation: TrainingStep, disabled: Collection[str] = ()) -> None:
    """Run the passes that make an evaluation smaller, all of them bit-equal, but those disabled.

    It shares the arena of the training step, and would be the larger one of the two.
    """
    run_passes(evaluation, [p for p in PASSES if p.name in _PASSES and p.name not in disabled])


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
    users = {node for node in readers(value) if node.op_type not in READS_HALVES}
    before = dtype(value)
    store_as(value, stored)
    if not users:
        return
    emit = Emitter(step.graph, "forward")
    cast = emit("Cast", value, name=f"{value.name}.cast", to=int(before))
    (node,) = emit.nodes
    for user in users:
        redirect(user, value, cast)
    first = next(other for other in step.graph if other in users)
    step.graph.insert_before(first, node)
