"""The onnxruntime backend: the same graphs, inlined, on stock onnxruntime.

Four things keep the memory plan's promise there. The nodes are stored in the intended order and
run by priority: the default order packs a value only when its unpacking is due, which saves
nothing. The graph optimiser is off: it would merge a recomputed node with the one that it
recomputes. Buffers are not handed on to later values of the same size, and no memory pattern is
kept: both hold memory from one use to the next. And weights and state are bound as input and as
output to the same memory.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import onnxruntime as ort

from bnnopt.errors import ArtifactError
from bnnopt.runtime.artifact import StrPath, read_program
from bnnopt.runtime.executor import Array
from bnnopt.runtime.format import EVALUATION, TRAINING, Program, graph_file, program_file


class OnnxruntimeBackend:
    """Runs the graphs of a folder on onnxruntime's CPU provider.

    Parameters
    ----------
    folder : str
        Written by ``bnnopt optimize``.
    persistent : mapping of str to ndarray
        Buffers that outlive a step, updated in place.
    threads : int or None
        Threads within an operator; None leaves the choice to onnxruntime.

    Attributes
    ----------
    training, evaluation : Program
        What the graphs are the portable form of; here only for names, shapes and roles.
    files : tuple of str
        What it reads of the folder.
    """

    files: ClassVar[tuple[str, ...]] = tuple(
        name(kind) for kind in (TRAINING, EVALUATION) for name in (program_file, graph_file)
    )

    def __init__(
        self, folder: str, persistent: Mapping[str, Array], threads: int | None = None
    ) -> None:
        self.training = read_program(folder, TRAINING)
        self.evaluation = read_program(folder, EVALUATION)
        self._train = _Bound(folder, TRAINING, self.training, persistent, threads)
        self._predict = _Bound(folder, EVALUATION, self.evaluation, persistent, threads)

    def train(self, feeds: Mapping[str, tuple[Array, ...]], batch: int) -> float:
        """Run one training step and return its loss."""
        return float(self._train.run(feeds, batch).reshape(-1)[0])

    def predict(self, data: tuple[Array, ...], batch: int) -> Array:
        """The network's first output for one batch."""
        return self._predict.run({"data": data}, batch)


class _Bound:
    """A session whose persistent inputs and outputs are bound once."""

    def __init__(
        self,
        folder: str,
        kind: str,
        program: Program,
        persistent: Mapping[str, Array],
        threads: int | None,
    ) -> None:
        self._program = program
        self._session = open_session(os.path.join(folder, graph_file(kind)), threads)
        self._binding = self._session.io_binding()
        outputs = {value.name for value in self._session.get_outputs()}
        reads = {value.name for value in self._session.get_inputs()}
        self._values = {
            name: ort.OrtValue.ortvalue_from_numpy(array)
            for name, array in persistent.items()
            if name in reads
        }
        for name, value in self._values.items():
            self._binding.bind_ortvalue_input(name, value)
        for spec in program.values:
            if spec.place == "persistent" and spec.name in outputs:
                self._binding.bind_ortvalue_output(spec.name, self._values[spec.buffer])
        self._output = program.values[program.outputs[0]]

    def run(self, feeds: Mapping[str, tuple[Array, ...]], batch: int) -> Array:
        """The first output for one batch, in new memory."""
        held = []
        for role, indices in self._program.roles.items():
            for index, array in zip(indices, feeds[role] if indices else (), strict=True):
                spec = self._program.values[index]
                fed = np.ascontiguousarray(array, spec.dtype).reshape(spec.shape_at(batch))
                held.append(ort.OrtValue.ortvalue_from_numpy(fed))
                self._binding.bind_ortvalue_input(spec.name, held[-1])
        output = np.empty(self._output.shape_at(batch), self._output.dtype)
        held.append(ort.OrtValue.ortvalue_from_numpy(output))
        self._binding.bind_ortvalue_output(self._output.name, held[-1])
        self._session.run_with_iobinding(self._binding)
        return output


def open_session(path: StrPath, threads: int | None = None) -> ort.InferenceSession:
    """A session that runs the nodes of `path` in the order in which they are stored.

    Raises
    ------
    ArtifactError
        If onnxruntime refuses the file.
    """
    options = ort.SessionOptions()
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_mem_reuse = False
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return ort.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes share no base but this
        reason = str(error).strip().splitlines()[0]
        raise ArtifactError(f"{path}: onnxruntime cannot run it: {reason}") from None
