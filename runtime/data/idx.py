"""IDX files, the format of MNIST and Fashion-MNIST; see yann.lecun.com/exdb/mnist."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnnopt.errors import UsageError
from bnnopt.runtime.data.dataset import Dataset

_DTYPES = {8: "u1", 9: "i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_MOST_AXES = 8
PARTS = {"train": "train-", "test": "t10k-"}


def is_idx_folder(path: str) -> bool:
    """Whether a folder holds images in IDX files under their usual names."""
    return any(_find(path, prefix, "images") for prefix in PARTS.values())


def read_idx_folder(path: str, part: str) -> Dataset:
    """Images (n, 1, height, width) uint8 and labels (n,) uint8 of ``train`` or ``test``.

    Raises
    ------
    UsageError
        If a file is missing or damaged, or the two differ in their number of samples.
    """
    images, labels = (_find(path, PARTS[part], kind) for kind in ("images", "labels"))
    if images is None or labels is None:
        lacking = "images" if images is None else "labels"
        raise UsageError(
            f"{path}: has no {PARTS[part]}{lacking}-idx*-ubyte; expected the files of MNIST, "
            "gzip or not"
        )
    return _pair(images, labels)


def is_idx(path: str) -> bool:
    """Whether a file has the name of images in IDX format."""
    return "-idx" in os.path.basename(path)


def read_idx(path: str) -> Dataset:
    """Images of one file, and the labels of the file beside it where there is one.

    Raises
    ------
    UsageError
        If a file is damaged, or the two differ in their number of samples.
    """
    folder, name = os.path.split(path)
    beside = name.replace("images", "labels").replace("-idx3", "-idx1")
    labels = os.path.join(folder, beside)
    return _pair(path, labels if beside != name and os.path.exists(labels) else None)


def _pair(images: str, labels: str | None) -> Dataset:
    x, y = _array(images), _array(labels) if labels is not None else None
    if x.ndim == 3:
        x = x[:, None]
    if y is not None and y.shape != x.shape[:1]:
        raise UsageError(f"{labels}: labels {list(y.shape)}, expected [{len(x)}] as in {images}")
    return Dataset({"x": x}, y, images)


def _find(folder: str, prefix: str, kind: str) -> str | None:
    """The file of a kind; both ways to write its name, packed or not."""
    if not os.path.isdir(folder):
        return None
    for name in sorted(os.listdir(folder)):
        if name.startswith((prefix + kind + "-idx", prefix + kind + ".idx")):
            return os.path.join(folder, name)
    return None


def _array(path: str) -> NDArray[Any]:
    """Two zeros, a type, the number of axes, their lengths (big-endian), then the elements."""
    content = _content(path)
    header = content[:4].tobytes()
    n_axes = header[3] if len(header) == 4 else 0
    start = 4 + 4 * n_axes
    if header[:2] != b"\0\0" or not 0 < n_axes <= _MOST_AXES or header[2] not in _DTYPES:
        raise UsageError(f"{path}: not an IDX file: it starts with {header.hex() or 'nothing'}")
    if len(content) < start:
        raise UsageError(f"{path}: is {len(content)} bytes, expected {start} of header alone")
    shape = tuple(int(d) for d in content[4:start].view(">i4"))
    dtype = np.dtype(_DTYPES[header[2]])
    expected = start + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise UsageError(f"{path}: is {len(content)} bytes, expected {expected} by its header")
    return content[start:].view(dtype).reshape(shape)


def _content(path: str) -> NDArray[np.uint8]:
    """All bytes, unpacked; a file that is not packed is mapped."""
    try:
        with open(path, "rb") as raw:
            is_packed = raw.read(2) == b"\x1f\x8b"
        if not is_packed:
            return np.memmap(path, np.uint8, "r")
        with gzip.open(path) as file:
            return np.frombuffer(file.read(), np.uint8)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from None
