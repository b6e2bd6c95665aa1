"""Trained weights in the forms in which others read them."""

from __future__ import annotations

import os

import numpy as np
from safetensors.numpy import save

from bnnopt.errors import ArtifactError
from bnnopt.runtime.artifact import check_files
from bnnopt.runtime.files import StrPath
from bnnopt.runtime.session import TrainingSession
from bnnopt.runtime.source import SOURCE_FILE, with_weights

_STATISTIC = ".running_mean"  # PyTorch's batch norm has it, and beside it a count of batches
_COUNT = ".num_batches_tracked"


def trained_model(folder: StrPath, session: TrainingSession) -> bytes:
    """The user's own graph with the session's weights, an ONNX file.

    Raises
    ------
    ArtifactError
        If the folder's graph is missing or damaged.
    """
    check_files(folder, session.about, [SOURCE_FILE])
    path = os.path.join(folder, SOURCE_FILE)
    try:
        with open(path, "rb") as file:
            return with_weights(file.read(), session.parameters())
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); optimize again") from None


def state_dict(session: TrainingSession) -> bytes:
    """Parameters and statistics under the file's names, a safetensors file.

    For a module that PyTorch exported these are the names of its ``state_dict``; the batches that
    each batch norm counts are the session's steps.
    """
    tensors = {name: np.asarray(v, order="C") for name, v in session.parameters().items()}
    for name in list(tensors):
        if name.endswith(_STATISTIC):
            count = np.array(session.steps_done, np.int64)
            tensors[name.removesuffix(_STATISTIC) + _COUNT] = count
    return save(tensors, {"format": "pt"})
