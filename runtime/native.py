"""The native backend: programs over one planned arena, shared by training and evaluation."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnnopt.runtime.artifact import read_program
from bnnopt.runtime.executor import (
    Array,
    Executor,
    Observer,
    Watch,
    aligned_empty,
    worst_spill_bytes,
)
from bnnopt.runtime.format import (
    CONSTANTS_FILE,
    EVALUATION,
    TRAINING,
    program_file,
    updating_steps,
)
from bnnopt.runtime.library import default_threads, set_threads
from bnnopt.runtime.memory import allocating
from bnnopt.runtime.program_check import check_runnable, check_same_data
from bnnopt.runtime.tensors import read_tensors


class Memory(NamedTuple):
    """Bytes of weights, optimiser state, constants and everything alive in a training step.

    Attributes
    ----------
    planned_bytes : int
        One arena, as the folder was planned: sparse tensors get what their budget is.
    worst_case_bytes : int
        If no sparse tensor had a zero: each would need a dense buffer beside the arena.
    seen_bytes : int
        The most so far: planned, and what did not fit its budget.
    """

    planned_bytes: int
    worst_case_bytes: int
    seen_bytes: int


class NativeBackend:
    """Runs the programs of a folder with the numpy kernels.

    Parameters
    ----------
    folder : str
        Written by ``bnnopt optimize``.
    persistent : mapping of str to ndarray
        Buffers that outlive a step, updated in place.
    threads : int, optional
        Of the compiled kernels, 1 to ``library.MAX_THREADS``; `library.default_threads` if not
        given.

    Attributes
    ----------
    training, evaluation : Program
        What it runs.
    arena : ndarray of uint8
        The one piece of memory that all values of a step live in.
    files : tuple of str
        What it reads of the folder.
    """

    files: ClassVar[tuple[str, ...]] = (
        CONSTANTS_FILE,
        program_file(TRAINING),
        program_file(EVALUATION),
    )

    def __init__(
        self, folder: str, persistent: Mapping[str, Array], threads: int | None = None
    ) -> None:
        self._threads = threads or default_threads()
        constants, _ = read_tensors(os.path.join(folder, CONSTANTS_FILE))
        self._persistent, self._constants = persistent.values(), constants.values()
        self.training = read_program(folder, TRAINING)
        self.evaluation = read_program(folder, EVALUATION)
        buffers = {"persistent": persistent, "constant": constants}
        for kind, program in ((TRAINING, self.training), (EVALUATION, self.evaluation)):
            file = os.path.join(folder, program_file(kind))
            check_runnable(program, buffers, file, trains=kind == TRAINING)
        check_same_data(self.training, self.evaluation, folder)
        self.arena = arena_of(max(self.training.arena_bytes, self.evaluation.arena_bytes), folder)
        self._train = Executor(self.training, persistent, constants, self.arena)
        self._updates = updating_steps(self.training)
        self._predict = Executor(self.evaluation, persistent, constants, self.arena)

    @property
    def memory(self) -> Memory:
        """Planned, worst and seen peak; see `Memory`."""
        persistent = sum(array.nbytes for array in (*self._persistent, *self._constants))
        planned = self.arena.size + persistent
        return Memory(
            planned,
            planned + worst_spill_bytes(self.training),
            planned + self._train.spilled_bytes,
        )

    def train(
        self,
        feeds: Mapping[str, tuple[Array, ...]],
        batch: int,
        guard: Watch | None = None,
        observe: Observer | None = None,
        updates: bool = True,
    ) -> float:
        """Run one training step, or one without the updates, and return its loss."""
        set_threads(self._threads)
        left_out = () if updates else self._updates
        return float(self._train.run(feeds, batch, observe, guard, left_out)[0].reshape(-1)[0])

    def run_only(
        self,
        positions: Collection[int],
        feeds: Mapping[str, tuple[Array, ...]],
        batch: int,
        observe: Observer,
    ) -> None:
        """Run some steps of the training program, which change nothing."""
        set_threads(self._threads)
        left_out = set(range(len(self.training.steps))) - set(positions)
        self._train.run(feeds, batch, observe, left_out=left_out)

    def predict(self, data: tuple[Array, ...], batch: int, output: int = 0) -> Array:
        """An output of the network, by its place, for one batch."""
        set_threads(self._threads)
        return np.array(self._predict.run({"data": data}, batch)[output])


def arena_of(n_bytes: int, folder: str) -> NDArray[np.uint8]:
    """The memory of a step's values; asked for at once, taken page by page as steps write to it."""
    with allocating(n_bytes, f"{folder}: a step"):
        return aligned_empty(n_bytes)
