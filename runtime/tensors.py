"""Files of tensors: safetensors, read piece by piece and written whole or not at all."""

from __future__ import annotations

import contextlib
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bnnopt.errors import ArtifactError
from bnnopt.runtime.files import StrPath, check_regular, reason_of, replacing, shown_path
from bnnopt.runtime.format import fields_checksum

Array = NDArray[np.generic]
RESERVED = "__metadata__"  # of safetensors
PIECE = 1 << 16  # bytes of a tensor that are read at once
MAPPED = 1 << 20  # bytes that are read of a file before it is mapped anew


class TensorFile:
    """A safetensors file that is read piece by piece, so that little of it is in memory at once.

    It stays the file that was opened, whatever is put in its place meanwhile. The library maps
    it, and pages that were read count as the process's own: it is mapped anew after `MAPPED` bytes.

    Attributes
    ----------
    path : str
    names : list of str
        The tensors that are in it.
    metadata : mapping of str to str

    Raises
    ------
    ArtifactError
        If it is missing, or not such a file. Reading a tensor raises it too.
    """

    def __init__(self, path: StrPath) -> None:
        self.path = os.fsdecode(path)
        try:
            check_regular(self.path)
            self._file = open(self.path, "rb")  # noqa: SIM115
        except FileNotFoundError:
            raise ArtifactError(f"{self.path}: no such file") from None
        except (OSError, ValueError) as error:
            raise ArtifactError(
                f"{shown_path(self.path)}: cannot be read: {reason_of(error)}"
            ) from None
        try:
            with self._reading():
                self._map()
                self._stored = {_unescaped(name): name for name in self._mapping.keys()}  # noqa: SIM118
                self.names = list(self._stored)
                self.metadata: dict[str, str] = dict(self._mapping.metadata() or {})
        except ArtifactError:
            self._file.close()
            raise

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_: object) -> None:
        del self._mapping
        self._file.close()

    def spec(self, name: str) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
        """Shape and dtype of a tensor."""
        with self._reading():
            stored = self._mapping.get_slice(self._stored[name])
            shape = tuple(stored.get_shape())
            return shape, (stored[:0] if _is_cut(shape) else self._whole(name)).dtype

    def check_alike(self, name: str, like: Array, advice: str) -> None:
        """Compare shape and dtype of a tensor.

        Raises
        ------
        ArtifactError
            If they are others, or there is no such tensor; with the advice.
        """
        found = self.spec(name) if name in self._stored else None
        if found != (like.shape, like.dtype):
            state = f"{found[1]} {list(found[0])}" if found else "missing"
            expected = f"{like.dtype} {list(like.shape)}"
            raise ArtifactError(f"{self.path}: {name!r} is {state}, expected {expected}; {advice}")

    def read(self, name: str, into: Array | None = None) -> Array:
        """The tensor, in a new array or in one of its shape and dtype."""
        into = np.empty(*self.spec(name)) if into is None else into
        if not into.ndim:
            into[...] = self._whole(name)
            return into
        start = 0
        for piece in self.pieces(name):
            into[start : start + len(piece)] = piece
            start += len(piece)
        return into

    def pieces(self, name: str) -> Iterator[Array]:
        """The tensor by consecutive parts of its first axis, `PIECE` bytes or one row each."""
        shape, dtype = self.spec(name)
        if not _is_cut(shape):
            yield self._whole(name)
            return
        rows = max(1, PIECE // max(math.prod(shape[1:]) * dtype.itemsize, 1))
        for start in range(0, shape[0], rows):
            with self._reading():
                if self._n_read > MAPPED:
                    self._map()
                end = min(start + rows, shape[0])
                piece = self._mapping.get_slice(self._stored[name])[start:end]
                self._n_read += piece.nbytes
            yield piece

    def checksum(self) -> int:
        """What `tensors_checksum` makes of what is in it."""
        names = sorted(self.names)
        return _checksum((part for name in names for part in self.pieces(name)), self.metadata)

    def _whole(self, name: str) -> Array:
        with self._reading():
            tensor: Array = self._mapping.get_tensor(self._stored[name])
            return tensor

    def _map(self) -> None:
        self._mapping: Any = safe_open(f"/dev/fd/{self._file.fileno()}", framework="numpy")
        self._n_read = 0

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"{self.path}: not a safetensors file, or cut short ({error})"
            ) from None


def _is_cut(shape: tuple[int, ...]) -> bool:
    """Whether the library takes slices of such a tensor: not of scalars, nor where nothing is."""
    return bool(shape) and all(shape)


def read_tensors(path: StrPath) -> tuple[dict[str, Array], dict[str, str]]:
    """All tensors of a safetensors file, and its metadata."""
    with TensorFile(path) as file:
        return {name: file.read(name) for name in file.names}, file.metadata


def is_checkpoint(path: StrPath) -> bool:
    """Whether a file is one that a session saved, damaged or not."""
    try:
        with TensorFile(path) as file:
            return "steps_done" in file.metadata
    except ArtifactError:
        return False


def write_tensors(path: StrPath, tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file so that a crash at any moment leaves the old one or the new one.

    Raises
    ------
    OSError, ValueError
        If it cannot be written; the old one is untouched.
    """
    named = {_escaped(name): tensor for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        try:
            save_file(named, temporary, dict(metadata))
        except SafetensorError as error:  # what safetensors makes of an error of the file system
            raise OSError(str(error)) from None


def _escaped(name: str) -> str:
    """The name of a tensor in a file; one is the format's own, and gets a dot behind it."""
    return f"{name}." if name.rstrip(".") == RESERVED else name


def _unescaped(name: str) -> str:
    return name[:-1] if name.rstrip(".") == RESERVED else name


def tensors_checksum(
    tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None
) -> int:
    """CRC-32 of the metadata but a ``checksum``, and of all tensors in the order of their names."""
    return _checksum((tensors[name] for name in sorted(tensors)), metadata or {})


def _checksum(arrays: Iterable[Array], metadata: Mapping[str, str]) -> int:
    texts = {name: text for name, text in metadata.items() if name != "checksum"}
    checksum = fields_checksum(texts) if texts else 0
    for array in arrays:
        checksum = zlib.crc32(np.ascontiguousarray(array).data, checksum)
    return checksum
