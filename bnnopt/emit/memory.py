"""Where things lie in the emitted program: addresses of this process to expressions in C."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnnopt.runtime.executor import Array, aligned_empty

ALIGNMENT = 16  # bytes: of a buffer of the state


class Buffer(NamedTuple):
    """What outlives a step.

    Attributes
    ----------
    name : str
        As in the folder.
    array : ndarray
        What it holds at first.
    offset : int
        Bytes from the beginning of the state; -1 of a constant.
    """

    name: str
    array: Array
    offset: int


def placed(buffers: Mapping[str, Array], begin: int) -> tuple[list[Buffer], int]:
    """The buffers of the state one behind the other from `begin` on, and the bytes to their end."""
    found: list[Buffer] = []
    for name, array in buffers.items():
        begin += -begin % ALIGNMENT
        found.append(Buffer(name, array, begin))
        begin += array.nbytes
    return found, begin + -begin % ALIGNMENT


class _Region(NamedTuple):
    begin: int
    end: int
    text: str  # a pointer expression, of `offset`
    buffer: Buffer | None


class Memory:
    """The arena, the state and the constants of a program, as memory of this process.

    What arena and state hold is drawn, since no call may depend on it; `drawn` with another seed
    gives memory that holds other things.

    Parameters
    ----------
    arena_bytes : int
    state, constants : sequence of Buffer
    seed : int
        Of what arena and state hold.

    Attributes
    ----------
    arena : ndarray of uint8
    arrays : mapping of str to ndarray
        Those of the state and of the constants, by name.
    diverged : ctypes.c_int
        What optimiser steps set.
    used : dict of str to Buffer
        The constants that something reads, by their names in C.
    """

    def __init__(
        self,
        arena_bytes: int,
        state: Sequence[Buffer],
        constants: Sequence[Buffer],
        seed: int,
    ) -> None:
        random = np.random.default_rng(seed)
        self.arena = aligned_empty(arena_bytes)
        self.arena[:] = random.integers(0, 256, arena_bytes, np.uint8)
        self.diverged = ctypes.c_int()
        self.used: dict[str, Buffer] = {}
        self._numbers: dict[object, int] = {}
        self.arrays: dict[str, Array] = {}
        for buffer in state:
            self.arrays[buffer.name] = _drawn_like(buffer.array, random)
        for buffer in constants:
            self.arrays[buffer.name] = buffer.array
        self._regions = [*self._layout(state, constants)]

    def _layout(self, state: Sequence[Buffer], constants: Sequence[Buffer]) -> Iterator[_Region]:
        yield _region(self.arena, "ARENA({offset})", None)
        flag = ctypes.addressof(self.diverged)
        yield _Region(flag, flag + ctypes.sizeof(self.diverged), "&diverged", None)
        for buffer in state:
            yield _region(self.arrays[buffer.name], "STATE({offset})", buffer)
        for buffer in constants:
            yield _region(buffer.array, f"CONSTANT({self.name_of(buffer)}, {{offset}})", buffer)

    def name_of(self, buffer: Buffer) -> str:
        """The name of a constant in C; those that are alike are one."""
        key = buffer.array.dtype, buffer.array.tobytes()
        return f"constant_{self._numbers.setdefault(key, len(self._numbers))}"

    def pointer(self, address: int) -> str:
        """An address as an expression in C; of a constant it is noted that it is read.

        Raises
        ------
        LookupError
            If nothing of the program is there.
        """
        region = self._region(address)
        offset, buffer = address - region.begin, region.buffer
        if buffer is not None and buffer.offset < 0:
            self.used.setdefault(self.name_of(buffer), buffer)
        elif buffer is not None:
            offset += buffer.offset
        return region.text.format(offset=offset)

    def is_constant(self, array: Array) -> bool:
        """Whether an array is one that no step changes."""
        buffer = self._region(array.ctypes.data).buffer
        return buffer is not None and buffer.offset < 0

    def _region(self, address: int) -> _Region:
        for region in self._regions:
            if region.begin <= address < region.end:
                return region
        raise LookupError("an operand outside of the planned memory")


def _drawn_like(array: Array, random: np.random.Generator) -> Array:
    drawn: NDArray[np.uint8] = random.integers(0, 256, array.nbytes, np.uint8)
    memory = aligned_empty(array.nbytes)
    memory[:] = drawn
    return memory.view(array.dtype).reshape(array.shape)


def _region(array: Array, text: str, buffer: Buffer | None) -> _Region:
    begin = array.ctypes.data
    return _Region(begin, begin + array.nbytes, text, buffer)
