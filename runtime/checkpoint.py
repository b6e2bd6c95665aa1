"""Checkpoints: weights, statistics, optimiser state, number of steps, and texts of the caller."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnnopt.errors import ArtifactError, BnnoptError
from bnnopt.runtime.artifact import read_tensors, tensors_checksum, write_tensors
from bnnopt.runtime.files import StrPath, reason_of, shown_path

Array = NDArray[np.generic]
_NOTE = "note."  # before the names of the caller's texts
_MOST_DIGITS = 18  # of a number of steps in an int64
_OTHER = "the checkpoint is of another model, optimiser or level"


class Checkpoint(NamedTuple):
    """What is kept: the tensors by name, the steps that they have seen, and texts.

    A file has a checksum of all of them; `write_checkpoint` works it out.
    """

    tensors: Mapping[str, Array]
    steps_done: int
    notes: Mapping[str, str]
    checksum: str = ""


class StateOnDisk(NamedTuple):
    """Where the state after so many steps can be read, as long as nobody replaces the file."""

    steps_done: int
    read: Callable[[], Mapping[str, Array]]

    def restore(self, persistent: Mapping[str, Array]) -> bool:
        """Read it into these buffers; False, and nothing has changed, if it is not there now."""
        try:
            tensors = self.read()
        except (BnnoptError, MemoryError):
            return False
        for name, array in persistent.items():
            np.copyto(array, tensors[name])
        return True


def saved_state(
    path: StrPath, steps_done: int, checksum: str, like: Mapping[str, Array]
) -> StateOnDisk:
    """The state in a checkpoint of this checksum."""
    path = os.path.abspath(os.fsdecode(path))

    def read() -> Mapping[str, Array]:
        found = read_checkpoint(path, like)
        if found.checksum != checksum:
            raise ArtifactError(f"{path}: has been replaced")
        return found.tensors

    return StateOnDisk(steps_done, read)


def write_checkpoint(path: StrPath, checkpoint: Checkpoint) -> str:
    """Write a file that is complete or absent whatever happens meanwhile; return its checksum.

    Raises
    ------
    ArtifactError
        If it cannot be written.
    """
    try:
        metadata = {"steps_done": str(checkpoint.steps_done)}
        metadata |= {f"{_NOTE}{name}": text for name, text in checkpoint.notes.items()}
        metadata["checksum"] = str(tensors_checksum(checkpoint.tensors, metadata))
        write_tensors(path, checkpoint.tensors, metadata)
    except (OSError, ValueError) as error:
        where, reason = shown_path(path), reason_of(error)
        raise ArtifactError(f"{where}: cannot be written: {reason}") from None
    return metadata["checksum"]


def read_checkpoint(path: StrPath, like: Mapping[str, Array]) -> Checkpoint:
    """Read a checkpoint with the names, shapes and dtypes of `like`.

    Raises
    ------
    ArtifactError
        If the file is missing, damaged, or has others.
    """
    tensors, metadata = read_tensors(path)
    steps = metadata.get("steps_done", "")
    if not steps.isdecimal() or len(steps) > _MOST_DIGITS:
        raise ArtifactError(f"{path}: not a checkpoint: it does not say how many steps it saw")
    _check_alike(path, tensors, like)
    check_tensors(path, tensors, metadata)
    notes = {n.removeprefix(_NOTE): text for n, text in metadata.items() if n.startswith(_NOTE)}
    return Checkpoint(tensors, int(steps), notes, metadata["checksum"])


def check_tensors(path: StrPath, tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """Compare what a checkpoint holds with its checksum.

    Raises
    ------
    ArtifactError
        If it is another, or there is none.
    """
    if metadata.get("checksum") != str(tensors_checksum(tensors, metadata)):
        raise ArtifactError(f"{path}: is not as it was written; take another checkpoint")


def _check_alike(path: StrPath, tensors: Mapping[str, Array], like: Mapping[str, Array]) -> None:
    foreign = sorted(tensors.keys() - like.keys())
    if foreign:
        raise ArtifactError(f"{path}: holds {foreign[0]!r}, which is not here; {_OTHER}")
    for name, array in like.items():
        found = tensors.get(name)
        if found is None or found.shape != array.shape or found.dtype != array.dtype:
            state = "missing" if found is None else f"{found.dtype} {list(found.shape)}"
            expected = f"{array.dtype} {list(array.shape)}"
            raise ArtifactError(f"{path}: {name!r} is {state}, expected {expected}; {_OTHER}")
