"""C functions by their prototypes, which a test compares with the sources.

Every function that Python calls is declared once, in front of the calls, in C's own words but for
``const`` and the names of its parameters. Its arguments are converted by that, so that an argument
of another type is an error, not a wrong bit.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import NamedTuple, TypeAlias, TypeVar, cast

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.tiling import Convolution, Dense
from bnnopt.runtime.library import library, pointer
from bnnopt.runtime.scope import scoped

Argument: TypeAlias = Array | Convolution | Dense | Sequence[int] | ctypes.Structure | float | None

_Result = TypeVar("_Result")
PreparedCalls: TypeAlias = list[Callable[[], object]]
"""What a kernel did, to be done once more on the same memory: C functions bound to their arguments,
and what else it does `again`."""

# Of this thread, while `dry_run` or `recorded` is open in it.
_noted: ContextVar[Notes | None] = ContextVar("noted", default=None)
_recording: ContextVar[PreparedCalls | None] = ContextVar("recording", default=None)


class Note(NamedTuple):
    """A call that was noted and not made."""

    function: CFunction
    arguments: tuple[Argument, ...]


Notes: TypeAlias = list[Note | Callable[[], object]]
"""The calls of a kernel, and what else it does `again`, in turn."""


class Read(float):
    """A number that was read from an array while calls were noted or recorded: what it has then.

    A call that is repeated reads it again. Arithmetic loses the array.
    """

    array: Array

    @classmethod
    def of(cls, array: Array) -> Read:
        """The one element of an array."""
        number = cls(array.reshape(-1)[0])
        number.array = array
        return number


class CFunction:
    """A function of the library.

    Parameters
    ----------
    prototype : str
        Such as ``int bnn_f(float*, void*, i64)``. ``int`` says whether it did the work, ``void``
        that it always does. Pointers take contiguous arrays of their type, `void*` of any, and None
        for NULL; ``i64*`` takes integers as well, the structs what has their name in Python.
    """

    def __init__(self, prototype: str) -> None:
        match = re.fullmatch(r"(int|void) (\w+)\(([^()]+)\)", prototype)
        assert match is not None, prototype
        self.prototype = prototype
        self.result, self.name = match[1], match[2]
        self._converters = [_CONVERTERS[kind] for kind in match[3].split(", ")]

    def __call__(self, *arguments: Argument) -> bool:
        """Whether it did the work.

        Raises
        ------
        TypeError, ValueError
            If an argument is not of its type, or there are more or fewer; nothing is called then.
        """
        notes = _noted.get()
        if notes is not None:
            notes.append(Note(self, arguments))
            return True
        pairs = zip(self._converters, arguments, strict=True)
        converted = [convert(argument) for convert, argument in pairs]
        bound = functools.partial(self._function, *converted)
        places = [i for i, argument in enumerate(arguments) if isinstance(argument, Read)]
        if places:
            numbers = [cast(Read, arguments[i]).array for i in places]
            bound = functools.partial(self._read_and_call, converted, places, numbers)
        return again(bound) != 0 or self.result == "void"

    def _read_and_call(
        self, converted: list[object], places: Sequence[int], numbers: Sequence[Array]
    ) -> int:
        for place, array in zip(places, numbers, strict=True):
            converted[place] = ctypes.c_float(array.item())
        return self._function(*converted)

    @functools.cached_property
    def _function(self) -> Callable[..., int]:
        loaded = library()
        assert loaded is not None, "covered() was not asked"
        return cast("Callable[..., int]", loaded[self.name])


def again(action: Callable[[], _Result]) -> _Result:
    """Do it, now and whenever the kernel's calls are repeated: what depends on values."""
    calls, notes = _recording.get(), _noted.get()
    if calls is not None:
        calls.append(action)
    if notes is not None:
        notes.append(action)
    return action()


def _of_array(*dtypes: str) -> Callable[[Argument], object]:
    """The address of an array of one of the types; of any, if none is given."""
    kinds = [np.dtype(name) for name in dtypes]

    def convert(argument: Argument) -> object:
        if argument is None:
            return None
        if isinstance(argument, np.ndarray) and (not kinds or argument.dtype in kinds):
            return pointer(argument)
        raise TypeError(f"found {argument!r}, expected an array of {', '.join(dtypes) or 'any'}")

    return convert


_of_integers = _of_array("i8")


def _of_sequence(argument: Argument) -> object:
    """The address of integers, or of an array of them."""
    return _int64s(argument) if isinstance(argument, list | tuple) else _of_integers(argument)


def _of_fields(struct: type[Convolution] | type[Dense]) -> Callable[[Argument], object]:
    """The address of a copy of the fields, all i64."""

    def convert(argument: Argument) -> object:
        if isinstance(argument, struct):
            return _int64s(argument)
        raise TypeError(f"found {argument!r}, expected {struct.__name__}")

    return convert


def _of_structure(argument: Argument) -> object:
    if isinstance(argument, ctypes.Structure):
        return ctypes.byref(argument)
    if argument is None:
        return None
    raise TypeError(f"found {argument!r}, expected a structure")


def _int64s(values: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(values))(*values)


_CONVERTERS: dict[str, Callable[..., object]] = {
    "i64": ctypes.c_int64,
    "float": ctypes.c_float,
    "void*": _of_array(),
    "float*": _of_array("f4"),
    "bnn_half*": _of_array("f2"),
    "int8_t*": _of_array("i1"),
    "uint8_t*": _of_array("u1", "?"),
    "int32_t*": _of_array("i4"),
    "uint32_t*": _of_array("u4", "i4", "f4"),
    "i64*": _of_sequence,
    "bnn_conv*": _of_fields(Convolution),
    "bnn_gemm*": _of_fields(Dense),
    "bnn_update*": _of_structure,
}


def keeps_numbers() -> bool:
    """Whether calls are noted or recorded: a number has to say where it was read."""
    return _noted.get() is not None or _recording.get() is not None


def is_dry_run() -> bool:
    """Whether arrays are stand-ins with elements of their own: what they hold says nothing."""
    return _noted.get() is not None


@contextlib.contextmanager
def dry_run() -> Iterator[Notes]:
    """Let this thread's C functions only be noted, in the list that is yielded."""
    notes: Notes = []
    with scoped(_noted, notes):
        yield notes


@contextlib.contextmanager
def recorded() -> Iterator[PreparedCalls]:
    """Note the calls of this thread; they hold addresses, and the caller keeps the arrays alive."""
    calls: PreparedCalls = []
    with scoped(_recording, calls):
        yield calls


def repeat(calls: PreparedCalls) -> None:
    """Do once more what was recorded."""
    for action in calls:
        action()
