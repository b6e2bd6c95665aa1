"""What the passes start from: the step of a forward model, or that of training artifacts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from bnnopt.artifact import portable_model
from bnnopt.autodiff import (
    OPTIMIZERS,
    LossOptions,
    Optimizer,
    Selection,
    TrainingOptions,
    build_evaluation,
    build_imported_step,
    build_training_step,
    make_optimizer,
    numbers_of,
    read_optimizer,
)
from bnnopt.compiler.initial import start_from
from bnnopt.errors import ModelError, UsageError
from bnnopt.frontend import ForwardGraph, is_artifacts, load_artifacts, load_forward, own_graph
from bnnopt.frontend.binary_weights import fix_signs, pack_binary_weights
from bnnopt.frontend.byte_inputs import feed_bytes
from bnnopt.frontend.head import with_head
from bnnopt.ops import dims
from bnnopt.passes import BrokenGraph, check_graph
from bnnopt.report.summary import Summary
from bnnopt.report.summary import summarize as summarize_graph
from bnnopt.runtime.data.normalization import HALVES
from bnnopt.settings import LOSSES, Settings, check, taking, with_options
from bnnopt.settings import options as known_options
from bnnopt.training_step import Role, TrainingStep, role, set_role

Progress = Callable[[str], None]
WITHOUT_LATENT = ("bop", "fixed-sign")


@dataclass(frozen=True)
class Built:
    """What the passes start from, and `source`, the graph that trained weights go back to."""

    forward: ForwardGraph
    reference: TrainingStep
    evaluation: TrainingStep
    optimizer: Optimizer
    loss: str
    source: onnx.ModelProto


@taking(Settings)
def summarize(model: str | Path, **options: object) -> Summary:
    """A model layer by layer; options as `bnnopt.optimize` takes them.

    Raises
    ------
    ModelError, UsageError
        If the file cannot be read, or an option makes no sense.
    """
    chosen = with_options(Settings(), options)
    check(chosen)
    with headed(Path(model), chosen) as (path, _):
        forward = load_forward(path, chosen.batch_size or 1, chosen.ste, _keeps_zero(chosen))
        _selection(chosen).apply(forward.graph)
        return summarize_graph(forward, path.name)


@contextmanager
def headed(path: Path, chosen: Settings) -> Iterator[tuple[Path, list[str]]]:
    """The file to compile, with the head that is asked for, and a note about it."""
    if chosen.head is None:
        yield path, []
        return
    if is_artifacts(path):
        raise UsageError(f"--head: the training graph of {path} has its own; leave it out")
    model = own_graph(path)
    names = with_head(model, chosen.head, chosen.seed)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / path.name
        onnx.save(model, made)
        yield made, [f"--head {chosen.head}: {', '.join(names)} start anew"]


def _selection(chosen: Settings) -> Selection:
    return Selection(chosen.freeze, chosen.train, chosen.last, chosen.freeze_batch_norm)


def _keeps_zero(chosen: Settings) -> bool | None:
    return None if chosen.sign_zero is None else chosen.sign_zero == "keep"


def _optimizer(chosen: Settings) -> Optimizer:
    """The optimiser that is asked for, with those options that it has."""
    numbers = {entry.name: getattr(chosen, entry.name) for entry in fields(chosen)}
    return make_optimizer(chosen.optimizer or OPTIMIZERS[0], **numbers)


def _idle(chosen: Settings, optimizer: str) -> list[str]:
    """Numbers of other optimisers that are given, and change nothing."""
    others = numbers_of() - numbers_of(optimizer)
    return [
        f"{option.flags[0]} {value}: {optimizer} has no such number; it changes nothing"
        for option in known_options()
        if option.name in others and (value := getattr(chosen, option.name)) != option.default
    ]


def _parts(chosen: Settings) -> list[str]:
    """What a batch in parts means."""
    if chosen.accumulate == 1 or chosen.batch_size is None:
        return []
    parts, size = chosen.accumulate, chosen.batch_size
    return [
        f"--accumulate: a step takes {parts * size} samples in {parts} parts of {size}; batch "
        f"norms take mean and deviation of {size}"
    ]


def loss_options(chosen: Settings) -> LossOptions:
    """What changes a cross-entropy."""
    weights = tuple(chosen.class_weights)
    return LossOptions(chosen.label_smoothing, weights, chosen.ignore_index)


def build_forward(path: Path, chosen: Settings, say: Progress) -> Built:
    """From a forward model, by differentiation."""
    optimizer = _optimizer(chosen)
    forward = load_forward(
        path,
        chosen.batch_size,
        chosen.ste,
        _keeps_zero(chosen),
        takes_signs=optimizer.name in WITHOUT_LATENT,
    )
    if chosen.init is not None:
        start_from(Path(chosen.init), forward)
    if chosen.input == "uint8":
        _take_bytes(forward, path)
    forward.notes += [*_idle(chosen, optimizer.name), *_parts(chosen)]
    loss = chosen.loss or LOSSES[0]
    if optimizer.name == "bop":
        pack_binary_weights(forward)
    if optimizer.name == "fixed-sign":
        fix_signs(forward)
    selection = _selection(chosen)
    options = TrainingOptions(
        loss,
        optimizer,
        selection,
        chosen.seed,
        loss_options(chosen),
        chosen.clip_grad_norm,
        sums_parts=chosen.accumulate > 1,
    )
    say("building the training step")
    reference = build_training_step(forward, options, path)
    return Built(forward, reference, build_evaluation(forward), optimizer, loss, own_graph(path))


def _take_bytes(forward: ForwardGraph, path: Path) -> None:
    """Begin with the normalisation that training gives images of 8 bits where nothing is said."""
    for value, numbers in zip(feed_bytes(forward, path), HALVES.numbers(1), strict=True):
        forward.normalization[str(value.name)] = np.full(dims(value), numbers)
    forward.notes.append(f"--input uint8: x becomes {HALVES} within the step, or as train says")


def _check_imported(reference: TrainingStep, path: Path) -> None:
    """The backward pass of a file may read what its forward pass writes over."""
    try:
        check_graph(reference)
    except BrokenGraph as error:
        raise ModelError(f"{path}: {error}; generate the artifacts again") from None


def import_artifacts(path: Path, chosen: Settings, say: Progress) -> Built:
    """From training artifacts, which have a loss and gradients of their own."""
    for option, given in (
        ("--loss", chosen.loss),
        ("--ste", chosen.ste),
        ("--label-smoothing", chosen.label_smoothing),
        ("--class-weights", chosen.class_weights),
        ("--ignore-index", chosen.ignore_index is not None),
        ("--input", chosen.input == "uint8"),
    ):
        if given:
            raise UsageError(f"{option}: the training graph of {path} has its own; leave it out")
    artifacts = load_artifacts(path, chosen.batch_size, chosen.sign_zero == "keep")
    if chosen.init is not None:
        start_from(Path(chosen.init), artifacts.forward)
    own = artifacts.optimizer() if chosen.optimizer is None else None
    optimizer = read_optimizer(own) if own is not None else _optimizer(chosen)
    selection = _selection(chosen)
    options = TrainingOptions(
        artifacts.loss,
        optimizer,
        selection,
        chosen.seed,
        clip_grad_norm=chosen.clip_grad_norm,
        sums_parts=chosen.accumulate > 1,
    )
    say("importing the training graph")
    prediction = artifacts.prediction_only()
    if artifacts.is_derived:
        for value in prediction.graph.inputs:
            if role(value) is Role.PARAMETER and value.name not in artifacts.gradients:
                set_role(value, Role.FROZEN)
        reference = build_training_step(prediction, options, path)
    else:
        reference = build_imported_step(artifacts, options, path)
    _check_imported(reference, path)
    evaluation = build_evaluation(prediction)
    source: onnx.ModelProto = ir.to_proto(portable_model(evaluation, evaluation.batch_size))
    return Built(artifacts.forward, reference, evaluation, optimizer, artifacts.loss, source)
