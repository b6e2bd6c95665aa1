"""The part of a training step in front of all that is trained."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnnopt.errors import UsageError
from bnnopt.runtime.format import (
    NORMALIZATIONS,
    Program,
    StepSpec,
    updating_steps,
    written_buffers,
)
from bnnopt.runtime.kernels.compiled.table import GROWING

Array = NDArray[np.generic]


class Front(NamedTuple):
    """Nodes that read data and frozen weights alone, and what the others read of them.

    Attributes
    ----------
    positions : frozenset of int
        Of its steps in the program.
    latents : tuple of tuple of int
        Values that the other nodes read; those of one tuple are equal. Rows are samples: an axis of
        ``-k`` comes first.
    buffers : tuple of str
        The persistent buffers that its steps read.
    """

    positions: frozenset[int]
    latents: tuple[tuple[int, ...], ...]
    buffers: tuple[str, ...]

    @classmethod
    def of(cls, program: Program) -> Front:
        """The front of a training step.

        Raises
        ------
        UsageError
            If there is none that keeps still, or what it gives does not come one a sample.
        """
        changing, still, made = _changing(program), set[int](), set(program.roles["data"])
        for position, step in enumerate(program.steps):
            if changing & set(step.inputs):
                changing.update(_written(step))
                continue
            _check_still(program, step)
            still.add(position)
            if made & set(step.inputs):
                made.update(_written(step))
        others = (s for position, s in enumerate(program.steps) if position not in still)
        needed = {i for step in others for i in made & set(step.inputs)}
        makers = {i: program.steps[p] for p in still for i in program.steps[p].outputs}
        _check_latents(program, needed, makers)
        read = (i for p in still for i in program.steps[p].inputs if i >= 0)
        buffers = {program.values[i].buffer for i in read}
        return cls(frozenset(still), _grouped(needed, makers), tuple(sorted(buffers - {""})))

    def checksum(self, persistent: Mapping[str, Array]) -> int:
        """CRC-32 of the weights that it reads: latents of others are none of its."""
        checksum = 0
        for name in self.buffers:
            if name in persistent:
                checksum = zlib.crc32(np.ascontiguousarray(persistent[name]).data, checksum)
        return checksum


def _written(step: StepSpec) -> list[int]:
    return [i for i in step.outputs if i >= 0]


def _changing(program: Program) -> set[int]:
    """The values that are not the same whenever a sample comes again."""
    updates = (program.steps[position] for position in updating_steps(program))
    trained = {program.values[i].buffer for step in updates for i in _written(step)} - {""}
    found = {i for i, spec in enumerate(program.values) if spec.buffer in trained}
    return found.union(*(program.roles[role] for role in program.roles if role != "data"))


def _check_still(program: Program, step: StepSpec) -> None:
    """Running statistics that move would give a sample other latents when it comes again."""
    if written_buffers(program, step):
        raise UsageError(
            f"replay: node {step.name!r} in the frozen front takes its mean over the batch; "
            "optimize with --freeze-batch-norm"
        )


def _samples(program: Program) -> set[int]:
    """The samples as they are fed, and as floats where they are fed as bytes."""
    found = set(program.roles["data"])
    for step in program.steps:
        if step.operator in NORMALIZATIONS:
            found.update(_written(step))
    return found


def _check_latents(program: Program, needed: set[int], makers: Mapping[int, StepSpec]) -> None:
    if not needed or needed & _samples(program):
        raise UsageError(
            "replay: what is trained reads the samples themselves; optimize with --last K, or "
            "--freeze what is in front"
        )
    for i in sorted(needed):
        spec, step = program.values[i], makers[i]
        rows = spec.shape[0] if spec.shape else 0
        is_sample = rows < 0 or (program.fixed_batch and rows == program.batch_size)
        if not is_sample or min(spec.shape[1:], default=1) < 0 or step.operator in GROWING:
            raise UsageError(
                f"replay: value {spec.name!r} ({step.operator}) between what is frozen and what is "
                "trained has no row a sample; freeze up to another layer"
            )


def _grouped(needed: set[int], makers: Mapping[int, StepSpec]) -> tuple[tuple[int, ...], ...]:
    """Values that are made in the same way of the same, such as in both passes, together."""
    groups: dict[object, list[int]] = {}
    for i in sorted(needed):
        step = makers[i]
        made = (step.operator, step.inputs, str(sorted(step.attributes.items())))
        groups.setdefault((made, step.outputs.index(i)), []).append(i)
    return tuple(map(tuple, groups.values()))
