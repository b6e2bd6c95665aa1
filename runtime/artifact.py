"""Opening an output folder, and the files in it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable

from bnnopt.errors import ArtifactError, UsageError
from bnnopt.runtime.artifact_check import checked_fields
from bnnopt.runtime.files import StrPath, check_regular, shown_path
from bnnopt.runtime.format import (
    ARTIFACT_FILE,
    FORMAT,
    Artifact,
    Program,
    fields_checksum,
    file_checksum,
    program_file,
)

AGAIN = "copy the folder again, or optimize again"


def read_artifact(folder: StrPath, trains: bool = True) -> Artifact:
    """What a folder says about itself.

    Parameters
    ----------
    trains : bool
        Whether a training step is expected in there, or a network that predicts.

    Raises
    ------
    ArtifactError
        If the folder is missing, was not written by bnnopt, or by a version with another format.
    UsageError
        If the other one is in there.
    """
    artifact = _read_artifact(folder)
    if trains and not artifact.persistent:
        raise UsageError(
            f"{folder}: is a network that predicts, without a training step; expected a folder of "
            "bnnopt optimize, or open this one with bnnopt.Predictor"
        )
    if not trains and artifact.persistent:
        raise UsageError(
            f"{folder}: is a training step; expected a folder of bnnopt export --packed, or open "
            "this one with bnnopt.TrainingSession"
        )
    return artifact


def is_predictor(folder: StrPath) -> bool:
    """Whether a folder, if it is one of bnnopt's, has a network alone.

    Raises
    ------
    ArtifactError
        If it is none.
    """
    return not _read_artifact(folder).persistent


def _read_artifact(folder: StrPath) -> Artifact:
    path = os.path.join(folder, ARTIFACT_FILE)
    try:
        fields = json.loads(_text(path))
        version, checksum = fields.pop("format"), fields.pop("checksum", None)
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(
            f"{folder}: not a bnnopt folder: it has no {ARTIFACT_FILE}; write one with "
            "'bnnopt optimize model.onnx -o FOLDER'"
        ) from None
    except OSError as error:
        raise ArtifactError(f"{shown_path(path)}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{path}: is damaged ({error!r}); {AGAIN}") from None
    if version != FORMAT:
        raise ArtifactError(f"{path}: format {version}, expected {FORMAT}; optimize again")
    if checksum != fields_checksum(fields):
        raise ArtifactError(f"{path}: is not as it was written; {AGAIN}")
    try:
        return checked_fields(fields)
    except ValueError as error:
        raise ArtifactError(f"{path}: {error}; optimize again") from None


def check_files(folder: StrPath, artifact: Artifact, names: Iterable[str]) -> None:
    """Compare files of the folder with what they were when they were written.

    Raises
    ------
    ArtifactError
        If one is missing, cut short or changed.
    """
    for name in names:
        path = os.path.join(folder, name)
        try:
            checksum = file_checksum(path)
        except OSError as error:
            raise ArtifactError(f"{path}: cannot be read: {error.strerror}; {AGAIN}") from None
        if checksum != artifact.files.get(name):
            raise ArtifactError(f"{path}: is not as it was written; {AGAIN}")


def read_program(folder: StrPath, kind: str) -> Program:
    """A program of the folder, `kind` one of ``training`` and ``evaluation``."""
    path = os.path.join(folder, program_file(kind))
    try:
        return Program.from_json(_text(path))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error!r}); {AGAIN}") from None


def _text(path: str) -> str:
    check_regular(path)
    with open(path, encoding="utf-8") as file:
        return file.read()
