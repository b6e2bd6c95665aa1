"""Fits the evaluation graph to the training step with which it shares its weights and arena."""

from __future__ import annotations

import math
from collections.abc import Collection

import onnx_ir as ir

from bnnopt.artifact import scaled_shapes, with_batch
from bnnopt.ops import Emitter, dtype, infer_types, traits
from bnnopt.passes import PASSES, rewrite
from bnnopt.passes.shared.on_read import read_wide
from bnnopt.passes.shared.rewriting import redirect
from bnnopt.plan import arena_bytes
from bnnopt.runtime.kernels.compiled.kernel import MAX_THREADS
from bnnopt.training_step import PERSISTENT, TrainingStep, latent_units, readers, store_as

_LEAST_PART = 2  # an axis of one sample could be taken for one of those that may be left out
_BEFORE = ("packed-products",)  # the weights' types are known: it reads them as they are
_AFTER = ("normalize-on-read", "in-place", "schedule")


def fit(
    evaluation: TrainingStep, training: TrainingStep, disabled: Collection[str] = ()
) -> TrainingStep:
    """The evaluation, made small enough for the arena of the training step, whose weights it reads.

    By passes, all of them bit-equal, but those disabled; and by parts of a batch.
    """
    _run(evaluation, _BEFORE, disabled)
    _adopt_storage(evaluation, training)
    _run(evaluation, _AFTER, disabled)
    if any(scaled_shapes(step, step.batch_size) is None for step in (training, evaluation)):
        return evaluation  # something ties it to this batch; a loss may tell where it does not
    return in_parts(evaluation, arena_bytes(training))


def _run(evaluation: TrainingStep, names: Collection[str], disabled: Collection[str]) -> None:
    rewrite(evaluation, [p for p in PASSES if p.name in names and p.name not in disabled])


def in_parts(
    evaluation: TrainingStep, available: int, n_threads: int = MAX_THREADS
) -> TrainingStep:
    """The evaluation of so large a part of a batch that it runs in an arena of `available` bytes.

    A batch goes in as few parts as fit; of `_LEAST_PART` samples if nothing does.
    """
    whole, n_parts, part = evaluation.batch_size, 1, evaluation
    while part.batch_size > _LEAST_PART and arena_bytes(part, n_threads) > available:
        n_parts += 1
        part = resized(evaluation, max(math.ceil(whole / n_parts), _LEAST_PART))
    return part


def resized(step: TrainingStep, batch_size: int) -> TrainingStep:
    """A copy of the step for so many samples."""
    copy = TrainingStep(with_batch(step.model, batch_size))
    for node in copy.graph:
        infer_types(node, copy.opset)
    return copy


def _adopt_storage(evaluation: TrainingStep, training: TrainingStep) -> None:
    """Let `evaluation` read its weights as `training` stores them.

    Of a weight in another type than before each reader gets what it read before.
    """
    stored = {value.name: value for value in training.inputs(*PERSISTENT)}
    units = latent_units(training)
    for value in evaluation.inputs(*PERSISTENT):
        twin = stored.get(value.name)
        if twin is not None and twin.dtype != value.dtype:
            _retype(evaluation, value, dtype(twin), units.get(str(value.name)))


def _retype(step: TrainingStep, value: ir.Value, stored: ir.DataType, unit: float | None) -> None:
    """Give an input another type, and its readers what they read before."""
    users = [node for node in readers(value) if not traits(node).packs_halves]
    store_as(value, stored)
    for user in users:
        if unit is None:
            read_wide(step, user, value)
            continue
        emit = Emitter(step.graph, "forward")
        redirect(user, value, emit("WidenLatents", value, name=f"{value.name}.wide", unit=unit))
        step.graph.insert_before(user, emit.nodes)
