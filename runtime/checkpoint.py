"""Checkpoints: weights, statistics, optimiser state, number of steps, and texts of the caller."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnnopt.errors import ArtifactError, BnnoptError
from bnnopt.runtime.files import StrPath, reason_of, shown_path
from bnnopt.runtime.tensors import TensorFile, tensors_checksum, write_tensors

Array = NDArray[np.generic]
_NOTE = "note."  # before the names of the caller's texts
_MOST_DIGITS = 18  # of a number of steps in an int64
_OTHER = "the checkpoint is of another model, optimiser or level"


class Checkpoint(NamedTuple):
    """What a checkpoint says beside its tensors; the checksum is of all of it."""

    steps_done: int
    notes: Mapping[str, str]
    checksum: str


class StateOnDisk(NamedTuple):
    """Where the state after so many steps can be read, as long as nobody replaces the file."""

    steps_done: int
    read: Callable[[Mapping[str, Array]], None]

    def restore(self, persistent: Mapping[str, Array]) -> bool:
        """Read it into these buffers; False if it is not there now."""
        try:
            self.read(persistent)
        except (BnnoptError, MemoryError):
            return False
        return True


def saved_state(path: StrPath, steps_done: int, checksum: str) -> StateOnDisk:
    """The state in a checkpoint of this checksum."""
    path = os.path.abspath(os.fsdecode(path))

    def read(into: Mapping[str, Array]) -> None:
        with TensorFile(path) as file:
            if check_checkpoint(file, into).checksum != checksum:
                raise ArtifactError(f"{path}: has been replaced")
            read_state(file, into)

    return StateOnDisk(steps_done, read)


def write_checkpoint(
    path: StrPath, tensors: Mapping[str, Array], steps_done: int, notes: Mapping[str, str]
) -> str:
    """Write a file that is complete or absent whatever happens meanwhile; return its checksum.

    Raises
    ------
    ArtifactError
        If it cannot be written.
    """
    try:
        metadata = {"steps_done": str(steps_done)}
        metadata |= {f"{_NOTE}{name}": text for name, text in notes.items()}
        metadata["checksum"] = str(tensors_checksum(tensors, metadata))
        write_tensors(path, tensors, metadata)
    except (OSError, ValueError) as error:
        where, reason = shown_path(path), reason_of(error)
        raise ArtifactError(f"{where}: cannot be written: {reason}") from None
    return metadata["checksum"]


def read_checkpoint(path: StrPath, into: Mapping[str, Array]) -> Checkpoint:
    """Read a checkpoint into arrays of its names, shapes and dtypes.

    Raises
    ------
    ArtifactError
        If the file is missing, damaged, or has others; the arrays have not changed then.
    """
    with TensorFile(path) as file:
        found = check_checkpoint(file, into)
        read_state(file, into)
    return found


def check_checkpoint(file: TensorFile, like: Mapping[str, Array]) -> Checkpoint:
    """Read a checkpoint through to see that it is whole, with the names, shapes, dtypes of `like`.

    Raises
    ------
    ArtifactError
        If it is damaged, or has others.
    """
    steps = file.metadata.get("steps_done", "")
    if not steps.isdecimal() or len(steps) > _MOST_DIGITS:
        raise ArtifactError(f"{file.path}: not a checkpoint: it does not say how many steps it saw")
    foreign = sorted(set(file.names) - like.keys())
    if foreign:
        raise ArtifactError(f"{file.path}: holds {foreign[0]!r}, which is not here; {_OTHER}")
    for name, array in like.items():
        file.check_alike(name, array, _OTHER)
    check_whole(file)
    notes = {n.removeprefix(_NOTE): s for n, s in file.metadata.items() if n.startswith(_NOTE)}
    return Checkpoint(int(steps), notes, file.metadata["checksum"])


def check_whole(file: TensorFile) -> None:
    """Compare what a checkpoint holds with its checksum.

    Raises
    ------
    ArtifactError
        If it is another, or there is none.
    """
    if file.metadata.get("checksum") != str(file.checksum()):
        raise ArtifactError(f"{file.path}: is not as it was written; take another checkpoint")


def read_state(file: TensorFile, into: Mapping[str, Array]) -> None:
    """Read a checkpoint that `check_checkpoint` has seen.

    Raises
    ------
    ArtifactError
        If it was written to meanwhile; the arrays hold some of it then.
    """
    for name, array in into.items():
        file.read(name, array)
    if file.metadata["checksum"] != str(tensors_checksum(into, file.metadata)):
        raise ArtifactError(f"{file.path}: was changed while it was read")
