"""``--init``: start from the weights of another file, such as a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from bnnopt.errors import UsageError
from bnnopt.frontend import ForwardGraph, array_of, own_graph
from bnnopt.ops import packed_row_bytes
from bnnopt.runtime.checkpoint import check_whole
from bnnopt.runtime.kernels.reference.packing import sign_unpack
from bnnopt.runtime.tensors import TensorFile
from bnnopt.runtime.training import Checkpoints

Array = NDArray[Any]


def start_from(path: Path, forward: ForwardGraph) -> None:
    """Take what a file has of the weights and running statistics of a graph, by name and shape.

    ``forward.notes`` says which start as in the model's own file.

    Parameters
    ----------
    path : Path
        A checkpoint of a session at any level, or a folder of them, of which the newest counts; a
        state_dict in safetensors, or a model in ONNX.
    forward : ForwardGraph
        Its `weights`, float32, are replaced. Weights that are there as sign bits are -1 and +1.

    Raises
    ------
    UsageError
        If the file has none of them, or one that is not finite.
    ArtifactError, ModelError
        If it cannot be read.
    """
    found = _read(path)
    taken = {
        name: fitting
        for name, own in forward.weights.items()
        if name in found and (fitting := _fitting(found[name], own)) is not None
    }
    if not taken:
        names, expected = (_listed(weights) for weights in (found, forward.weights))
        raise UsageError(
            f"--init {path}: no weight of this model is there as floats of its shape; "
            f"found {names}, expected such as {expected}"
        )
    for name, array in taken.items():
        if not np.isfinite(array).all():
            raise UsageError(f"--init {path}: {name!r} is not finite; take another checkpoint")
    _note_others(forward, found, taken)
    forward.weights.update(taken)


def _read(path: Path) -> Mapping[str, Array]:
    if os.path.isdir(path):
        newest = Checkpoints(path).found()[:1]
        if not newest:
            raise UsageError(f"--init {path}: has no checkpoint; expected a file of weights")
        path = Path(newest[0])
    if path.suffix == ".onnx":
        tensors = own_graph(path).graph.initializer
        return {tensor.name: array_of(tensor, path) for tensor in tensors}
    with TensorFile(path) as file:
        if "checksum" in file.metadata:  # of a session; other files have none
            check_whole(file)
        return {name: file.read(name) for name in file.names}


def _listed(weights: Mapping[str, Array]) -> str:
    """The first few, each with its type and shape."""
    some = [f"{name} {a.dtype} {list(a.shape)}" for name, a in list(weights.items())[:3]]
    return ", ".join(some) + (" .." if len(weights) > 3 else "")


def _fitting(found: Array, own: Array) -> Array | None:
    """What is found in float32 and in the shape of `own`, if it fits."""
    is_float = ir.DataType.from_numpy(found.dtype).is_floating_point()  # bfloat16 is one
    if is_float and found.shape == own.shape:
        with np.errstate(over="ignore"):  # infinity is refused
            return found.astype(np.float32)
    if found.dtype == np.uint8 and found.shape == (*own.shape[:1], packed_row_bytes(own.shape)):
        return sign_unpack(found, shape=list(own.shape[1:]))
    return None


def _note_others(
    forward: ForwardGraph, found: Mapping[str, Array], taken: Mapping[str, Array]
) -> None:
    """Name the weights that start as in the model."""
    own = [
        f"{name} {list(array.shape)} ({found[name].dtype} {list(found[name].shape)} there)"
        if name in found
        else name
        for name, array in forward.weights.items()
        if name not in taken
    ]
    if own:
        listed = ", ".join(own[:5]) + (" .." if len(own) > 5 else "")
        forward.notes.append(
            f"--init: {len(own)} of {len(forward.weights)} weights start as in the model: {listed}"
        )
