"""Finds out what a path holds, and opens it."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

import numpy as np

from bnnopt.errors import UsageError
from bnnopt.runtime.data.arrays import read_npy, read_npy_folder, read_npz
from bnnopt.runtime.data.cifar import is_cifar_folder, read_cifar_folder
from bnnopt.runtime.data.dataset import Dataset
from bnnopt.runtime.data.idx import is_idx, is_idx_folder, read_idx, read_idx_folder
from bnnopt.runtime.data.images import is_image_folder, read_image_folder
from bnnopt.runtime.data.tables import is_table, read_table

KINDS = (
    ".npz with arrays x and y, .npy, IDX (MNIST), .csv, .tsv or .txt; a folder of x.npy and y.npy, "
    "of MNIST's files, of CIFAR's .bin files, or of images by class"
)


def open_data(
    path: str | os.PathLike[str], shape: Sequence[int], dtype: str = "float32", part: str = "train"
) -> Dataset:
    """Open a data set of any kind that is known.

    Parameters
    ----------
    path : path
        A file or a folder.
    shape : sequence of int
        Of a sample, as the model's input takes it.
    dtype : str
        Of the model's input, for files of text.
    part : str
        ``train`` or ``test``, of a folder that has both.

    Raises
    ------
    UsageError
        If there is nothing, or nothing of a known kind, or it does not fit the model.
    """
    dataset = _read(os.fspath(path), shape, dtype, part)
    if not len(dataset):
        raise UsageError(f"{path}: holds no samples")
    return _fitting(dataset, tuple(shape))


def _read(path: str, shape: Sequence[int], dtype: str, part: str) -> Dataset:
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{path}: cannot be read: {reason}") from None
    if stat.S_ISDIR(mode):
        return _read_folder(path, shape, part)
    if not stat.S_ISREG(mode):
        raise UsageError(f"{path}: is no regular file; expected {KINDS}")
    if is_idx(path):
        return read_idx(path)
    if is_table(path):
        return read_table(path, shape, dtype)
    if path.endswith(".npy"):
        return read_npy(path)
    if path.endswith(".npz"):
        return read_npz(path)
    raise UsageError(f"{path}: not a kind of data that is known; expected {KINDS}")


def _read_folder(path: str, shape: Sequence[int], part: str) -> Dataset:
    if is_idx_folder(path):
        return read_idx_folder(path, part)
    if is_cifar_folder(path):
        return read_cifar_folder(path, part)
    if os.path.exists(os.path.join(path, "x.npy")):
        return read_npy_folder(path)
    if os.path.isdir(os.path.join(path, part)):
        return _read_folder(os.path.join(path, part), shape, part)
    if is_image_folder(path):
        return read_image_folder(path, shape)
    raise UsageError(f"{path}: holds no data of a kind that is known; expected {KINDS}")


def _fitting(dataset: Dataset, shape: tuple[int, ...]) -> Dataset:
    """Samples of the model's shape where only axes of length 1, or flattening, lie between."""
    if set(dataset.x) != {"x"}:
        return dataset
    x = dataset.x["x"]
    found = tuple(x.shape[1:])
    if found == shape:
        return dataset
    if isinstance(x, np.ndarray) and np.prod(found) == np.prod(shape):
        squeezed = tuple(d for d in found if d != 1) == tuple(d for d in shape if d != 1)
        if squeezed or len(shape) == 1:
            return Dataset({"x": x.reshape(-1, *shape)}, dataset.y, dataset.source, dataset.classes)
    hint = ""
    if len(found) == len(shape) == 3 and (found[2], found[0], found[1]) == shape:
        hint = "; channels come last there: x.transpose(0, 3, 1, 2)"
    elif np.prod(found) == np.prod(shape):
        hint = f"; as many numbers in another shape: x.reshape(-1, {', '.join(map(str, shape))})"
    raise UsageError(
        f"{dataset.source}: samples are {list(found)}, the model takes {list(shape)}{hint}"
    )
