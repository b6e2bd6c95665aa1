"""The onnxruntime backend: the same graphs, inlined, on stock onnxruntime.

Four things keep the memory plan's promise there. The nodes are stored in the intended order and
run by priority: the default order packs a value only when its unpacking is due, which saves
nothing. The graph optimiser is off: it would merge a recomputed node with the one that it
recomputes. Buffers are not handed on to later values of the same size, and no memory pattern is
kept: both hold memory from one use to the next. And weights and state are bound as input and as
output to the same memory.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import onnxruntime as ort

from bnnopt.errors import ArtifactError, UsageError
from bnnopt.runtime.artifact import read_program
from bnnopt.runtime.executor import Array
from bnnopt.runtime.files import StrPath
from bnnopt.runtime.format import EVALUATION, TRAINING, Program, graph_file, program_file
from bnnopt.runtime.guard import Guard


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
        self._folder, self._persistent, self._threads = folder, persistent, threads
        self._open()

    def train(self, feeds: Mapping[str, tuple[Array, ...]], batch: int, guard: Guard) -> float:
        """Run one training step and return its loss.

        Nothing stops onnxruntime in the middle of a step: weights are looked through after it.

        Raises
        ------
        DivergedError
            If a weight or the state has become NaN or infinite.
        """
        self._reopen_in_child()
        guard.before_all()
        loss = float(self._train.run(feeds, batch).reshape(-1)[0])
        guard.check_loss(loss)
        guard.check_finite()
        return loss

    def predict(self, data: tuple[Array, ...], batch: int, output: int = 0) -> Array:
        """An output of the network, by its place, for one batch."""
        self._reopen_in_child()
        return self._predict.run({"data": data}, batch, output)

    def _open(self) -> None:
        self._pid = os.getpid()
        self._train = _Bound(self._folder, TRAINING, self.training, self._persistent, self._threads)
        self._predict = _Bound(
            self._folder, EVALUATION, self.evaluation, self._persistent, self._threads
        )

    def _reopen_in_child(self) -> None:
        """A forked process has none of onnxruntime's threads: it needs sessions of its own.

        The ones that it inherited are never closed: they would wait for their threads.
        """
        if self._pid != os.getpid():
            for bound in (self._train, self._predict):
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(bound))
            self._open()


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

    def run(self, feeds: Mapping[str, tuple[Array, ...]], batch: int, place: int = 0) -> Array:
        """An output for one batch, in new memory."""
        held = []
        wanted = self._program.values[self._program.outputs[place]]
        for role, indices in self._program.roles.items():
            for index, array in zip(indices, feeds[role] if indices else (), strict=True):
                spec = self._program.values[index]
                fed = np.ascontiguousarray(array, spec.dtype).reshape(spec.shape_at(batch))
                held.append(ort.OrtValue.ortvalue_from_numpy(fed))
                self._binding.bind_ortvalue_input(spec.name, held[-1])
        output = np.empty(wanted.shape_at(batch), wanted.dtype)
        held.append(ort.OrtValue.ortvalue_from_numpy(output))
        self._binding.bind_ortvalue_output(wanted.name, held[-1])
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # onnxruntime's own classes share no base but this
            reason = " ".join(str(error).split())[:300]
            raise UsageError(f"onnxruntime cannot run this batch: {reason}") from None
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
