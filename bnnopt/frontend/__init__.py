"""Readers: from a user's file to a forward graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx

from bnnopt.errors import ModelError
from bnnopt.frontend.binarization import recognize
from bnnopt.frontend.equal_nodes import merge_equal
from bnnopt.frontend.estimators import ESTIMATORS, Estimators
from bnnopt.frontend.hints import add_hints
from bnnopt.frontend.lint import lint
from bnnopt.frontend.normalize import (
    Binarized,
    ForwardGraph,
    evaluate,
    normalize,
    operator_name,
    setting,
)
from bnnopt.frontend.read import EXPORT_COMMAND, array_of, one_line, own_graph, read_model
from bnnopt.frontend.sign_padding import sign_padded
from bnnopt.frontend.straight_through import settle_detached
from bnnopt.frontend.surrogates import stop_signs
from bnnopt.frontend.training_artifacts import (
    OptimizerModel,
    TrainingArtifacts,
    is_artifacts,
    load_artifacts,
)
from bnnopt.frontend.whole import make_whole

ESTIMATORS_KEY = "bnnopt.ste"

__all__ = [
    "ESTIMATORS",
    "EXPORT_COMMAND",
    "Binarized",
    "ForwardGraph",
    "OptimizerModel",
    "TrainingArtifacts",
    "array_of",
    "evaluate",
    "is_artifacts",
    "load_artifacts",
    "load_forward",
    "one_line",
    "operator_name",
    "own_graph",
    "setting",
]


def load_forward(
    path: Path,
    batch_size: int | None,
    ste: Sequence[str] = (),
    keep_zero: bool | None = None,
    *,
    takes_signs: bool = False,
) -> ForwardGraph:
    """Read an ONNX file into a typed forward graph with explicit binarisation.

    Parameters
    ----------
    path : Path
        A forward graph: latent weights as initialisers, batch norm in training mode.
    batch_size : int or None
        Samples a step; may be None where the file fixes it.
    ste : sequence of str
        ``--ste`` options, see `Estimators.parse`.
    keep_zero : bool or None
        Keep ONNX's sign(0) = 0 instead of +1; None keeps it where exact zeros are no accident.
    takes_signs : bool
        Weights that are +-1 already are the signs of weights, not an export gone wrong.

    Raises
    ------
    ModelError, UsageError
        One line each.
    """
    model = read_model(path)
    estimators = Estimators.parse([*_own_estimators(model), *ste])
    forward = normalize(model, batch_size, path)
    lint(forward, path, takes_signs=takes_signs)
    merge_equal(forward.graph)
    settle_detached(forward)
    if not forward.has_gradients:
        stop_signs(forward.graph)
    try:
        recognize(forward, estimators, keep_zero)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    sign_padded(forward.graph)
    make_whole(forward.graph)
    if not forward.has_gradients:
        add_hints(forward)
    return forward


def _own_estimators(model: onnx.ModelProto) -> list[str]:
    """``--ste`` options that the file carries in its metadata, one a line."""
    return [
        line
        for entry in model.metadata_props
        if entry.key == ESTIMATORS_KEY
        for line in entry.value.splitlines()
    ]
