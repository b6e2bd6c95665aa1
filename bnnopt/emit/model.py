"""What is emitted: the programs of a folder, planned for one thread, and where buffers go."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bnnopt.artifact import make_program
from bnnopt.artifact.read import load_step
from bnnopt.compiler.evaluation import in_parts
from bnnopt.emit.memory import Buffer, placed
from bnnopt.errors import UsageError
from bnnopt.plan import check_program, make_plan
from bnnopt.runtime.artifact import check_files, read_artifact, read_program
from bnnopt.runtime.backends import initial_buffers
from bnnopt.runtime.checkpoint import read_checkpoint
from bnnopt.runtime.executor import Array, worst_spill_bytes
from bnnopt.runtime.files import StrPath
from bnnopt.runtime.format import (
    CONSTANTS_FILE,
    EVALUATION,
    TRAINING,
    Artifact,
    Program,
    ValueSpec,
    statistics,
    written_buffers,
)
from bnnopt.runtime.native import NativeBackend
from bnnopt.runtime.tensors import read_tensors
from bnnopt.training_step import TrainingStep

THREADS = 1
COUNTER_BYTES = 8  # of the number of steps, in front of the state
MOST_CONST_BYTES = 1 << 20  # of initial weights that are arrays where it is not said


class Parameter(NamedTuple):
    """An array that a function of the program takes: its name in C and the value it feeds."""

    name: str
    spec: ValueSpec
    is_label: bool


class Model(NamedTuple):
    """A folder, opened to be emitted.

    Attributes
    ----------
    artifact : Artifact
    training, evaluation : Program
    state : list of Buffer
        What a step changes.
    state_bytes : int
        To the end of the last one, with the number of steps in front.
    fixed : list of Buffer
        Frozen weights and constants.
    in_file : bool
        Whether the initial state is a file, and no arrays.
    steps_done : int
        That the initial weights have seen.
    """

    artifact: Artifact
    training: Program
    evaluation: Program
    state: list[Buffer]
    state_bytes: int
    fixed: list[Buffer]
    in_file: bool
    steps_done: int

    @property
    def arena_bytes(self) -> int:
        """Of the one arena, as it was planned."""
        return max(self.training.arena_bytes, self.evaluation.arena_bytes)

    @property
    def statistics(self) -> frozenset[str]:
        """The buffers of the state that the forward pass moves."""
        return statistics(self.training)

    @property
    def spill_bytes(self) -> int:
        """For the values of bitmaps that outgrow their place, if no element of any is zero."""
        return max(worst_spill_bytes(program) for program in (self.training, self.evaluation))

    @property
    def filled(self) -> list[Buffer]:
        """Those of the state that do not begin as zeros."""
        return [buffer for buffer in self.state if buffer.array.any()]

    def parameters(self, program: Program) -> list[Parameter]:
        """The arrays of samples and labels that a program takes."""
        return [
            Parameter(
                name if len(indices) == 1 else f"{name}{i}", program.values[index], role == "labels"
            )
            for name, role in (("x", "data"), ("y", "labels"))
            if (indices := program.roles.get(role, ()))
            for i, index in enumerate(indices)
        ]

    def sample_bytes(self, parameter: Parameter) -> int:
        """Of one sample of an array; see `read_model`."""
        return parameter.spec.n_bytes(self.training.batch_size) // self.training.batch_size


def read_model(folder: str, weights: str, checkpoint: StrPath | None) -> Model:
    """Open a folder; the parameters are those of `emit`.

    Raises
    ------
    UsageError
        If what it does beside its programs cannot be emitted.
    ArtifactError
        If it is not one of bnnopt's, or damaged, or the checkpoint is not one of its.
    """
    artifact = read_artifact(folder)
    for reason in _beside_the_programs(artifact):
        raise UsageError(f"emit: {folder} {reason}")
    graphs = [f"{kind}.onnx" for kind in (TRAINING, EVALUATION)]
    check_files(folder, artifact, [*NativeBackend.files, *graphs])
    constants, _ = read_tensors(os.path.join(folder, CONSTANTS_FILE))
    buffers, steps_done = _initial(folder, artifact, checkpoint)
    steps = [load_step(Path(folder, f"{kind}.onnx")) for kind in (TRAINING, EVALUATION)]
    known = read_program(folder, TRAINING), read_program(folder, EVALUATION)
    training = _planned(steps[0], known[0], folder)
    part = in_parts(steps[1], training.arena_bytes, THREADS)
    evaluation = _planned(part, known[1], folder)
    changed = written_buffers(training, *training.steps)
    state, end = placed({n: a for n, a in buffers.items() if n in changed}, COUNTER_BYTES)
    frozen = {name: array for name, array in buffers.items() if name not in changed}
    fixed = [Buffer(name, array, -1) for name, array in (*frozen.items(), *constants.items())]
    n_bytes = sum(buffer.array.nbytes for buffer in state if buffer.array.any())
    in_file = weights == "file" or (weights == "auto" and n_bytes > MOST_CONST_BYTES)
    return Model(artifact, training, evaluation, state, end, fixed, in_file, steps_done)


def _initial(
    folder: str, artifact: Artifact, checkpoint: StrPath | None
) -> tuple[dict[str, Array], int]:
    """What the state begins with, and the steps that it has seen."""
    buffers: dict[str, Array] = initial_buffers(folder, artifact)
    if checkpoint is None:
        return buffers, 0
    found = read_checkpoint(checkpoint, buffers)
    return buffers, found.steps_done


def _beside_the_programs(artifact: Artifact) -> Iterator[str]:
    if artifact.pruning is not None:
        yield "prunes its weights, which C does not; optimize without prune-stored"
    if artifact.parts > 1:
        yield (
            f"takes a batch in {artifact.parts} parts, which C does not; optimize without "
            "--accumulate"
        )


def _planned(step: TrainingStep, known: Program, folder: str) -> Program:
    """The program of a step, whose plan has no workspace for threads that C has not.

    `known` is the folder's own: a file of ONNX loses outputs that are left out at a node's end.
    """
    program = make_program(step, make_plan(step, THREADS), step.batch_size)
    left_out = (
        (-1,) * (len(old.outputs) - len(new.outputs))
        for new, old in zip(program.steps, known.steps, strict=True)
    )
    steps = zip(program.steps, left_out, strict=True)
    program = program._replace(
        steps=tuple(new._replace(outputs=(*new.outputs, *lost)) for new, lost in steps)
    )
    check_program(program)
    for role in ("data", "labels"):
        for spec in (program.values[index] for index in program.roles.get(role, ())):
            if math.prod(spec.shape_at(program.batch_size)) % program.batch_size:
                raise UsageError(f"emit: {folder}: input {spec.name!r} has no axis of samples")
    return program
