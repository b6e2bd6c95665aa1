"""What the wrappers of the compiled kernels share.

A compiled kernel writes into arrays that the caller owns and says whether it did: it covers one
layout and dtype, and where it does not, the caller takes the numpy kernel of the same name.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import DTypeLike

from bnnopt.runtime.format import Attribute
from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled.functions import Read, keeps_numbers
from bnnopt.runtime.library import library
from bnnopt.runtime.scope import scoped

Arrays: TypeAlias = Sequence[Array | None]
Attributes: TypeAlias = Mapping[str, Attribute]

KernelCall: TypeAlias = Callable[[Arrays, Arrays, Attributes, Array], bool]
"""(inputs, outputs, attributes, scratch uint8) to whether the outputs are written."""

FLOAT32 = np.dtype(np.float32)  # as a dtype, comparing takes a third of the time
FLOAT16 = np.dtype(np.float16)
INT64 = np.dtype(np.int64)
BOOL = np.dtype(np.bool_)
UINT8 = np.dtype(np.uint8)
INT8 = np.dtype(np.int8)
TYPES: dict[np.dtype[Any], int] = {
    FLOAT32: 1,
    UINT8: 2,
    INT8: 3,
    np.dtype(np.int16): 5,
    FLOAT16: 10,
}
"""Types of elements as ONNX and C's ``enum bnn_type`` number them."""


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


def is_half(array: Array | None) -> int:
    """1 for float16, else 0."""
    return int(array is not None and array.dtype == FLOAT16)


def type_of(array: Array | None) -> int | None:
    """C's ``enum bnn_type`` of a map that is contiguous and aligned; None if it has no such."""
    if array is None or array.dtype.itemsize == 1 or not covered(array, dtype=array.dtype):
        return None
    return TYPES.get(array.dtype)


# Of this thread, while `finite_updates` is open in it.
_diverged: ContextVar[ctypes.c_int | None] = ContextVar("diverged", default=None)


class NotFinite(Exception):
    """An optimiser step gives NaN or infinity, and may have written it."""


@contextlib.contextmanager
def finite_updates(flag: ctypes.c_int) -> Iterator[None]:
    """Let this thread's optimiser steps raise `NotFinite` where they give NaN or infinity.

    They note it in `flag`, which has to live as long as calls that are prepared here.
    """
    flag.value = 0
    with scoped(_diverged, flag):
        yield


def diverged() -> ctypes.c_int | None:
    """What an optimiser step sets to 1 in the scope of `finite_updates`; None elsewhere."""
    return _diverged.get()


def check_finite() -> None:
    """After an optimiser step in the scope of `finite_updates`.

    Raises
    ------
    NotFinite
        If a weight or a state is NaN or infinite.
    """
    flag = _diverged.get()
    if flag is not None and flag.value:
        flag.value = 0
        raise NotFinite


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
    """The one element of an array; where calls are kept, a number that knows its array."""
    return Read.of(array) if keeps_numbers() else float(array.reshape(-1)[0])
