"""Reads the ``checkpoint`` file of onnxruntime-training: a flatbuffer with the parameters.

Only what the compiler needs of the schema (``orttraining/training_api/checkpoint.fbs``), with every
offset checked before it is followed. Slots are the fields of a table, in schema order::

    Checkpoint    0 version: int32     1 module_state: ModuleState     (2 optimizer groups, 3 bag)
    ModuleState   0 requires_grad_params: [Tensor]     1 frozen_params: [Tensor]
                  2 is_nominal_state: bool             3 has_external_data: bool
    Tensor        0 name: string       2 dims: [int64]     3 data_type: int32 (as in ONNX)
                  4 raw_data: [uint8]                      6 external_data_offset: int64

A table starts with the distance back to its vtable; a vtable holds its own size, the table's, and
the place of each field in the table, 0 for a field that has its default. Little-endian throughout.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bnnopt.errors import ModelError
from bnnopt.runtime.files import check_regular

IDENTIFIER = b"ODTC"
VERSIONS = (1, 2)
FLOAT = 1  # of ONNX's data types
MAX_TENSORS = 1 << 20
MAX_RANK = 16


@dataclass(frozen=True)
class Checkpoint:
    """Parameters by name: those that are trained, and the others (statistics among them)."""

    trained: dict[str, NDArray[np.float32]]
    frozen: dict[str, NDArray[np.float32]]

    @property
    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """All of them."""
        return {**self.trained, **self.frozen}


def read_checkpoint(path: Path) -> Checkpoint:
    """The parameters in a checkpoint, as views of its bytes.

    Raises
    ------
    ModelError
        If the file is missing, damaged, of another version, or holds no float32 values.
    """
    root = _root(path)
    version = root.scalar(0, "<i", 0)
    if version not in VERSIONS:
        raise ModelError(
            f"{path}: checkpoint of version {version}, expected {VERSIONS[0]} to {VERSIONS[-1]}; "
            "generate the artifacts with onnxruntime-training 1.16 to 1.19"
        )
    state = root.table(1)
    if state is None:
        raise ModelError(f"{path}: holds no parameters; generate the artifacts again")
    if state.scalar(2, "<B", 0):
        raise ModelError(
            f"{path}: is a nominal checkpoint, without the parameters' values; use the full one"
        )
    data = _read(path.with_name(f"{path.name}.data")) if state.scalar(3, "<B", 0) else None
    return Checkpoint(*(dict(_tensor(t, data) for t in state.tables(slot)) for slot in (0, 1)))


def _root(path: Path) -> _Table:
    content = _read(path)
    if content[4:8] != IDENTIFIER:
        raise ModelError(
            f"{path}: not a checkpoint of onnxruntime-training: it lacks the mark "
            f"{IDENTIFIER.decode()!r}; generate the artifacts again"
        )
    file = _File(path, memoryview(content))
    return _Table(file, file.follow(0))


def _read(path: Path) -> bytes:
    try:
        check_regular(path)
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}; check the file") from None


def _tensor(table: _Table, external: bytes | None) -> tuple[str, NDArray[np.float32]]:
    file = table.file
    name = bytes(table.vector(0, 1)).decode(errors="replace")
    shape = np.frombuffer(table.vector(2, 8), "<i8").tolist()
    data_type = table.scalar(3, "<i", 0)
    if data_type != FLOAT:
        raise ModelError(
            f"{file.path}: parameter {name!r} has ONNX data type {data_type}, expected {FLOAT} "
            "(float32); export the model in float32"
        )
    if len(shape) > MAX_RANK or min(shape, default=0) < 0:
        raise file.damaged(f"parameter {name!r} has shape {shape[:MAX_RANK]}")
    n_bytes = 4 * math.prod(shape)
    raw = table.vector(4, 1) if external is None else _slice(table, external, n_bytes, name)
    if len(raw) != n_bytes:
        raise file.damaged(f"parameter {name!r} has {len(raw)} bytes, expected {n_bytes}")
    return name, np.frombuffer(raw, "<f4").reshape(shape)


def _slice(table: _Table, external: bytes, n_bytes: int, name: str) -> memoryview:
    offset = table.scalar(6, "<q", -1)
    if not 0 <= offset <= len(external) - n_bytes:
        raise table.file.damaged(f"parameter {name!r} lies outside of the .data file")
    return memoryview(external)[offset : offset + n_bytes]


@dataclass(frozen=True)
class _File:
    """The bytes, and reads that stay within them."""

    path: Path
    content: memoryview

    def read(self, layout: str, at: int) -> int:
        """One number."""
        if not 0 <= at <= len(self.content) - struct.calcsize(layout):
            raise self.damaged(f"it refers to byte {at} of {len(self.content)}")
        number: int = struct.unpack_from(layout, self.content, at)[0]
        return number

    def follow(self, at: int) -> int:
        """The place that the offset at `at` points to."""
        return at + self.read("<I", at)

    def vector(self, at: int, item_bytes: int) -> memoryview:
        """The items of the vector at `at`, as bytes."""
        n_bytes, start = self.read("<I", at) * item_bytes, at + 4
        if n_bytes > len(self.content) - start:
            raise self.damaged(f"a list of {n_bytes} bytes starts at {start}")
        return self.content[start : start + n_bytes]

    def damaged(self, reason: str) -> ModelError:
        """The error for a file that contradicts itself."""
        return ModelError(f"{self.path}: damaged or cut short: {reason}; copy the checkpoint again")


@dataclass(frozen=True)
class _Table:
    """A table of the flatbuffer; its fields are found through its vtable."""

    file: _File
    place: int

    def _field(self, slot: int) -> int | None:
        vtable = self.place - self.file.read("<i", self.place)
        entry = 4 + 2 * slot
        if entry >= self.file.read("<H", vtable):
            return None
        within = self.file.read("<H", vtable + entry)
        return self.place + within if within else None

    def scalar(self, slot: int, layout: str, default: int) -> int:
        """A number, or its default."""
        field = self._field(slot)
        return default if field is None else self.file.read(layout, field)

    def table(self, slot: int) -> _Table | None:
        """The table that a field points to."""
        field = self._field(slot)
        return None if field is None else _Table(self.file, self.file.follow(field))

    def vector(self, slot: int, item_bytes: int) -> memoryview:
        """The bytes of a vector or string; none where the field is left out."""
        field = self._field(slot)
        if field is None:
            return memoryview(b"")
        return self.file.vector(self.file.follow(field), item_bytes)

    def tables(self, slot: int) -> list[_Table]:
        """The tables that a vector of offsets points to."""
        field = self._field(slot)
        if field is None:
            return []
        start = self.file.follow(field)
        n = len(self.file.vector(start, 4)) // 4
        if n > MAX_TENSORS:
            raise self.file.damaged(f"it lists {n} parameters")
        return [_Table(self.file, self.file.follow(start + 4 + 4 * i)) for i in range(n)]
