"""What the device reads: a program of steps over one arena, and the artifact around it.

A program is JSON: values with a dtype, a shape and a place, and steps that name an operator, its
values and its attributes. Weights, optimiser state and constants are in safetensors files.
"""

from __future__ import annotations

import json
import math
import os
import sys
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bnnopt.runtime.files import check_regular

FORMAT = 6
ARTIFACT_FILE = "artifact.json"
WEIGHTS_FILE = "weights.safetensors"
CONSTANTS_FILE = "constants.safetensors"
PROFILE_FILE = "profile.json"  # by training, where it is asked to; not of the folder itself
TRAINING, EVALUATION = "training", "evaluation"
NORMALIZE_BYTES = "NormalizeBytes"
NORMALIZE_ON_READ = "NormalizeOnRead"
WIDEN_ON_READ = "WidenOnRead"
NORMALIZATIONS = (NORMALIZE_BYTES, NORMALIZE_ON_READ)  # operators on what is fed as bytes

Attribute = int | float | str | list[int] | list[float]


class ValueSpec(NamedTuple):
    """A value of a program.

    Attributes
    ----------
    name : str
        As in the ONNX file.
    dtype : str
        Numpy's name.
    shape : tuple of int
        An axis of ``-k`` is k times the batch.
    place : str
        ``arena``, ``persistent`` (a buffer that outlives the step) or ``constant``.
    offset : int
        Bytes from the arena's start; 0 elsewhere.
    buffer : str
        Name of the persistent buffer or constant; empty in the arena.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    place: str
    offset: int
    buffer: str

    def shape_at(self, batch: int) -> tuple[int, ...]:
        """The shape for a batch of `batch` samples."""
        return tuple(-d * batch if d < 0 else d for d in self.shape)

    def n_bytes(self, batch: int) -> int:
        """Bytes for a batch of `batch` samples."""
        return math.prod(self.shape_at(batch)) * np.dtype(self.dtype).itemsize


class StepSpec(NamedTuple):
    """One operator call: indices of its values, -1 where an optional one is left out.

    ``is_view`` says that the output is the input's memory under another shape: nothing runs.
    """

    operator: str
    name: str
    phase: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    attributes: Mapping[str, Attribute]
    is_view: bool
    workspace_offset: int
    workspace_bytes: int


class Program(NamedTuple):
    """A planned graph.

    Attributes
    ----------
    batch_size : int
        The batch that the plan is for; with `fixed_batch` the only one that can run.
    roles : mapping of str to list of int
        Indices of the inputs by role (``data``, ``labels``, ``rate``, ``share``, ``step``).
    outputs : tuple of int
        The loss, or the predictions.
    gradients : mapping of str to int
        Parameter name to the value that its optimiser step reads.
    scores : int
        The value with a score for each class along axis 1, in the loss; -1 where it has none.
    """

    batch_size: int
    fixed_batch: bool
    arena_bytes: int
    values: tuple[ValueSpec, ...]
    steps: tuple[StepSpec, ...]
    roles: Mapping[str, Sequence[int]]
    outputs: tuple[int, ...]
    gradients: Mapping[str, int]
    scores: int

    def to_json(self) -> str:
        """The program as JSON text."""
        fields = {"format": FORMAT, **self._asdict()}
        fields["values"] = [spec._asdict() for spec in self.values]
        fields["steps"] = [spec._asdict() for spec in self.steps]
        return json.dumps(fields, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Program:
        """The program that `to_json` wrote."""
        fields = json.loads(text, object_hook=_entry)
        fields.pop("format")
        fields["values"] = tuple(fields["values"])
        fields["steps"] = tuple(fields["steps"])
        fields["outputs"] = tuple(fields["outputs"])
        return cls(**fields)


def _entry(fields: dict[str, Any]) -> Any:
    """A value or a step as soon as it is read, so that not all are there twice.

    Words that many of them share are kept once.
    """
    if fields.keys() == set(ValueSpec._fields):
        for word in ("name", "dtype", "place", "buffer"):
            fields[word] = sys.intern(fields[word])
        return ValueSpec(**{**fields, "shape": tuple(fields["shape"])})
    if fields.keys() == set(StepSpec._fields):
        for word in ("operator", "phase"):
            fields[word] = sys.intern(fields[word])
        return StepSpec(
            **{**fields, "inputs": tuple(fields["inputs"]), "outputs": tuple(fields["outputs"])}
        )
    return fields


class Artifact(NamedTuple):
    """What an output folder says about itself.

    Attributes
    ----------
    model : str
        File name of the model that it was made from.
    batch_size : int
        Samples that the programs take at once.
    parts : int
        How many such batches a step sums its gradients over.
    level, optimizer, loss : str
        How it was compiled.
    loss_options : mapping of str to value
        ``label_smoothing``, ``class_weights`` and ``ignore_index`` of a cross-entropy.
    learning_rate : float
        The default of a step.
    persistent : mapping of str to list of int
        Shapes of the buffers that outlive a step: weights, statistics, optimiser state.
    dtypes : mapping of str to str
        Numpy's names of their types: float32, unless a lossy pass stores them in less.
    weights : sequence of str
        Those of them that the model file has, under its own names.
    classes : int
        Labels are 0 to ``classes - 1``; 0 where there are none.
    passes : sequence of str
        The passes that ran, each with its options: ``prune-stored{sparsity=0.98}``.
    pruning : mapping of str to value, optional
        The fields of `bnnopt.runtime.pruning.Pruning`, where weights are pruned.
    packed : mapping of str to list of int
        Shapes of the weights that are kept as sign bits.
    latent : sequence of str
        The trained weights of which the network sees the signs.
    files : mapping of str to int
        Checksum of every other file of the folder.
    """

    model: str
    batch_size: int
    parts: int
    level: str
    optimizer: str
    loss: str
    loss_options: Mapping[str, Any]
    learning_rate: float
    persistent: Mapping[str, Sequence[int]]
    dtypes: Mapping[str, str]
    weights: Sequence[str]
    classes: int
    passes: Sequence[str]
    pruning: Mapping[str, Any] | None
    packed: Mapping[str, Sequence[int]]
    latent: Sequence[str]
    files: Mapping[str, int]


def sums(program: Program) -> frozenset[str]:
    """The persistent buffers in which gradients are summed over the parts of a step."""
    shares = set(program.roles["share"])
    added = (i for step in program.steps if shares & set(step.inputs) for i in step.outputs)
    return frozenset(program.values[i].buffer for i in added if i >= 0)


def normalizations(program: Program) -> list[tuple[str, str]]:
    """The buffers of the factor and the shift of each input that is fed as bytes."""
    steps = (s for s in program.steps if s.operator in NORMALIZATIONS)
    fed = [s.inputs[1:] for s in steps if s.inputs[0] in program.roles["data"]]
    buffers = [spec.buffer for spec in program.values]
    return list(dict.fromkeys((buffers[factor], buffers[shift]) for factor, shift in fed))


def latent_units(program: Program) -> dict[str, float]:
    """The buffers of weights that are kept in int8, and the unit of each."""
    found = {s.inputs[0]: float(str(s.attributes.get("w_unit", 0))) for s in program.steps}
    return {program.values[i].buffer: unit for i, unit in found.items() if unit > 0}


def written_buffers(program: Program, *steps: StepSpec) -> frozenset[str]:
    """The persistent buffers that steps write: a view of one writes nothing."""
    specs = (program.values[i] for s in steps if not s.is_view for i in s.outputs if i >= 0)
    return frozenset(spec.buffer for spec in specs if spec.place == "persistent")


def updating_steps(program: Program) -> frozenset[int]:
    """Positions of the steps that change a weight or the state of an optimiser."""
    kept = sums(program)
    return frozenset(
        position
        for position, step in enumerate(program.steps)
        if step.phase != "forward"  # that moves running statistics
        and written_buffers(program, step) - kept
    )


def has_half_gradients(program: Program) -> bool:
    """Whether a training step keeps gradients in float16, under a scale for its own batch."""
    made = (i for s in program.steps if s.phase == "backward" for i in s.outputs if i >= 0)
    return any(program.values[i].dtype == "float16" for i in made)


def normalizes_samples(program: Program) -> bool:
    """Whether a batch norm takes mean and deviation over the samples alone, not over places too."""
    return any(
        math.prod(program.values[s.inputs[0]].shape_at(1)[2:]) == 1 for s in training_norms(program)
    )


def statistics(program: Program) -> frozenset[str]:
    """The persistent buffers that the forward pass moves: running statistics."""
    return written_buffers(program, *(s for s in program.steps if s.phase == "forward"))


def training_norms(program: Program) -> tuple[StepSpec, ...]:
    """The batch norms that normalise by the batch: forward steps that move running statistics."""
    return tuple(
        step for step in program.steps if step.phase == "forward" and written_buffers(program, step)
    )


def file_checksum(path: str | os.PathLike[str]) -> int:
    """CRC-32 of a file's content: it finds damage and mistaken copies, not malice."""
    checksum = 0
    check_regular(path)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 18):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def fields_checksum(fields: Mapping[str, Any]) -> int:
    """CRC-32 of what ``artifact.json`` says, whatever its layout."""
    return zlib.crc32(json.dumps(fields, sort_keys=True).encode())


def program_file(kind: str) -> str:
    """File name of a program, `kind` one of `TRAINING` and `EVALUATION`."""
    return f"{kind}.plan.json"


def graph_file(kind: str) -> str:
    """File name of a graph for stock onnxruntime, without functions."""
    return f"{kind}.portable.onnx"
