"""An independent check of a program: does every step read what was last written for it?

It shares nothing with the planner. Every 64-byte cell of the arena remembers which value was written
to it last; before a step reads a value, all of that value's cells must still be its own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bnnopt.runtime.format import Program, StepSpec, ValueSpec

CELL = 64  # bytes
_FREE, _SCRATCH = -1, -2


class OverlapError(Exception):
    """A program would read memory that something else has overwritten; a defect of the planner."""


def check_program(program: Program) -> None:
    """Run the program on a shadow of its arena.

    Raises
    ------
    OverlapError
        Naming the step and the value.
    """
    cells = np.full(-(-program.arena_bytes // CELL), _FREE, np.int32)
    buffers: dict[str, int] = {}
    for indices in program.roles.values():
        for index in indices:
            _write(program, cells, index, index)
    owner = {index: index for indices in program.roles.values() for index in indices}
    for step in program.steps:
        for index in step.inputs:
            _read(program, step, cells, buffers, owner, index)
        if step.is_view:
            owner[step.outputs[0]] = owner.get(step.inputs[0], step.inputs[0])
            continue
        _use_scratch(program, step, cells)
        for index in (i for i in step.outputs if i >= 0):
            owner[index] = index
            spec = program.values[index]
            if spec.place == "persistent":
                buffers[spec.buffer] = index
            _write(program, cells, index, index)
    for index in program.outputs:
        _check(program, "the end", cells, owner[index], index)


def _cells_of(program: Program, spec: ValueSpec) -> slice:
    n_bytes = spec.n_bytes(program.batch_size)
    if spec.offset % CELL or spec.offset + n_bytes > program.arena_bytes:
        raise OverlapError(f"value {spec.name!r} at {spec.offset} leaves the arena or its alignment")
    return slice(spec.offset // CELL, -(-(spec.offset + n_bytes) // CELL))


def _write(program: Program, cells: NDArray[np.int32], index: int, owner: int) -> None:
    spec = program.values[index]
    if spec.place == "arena":
        cells[_cells_of(program, spec)] = owner


def _read(
    program: Program,
    step: StepSpec,
    cells: NDArray[np.int32],
    buffers: dict[str, int],
    owner: dict[int, int],
    index: int,
) -> None:
    if index < 0:
        return
    spec = program.values[index]
    if spec.place == "persistent" and buffers.get(spec.buffer, index) != owner.get(index, index):
        raise OverlapError(f"step {step.name!r} reads {spec.name!r} after its update")
    if spec.place == "arena":
        if index not in owner:
            raise OverlapError(f"step {step.name!r} reads {spec.name!r} before it is made")
        _check(program, f"step {step.name!r}", cells, owner[index], index)


def _check(
    program: Program, where: str, cells: NDArray[np.int32], owner: int, index: int
) -> None:
    spec = program.values[index]
    if spec.place == "arena" and not np.all(cells[_cells_of(program, spec)] == owner):
        found = cells[_cells_of(program, spec)]
        other = int(found[found != owner][0])
        culprit = program.values[other].name if other >= 0 else "scratch memory"
        raise OverlapError(f"{where} reads {spec.name!r}, which {culprit!r} has overwritten")


def _use_scratch(program: Program, step: StepSpec, cells: NDArray[np.int32]) -> None:
    """Scratch must not touch an input or an output of its own step."""
    if not step.workspace_bytes:
        return
    start, end = step.workspace_offset, step.workspace_offset + step.workspace_bytes
    for index in (*step.inputs, *step.outputs):
        spec = program.values[index] if index >= 0 else None
        if spec is None or spec.place != "arena":
            continue
        if start < spec.offset + spec.n_bytes(program.batch_size) and spec.offset < end:
            raise OverlapError(f"step {step.name!r}: its scratch memory overlaps {spec.name!r}")
    cells[start // CELL : -(-end // CELL)] = _SCRATCH
