"""Reads back the graphs of a folder, for the compiler's side."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from bnnopt.errors import ArtifactError
from bnnopt.ops import dims, dtype
from bnnopt.training_step import Role, TrainingStep, phase


def load_step(path: Path) -> TrainingStep:
    """A training step that bnnopt wrote into a folder.

    Raises
    ------
    ArtifactError
        If the file is missing or damaged.
    """
    try:
        step = TrainingStep(ir.load(path))
        steps = [phase(node) for node in step.graph]
        step.inputs(*Role)  # each says what it is
        for value in (v for node in step.graph for v in (*node.inputs, *node.outputs)):
            if value is not None and value.name:
                dims(value)
                dtype(value)
    except KeyError:
        raise ArtifactError(f"{path}: not a training step of bnnopt; optimize again") from None
    except Exception as error:  # the reader raises whatever protobuf and numpy do
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ArtifactError(f"{path}: cannot be read ({reason}); optimize again") from None
    if not steps or not step.graph.outputs:
        raise ArtifactError(f"{path}: not a training step of bnnopt; optimize again")
    return step
