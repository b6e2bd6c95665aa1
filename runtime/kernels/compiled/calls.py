"""What the wrappers of the compiled kernels share.

A compiled kernel writes into arrays that the caller owns and says whether it did: it covers one
layout and dtype, and where it does not, the caller takes the numpy kernel of the same name.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import TypeAlias, cast

import numpy as np
from numpy.typing import DTypeLike

from bnnopt.runtime.format import Attribute
from bnnopt.runtime.kernels import Array
from bnnopt.runtime.library import library, pointer

Arrays: TypeAlias = Sequence[Array | None]
Attributes: TypeAlias = Mapping[str, Attribute]

KernelCall: TypeAlias = Callable[[Arrays, Arrays, Attributes, Array], bool]
"""(inputs, outputs, attributes, scratch uint8) to whether the outputs are written."""

FLOAT32 = np.dtype(np.float32)  # as a dtype, comparing takes a third of the time
MAP_TYPES = [FLOAT32, np.dtype(np.float16), np.dtype(np.int16)]  # in the order of enum bnn_type
FLOAT16 = np.dtype(np.float16)

Argument: TypeAlias = Array | ctypes.Array[ctypes.c_int64] | ctypes.Structure | int | float | None


def covered(*arrays: Array | None, dtype: DTypeLike = FLOAT32) -> bool:
    """Whether there is a library and all arrays are present, contiguous, aligned and of `dtype`."""
    if library() is None:
        return False
    for array in arrays:
        if array is None or array.dtype != dtype:
            return False
        flags = array.flags
        if not (flags.c_contiguous and flags.aligned):
            return False
    return True


def type_of(array: Array | None) -> int | None:
    """C's ``enum bnn_type`` of an array that is contiguous and aligned; None if it has no such."""
    if array is None or array.dtype not in MAP_TYPES or not covered(array, dtype=array.dtype):
        return None
    return MAP_TYPES.index(array.dtype)


PreparedCalls: TypeAlias = list[tuple[Callable[..., int], list[object]]]
"""C functions with their arguments: what a kernel did, to be done again on the same memory."""

# Of this thread, while `dry_run` or `recorded` is open in it.
_named: ContextVar[list[str] | None] = ContextVar("named", default=None)
_recording: ContextVar[PreparedCalls | None] = ContextVar("recording", default=None)
_diverged: ContextVar[ctypes.c_int | None] = ContextVar("diverged", default=None)


class NotFinite(Exception):
    """An optimiser step that gives NaN or infinity: what would have become so is as it was."""


@contextlib.contextmanager
def finite_updates() -> Iterator[None]:
    """Let this thread's optimiser steps raise `NotFinite`, not write NaN or infinity."""
    token = _diverged.set(ctypes.c_int())
    try:
        yield
    finally:
        _diverged.reset(token)


def diverged() -> ctypes.c_int | None:
    """What an optimiser step sets to 1 in the scope of `finite_updates`; None elsewhere."""
    return _diverged.get()


def check_finite() -> None:
    """After an optimiser step in the scope of `finite_updates`.

    Raises
    ------
    NotFinite
        If something would have become NaN or infinite.
    """
    flag = _diverged.get()
    if flag is not None and flag.value:
        flag.value = 0
        raise NotFinite


@contextlib.contextmanager
def dry_run() -> Iterator[list[str]]:
    """Let `call` note the names of this thread's kernels, in the list that is yielded, only."""
    names: list[str] = []
    token = _named.set(names)
    try:
        yield names
    finally:
        _named.reset(token)


def call(name: str, *arguments: Argument) -> int:
    """Call a kernel: arrays and structs by address, None as NULL, int as int64_t, float as is."""
    names, calls = _named.get(), _recording.get()
    if names is not None:
        names.append(name)
        return 1
    function, converted = _function(name), [_as_c(argument) for argument in arguments]
    if calls is not None:
        calls.append((function, converted))
    return int(function(*converted))


@contextlib.contextmanager
def recorded() -> Iterator[PreparedCalls]:
    """Note the calls of this thread; they hold addresses, and the caller keeps the arrays alive."""
    calls: PreparedCalls = []
    token = _recording.set(calls)
    try:
        yield calls
    finally:
        _recording.reset(token)


def repeat(calls: PreparedCalls) -> None:
    """Do once more what was recorded."""
    for function, arguments in calls:
        function(*arguments)


@functools.cache
def _function(name: str) -> Callable[..., int]:
    loaded = library()
    assert loaded is not None, "covered() was not asked"
    return cast("Callable[..., int]", loaded[name])


def _as_c(argument: Argument) -> object:
    if isinstance(argument, np.ndarray):
        return pointer(argument)
    if isinstance(argument, int):
        return ctypes.c_int64(argument)
    if isinstance(argument, float):
        return ctypes.c_float(argument)
    if isinstance(argument, ctypes.Structure):
        return ctypes.byref(argument)
    return argument  # None is NULL, a C array its address


def optional(arrays: Arrays, index: int) -> Array | None:
    """The array at `index`; None if it is left out."""
    return arrays[index] if index < len(arrays) else None


def number(attributes: Attributes, name: str) -> float:
    """A number attribute as float."""
    return float(cast(float, attributes[name]))


def integer(attributes: Attributes, name: str) -> int:
    """An integer attribute."""
    return int(cast(int, attributes[name]))


def integers(attributes: Attributes, name: str) -> list[int] | None:
    """An integer-list attribute; None if it is left out."""
    return cast("list[int] | None", attributes.get(name))


def scalar(array: Array) -> float:
    """The one element of an array."""
    return float(array.reshape(-1)[0])
