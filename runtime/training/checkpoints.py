"""A folder of checkpoints: the newest ones of a training, each whole or absent."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from bnnopt.errors import ArtifactError
from bnnopt.runtime.files import StrPath

if TYPE_CHECKING:
    from bnnopt.runtime.session import TrainingSession

ENDING = ".checkpoints"
BEST = "best.safetensors"
_NAME = re.compile(r"step-(\d{9,18})\.safetensors")


def default_folder(out: StrPath) -> str:
    """Where the checkpoints of an output folder go: beside it, so that it may be written anew."""
    return os.path.abspath(os.fspath(out)) + ENDING


def load_newest(session: TrainingSession, out: StrPath, checkpoint: StrPath | None = None) -> str:
    """Let `session` take a checkpoint's weights; returns the path, or why there is none.

    Parameters
    ----------
    out : path
        The output folder; beside it lie its checkpoints.
    checkpoint : path, optional
        The newest of those if not given; where there is none the session stays as it is.

    Raises
    ------
    ArtifactError
        If the checkpoint is damaged or of another model.
    """
    found = newest(out, checkpoint)
    if found is not None:
        session.resume(found)
    return where_from(out, found)


def newest(out: StrPath, checkpoint: StrPath | None = None) -> str | None:
    """The checkpoint that is given, else the newest of an output folder; None if it has none."""
    if checkpoint is not None:
        return os.fspath(checkpoint)
    return next(iter(Checkpoints(default_folder(out)).found()), None)


def where_from(out: StrPath, checkpoint: str | None) -> str:
    """Where weights come from, for people."""
    return checkpoint or f"{os.fspath(out)} has no checkpoint: those of the model file"


class Checkpoints:
    """Checkpoints by step in a folder, the oldest removed.

    Parameters
    ----------
    folder : path
        Made at the first save.
    keep : int
        So many of the newest stay; the best one beside them.
    """

    def __init__(self, folder: StrPath, keep: int = 2) -> None:
        self.folder, self._keep = os.fspath(folder), keep

    def found(self) -> list[str]:
        """Paths of the checkpoints, the newest first."""
        try:
            names = os.listdir(self.folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise ArtifactError(f"{self.folder}: cannot be read: {error.strerror}") from None
        return [os.path.join(self.folder, n) for n in sorted(filter(_NAME.fullmatch, names))[::-1]]

    def save(self, session: TrainingSession, notes: Mapping[str, str]) -> str:
        """Write the session's checkpoint, then remove what is too old; returns its path.

        Raises
        ------
        ArtifactError
            If it cannot be written (a full disk); the ones before are untouched.
        """
        path = os.path.join(self.folder, f"step-{session.steps_done:09d}.safetensors")
        self._write(session, path, notes)
        for old in self.found()[self._keep :]:
            with contextlib.suppress(OSError):
                os.unlink(old)
        return path

    def save_best(self, session: TrainingSession, notes: Mapping[str, str]) -> None:
        """Write it under a name of its own, which stays."""
        self._write(session, os.path.join(self.folder, BEST), notes)

    def _write(self, session: TrainingSession, path: str, notes: Mapping[str, str]) -> None:
        try:
            os.makedirs(self.folder, exist_ok=True)
        except OSError as error:
            raise ArtifactError(f"{self.folder}: cannot be written: {error.strerror}") from None
        session.save(path, notes)
