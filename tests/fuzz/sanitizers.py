"""The compiled kernels under the address and undefined-behaviour sanitizers, as in the gate."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

import bnnopt.runtime
from bnnopt.runtime.executor import Executor
from tests.fuzz.memory import UNLIMITED

SOURCE = Path(__file__).resolve().parents[2] / "runtime"
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=all -g1"
OPTIONS = "detect_leaks=0:quarantine_size_mb=8:allocator_may_return_null=1"
BUILT = "BNNOPT_FUZZ_SANITIZED"  # the library that this process loads


def restart() -> None:
    """Go on in a process whose kernels are built with the sanitizers.

    It replaces this process, and returns in the new one.
    """
    if BUILT in os.environ:
        bnnopt.runtime.__path__.insert(0, os.environ[BUILT])
        Executor._view = _view_apart  # type: ignore[method-assign]
        return
    folder = Path(tempfile.mkdtemp(prefix="bnnopt-sanitized-"))
    home = folder / "bnnopt" / "runtime"
    home.mkdir(parents=True)
    build = str(folder / "build")
    print(f"building in {folder}", file=sys.stderr)
    settings = [f"-DCMAKE_C_FLAGS={FLAGS}", "-DCMAKE_BUILD_TYPE=RelWithDebInfo"]
    subprocess.run(["cmake", "-S", str(SOURCE), "-B", build, *settings], check=True, stdout=2)
    subprocess.run(["cmake", "--build", build, "--parallel", "2"], check=True, stdout=2)
    (Path(build) / "bnn_kernels.so").rename(home / "bnn_kernels.so")
    _again(home)


def _again(home: Path) -> NoReturn:
    environment = {
        **os.environ,
        # The C++ library as well: the sanitizer looks for what it intercepts before onnx loads it.
        "LD_PRELOAD": f"{_library('libasan.so')} {_library('libstdc++.so.6')}",
        "ASAN_OPTIONS": OPTIONS,
        UNLIMITED: "1",
        BUILT: str(home),
    }
    os.execve(sys.executable, [sys.executable, "-m", "tests.fuzz", *sys.argv[1:]], environment)


def _library(name: str) -> str:
    """Where the compiler has it."""
    compiler = os.environ.get("CC") or "gcc"
    command = [compiler, f"-print-file-name={name}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _view_apart(self: Executor, index: int, batch: int) -> Any:
    """A value in memory of its own, so that what leaves it is seen, not only what leaves the arena.

    Values that begin at one place share it: one is written over another, or is a view of it.
    """
    values, full = self.program.values, self.program.batch_size
    spec = values[index]
    if spec.place != "arena":
        return self._buffers[spec.place][spec.buffer].reshape(spec.shape_at(batch))
    places: dict[int, Any] = self.__dict__.setdefault("_places", {})
    if spec.offset not in places:
        beside = [v for v in values if v.place == "arena" and v.offset == spec.offset]
        places[spec.offset] = _tight(max(v.n_bytes(full) for v in beside))
    memory = places[spec.offset][: spec.n_bytes(batch)]
    return memory.view(spec.dtype).reshape(spec.shape_at(batch))


def _tight(n_bytes: int) -> Any:
    """Aligned memory that ends where it says; never given back."""
    address = ctypes.c_void_p()
    size = ctypes.c_size_t(max(n_bytes, 1))
    failed = ctypes.CDLL(None).posix_memalign(ctypes.byref(address), ctypes.c_size_t(64), size)
    assert not failed, "no memory"
    return np.frombuffer((ctypes.c_char * n_bytes).from_address(address.value), np.uint8)
