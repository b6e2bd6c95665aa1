"""Writes an output folder: all of it, or nothing."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from bnnopt.artifact.portable import portable_model
from bnnopt.artifact.program import make_program
from bnnopt.errors import ArtifactError
from bnnopt.plan import check_program, make_plan
from bnnopt.runtime.format import (
    ARTIFACT_FILE,
    CONSTANTS_FILE,
    EVALUATION,
    FORMAT,
    PROFILE_FILE,
    TRAINING,
    WEIGHTS_FILE,
    Artifact,
    fields_checksum,
    file_checksum,
    graph_file,
    program_file,
)
from bnnopt.runtime.predictor import without_signs
from bnnopt.runtime.source import SOURCE_FILE
from bnnopt.runtime.tensors import is_checkpoint, write_tensors
from bnnopt.training_step import TrainingStep, is_constant

REFERENCE_FILE = "reference.onnx"
REPORT_FILE = "report.json"
README_FILE = "README.md"
README = """\
# A training step compiled by bnnopt

`bnnopt train`, `eval`, `predict`, `export`, `inspect` and `verify` take this folder; a device needs
bnnopt's runtime, numpy and safetensors to train with it.

| file | what it is |
|---|---|
| `artifact.json` | how it was compiled, and a checksum of every other file |
| `weights.safetensors` | weights and statistics before training, under the model file's names |
| `constants.safetensors` | constants of both programs |
| `training.plan.json`, `evaluation.plan.json` | the programs: their steps, and each value's place |
| `training.portable.onnx`, `evaluation.portable.onnx` | the same for stock onnxruntime |
| `training.onnx`, `evaluation.onnx` | the same as graphs with bnnopt's operators, to look at |
| `reference.onnx` | the training step before any pass; `bnnopt verify` compares with it |
| `source.onnx` | the model file's graph without its weights; `bnnopt export` puts trained ones in |
| `report.json` | what each pass saved |

A device without onnxruntime needs the first four kinds only. Checkpoints go beside the folder.
"""


PREDICTOR_README = """\
# A network compiled by bnnopt, to predict with

`bnnopt predict` and `eval` take this folder; a device needs bnnopt's runtime, numpy and
safetensors.

| file | what it is |
|---|---|
| `artifact.json` | how it was compiled, and a checksum of every other file |
| `constants.safetensors` | weights, binary ones as bits, and thresholds |
| `evaluation.plan.json` | the program: its steps, and each value's place |
| `evaluation.onnx` | the same as a graph with functions, which stock onnxruntime runs |
"""


@dataclass(frozen=True)
class Contents:
    """What goes into an output folder.

    Attributes
    ----------
    about : Artifact
        Its description.
    training, evaluation, reference : TrainingStep
        The rewritten step, the evaluation graph, and the step before any rewrite.
    weights : mapping of str to ndarray
        Initial values under the model file's names, as the step stores them.
    report : str
        The report as JSON.
    source : ModelProto
        The user's own graph without those weights.
    """

    about: Artifact
    training: TrainingStep
    evaluation: TrainingStep
    reference: TrainingStep
    weights: Mapping[str, NDArray[np.generic]]
    report: str
    source: onnx.ModelProto


def owned_files() -> set[str]:
    """The names of the files that a folder of ours consists of."""
    kinds = (TRAINING, EVALUATION)
    per_kind = {name for k in kinds for name in (f"{k}.onnx", graph_file(k), program_file(k))}
    single = {ARTIFACT_FILE, WEIGHTS_FILE, CONSTANTS_FILE, REFERENCE_FILE, REPORT_FILE}
    single |= {SOURCE_FILE, README_FILE}
    return per_kind | single


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be written, or that holds files that are not ours.

    Raises
    ------
    ArtifactError
        One line that says what is in the way.
    """
    try:
        exists = folder.exists()
        if exists and not folder.is_dir():
            raise ArtifactError(f"{folder}: is a file; expected a folder to write to")
        found = {path.name for path in folder.iterdir()} if exists else set()
        parent = next(path for path in folder.resolve().parents if path.exists())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ArtifactError(f"{folder}: cannot be written: {reason}") from None
    foreign = sorted(found - owned_files() - {PROFILE_FILE} - set(_checkpoints(folder)))
    if foreign:
        raise ArtifactError(
            f"{folder}: holds {foreign[0]!r}, which bnnopt did not write; choose another folder"
        )
    if folder.resolve() == Path.cwd():
        raise ArtifactError(f"{folder}: is the working directory; expected a folder of its own")
    if not parent.is_dir():
        raise ArtifactError(f"{folder}: cannot be written: {parent} is a file")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ArtifactError(f"{folder}: cannot be written: no permission in {parent}")


def check_predictor_folder(folder: Path) -> None:
    """Refuse what `check_folder` does, and a training step, which would be lost.

    Raises
    ------
    ArtifactError
        One line that says what is in the way.
    """
    check_folder(folder)
    if (folder / program_file(TRAINING)).exists():
        raise ArtifactError(f"{folder}: holds a training step; choose another folder")


def write_folder(folder: Path, contents: Contents) -> None:
    """Write everything to a folder beside `folder`, then put it in its place.

    Raises
    ------
    ArtifactError
        If the folder cannot be written; what was there is still there.
    """
    check_folder(folder)
    with _in_place_of(folder) as fresh:
        _write_all(fresh, contents)


def write_predictor(
    folder: Path,
    step: TrainingStep,
    graph: ir.Model,
    about: Artifact,
    notes: Mapping[str, str],
) -> None:
    """Write the folder that `bnnopt.runtime.Predictor` opens: no training step, weights inside.

    Parameters
    ----------
    step : TrainingStep
        An evaluation without persistent inputs.
    graph : onnx_ir.Model
        The same for others.
    about : Artifact
        Of the training folder.
    notes : mapping of str to str
        Texts to keep beside the constants.

    Raises
    ------
    ArtifactError
        If the folder cannot be written; what was there is still there.
    """
    check_predictor_folder(folder)
    own = about._replace(
        batch_size=step.batch_size, persistent={}, dtypes={}, weights=[], packed={}, latent=[],
        pruning=None,
    )  # fmt: skip
    with _in_place_of(folder) as fresh:
        _write_program(fresh, EVALUATION, step)
        ir.save(graph, fresh / f"{EVALUATION}.onnx")
        constants, metadata = without_signs(_constants(step))
        write_tensors(fresh / CONSTANTS_FILE, constants, {**notes, **metadata})
        (fresh / README_FILE).write_text(PREDICTOR_README)
        _write_about(fresh, own)


@contextlib.contextmanager
def _in_place_of(folder: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `folder`, but for the checkpoints in there."""
    target = folder.resolve()  # a link stays, and leads to what is written
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".bnnopt-", dir=target.parent) as made:
            fresh = Path(made) / "new"
            fresh.mkdir()
            yield fresh
            for name in _checkpoints(target):
                shutil.copy2(target / name, fresh / name)
            _swap(fresh, target, Path(made) / "old")
    except OSError as error:
        raise ArtifactError(f"{folder}: cannot be written: {error.strerror or error}") from None


def _checkpoints(folder: Path) -> list[str]:
    """Names of the checkpoints that somebody keeps in the folder: they stay there."""
    paths = folder.glob("*.safetensors") if folder.is_dir() else ()
    return [p.name for p in paths if p.name not in owned_files() and is_checkpoint(p)]


def _swap(fresh: Path, folder: Path, old: Path) -> None:
    """Put `fresh` in the place of `folder`, which becomes `old`; put that back if it fails."""
    if folder.exists():
        folder.rename(old)
    try:
        fresh.rename(folder)
    except BaseException:
        if old.exists():
            old.rename(folder)
        raise


def _write_all(folder: Path, contents: Contents) -> None:
    constants: dict[str, NDArray[np.generic]] = {}
    for kind, step in ((TRAINING, contents.training), (EVALUATION, contents.evaluation)):
        _write_program(folder, kind, step)
        ir.save(step.model, folder / f"{kind}.onnx")
        ir.save(portable_model(step, step.batch_size), folder / graph_file(kind))
        constants |= _constants(step)
    write_tensors(folder / CONSTANTS_FILE, constants, {})
    write_tensors(folder / WEIGHTS_FILE, contents.weights, {})
    ir.save(contents.reference.model, folder / REFERENCE_FILE)
    (folder / REPORT_FILE).write_text(contents.report)
    onnx.save(contents.source, folder / SOURCE_FILE)
    (folder / README_FILE).write_text(README)
    _write_about(folder, contents.about)


def _write_program(folder: Path, kind: str, step: TrainingStep) -> None:
    program = make_program(step, make_plan(step), step.batch_size)
    check_program(program)
    (folder / program_file(kind)).write_text(program.to_json())


def _constants(step: TrainingStep) -> dict[str, NDArray[np.generic]]:
    return {
        name: np.asarray(value.const_value.numpy(), order="C")
        for name, value in step.graph.initializers.items()
        if is_constant(value) and value.const_value is not None
    }


def _write_about(folder: Path, about: Artifact) -> None:
    """Write ``artifact.json``, last: it takes down what the other files of the folder are."""
    files = {path.name: file_checksum(path) for path in sorted(folder.iterdir())}
    fields = about._replace(files=files)._asdict()
    fields |= {"checksum": fields_checksum(fields), "format": FORMAT}
    (folder / ARTIFACT_FILE).write_text(json.dumps(fields, indent=1))
