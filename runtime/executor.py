"""Runs a program over one arena: compiled kernels where they cover a step, else numpy's."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from bnnopt.runtime.format import Program, StepSpec
from bnnopt.runtime.kernels.dispatch import WRITING
from bnnopt.runtime.kernels.table import KERNELS

Array = NDArray[np.generic]
Observer = Callable[[StepSpec, tuple[Array, ...]], None]


class Executor:
    """A program bound to its memory.

    Parameters
    ----------
    program : Program
        What to run.
    persistent, constants : mapping of str to ndarray
        Buffers by name; the persistent ones are updated in place.
    arena : ndarray of uint8, optional
        At least ``program.arena_bytes``; allocated if not given.
    """

    def __init__(
        self,
        program: Program,
        persistent: Mapping[str, Array],
        constants: Mapping[str, Array],
        arena: NDArray[np.uint8] | None = None,
    ) -> None:
        self.program = program
        self._buffers = {"persistent": persistent, "constant": constants}
        self._arena = arena if arena is not None else aligned_empty(program.arena_bytes)
        self._views: dict[int, list[Array]] = {}

    def run(
        self,
        feeds: Mapping[str, tuple[Array, ...]],
        batch: int,
        observe: Observer | None = None,
    ) -> tuple[Array, ...]:
        """Run all steps once.

        Parameters
        ----------
        feeds : mapping of str to tuple of ndarray
            Inputs by role, those of roles that the program has; copied into the arena.
        batch : int
            Samples in this batch, at most the program's.
        observe : callable, optional
            Called after each step with the step and its outputs (views: copy what you keep).

        Returns
        -------
        tuple of ndarray
            Views of the outputs, valid until the next run.
        """
        values = self._values(batch)
        for role, indices in self.program.roles.items():
            for index, array in zip(indices, feeds[role] if indices else (), strict=True):
                np.copyto(values[index], array)
        for step in self.program.steps:
            if not step.is_view:
                self._run_step(step, values)
            if observe is not None:
                observe(step, tuple(values[i] for i in step.outputs if i >= 0))
        return tuple(values[i] for i in self.program.outputs)

    def _values(self, batch: int) -> list[Array]:
        if batch not in self._views:
            self._views[batch] = [self._view(i, batch) for i in range(len(self.program.values))]
        return self._views[batch]

    def _view(self, index: int, batch: int) -> Array:
        spec = self.program.values[index]
        shape = spec.shape_at(batch)
        if spec.place != "arena":
            return self._buffers[spec.place][spec.buffer].reshape(shape)
        memory = self._arena[spec.offset : spec.offset + spec.n_bytes(batch)]
        return memory.view(spec.dtype).reshape(shape)

    def _run_step(self, step: StepSpec, values: list[Array]) -> None:
        inputs = [values[i] if i >= 0 else None for i in step.inputs]
        outputs = [values[i] if i >= 0 else None for i in step.outputs]
        writing = WRITING.get(step.operator)
        end = step.workspace_offset + step.workspace_bytes
        scratch = self._arena[step.workspace_offset : end]
        if writing is not None and writing(inputs, outputs, step.attributes, scratch):
            return
        results = KERNELS[step.operator](*inputs, **step.attributes)
        if not isinstance(results, tuple):
            results = (results,)
        for output, result in zip(outputs, results, strict=False):
            if output is not None:
                np.copyto(output, result)


def aligned_empty(n_bytes: int, alignment: int = 64) -> NDArray[np.uint8]:
    """Uninitialised bytes that start at a multiple of `alignment`."""
    raw = np.empty(n_bytes + alignment, np.uint8)
    start = -raw.ctypes.data % alignment
    return raw[start : start + n_bytes]
