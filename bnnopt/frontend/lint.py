"""Files that load but cannot be trained as they are: each gets one line that says how to mend it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from bnnopt.errors import ModelError
from bnnopt.frontend.normalize import ForwardGraph
from bnnopt.frontend.read import EXPORT_COMMAND

PRODUCTS = frozenset({"Conv", "Gemm", "MatMul", "ConvTranspose"})


def lint(forward: ForwardGraph, path: Path) -> None:
    """Reject exports that lost what training needs.

    Raises
    ------
    ModelError
        If a batch norm is in inference mode, or the latent weights of a binary layer are gone.
    """
    for node in forward.graph:
        if node.op_type == "BatchNormalization" and not _trains(node):
            raise ModelError(
                f"{path}: node {node.name!r} (BatchNormalization) is in inference mode, expected "
                f"training mode; export with {EXPORT_COMMAND}"
            )
        if node.op_type in PRODUCTS:
            _check_latent(forward, node, path)


def _trains(node: ir.Node) -> bool:
    mode = node.attributes.get("training_mode")
    return mode is not None and bool(mode.as_int())


def _check_latent(forward: ForwardGraph, node: ir.Node, path: Path) -> None:
    weight = node.inputs[1]
    array = forward.weights.get(str(weight.name)) if weight is not None else None
    if array is None or array.ndim < 2 or array.size < 16:
        return
    magnitude = np.abs(array)
    if magnitude.flat[0] > 0 and np.all(magnitude == magnitude.flat[0]):
        raise ModelError(
            f"{path}: node {node.name!r} ({node.op_type}): all of weight {weight.name!r} is "  # type: ignore[union-attr]
            f"+-{magnitude.flat[0]:g}: the export folded the latent weights away; export with "
            f"{EXPORT_COMMAND}"
        )
