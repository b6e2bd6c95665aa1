"""Whether a program can run at all: its parts refer to one another, and lie where they may.

A checksum tells a damaged folder from a whole one. This tells a program that would read or write
outside of its memory, however that came about: every value lies in the arena or is the size of its
buffer, every step reads and writes values that are there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from bnnopt.errors import ArtifactError
from bnnopt.runtime.format import (
    NORMALIZE_ON_READ,
    WIDEN_ON_READ,
    Program,
    StepSpec,
    ValueSpec,
)
from bnnopt.runtime.kernels.compiled.table import GROWING
from bnnopt.runtime.kernels.operands import Operands, misfit

ALIGNMENT = 64  # bytes
DTYPES = frozenset(
    {"bool", "float16", "float32", "float64", "uint8", "uint16", "uint32", "uint64"}
    | {"int8", "int16", "int32", "int64"}
)
ROLES = frozenset({"data", "labels", "rate", "share", "step"})
COUNTED = frozenset({"bool", "uint8", "int32", "int64"})  # of indices, labels and bits
_ON_READ = {  # the types of what a view reads and gives as it is stored
    NORMALIZE_ON_READ: ["uint8", "float32", "float32", "uint8"],
    WIDEN_ON_READ: ["float16", "float16"],
}
SCALARS = {"rate": "float32", "share": "float32", "step": "int64"}
MAX_RANK = 16
MAX_ELEMENTS = 1 << 48
MAX_INTEGER = 1 << 63


def check_runnable(
    program: Program,
    buffers: Mapping[str, Mapping[str, NDArray[np.generic]]],
    where: str,
    trains: bool,
) -> None:
    """Refuse a program that would leave its memory.

    Parameters
    ----------
    program : Program
        As read from a folder.
    buffers : mapping of str to mapping of str to ndarray
        Those outside of the arena, by place and name.
    where : str
        Its file, for the message.
    trains : bool
        Whether it is a training step, which takes labels, a rate and the number of the step.

    Raises
    ------
    ArtifactError
        Naming what does not fit.
    """
    try:
        _check_whole(program)
        for spec in program.values:
            _check_value(spec, program, buffers)
        for step in program.steps:
            _check_step(step, program)
        _check_inputs(program, trains)
    except _MisfitError as error:
        raise ArtifactError(f"{where}: {error}; optimize again") from None
    except (AttributeError, TypeError, ValueError, LookupError) as error:
        raise ArtifactError(f"{where}: is no program ({error!r}); optimize again") from None


def check_same_data(training: Program, evaluation: Program, where: str) -> None:
    """Refuse programs that do not take the same samples: a session feeds either.

    Raises
    ------
    ArtifactError
        If their inputs differ.
    """
    taken = [
        [(*p.values[i][:2], p.values[i].shape_at(1)[1:]) for i in p.roles["data"]]
        for p in (training, evaluation)
    ]
    if taken[0] != taken[1]:
        raise ArtifactError(f"{where}: training and evaluation differ in inputs; optimize again")


class _MisfitError(Exception):
    pass


def _require(fits: bool, what: str) -> None:
    if not fits:
        raise _MisfitError(what)


def _check_whole(program: Program) -> None:
    n = len(program.values)
    _require(_is_count(program.batch_size, 1), f"the batch size is {program.batch_size!r}")
    _require(_is_count(program.arena_bytes), f"the arena is {program.arena_bytes!r} bytes")
    _require(program.roles.keys() == ROLES, f"inputs have roles {sorted(program.roles)}")
    fed = [i for indices in program.roles.values() for i in indices]
    used = [*fed, *program.outputs, *program.gradients.values()]
    _require(all(_is_count(i) and i < n for i in used), f"an input or output is none of {n} values")
    _require(bool(program.outputs), "it has no output")
    _require(_is_count(program.scores, -1) and program.scores < n, f"scores are {program.scores!r}")
    _require(type(program.fixed_batch) is bool, f"fixed_batch is {program.fixed_batch!r}")


def _check_inputs(program: Program, trains: bool) -> None:
    """What a session feeds: samples along the first axis, labels, a rate, a number."""
    for role, indices in program.roles.items():
        _require(role == "data" or trains or not indices, f"it takes {role}, but does not train")
        _require(role == "data" or len(indices) <= 1, f"it takes {len(indices)} inputs of {role}")
        for spec in (program.values[i] for i in indices):
            name, shape = f"input {spec.name!r}", spec.shape_at(program.batch_size)
            _require(spec.place == "arena", f"{name} lies in {spec.place!r}")
            if role in SCALARS:
                _require((spec.dtype, math.prod(shape)) == (SCALARS[role], 1), f"{name} is {spec}")
            elif role == "data":
                fits = shape[:1] == (program.batch_size,) and min(spec.shape[1:], default=1) > 0
                _require(fits, f"{name} has shape {list(spec.shape)}")
            else:
                _require(bool(shape), f"{name} is one number, not one a sample")
    _require(bool(program.roles["data"]), "it takes no data")
    loss, grown = (
        program.outputs[0],
        {i for s in program.steps if s.operator in GROWING for i in s.outputs},
    )
    _require(not trains or loss not in grown, "its loss is a tensor of the bitmap codec")


def _check_value(
    spec: ValueSpec,
    program: Program,
    buffers: Mapping[str, Mapping[str, NDArray[np.generic]]],
) -> None:
    name = f"value {spec.name!r}"
    _require(isinstance(spec.name, str), f"{name} has no name")
    _require(spec.dtype in DTYPES, f"{name} is of type {spec.dtype!r}")
    is_shape = len(spec.shape) <= MAX_RANK and all(_is_count(d, None) and d for d in spec.shape)
    _require(is_shape, f"{name} has shape {list(spec.shape)}")
    n_bytes = spec.n_bytes(program.batch_size)
    _require(n_bytes <= MAX_ELEMENTS, f"{name} takes {n_bytes} bytes")
    if spec.place == "arena":
        fits = _is_count(spec.offset) and spec.offset % ALIGNMENT == 0
        fits = fits and spec.offset + n_bytes <= program.arena_bytes
        _require(fits, f"{name} at {spec.offset} leaves the arena of {program.arena_bytes} bytes")
        return
    _require(min(spec.shape, default=1) > 0, f"{name} outlives a step, but grows with the batch")
    _require(spec.place in buffers, f"{name} lies in {spec.place!r}")
    buffer = buffers[spec.place].get(spec.buffer)
    _require(buffer is not None, f"{name} has no buffer {spec.buffer!r}")
    assert buffer is not None
    fits = buffer.dtype == spec.dtype and buffer.nbytes == n_bytes
    found = f"{buffer.dtype} of {buffer.nbytes} bytes"
    _require(fits, f"{name} is {spec.dtype} of {n_bytes} bytes, its buffer {found}")


def _check_step(step: StepSpec, program: Program) -> None:
    name = f"step {step.name!r}"
    texts = (step.operator, step.name, step.phase)
    _require(all(isinstance(text, str) for text in texts), f"{name} is {texts}")
    _require(all(map(_is_attribute, step.attributes.items())), f"{name} has {step.attributes}")
    used = [i for i in (*step.inputs, *step.outputs) if i != -1]
    n = len(program.values)
    _require(all(_is_count(i) and i < n for i in used), f"{name} uses none of {n} values")
    _require(bool(step.outputs), f"{name} gives nothing")
    start, n_bytes = step.workspace_offset, step.workspace_bytes
    fits = _is_count(start) and _is_count(n_bytes) and start + n_bytes <= program.arena_bytes
    _require(fits, f"the scratch memory of {name} leaves the arena")
    _require(not step.is_view or len(used) >= 2, f"{name} is a view of nothing")
    if step.operator in _ON_READ:
        types = [program.values[i].dtype for i in (*step.inputs, *step.outputs)]
        expected = _ON_READ[step.operator]
        _require(step.is_view and types == expected, f"{name} reads and gives {types}")
    _check_apart(step, program)
    for batch in {program.batch_size, program.batch_size if program.fixed_batch else 1}:
        _check_operands(step, program, batch)


def _check_apart(step: StepSpec, program: Program) -> None:
    """What a kernel counts by has to stay while it runs: scratch, indices, labels and bits."""
    if step.is_view:
        return
    name = f"step {step.name!r}"
    values = [(program.values[i], False) for i in step.inputs if i >= 0]
    values += [(program.values[i], True) for i in step.outputs if i >= 0]
    places = [_interval(spec, program) for spec, _ in values]
    scratch = step.workspace_offset, step.workspace_offset + step.workspace_bytes
    for (spec, is_output), place in zip(values, places, strict=True):
        _require(not _meet(place, scratch), f"the scratch memory of {name} meets {spec.name!r}")
        if is_output or spec.dtype in COUNTED:
            others = [
                other.name
                for (other, is_written), span in zip(values, places, strict=True)
                if is_written
                and other is not spec
                and _meet(place, span)
                and (is_output or other.dtype != spec.dtype)
            ]
            _require(not others, f"{name} writes {others[:1]} over {spec.name!r}")


def _interval(spec: ValueSpec, program: Program) -> tuple[int, int]:
    """First byte in the arena and the one behind the last; none elsewhere."""
    n_bytes = spec.n_bytes(program.batch_size) if spec.place == "arena" else 0
    return spec.offset, spec.offset + n_bytes


def _meet(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return max(one[0], other[0]) < min(one[1], other[1])


def _check_operands(step: StepSpec, program: Program, batch: int) -> None:
    """Compare what its kernel takes its geometry from with the rest of what it reads and writes."""
    inputs, outputs = (
        [None if i < 0 else program.values[i].shape_at(batch) for i in indices]
        for indices in (step.inputs, step.outputs)
    )
    try:
        problem = misfit(step.operator, Operands(inputs, outputs, step.attributes))
    except ValueError as error:
        problem = str(error)
    except (ArithmeticError, LookupError, TypeError) as error:
        problem = repr(error)
    _require(not problem, f"step {step.name!r} ({step.operator}) cannot run: {problem}")


def _is_attribute(entry: tuple[object, object]) -> bool:
    """Whether a name and a value are those of an attribute; integers fit C's."""
    name, value = entry
    members = value if isinstance(value, list) else [value]
    fit = (isinstance(m, str | float) or (type(m) is int and abs(m) < MAX_INTEGER) for m in members)
    return isinstance(name, str) and all(fit)


def _is_count(number: object, least: int | None = 0) -> bool:
    """Whether it is an integer, no boolean, and not below `least`."""
    return type(number) is int and (least is None or number >= least)
