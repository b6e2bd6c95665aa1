"""Opening a folder: the buffers that outlive a step, and the backend that runs it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bnnopt.errors import ArtifactError, UsageError
from bnnopt.runtime.artifact import AGAIN, check_files
from bnnopt.runtime.artifact_check import persistent_bytes
from bnnopt.runtime.format import WEIGHTS_FILE, Artifact
from bnnopt.runtime.library import check_threads
from bnnopt.runtime.memory import allocating
from bnnopt.runtime.native import NativeBackend
from bnnopt.runtime.tensors import TensorFile

if TYPE_CHECKING:
    from bnnopt.runtime.onnxruntime_backend import OnnxruntimeBackend

Array = NDArray[np.generic]
BACKENDS = ("native", "onnxruntime")


def initial_buffers(folder: str, artifact: Artifact) -> dict[str, Array]:
    """What outlives a step: weights as the folder has them, state as zeros."""
    types = artifact.dtypes
    with allocating(persistent_bytes(artifact), f"{folder}: weights and optimiser state"):
        buffers = {n: np.zeros(shape, types[n]) for n, shape in artifact.persistent.items()}
        _read_weights(folder, artifact, buffers)
    return buffers


def read_initial(folder: str, artifact: Artifact, into: Mapping[str, Array]) -> None:
    """Let buffers hold again what they began with."""
    for name in into.keys() - _read_weights(folder, artifact, into):
        into[name].fill(0)


def _read_weights(folder: str, artifact: Artifact, into: Mapping[str, Array]) -> set[str]:
    """Returns the names of those that the folder has."""
    check_files(folder, artifact, [WEIGHTS_FILE])
    with TensorFile(os.path.join(folder, WEIGHTS_FILE)) as weights:
        found = into.keys() & set(weights.names)
        for name in found:
            weights.check_alike(name, into[name], AGAIN)
            weights.read(name, into[name])
    return found


def open_backend(
    folder: str,
    artifact: Artifact,
    name: str,
    persistent: dict[str, Array],
    threads: int | None,
) -> NativeBackend | OnnxruntimeBackend:
    """The backend of a name, on the buffers `persistent`.

    Raises
    ------
    UsageError
        If it is not known or not installed, or does not take so many threads.
    ArtifactError
        If a file that it reads is damaged.
    """
    found = _open(folder, artifact, name, persistent, threads)
    if bool(found.training.roles["share"]) != (artifact.parts > 1):
        raise ArtifactError(
            f"{folder}: its program takes no batch in {artifact.parts} parts; {AGAIN}"
        )
    if found.training.batch_size != artifact.batch_size:
        raise ArtifactError(
            f"{folder}: its program is for batches of {found.training.batch_size}, not "
            f"{artifact.batch_size}; optimize again"
        )
    return found


def _open(
    folder: str,
    artifact: Artifact,
    name: str,
    persistent: dict[str, Array],
    threads: int | None,
) -> NativeBackend | OnnxruntimeBackend:
    if name not in BACKENDS:
        raise UsageError(f"backend {name!r} is not known; expected {' or '.join(BACKENDS)}")
    check_threads(threads)
    if name == "native":
        check_files(folder, artifact, NativeBackend.files)
        return NativeBackend(folder, persistent, threads)
    try:
        from bnnopt.runtime.onnxruntime_backend import OnnxruntimeBackend
    except ImportError:
        raise UsageError(
            "backend 'onnxruntime' is not installed; pip install 'bnnopt[onnxruntime]'"
        ) from None
    if artifact.parts > 1:
        raise UsageError(
            "backend 'onnxruntime' takes no batch in parts, as --accumulate compiled; open with "
            "'native'"
        )
    check_files(folder, artifact, OnnxruntimeBackend.files)
    return OnnxruntimeBackend(folder, persistent, threads)
