"""CIFAR-10 and CIFAR-100, binary version; see cs.toronto.edu/~kriz/cifar.html."""

from __future__ import annotations

import os

import numpy as np

from bnnopt.errors import UsageError
from bnnopt.runtime.data.dataset import Dataset

IMAGE = (3, 32, 32)
_PIXELS = 3 * 32 * 32
# Of a part: its files, and the bytes of labels before each image, the last of which counts.
_LAYOUTS = {
    "train": (([f"data_batch_{i}.bin" for i in range(1, 6)], 1), (["train.bin"], 2)),
    "test": ((["test_batch.bin"], 1), (["test.bin"], 2)),
}


def is_cifar_folder(path: str) -> bool:
    """Whether a folder holds batches of CIFAR-10 or CIFAR-100."""
    return any(
        os.path.exists(os.path.join(path, name))
        for layouts in _LAYOUTS.values()
        for names, _ in layouts
        for name in names
    )


def read_cifar_folder(path: str, part: str) -> Dataset:
    """Images (n, 3, 32, 32) uint8 and labels (n,) uint8 of ``train`` or ``test``.

    Raises
    ------
    UsageError
        If a file is missing, or is no whole number of images.
    """
    for names, n_labels in _LAYOUTS[part]:
        found = [os.path.join(path, n) for n in names if os.path.exists(os.path.join(path, n))]
        if found:
            rows = np.concatenate([_rows(file, n_labels) for file in found])
            x = rows[:, n_labels:].reshape(-1, *IMAGE)
            return Dataset({"x": x}, rows[:, n_labels - 1], path)
    expected = " or ".join(names[0] for names, _ in _LAYOUTS[part])
    raise UsageError(f"{path}: has no {expected}; expected CIFAR's binary version")


def _rows(path: str, n_labels: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """One row an image: its labels, then its pixels."""
    length = n_labels + _PIXELS
    n_bytes = os.path.getsize(path)
    if not n_bytes or n_bytes % length:
        raise UsageError(f"{path}: is {n_bytes} bytes, expected a multiple of {length}, an image")
    return np.fromfile(path, np.uint8).reshape(-1, length)
