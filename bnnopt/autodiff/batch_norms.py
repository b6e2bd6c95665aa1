"""Batch norms of a forward graph in a training step: which are trained, and how each is run."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from bnnopt.autodiff.chance import substitute
from bnnopt.autodiff.selection import Selection
from bnnopt.errors import ModelError, UsageError
from bnnopt.frontend import EXPORT_COMMAND
from bnnopt.ops import Emitter
from bnnopt.training_step import Role, role


def settle_frozen(graph: ir.Graph, selection: Selection) -> list[str]:
    """Let frozen norms read their running statistics, if that is asked for; a note if it is not.

    Raises
    ------
    UsageError
        If it is asked for, and there are none.
    """
    frozen = [node for node in graph if node.op_type == "BatchNormalization" and _is_frozen(node)]
    if selection.freeze_batch_norm:
        if not frozen:
            raise UsageError(
                "--freeze-batch-norm: no batch norm is frozen in training mode; add --last K, or "
                "--freeze with the names of its scale and bias"
            )
        for node in frozen:
            use_running_statistics(node)
    elif frozen:
        return [
            f"{len(frozen)} frozen batch norms, such as {frozen[0].name}, go on with the "
            "statistics of each batch and move the running ones; --freeze-batch-norm keeps those"
        ]
    return []


def _is_frozen(node: ir.Node) -> bool:
    """Whether a batch norm in training mode has a scale or a bias, and trains none."""
    roles = {role(value) for value in node.inputs[1:3] if value is not None}
    return trains(node) and Role.FROZEN in roles and Role.PARAMETER not in roles


def use_running_statistics(node: ir.Node) -> None:
    """Put a batch norm into inference mode."""
    node.attributes.pop("training_mode", None)
    for output, statistic in zip(node.outputs[1:], node.inputs[3:], strict=False):
        assert statistic is not None
        output.replace_all_uses_with(statistic, replace_graph_outputs=True)
    node.resize_outputs(1)


def trains(node: ir.Node) -> bool:
    """Whether a batch norm is in training mode."""
    mode = node.attributes.get("training_mode")
    return mode is not None and bool(mode.as_int())


def check_inference_mode(graph: ir.Graph, path: Path) -> None:
    """A frozen backbone may keep its statistics; elsewhere inference mode is a mistaken export."""
    for node in graph:
        if node.op_type != "BatchNormalization" or trains(node):
            continue
        scale = node.inputs[1]
        if scale is not None and role(scale) is Role.PARAMETER:
            raise ModelError(
                f"{path}: node {node.name!r} (BatchNormalization) is in inference mode, expected "
                f"training mode, or a frozen scale (--freeze {scale.name}); export with "
                f"{EXPORT_COMMAND}"
            )


def train_batch_norm(
    emit: Emitter, graph: ir.Graph, node: ir.Node, latest: dict[ir.Value, ir.Value]
) -> None:
    """A shared batch norm runs more than once: each run starts from the last one's statistics."""
    x, scale, bias, mean, var = node.inputs
    assert mean is not None
    assert var is not None
    epsilon, momentum = node.attributes.get("epsilon"), node.attributes.get("momentum")
    y = emit(
        "BatchNormalizationTraining",
        *(x, scale, bias, latest.get(mean, mean), latest.get(var, var)),
        name=str(node.name) or f"{node.outputs[0].name}",
        n_outputs=5,
        epsilon=1e-5 if epsilon is None else epsilon.as_float(),
        momentum=0.9 if momentum is None else momentum.as_float(),
        dtype=int(ir.DataType.FLOAT),
    )
    training = y.producer()
    assert training is not None
    for statistic, output in ((mean, training.outputs[1]), (var, training.outputs[2])):
        if role(statistic) is Role.STATISTIC:
            output.name = emit.unique(f"{statistic.name}.next")
            latest[statistic] = output
    substitute(graph, node, emit)
