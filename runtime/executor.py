"""Runs a program over one arena: compiled kernels where they cover a step, else numpy's."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Collection, Mapping, MutableSequence, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bnnopt.errors import ArtifactError, DivergedError, UsageError
from bnnopt.runtime.format import (
    NORMALIZE_ON_READ,
    WIDEN_ON_READ,
    Program,
    StepSpec,
    updating_steps,
)
from bnnopt.runtime.kernels.compiled.calls import NotFinite, finite_updates
from bnnopt.runtime.kernels.compiled.functions import PreparedCalls, recorded, repeat
from bnnopt.runtime.kernels.compiled.table import COMPILED, GROWING
from bnnopt.runtime.kernels.on_read import Halves, Images, OnRead

# What kernels raise for a program that does not fit them, and for memory that is not there.
_UNABLE = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError),
    *(MemoryError, ctypes.ArgumentError),
)

Array = NDArray[np.generic]
Observer = Callable[[StepSpec, tuple[Array, ...]], None]


class Watch(Protocol):
    """Who is told before step number `first_update`; see `bnnopt.runtime.guard`."""

    first_update: int

    def before_updates(self, values: Sequence[Array]) -> None:
        """`values` of the program, those made so far."""


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
        self._prepared: dict[int, dict[int, PreparedCalls]] = {}
        self._repeatable = _repeatable(program)
        self._straight: dict[int, PreparedCalls] = {}
        self._n_steps = sum(not step.is_view for step in program.steps)
        self._updates = bool(updating_steps(program))
        self._spill = Spill(program)
        self._diverged = ctypes.c_int()

    @property
    def spilled_bytes(self) -> int:
        """The most that lay outside of the arena at once, of all runs so far."""
        return self._spill.peak_bytes

    def run(
        self,
        feeds: Mapping[str, tuple[Array, ...]],
        batch: int,
        observe: Observer | None = None,
        watch: Watch | None = None,
        left_out: Collection[int] = (),
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
        watch : Watch, optional
        left_out : collection of int
            Positions of steps that do not run.

        Returns
        -------
        tuple of ndarray
            Views of the outputs, valid until the next run.

        Raises
        ------
        DivergedError
            If a weight or a state would become NaN or infinite.
        UsageError
            If an index in the batch is out of range.
        ArtifactError
            If a step is one that its kernel cannot run.
        """
        values = list(self._values(batch))
        prepared = self._prepared.setdefault(batch, {})
        self._spill.clear()
        for role, indices in self.program.roles.items():
            for index, array in zip(indices, feeds[role] if indices else (), strict=True):
                np.copyto(values[index], array)
        scope = finite_updates(self._diverged) if self._updates else contextlib.nullcontext()
        with scope, np.errstate(all="ignore"):
            if observe is None and watch is None and not left_out and batch in self._straight:
                repeat(self._straight[batch])
                return tuple(values[i] for i in self.program.outputs)
            for position, step in enumerate(self.program.steps):
                if position in left_out:
                    continue
                if watch is not None and position == watch.first_update:
                    watch.before_updates(values)
                try:
                    if position in prepared:
                        repeat(prepared[position])
                    elif not step.is_view:
                        self._run_unprepared(position, step, values, prepared)
                except NotFinite:
                    raise DivergedError(f"{self._updated(step)!r} would not be finite") from None
                if observe is not None:
                    observe(step, tuple(values[i] for i in step.outputs if i >= 0))
        self._straighten(batch)
        return tuple(values[i] for i in self.program.outputs)

    def _straighten(self, batch: int) -> None:
        """Where all is prepared and nothing can diverge, the calls are one list."""
        prepared = self._prepared[batch]
        if not self._updates and len(prepared) == self._n_steps:
            self._straight[batch] = [call for p in sorted(prepared) for call in prepared[p]]

    def _run_unprepared(
        self,
        position: int,
        step: StepSpec,
        values: list[Array],
        prepared: dict[int, PreparedCalls],
    ) -> None:
        try:
            if position in self._repeatable:
                with recorded() as calls:
                    if self._run_step(step, values):
                        prepared[position] = calls
            else:
                self._run_step(step, values)
                self._spill.release(position, step, values)
        except _UNABLE as error:
            raise _refusal(step, error) from None

    def _updated(self, step: StepSpec) -> str:
        """The first buffer that a step updates."""
        specs = (self.program.values[i] for i in step.outputs if i >= 0)
        return next((spec.buffer for spec in specs if spec.place == "persistent"), step.name)

    def _values(self, batch: int) -> list[Array]:
        if batch not in self._views:
            self._views[batch] = views_of(self.program, batch, self._arena, self._buffers)
        return self._views[batch]

    def _run_step(self, step: StepSpec, values: list[Array]) -> bool:
        """Run a step, and say whether the calls that it recorded do it once more."""
        inputs = [values[i] if i >= 0 else None for i in step.inputs]
        outputs = [values[i] if i >= 0 else None for i in step.outputs]
        compiled = COMPILED.get(step.operator)
        end = step.workspace_offset + step.workspace_bytes
        scratch = self._arena[step.workspace_offset : end]
        is_done = compiled is not None and compiled.call(inputs, outputs, step.attributes, scratch)
        if not is_done:
            from bnnopt.runtime.kernels.reference.run import run_numpy

            is_one_call = run_numpy(step.operator, inputs, outputs, step.attributes)
            is_done = is_one_call and compiled is None  # a kernel that gives up may have recorded
        if step.operator in GROWING:
            self._spill.adopt(step, outputs, values)
        return is_done


def views_of(
    program: Program,
    batch: int,
    arena: NDArray[np.uint8],
    buffers: Mapping[str, Mapping[str, Array]],
) -> list[Array]:
    """The values of a program where they lie: in the arena, or in a buffer of their place."""
    views: list[Array] = []
    for spec in program.values:
        shape = spec.shape_at(batch)
        if spec.place == "arena":
            memory = arena[spec.offset : spec.offset + spec.n_bytes(batch)]
            views.append(memory.view(spec.dtype).reshape(shape))
        else:
            views.append(buffers[spec.place][spec.buffer].reshape(shape))
    read_as_floats(program, views)
    return views


def read_as_floats(program: Program, views: MutableSequence[Array]) -> None:
    """Let the views that are made floats of where they are read say how."""
    for step in program.steps:
        if not step.is_view:
            continue
        source, y = views[step.inputs[0]], step.outputs[0]
        if step.operator == NORMALIZE_ON_READ:
            factor, shift = (views[i] for i in step.inputs[1:])
            views[y] = Images.of(source, factor, shift)
        elif step.operator == WIDEN_ON_READ:
            views[y] = views[y].view(Halves)
        elif isinstance(source, OnRead):
            views[y] = source.reshape(views[y].shape)


def _refusal(step: StepSpec, error: Exception) -> UsageError | ArtifactError:
    """What to say of an exception of a kernel: an index is the batch's, all else the program's."""
    where = f"node {step.name!r} ({step.operator})"
    reason = " ".join(str(error).split()) or type(error).__name__
    from bnnopt.runtime.kernels.reference.table import KERNELS

    row = KERNELS.get(step.operator)
    if row is not None and row.indexes and isinstance(error, IndexError):
        return UsageError(f"{where}: {reason}; expected indices of the axis: look at the batch")
    return ArtifactError(f"{where}: cannot run: {reason}; optimize again")


def _repeatable(program: Program) -> frozenset[int]:
    """The steps that may be prepared: what they read never grows out of its place."""
    grown: set[int] = set()
    found: list[int] = []
    for position, step in enumerate(program.steps):
        if step.operator in GROWING or (step.is_view and grown & set(step.inputs)):
            grown.update(step.outputs)
        kernel = COMPILED.get(step.operator)
        if (kernel is None or kernel.repeatable) and not grown & set(step.inputs):
            found.append(position)
    return frozenset(found)


class Spill:
    """Arrays of one run that outgrew their planned place, until their last reader is done.

    Only the values of a `GROWING` step can: their size depends on the data.

    Attributes
    ----------
    peak_bytes : int
        The most that they took at once.
    """

    def __init__(self, program: Program) -> None:
        self.peak_bytes = 0
        self._arrays: dict[int, Array] = {}
        self._last = {i: n for n, step in enumerate(program.steps) for i in step.inputs}

    def clear(self) -> None:
        """Forget what an interrupted run left."""
        self._arrays.clear()

    def adopt(self, step: StepSpec, outputs: list[Array | None], values: list[Array]) -> None:
        """Let `values` hold the outputs that a kernel made instead of the planned ones."""
        for index, output in zip(step.outputs, outputs, strict=True):
            if index >= 0 and output is not None and output is not values[index]:
                values[index] = self._arrays[index] = output
        n_bytes = sum(array.nbytes for array in self._arrays.values())
        self.peak_bytes = max(self.peak_bytes, n_bytes)

    def release(self, position: int, step: StepSpec, values: list[Array]) -> None:
        """Free what nobody reads after this step."""
        for index in step.inputs if self._arrays else ():
            if index in self._arrays and self._last[index] == position:
                values[index] = values[index][:0]
                del self._arrays[index]


def worst_spill_bytes(program: Program) -> int:
    """What would lie outside of the arena if no tensor of the bitmap codec had a zero."""
    total = 0
    for step in program.steps:
        if step.operator in GROWING:
            dense = program.values[step.inputs[0]]
            total += dense.n_bytes(program.batch_size) + np.dtype(dense.dtype).itemsize
    return total


def aligned_empty(n_bytes: int, alignment: int = 64) -> NDArray[np.uint8]:
    """Uninitialised bytes that start at a multiple of `alignment`."""
    raw = np.empty(n_bytes + alignment, np.uint8)
    start = -raw.ctypes.data % alignment
    return raw[start : start + n_bytes]
