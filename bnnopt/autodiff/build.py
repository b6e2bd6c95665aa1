"""From a forward graph to the training step and the evaluation graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from bnnopt.autodiff.backward import FLOATS, differentiate
from bnnopt.autodiff.batch_norms import (
    check_inference_mode,
    settle_frozen,
    train_batch_norm,
    trains,
    use_running_statistics,
)
from bnnopt.autodiff.chance import draw, masked, take_middle, train_dropout
from bnnopt.autodiff.imported import import_backward, recognize_estimators
from bnnopt.autodiff.losses import PLAIN, LossOptions, add_loss
from bnnopt.autodiff.optimizers import Optimizer, Updater
from bnnopt.autodiff.selection import Selection
from bnnopt.errors import ModelError
from bnnopt.frontend import ForwardGraph, TrainingArtifacts
from bnnopt.metadata import Key
from bnnopt.ops import DOMAIN, DOMAIN_VERSION, Emitter, functions_for, traits
from bnnopt.training_step import (
    PERSISTENT,
    Role,
    TrainingStep,
    mark_update,
    readers,
    role,
    set_role,
)

IR_VERSION = 10  # the first with metadata on nodes and values


@dataclass(frozen=True)
class TrainingOptions:
    """How the training step is built.

    Attributes
    ----------
    loss : str
        A key of `LOSSES`, or ``none`` where the graph already ends in a scalar.
    optimizer : Optimizer
        Its operator, state and numbers.
    selection : Selection
        Which parameters are trained.
    seed : int
        Of the random operators.
    clip_grad_norm : float, optional
        The largest norm of all gradients together.
    sums_parts : bool
        Whether a step sums its gradients over several batches.
    loss_options : LossOptions
        What changes a cross-entropy.
    """

    loss: str
    optimizer: Optimizer
    selection: Selection = field(default_factory=Selection)
    seed: int = 0
    loss_options: LossOptions = PLAIN
    clip_grad_norm: float | None = None
    sums_parts: bool = False


def build_training_step(
    forward: ForwardGraph, options: TrainingOptions, path: Path
) -> TrainingStep:
    """Forward, loss, backward and update as one typed graph, in the order a framework runs them.

    Parameters that no gradient reaches become frozen, and ``forward.notes`` says so.

    Raises
    ------
    ModelError
        If there is nothing to train, or an operator has no gradient rule.
    UsageError
        If the selection matches nothing.
    """
    model = _copy(forward)
    graph = model.graph
    options.selection.apply(graph)
    forward.notes += settle_frozen(graph, options.selection)
    if not forward.has_gradients:
        check_inference_mode(graph, path)
    updates = _to_training_mode(graph, options.seed)
    parameters = [value for value in graph.inputs if role(value) is Role.PARAMETER]
    try:
        loss = add_loss(graph, options.loss, options.loss_options)
        graph.outputs[:] = [loss]
        trained = {value: _differentiable(value) for value in parameters}
        found = differentiate(graph, loss, list(trained.values()))
        if not forward.has_gradients:
            _check_cuts(graph, loss, [v for v in trained.values() if v not in found])
        _take_values(graph)
        gradients = {p: found[value] for p, value in trained.items() if value in found}
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    if not gradients:
        raise ModelError(
            f"{path}: nothing to train: the loss depends on none of {len(parameters)} parameters "
            "that are not frozen; freeze less, or export with the weights as initializers"
        )
    _note_outputs(forward)
    _note_untrained(forward, [str(p.name) for p in parameters if p not in gradients])
    return _complete(model, updates, gradients, options)


def build_imported_step(
    artifacts: TrainingArtifacts, options: TrainingOptions, path: Path
) -> TrainingStep:
    """The training graph of a folder of artifacts, its own backward pass in our operators.

    Raises
    ------
    ModelError
        If a node has no rule.
    UsageError
        If the selection matches nothing.
    """
    model = _copy(artifacts.forward)
    graph = model.graph
    for value in graph.inputs:
        if role(value) is Role.PARAMETER and value.name not in artifacts.gradients:
            set_role(value, Role.FROZEN)
    options.selection.apply(graph)
    artifacts.forward.notes += settle_frozen(graph, options.selection)
    check_inference_mode(graph, path)
    updates = _to_training_mode(graph, options.seed)
    values = dict(zip(artifacts.exported, graph.outputs, strict=True))
    graph.outputs[:] = graph.outputs[:1]
    try:
        backward = import_backward(graph, artifacts, values)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    recognize_estimators(graph, artifacts.forward.binarized)
    gradients = {
        value: backward[str(value.name)] for value in graph.inputs if role(value) is Role.PARAMETER
    }
    if not gradients:
        raise ModelError(f"{path}: nothing to train: all parameters are frozen; freeze less")
    return _complete(model, updates, gradients, options)


def _complete(
    model: ir.Model,
    updates: Sequence[tuple[ir.Value, ir.Value]],
    gradients: Mapping[ir.Value, ir.Value],
    options: TrainingOptions,
) -> TrainingStep:
    """Append what a step updates; parameters without a gradient become frozen."""
    graph = model.graph
    for output, target in updates:
        graph.outputs.append(mark_update(output, target))
    updater = Updater(graph, options.optimizer)
    if options.sums_parts:
        gradients = updater.summed(gradients)
    if options.clip_grad_norm is not None:
        gradients = updater.clipped(gradients, options.clip_grad_norm)
    for parameter in [value for value in graph.inputs if role(value) is Role.PARAMETER]:
        if parameter in gradients:
            updater.update(parameter, gradients[parameter])
        else:
            set_role(parameter, Role.FROZEN)
    updater.finish()
    return _finished(model)


def _differentiable(parameter: ir.Value) -> ir.Value:
    """The parameter; of one that is kept as bits, its signs."""
    return readers(parameter)[0].outputs[0] if parameter.dtype == ir.DataType.UINT8 else parameter


def _note_outputs(forward: ForwardGraph) -> None:
    names = [str(value.name) for value in forward.graph.outputs]
    note = f"{len(names)} outputs; the loss is taken of the first, {names[0]!r}, alone"
    if len(names) > 1 and note not in forward.notes:
        forward.notes.append(note)


def _note_untrained(forward: ForwardGraph, names: list[str]) -> None:
    """What the loss does not read, or reads as a value alone."""
    listed = ", ".join(names[:3]) + (" .." if len(names) > 3 else "")
    note = f"no gradient reaches {len(names)} parameters, which stay as they are: {listed}"
    if names and note not in forward.notes:
        forward.notes.append(note)


def build_evaluation(forward: ForwardGraph) -> TrainingStep:
    """The network with running statistics and without chance; its outputs are the file's own.

    A dropout is none, nor is a product with a random mask (stochastic depth); any other random
    number is the middle of its range: a stochastic sign is the sign then, a noise around 0 is 0.
    """
    model = _copy(forward)
    graph = model.graph
    _take_values(graph)
    for node in list(graph):
        if node.op_type == "BatchNormalization":
            use_running_statistics(node)
        source = node.inputs[0] if node.op_type == "Dropout" else masked(node)
        if source is not None:
            node.outputs[0].replace_all_uses_with(source, replace_graph_outputs=True)
            graph.remove(node, safe=True)
    RemoveUnusedNodesPass()(model)  # what made the masks
    emit = Emitter(graph, "forward")
    for node in [node for node in graph if node.op_type == "RandomUniformLike"]:
        take_middle(emit.fork("forward"), graph, node)
    return _finished(model)


def _check_cuts(graph: ir.Graph, loss: ir.Value, missing: Sequence[ir.Value]) -> None:
    """A parameter that the loss depends on, but by no gradient, is trained by its author somehow.

    Not so where it only gives a `StraightThrough` its value.
    """
    reached: set[ir.Value | None] = {loss}
    for node in reversed(list(graph)):
        if not reached.isdisjoint(node.outputs):
            is_value = node.op_type == "StraightThrough"
            reached.update(node.inputs[1:] if is_value else node.inputs)
    lost = [value for value in missing if value in reached]
    if not lost:
        return
    behind: set[ir.Value | None] = set(lost)
    cuts = []
    for node in graph:
        if node.metadata_props.get(Key.PHASE) == "forward" and not behind.isdisjoint(node.inputs):
            behind.update(node.outputs)
            if not reached.isdisjoint(node.outputs) and _is_cut(node):
                cuts.append(node)
    where = f"node {cuts[0].name!r} ({cuts[0].op_type})" if cuts else "what lies between"
    raise ModelError(
        f"no gradient reaches parameter {lost[0].name!r}: {where} passes none on; expected "
        f"s + (b - s).detach() in PyTorch, or --freeze {lost[0].name}"
    )


def _is_cut(node: ir.Node) -> bool:
    """Whether what a node reads has a gradient, and what it gives has none."""
    reads_reals = any(v is not None and v.dtype in FLOATS for v in node.inputs)
    return traits(node).rounds or (reads_reals and node.outputs[0].dtype not in FLOATS)


def _take_values(graph: ir.Graph) -> None:
    """Read the value of a `StraightThrough` itself: the node is there for the gradient alone."""
    for node in list(graph):
        if node.op_type == "StraightThrough":
            value = node.inputs[0]
            assert value is not None
            node.outputs[0].replace_all_uses_with(value, replace_graph_outputs=True)
            graph.remove(node, safe=True)


def _copy(forward: ForwardGraph) -> ir.Model:
    model = forward.model.clone()
    for node in model.graph:
        node.metadata_props.clear()
        node.metadata_props[Key.PHASE] = "forward"
    return model


def _to_training_mode(graph: ir.Graph, seed: int) -> list[tuple[ir.Value, ir.Value]]:
    """Replace what behaves differently in training; return (next statistic, statistic) pairs."""
    emit = Emitter(graph, "forward")
    latest: dict[ir.Value, ir.Value] = {}
    for index, node in enumerate(list(graph)):
        if node.op_type == "BatchNormalization" and trains(node):
            train_batch_norm(emit.fork("forward"), graph, node, latest)
        elif node.op_type == "Dropout":
            train_dropout(emit.fork("forward"), graph, node, seed + index)
        elif node.op_type == "RandomUniformLike":
            draw(emit.fork("forward"), graph, node, seed + index)
    return [(output, target) for target, output in latest.items()]


def _finished(model: ir.Model) -> TrainingStep:
    """Drop what nothing reads, and declare the operator domain."""
    RemoveUnusedNodesPass()(model)
    graph = model.graph
    for value in list(graph.inputs):
        if role(value) in PERSISTENT and not value.uses():
            graph.inputs.remove(value)
    for node in graph:
        node.metadata_props.setdefault(Key.PHASE, "forward")
    graph.opset_imports[DOMAIN] = DOMAIN_VERSION
    model.ir_version = IR_VERSION
    model.producer_name = "bnnopt"
    for function in functions_for(graph, graph.opset_imports[""]):
        model.functions[function.identifier()] = function
    return TrainingStep(model)
