"""The steps of a program as statements in C, from the calls that its kernels would make."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bnnopt.emit.memory import Memory
from bnnopt.errors import UsageError
from bnnopt.runtime.executor import Array, views_of
from bnnopt.runtime.format import Program, StepSpec, ValueSpec
from bnnopt.runtime.kernels.compiled.bitmap import FILL
from bnnopt.runtime.kernels.compiled.calls import check_finite, finite_updates
from bnnopt.runtime.kernels.compiled.functions import Argument, Note, Notes, Read, dry_run
from bnnopt.runtime.kernels.compiled.optimizers import Update
from bnnopt.runtime.kernels.compiled.table import COMPILED, GROWING
from bnnopt.runtime.kernels.tiling import Convolution, Dense
from bnnopt.runtime.library import portable_kernels

_STRUCTS: Mapping[type, str] = {Convolution: "bnn_conv", Dense: "bnn_gemm"}


class Statements(NamedTuple):
    """What a program comes to.

    Attributes
    ----------
    lines : list of str
        In the body of a function.
    functions : set of str
        The kernels that it calls.
    """

    lines: list[str]
    functions: set[str]


class Writer:
    """Writes calls down, and the geometries and optimiser steps that they point at.

    Parameters
    ----------
    memory : Memory
        What the arguments lie in.

    Attributes
    ----------
    objects : list of str
        Definitions of what the statements name, for the top of the file.
    """

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.objects: list[str] = []
        self._names: dict[str, str] = {}
        # Of the step that is written: the addresses of values that may outgrow their place.
        self._growing: dict[int, str] = {}

    def statements(self, program: Program) -> Statements:
        """The steps of a program in turn, for the batch that it is planned for.

        Raises
        ------
        UsageError
            If a step has no kernel in C.
        """
        arrays = {"persistent": self.memory.arrays, "constant": self.memory.arrays}
        values = views_of(program, program.batch_size, self.memory.arena, arrays)
        grown = self._grown(program, values)
        lines = ["spilled = 0;"] if grown else []
        functions: set[str] = set()
        for step in program.steps:
            if step.is_view:
                continue
            notes = _noted(step, values, self.memory)
            self._growing = {
                _address(values[i]): grown[i] for i in (*step.inputs, *step.outputs) if i in grown
            }
            lines.append(f"/* {comment(step.name)}: {step.operator} */")
            lines += (line for note in notes for line in self._statement(step, note))
            functions |= {note.function.name for note in notes if isinstance(note, Note)}
        return Statements(lines, functions)

    def place(self, spec: ValueSpec) -> str:
        """Where a value lies."""
        if spec.place == "arena":
            return f"ARENA({spec.offset})"
        return self.memory.pointer(self.memory.arrays[spec.buffer].ctypes.data)

    def _grown(self, program: Program, values: Sequence[Array]) -> dict[int, str]:
        """Names of `struct values` for what may outgrow its place, by its index."""
        grown: dict[int, str] = {}
        for step in program.steps:
            if step.operator in GROWING:
                grown[step.outputs[1]] = f"values_{len(self.objects)}"
                self.objects.append(f"static struct values {grown[step.outputs[1]]};")
            elif step.is_view and step.inputs[0] in grown:
                grown[step.outputs[0]] = grown[step.inputs[0]]
        return grown

    def _statement(self, step: StepSpec, note: object) -> Iterator[str]:
        name = string(step.name)
        if note is check_finite:
            yield f"if (diverged) return failed({name});"
            return
        if not isinstance(note, Note):
            raise _refused(step, "does part of its work in Python")
        try:
            arguments = ", ".join(self._arguments(note))
        except LookupError as error:
            raise _refused(step, f"takes {error}") from None
        call = f"{note.function.name}({arguments})"
        if note.function is FILL:
            yield from self._filled(note, call, name)
        else:
            is_sure = note.function.result == "void"
            yield f"{call};" if is_sure else f"if (!{call}) return failed({name});"

    def _filled(self, note: Note, call: str, name: str) -> Iterator[str]:
        """The values of a bitmap go where they are planned, or where there is room for more."""
        values, size, offsets = note.arguments[2:5]
        assert isinstance(offsets, np.ndarray)
        own, used = self._growing[_address(values)], self.memory.pointer(_address(offsets[-1:]))
        yield f"{own} = (struct values){{{self._argument(values)}, {size}}};"
        yield f"if (!{call} && !(spills(&{own}, {used}) && {call})) return failed({name});"

    def _arguments(self, note: Note) -> Iterator[str]:
        """Each in C; behind values that may outgrow their place comes how many there are."""
        arguments = iter(note.arguments)
        for argument in arguments:
            own = self._growing.get(_address(argument))
            if own is None:
                yield self._argument(argument)
                continue
            if not isinstance(next(arguments, None), int):
                raise LookupError("values that may outgrow their place without their number")
            yield f"{own}.at, {own}.n"

    def _argument(self, argument: Argument) -> str:
        if argument is None:
            return "NULL"
        if isinstance(argument, np.ndarray):
            return self.memory.pointer(argument.ctypes.data) if argument.size else "NULL"
        if isinstance(argument, (Convolution, Dense)):
            return "&" + self._shared(_STRUCTS[type(argument)], "", _braces(argument))
        if isinstance(argument, Update):
            return "&" + self._update(argument)
        if isinstance(argument, (list, tuple)):
            return self._shared("i64", "[]", _braces(argument))
        if isinstance(argument, Read) and not self.memory.is_constant(argument.array):
            if argument.array.dtype != np.float32:
                raise LookupError(f"a number of {argument.array.dtype} that steps change")
            return f"*(const float *){self.memory.pointer(argument.array.ctypes.data)}"
        return number(argument)

    def _shared(self, kind: str, brackets: str, content: str) -> str:
        """The name of a constant object, the same one wherever its content is the same."""
        key = f"{kind} {content}"
        if key not in self._names:
            self._names[key] = f"{kind.removeprefix('bnn_')}_{len(self._names)}"
            self.objects.append(f"static const {kind} {self._names[key]}{brackets} = {content};")
        return self._names[key]

    def _update(self, update: Update) -> str:
        fields = []
        for field in update._fields_:
            key, kind, value = field[0], field[1], getattr(update, field[0])
            if value is None or value == 0:
                continue
            is_pointer = kind is ctypes.c_void_p
            fields.append(f".{key} = {self.memory.pointer(value) if is_pointer else number(value)}")
        content = "{" + ", ".join(fields) + "}"
        key = f"bnn_update {content}"
        if key not in self._names:
            self._names[key] = f"update_{len(self._names)}"
            self.objects.append(f"static bnn_update {self._names[key]} = {content};")
        return self._names[key]


def _noted(step: StepSpec, values: Sequence[Array], memory: Memory) -> Notes:
    """What the kernel of a step would call.

    Raises
    ------
    UsageError
        If there is no kernel in C that covers the step.
    """
    inputs, outputs = (
        [values[i] if i >= 0 else None for i in s] for s in (step.inputs, step.outputs)
    )
    scratch = memory.arena[step.workspace_offset : step.workspace_offset + step.workspace_bytes]
    with dry_run() as notes, finite_updates(memory.diverged), portable_kernels():
        kernel = COMPILED.get(step.operator)
        if kernel is None:
            raise _refused(step, "has no kernel in C")
        with np.errstate(all="ignore"):
            is_covered = kernel.call(inputs, outputs, step.attributes, scratch)
    if not is_covered:
        raise _refused(step, "has no kernel in C for these shapes and types")
    return notes


def _address(argument: Argument) -> int:
    """Of an array; -1 of anything else."""
    return argument.ctypes.data if isinstance(argument, np.ndarray) else -1


def _refused(step: StepSpec, why: str) -> UsageError:
    return UsageError(
        f"emit: node {step.name!r} ({step.operator}) {why}; expected one that compiled kernels "
        "cover: bnnopt optimize --explain names the kernel of each node"
    )


def number(value: object) -> str:
    """A number as C reads it, exactly: floats are float32."""
    if isinstance(value, (bool, np.bool_, int, np.integer)):
        whole = int(value)
        return f"{whole}" if abs(whole) < 1 << 31 else f"{whole}LL"
    assert isinstance(value, float)
    if math.isnan(value):
        return "NAN"
    if math.isinf(value):
        return "INFINITY" if value > 0 else "-INFINITY"
    return repr(value)


def _braces(values: Sequence[int]) -> str:
    return "{" + ", ".join(map(number, values)) + "}"


def string(text: str) -> str:
    """A C string of an ONNX name."""
    printable = text.encode("ascii", "replace").decode()
    return '"' + printable.replace("\\", "/").replace('"', "'").replace("?", "") + '"'


def comment(text: str) -> str:
    """An ONNX name as it may stand in a comment."""
    return string(text)[1:-1].replace("*/", "* /").replace("/*", "/ *")
