"""Opening an output folder, and the files in it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bnnopt.errors import ArtifactError
from bnnopt.runtime.format import ARTIFACT_FILE, FORMAT, Artifact, Program, program_file


def read_artifact(folder: Path) -> Artifact:
    """What a folder says about itself.

    Raises
    ------
    ArtifactError
        If the folder is missing, was not written by bnnopt, or by a version with another format.
    """
    path = folder / ARTIFACT_FILE
    try:
        fields = json.loads(path.read_text())
        version = fields.pop("format")
    except FileNotFoundError:
        raise ArtifactError(
            f"{folder}: not a bnnopt folder: it has no {ARTIFACT_FILE}; write one with "
            "'bnnopt optimize model.onnx -o FOLDER'"
        ) from None
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); optimize again") from None
    if version != FORMAT:
        raise ArtifactError(f"{path}: format {version}, expected {FORMAT}; optimize again")
    try:
        return Artifact(**fields)
    except TypeError as error:
        raise ArtifactError(f"{path}: is damaged ({error}); optimize again") from None


def read_program(folder: Path, kind: str) -> Program:
    """A program of the folder, `kind` one of ``training`` and ``evaluation``."""
    path = folder / program_file(kind)
    try:
        return Program.from_json(path.read_text())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error}); optimize again") from None


def read_tensors(path: Path) -> tuple[dict[str, NDArray[np.generic]], dict[str, str]]:
    """All tensors of a safetensors file, and its metadata."""
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file") from None
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path}: not a safetensors file, or cut short ({error})") from None


def write_tensors(
    path: Path, tensors: Mapping[str, NDArray[np.generic]], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file so that a crash at any moment leaves the old one or the new one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    os.close(handle)
    try:
        save_file(dict(tensors), temporary, dict(metadata))
        _sync(Path(temporary))
        os.replace(temporary, path)
        _sync(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
