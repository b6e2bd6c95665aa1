"""Files that load but cannot be trained as they are: one line each, with how to mend it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnnopt.errors import ModelError
from bnnopt.frontend.normalize import ForwardGraph, setting
from bnnopt.frontend.read import EXPORT_COMMAND
from bnnopt.ops import Emitter, traits
from bnnopt.training_step import readers

FUSED = "_fused_bn"


def lint(forward: ForwardGraph, path: Path, *, takes_signs: bool = False) -> None:
    """Reject exports that lost what training needs.

    With `takes_signs` weights that are +-1 already are read as the signs of weights: for
    optimisers without latent weights.

    Raises
    ------
    ModelError
        If the latent weights of a binary layer or batch norms are gone, a weight is no number, or
        a dropout has no sense.
    """
    _check_batch_norms(forward, path)
    _check_numbers(forward, path)
    for node in list(forward.graph):
        if node.op_type == "Dropout":
            _check_dropout(node, path)
        is_layer = traits(node).layer is not None and not forward.has_gradients
        if is_layer and node.inputs[1] is not None:
            _check_latent(forward, node, node.inputs[1], path, takes_signs)


def _check_dropout(node: ir.Node, path: Path) -> None:
    ratio = setting(node, 1, 0.5)
    if not 0 <= ratio < 1:
        raise ModelError(
            f"{path}: node {node.name!r} (Dropout) has ratio {ratio:g}, expected at least 0 and "
            "less than 1; export the model with another"
        )
    if any(mask.uses() or mask.is_graph_output() for mask in node.outputs[1:]):
        raise ModelError(
            f"{path}: node {node.name!r} (Dropout): its mask is read, expected the output only; "
            "export the model without that"
        )


def _check_batch_norms(forward: ForwardGraph, path: Path) -> None:
    """tf2onnx multiplies the scales of batch norms into the weights before them."""
    for name in forward.weights:
        if FUSED in name:
            raise ModelError(
                f"{path}: weight {name!r} has a batch norm folded into it, whose scale and "
                "statistics are gone; expected a batch norm of its own: convert the model as it "
                "is trained, called with training=True"
            )


def _check_numbers(forward: ForwardGraph, path: Path) -> None:
    """A training that diverged leaves NaN in its weights, and none can begin there."""
    for name, array in forward.weights.items():
        if array.size and np.isnan(array.max()):
            raise ModelError(
                f"{path}: weight {name!r} holds nan, expected finite numbers; export the model "
                "as it was before its training diverged"
            )


def _check_latent(
    forward: ForwardGraph, node: ir.Node, weight: ir.Value, path: Path, takes_signs: bool
) -> None:
    producer = weight.producer()
    if producer is not None and producer.op_type == "Transpose" and producer.inputs[0] is not None:
        weight = producer.inputs[0]
    array = forward.weights.get(str(weight.name))
    is_trained = array is not None
    if array is None and weight.const_value is not None:
        array = weight.const_value.numpy()
    if array is None or array.ndim < 2 or array.size < 16 or not _is_binary(array):
        return
    is_unit = bool((np.abs(array) == 1).all())
    if takes_signs and is_trained and is_unit:
        _read_signs(forward.graph, weight)
        return
    raise ModelError(
        f"{path}: node {node.name!r} ({node.op_type}): all of weight {weight.name!r} is "
        f"+-{abs(array.flat[0]):g}: {_cause(forward, str(weight.name), is_unit)}"
    )


def _read_signs(graph: ir.Graph, weight: ir.Value) -> None:
    """Put a Sign between a weight and its readers."""
    users = readers(weight)
    if all(node.op_type == "Sign" for node in users):
        return
    emit = Emitter(graph, "forward")
    signs = emit("Sign", weight, name=f"{weight.name}.signs")
    graph.insert_before(graph.node(0), emit.nodes)
    for node in users:
        for i, value in enumerate(node.inputs):
            if value is weight:
                node.replace_input_with(i, signs)


def _cause(forward: ForwardGraph, name: str, is_unit: bool) -> str:
    """Why a file holds signs where latent weights should be, and what to do."""
    producer = (forward.model.producer_name or "").lower()
    if "tf2onnx" in producer or "keras" in producer:
        other = "train without them (--optimizer bop or fixed-sign), or " if is_unit else ""
        return (
            "the converter wrote larq's binary kernels, not the latent weights; "
            f"{other}build the network in PyTorch with sign(weight) in its forward, and load the "
            "latent weights there"
        )
    if producer == "pytorch" and not name.startswith(("onnx::", "/")):
        return (
            "the module overwrites its weights with their signs (weight.data = ..); keep the "
            "latent ones as the parameter, and multiply by sign(weight) in forward"
        )
    return f"the export folded the latent weights away; export with {EXPORT_COMMAND}"


def _is_binary(array: NDArray[np.float32]) -> bool:
    """Whether all elements, or all of every output channel, are +c or -c, and both occur."""
    if array.min() >= 0 or array.max() <= 0:
        return False
    magnitude = np.abs(array)
    rows, columns = magnitude.reshape(len(array), -1), magnitude.reshape(-1, array.shape[-1]).T
    return any(
        way.shape[1] >= 4 and np.ptp(way, axis=1).max() <= 1e-6 * magnitude.max()
        for way in (magnitude.reshape(1, -1), rows, columns)
    )
