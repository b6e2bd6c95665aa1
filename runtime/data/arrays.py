"""Numpy's own files: ``.npz``, and folders of ``.npy`` files that are mapped, not read."""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Mapping
from typing import IO, Any, cast

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from bnnopt.errors import UsageError
from bnnopt.runtime.data.dataset import Dataset, Samples

Array = NDArray[Any]
TARGETS = "y"
_LOCAL_HEADER = struct.Struct("<26xHH")  # its length up to here is 30; lengths of name and extra

# By kind of dtype: what to do about it.
_HINTS = dict.fromkeys("US", ", class names as np.unique(y, return_inverse=True)[1]")


def read_npz(path: str) -> Dataset:
    """Arrays ``x`` and ``y``, or one for each input of the model and ``y``.

    What `numpy.savez` wrote is mapped into memory, so it may be larger than that; what
    `numpy.savez_compressed` wrote is read as a whole.

    Raises
    ------
    UsageError
        If the file cannot be read, or its arrays do not fit together.
    """
    try:
        with zipfile.ZipFile(path) as file:
            names = [name.removesuffix(".npy") for name in file.namelist() if name.endswith(".npy")]
            arrays: dict[str, Array] = {n: _member(file, path, f"{n}.npy") for n in names}
    except Exception as error:  # whatever numpy, zipfile, zlib and tokenize raise
        if "allow_pickle" in str(error):
            raise UsageError(
                f"{path}: holds arrays of Python objects; expected numbers: give np.array a dtype, "
                "such as np.float32, and save again"
            ) from None
        raise UsageError(f"{path}: not an .npz file, or cut short ({error})") from None
    return from_arrays(arrays, path)


def read_npy_folder(path: str) -> Dataset:
    """A folder with ``x.npy`` and ``y.npy`` (or one file for each input), mapped into memory."""
    names = sorted(n for n in os.listdir(path) if n.endswith(".npy"))
    arrays = {n.removesuffix(".npy"): _mapped(os.path.join(path, n)) for n in names}
    return from_arrays(arrays, path)


def read_npy(path: str) -> Dataset:
    """One ``.npy`` file of samples without targets, mapped into memory."""
    return from_arrays({"x": _mapped(path)}, path)


def from_arrays(arrays: Mapping[str, Samples], source: str) -> Dataset:
    """A data set of arrays by name, of which ``y`` are the targets.

    Raises
    ------
    UsageError
        If there are no samples, or the arrays differ in their number, or hold Python objects.
    """
    inputs = {name: array for name, array in arrays.items() if name != TARGETS}
    if not inputs:
        found = ", ".join(arrays) or "nothing"
        raise UsageError(f"{source}: holds {found}; expected arrays x and y")
    first, *_ = inputs
    for name, array in arrays.items():
        if not array.shape or array.dtype.kind not in "biuf":
            raise UsageError(
                f"{source}: {name} is {array.dtype} {list(array.shape)}; expected numbers, "
                f"one row a sample{_HINTS.get(array.dtype.kind, '')}"
            )
        if array.shape[0] != inputs[first].shape[0]:
            raise UsageError(
                f"{source}: {name} has {array.shape[0]} samples, {first} has "
                f"{inputs[first].shape[0]}; expected as many"
            )
    return Dataset(inputs, arrays.get(TARGETS), source)


def _mapped(path: str) -> Array:
    try:
        return cast(Array, np.load(path, mmap_mode="r", allow_pickle=False))
    except Exception as error:  # as above
        raise UsageError(f"{path}: not an .npy file, or cut short ({error})") from None


def _member(file: zipfile.ZipFile, path: str, name: str) -> Array:
    """A member as a map of the file where it is stored as it is; else read."""
    info = file.getinfo(name)
    with file.open(name) as stream:
        version = npy.read_magic(stream)
        shape, is_fortran, kind = _header(stream, version)
        if info.compress_type == zipfile.ZIP_STORED and not kind.hasobject and np.prod(shape):
            offset = _data_offset(path, info) + stream.tell()
            mapped: Array = np.memmap(path, kind, "r", offset, shape, "F" if is_fortran else "C")
            return mapped
    with file.open(name) as stream:
        return npy.read_array(stream, allow_pickle=False)


def _header(stream: IO[bytes], version: tuple[int, int]) -> tuple[Any, bool, np.dtype[Any]]:
    if version == (1, 0):
        return npy.read_array_header_1_0(stream)
    return npy.read_array_header_2_0(stream)


def _data_offset(path: str, info: zipfile.ZipInfo) -> int:
    """Where a member's bytes start; the local header has lengths of its own."""
    with open(path, "rb") as raw:
        raw.seek(info.header_offset)
        n_name, n_extra = _LOCAL_HEADER.unpack(raw.read(_LOCAL_HEADER.size))
    return info.header_offset + _LOCAL_HEADER.size + int(n_name) + int(n_extra)
