"""The compiled kernels: found beside the package, loaded on first use, optional."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
import warnings
from collections.abc import Iterator
from contextvars import ContextVar

import numpy as np
from numpy.typing import NDArray

import bnnopt.runtime
from bnnopt.errors import UsageError
from bnnopt.runtime.scope import scoped

NAME = "bnn_kernels.so"
PORTABLE_KERNELS = 0  # in C's enum of instruction sets
MAX_THREADS = 4  # a plan has scratch memory for so many; a Raspberry Pi has four cores


@functools.cache
def library() -> ctypes.CDLL | None:
    """The shared library of kernels; None, after one warning, where there is none that loads."""
    reason = "there are no compiled kernels"
    for path in _candidates():
        if os.path.exists(path):
            try:
                loaded = ctypes.CDLL(path)
            except OSError as error:  # of another processor, or cut short
                reason = f"{path} does not load here ({error})"
                break
            loaded.bnn_set_default_threads(default_threads())
            if is_portable():
                loaded.bnn_limit_kernels(PORTABLE_KERNELS)
            return loaded
    warnings.warn(
        f"{reason}: bnnopt runs on its numpy kernels, some 15 times slower; install a C compiler "
        "and bnnopt again, or bnnopt's wheel for this processor",
        RuntimeWarning,
        stacklevel=2,
    )
    return None


def _candidates() -> Iterator[str]:
    """Beside this package; else where it is installed, if Python found a checkout of it first."""
    for folder in bnnopt.runtime.__path__:
        yield os.path.join(folder, NAME)
    for entry in sys.path:
        yield os.path.join(entry, "bnnopt", "runtime", NAME)


def check_threads(threads: object) -> None:
    """Refuse a number of threads that plans have no scratch for; None is the default's.

    Raises
    ------
    UsageError
        If it is another.
    """
    if threads is not None and not (isinstance(threads, int) and 1 <= threads <= MAX_THREADS):
        raise UsageError(f"threads is {threads!r}, expected 1 to {MAX_THREADS}")


def default_threads() -> int:
    """``BNNOPT_NUM_THREADS`` if set, else the processors of this process, at most `MAX_THREADS`.

    Raises
    ------
    UsageError
        If it is set to what `check_threads` refuses.
    """
    wanted = os.environ.get("BNNOPT_NUM_THREADS", "")
    if wanted:
        if not (wanted.isdecimal() and 1 <= int(wanted) <= MAX_THREADS):
            raise UsageError(
                f"BNNOPT_NUM_THREADS is {wanted!r}, expected 1 to {MAX_THREADS}; set one of these, "
                "or unset it"
            )
        return int(wanted)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(usable or 1, MAX_THREADS)


_portable: ContextVar[bool] = ContextVar("portable", default=False)


def is_portable() -> bool:
    """Whether kernels have to give the same bits everywhere, as emitted C does.

    They do where ``BNNOPT_KERNELS`` is ``portable``, or in `portable_kernels`: instructions that
    only one processor has are not used, and matrix products are plain loops.

    Raises
    ------
    UsageError
        If the variable is set to something else.
    """
    wanted = os.environ.get("BNNOPT_KERNELS", "")
    if wanted not in ("", "portable"):
        raise UsageError(f"BNNOPT_KERNELS is {wanted!r}, expected 'portable'; or unset it")
    return wanted == "portable" or _portable.get()


@contextlib.contextmanager
def portable_kernels() -> Iterator[None]:
    """Let this thread's matrix products be those of C, on any machine the same bits."""
    with scoped(_portable, True):
        yield


def set_threads(n: int) -> None:
    """Threads of the compiled kernels that this thread runs, 1 to `MAX_THREADS`."""
    loaded = library()
    if loaded is not None:
        loaded.bnn_set_threads(n)


def pointer(array: NDArray[np.generic] | None) -> object:
    """The address of a contiguous array, as an argument of a C function; NULL for None."""
    if array is None:
        return None
    try:
        return ctypes.byref(ctypes.c_char.from_buffer(array))  # type: ignore[arg-type]
    except (TypeError, ValueError):  # read-only, or empty; takes ten times as long
        return ctypes.c_void_p(array.ctypes.data)
