"""An emitted program as a library of this process, beside the session that it has to equal."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnnopt.emit import emit
from bnnopt.runtime import TrainingSession
from bnnopt.runtime.library import portable_kernels
from tests.runtime.compiled_calls import settings_of

Array = NDArray[Any]
COMPILER, CLANG = shutil.which("cc"), shutil.which("clang")
FLAGS = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-DBNN_PORTABLE", "-ffp-contract=off")
QUICK = (*FLAGS, "-O0")
FULL = (*FLAGS, "-O2", "-fno-math-errno", "-fno-trapping-math")


class Trace(NamedTuple):
    """What some steps gave: losses, buffers by name, and the output for the last batch."""

    losses: list[float]
    state: Mapping[str, bytes]
    output: bytes


class Program:
    """What is emitted from a compiled folder into another, as functions."""

    def __init__(
        self,
        compiled: Path,
        folder: Path,
        flags: Sequence[str] = QUICK,
        compiler: str | None = COMPILER,
        **options: Any,
    ) -> None:
        self.emitted = emit(compiled, folder, **options)
        name = self.emitted.initial_file
        self._initial = None if name is None else np.fromfile(folder / name, np.uint8)
        command, library = [str(compiler), *flags, "-fPIC"], folder / "bnn_model.so"
        kernels = [_object(path, command) for path in sorted((folder / "kernels").glob("*.c"))]
        parts = [folder / "bnn_model.c", *kernels]
        subprocess.run([*command, "-shared", *parts, "-o", library, "-lm"], check=True)
        self._library = ctypes.CDLL(str(library))
        self._library.bnn_train_step.restype = ctypes.c_float
        self._library.bnn_predict.restype = ctypes.c_void_p
        self.arena_bytes = self._size("bnn_arena_bytes")
        self.state = self._bytes("bnn_state", self._size("bnn_state_bytes"))

    def reset(self) -> None:
        self._library.bnn_reset()
        if self._initial is not None:
            self.state[:] = self._initial

    def step(self, arrays: Sequence[Array], rate: float) -> float:
        return float(self._library.bnn_train_step(*self._pointers(arrays), ctypes.c_float(rate)))

    def output(self, arrays: Sequence[Array], n_bytes: int) -> bytes:
        """What it predicts for a batch, part by part; the last one is filled up."""
        whole, part = self.emitted.batch_size, self.emitted.predict_size
        n_parts, found = -(-whole // part), b""
        for start in range(0, n_parts * part, part):
            rows = [
                np.resize(a, (n_parts * part, *a.shape[1:]))[start : start + part] for a in arrays
            ]
            address = self._library.bnn_predict(*self._pointers(rows))
            found += ctypes.string_at(address, n_bytes * part // whole)
        return found[:n_bytes]

    def further_output(self, i: int, n_bytes: int) -> bytes:
        """One behind the first, as the last prediction left it."""
        address = ctypes.c_void_p.in_dll(self._library, f"bnn_output_{i}").value
        return ctypes.string_at(address, n_bytes)

    @property
    def error(self) -> str | None:
        found = ctypes.c_char_p.in_dll(self._library, "bnn_error").value
        return None if found is None else found.decode()

    def _pointers(self, arrays: Sequence[Array]) -> list[ctypes.c_void_p]:
        return [ctypes.c_void_p(array.ctypes.data) for array in arrays]

    def _size(self, name: str) -> int:
        return ctypes.c_size_t.in_dll(self._library, name).value

    def _bytes(self, name: str, n: int) -> NDArray[np.uint8]:
        return np.frombuffer((ctypes.c_uint8 * n).in_dll(self._library, name), np.uint8)


_OBJECTS = tempfile.TemporaryDirectory(prefix="bnnopt-kernels-")


def _object(source: Path, command: Sequence[str]) -> Path:
    """A kernel, compiled once for all programs that have the same text of it."""
    text = subprocess.run([*command, "-E", source], check=True, capture_output=True).stdout
    text = text.replace(bytes(source.parent), b"")
    found = hashlib.sha256(repr((command, source.name, text)).encode()).hexdigest()
    target = Path(_OBJECTS.name) / f"{found}.o"
    if not target.exists():
        subprocess.run([*command, "-c", source, "-o", target], check=True)
    return target


class Batches:
    """Batches for a session, drawn: inputs in their types, labels."""

    def __init__(self, session: TrainingSession, seed: int = 0) -> None:
        self._session, self._random = session, np.random.default_rng(seed)

    def draw(self) -> tuple[dict[str, Array], Array | None]:
        about, n = self._session.about, self._session.batch_size
        inputs = self._session.inputs.items()
        x = {name: self._values(spec.dtype, spec.shape_at(n), 10) for name, spec in inputs}
        if not self._session.takes_labels:
            return x, None
        labels = self._session._labels
        assert labels is not None
        return x, self._values(labels.dtype, labels.shape_at(n), about.classes)

    def _values(self, dtype: str, shape: Sequence[int], below: int) -> Array:
        if np.dtype(dtype).kind == "f":
            return self._random.standard_normal(shape).astype(dtype)
        return self._random.integers(0, below, shape).astype(dtype)


def of_session(folder: Path, steps: int, rate: float = 1e-3) -> Trace:
    """The native runtime on portable kernels."""
    with settings_of(portable=True, threads=1), portable_kernels():
        session = TrainingSession(folder, threads=1)
        batches, losses = Batches(session), []
        for _ in range(steps):
            x, y = batches.draw()
            losses.append(session.step(x, y, rate))
        output = session.predict(x).tobytes()
    return Trace(losses, {n: a.tobytes() for n, a in session._persistent.items()}, output)


def of_program(folder: Path, program: Program, steps: int, rate: float = 1e-3) -> Trace:
    """The same steps by what was emitted from the folder."""
    session = TrainingSession(folder)
    assert program.arena_bytes == program.emitted.arena_bytes <= session._backend.arena.size
    program.reset()
    batches, losses = Batches(session), []
    for _ in range(steps):
        x, y = batches.draw()
        losses.append(program.step([*x.values(), *([] if y is None else [y])], rate))
        assert program.error is None, program.error
    output = program.output([*x.values()], len(session.predict(x).tobytes()))
    state = {
        name: program.state[begin : begin + session._persistent[name].nbytes].tobytes()
        for name, begin in program.emitted.state.items()
    }
    frozen = {n: a.tobytes() for n, a in session._persistent.items() if n not in state}
    return Trace(losses, state | frozen, output)
