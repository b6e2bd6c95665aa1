"""The native backend: programs over one planned arena, shared by training and evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bnnopt.runtime.artifact import read_program, read_tensors
from bnnopt.runtime.executor import Array, Executor, Observer, aligned_empty
from bnnopt.runtime.format import CONSTANTS_FILE, EVALUATION, TRAINING


class NativeBackend:
    """Runs the programs of a folder with the numpy kernels.

    Parameters
    ----------
    folder : Path
        Written by ``bnnopt optimize``.
    persistent : mapping of str to ndarray
        Buffers that outlive a step, updated in place.
    """

    def __init__(self, folder: Path, persistent: Mapping[str, Array]) -> None:
        constants, _ = read_tensors(folder / CONSTANTS_FILE)
        training = read_program(folder, TRAINING)
        evaluation = read_program(folder, EVALUATION)
        arena = aligned_empty(max(training.arena_bytes, evaluation.arena_bytes))
        self._training = Executor(training, persistent, constants, arena)
        self._evaluation = Executor(evaluation, persistent, constants, arena)
        self.fixed_batch = training.fixed_batch
        self.input_specs = [training.values[i] for i in training.roles["data"]]
        self.label_specs = [training.values[i] for i in training.roles.get("labels", ())]

    def train(
        self, feeds: Mapping[str, tuple[Array, ...]], batch: int, observe: Observer | None = None
    ) -> float:
        """Run one training step and return its loss."""
        return float(self._training.run(feeds, batch, observe)[0].reshape(-1)[0])

    def predict(self, data: tuple[Array, ...], batch: int) -> Array:
        """The network's first output for one batch."""
        return np.array(self._evaluation.run({"data": data}, batch)[0])
