"""Samples and targets as they are kept: read a batch at a time, in their own dtype."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bnnopt.runtime.data import sampling

Array = NDArray[Any]
Batch = Array | dict[str, Array]


class Samples(Protocol):
    """What holds the samples of one input: an array, a memory map, or files read when asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, ...): n samples of one shape."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """As stored."""
        ...

    def __getitem__(self, index: Any, /) -> Any:
        """The samples at an array of indices, as one array."""
        ...


@dataclass(frozen=True)
class Dataset:
    """A data set: nothing of it is converted before a batch is taken.

    Attributes
    ----------
    x : mapping of str to samples
        By name of the model's input; under ``x`` alone where the data do not name it.
    y : samples, optional
        Targets: (n,) integer class labels, or (n, ...) numbers; None where there are none.
    source : str
        Where it was read from, for messages.
    classes : sequence of str
        Names of the classes where the data have them, such as those of folders.
    """

    x: Mapping[str, Samples]
    y: Samples | None
    source: str
    classes: Sequence[str] = ()

    def __len__(self) -> int:
        return int(next(iter(self.x.values())).shape[0])

    def inputs(self, indices: NDArray[np.int64]) -> Batch:
        """The samples at `indices`, in this order, in the dtype that they are stored in."""
        taken = {name: take(samples, indices) for name, samples in self.x.items()}
        return taken["x"] if set(taken) == {"x"} else taken

    def targets(self, indices: NDArray[np.int64]) -> Array | None:
        """The targets at `indices`; None where there are none."""
        return None if self.y is None else take(self.y, indices)

    def batches(
        self, batch_size: int, seed: int = 0, epoch: int = 0, shuffle: bool = True
    ) -> Iterator[tuple[Batch, Array | None]]:
        """The batches (x, y) of one epoch in the order that `fit` takes them; the last is smaller.

        The order follows from `seed` and `epoch` alone.
        """
        order = sampling.order(len(self), seed, epoch, shuffle)
        for start in range(0, len(self), batch_size):
            indices = order[start : start + batch_size]
            yield self.inputs(indices), self.targets(indices)


def take(samples: Samples, indices: NDArray[np.int64]) -> Array:
    """The samples at `indices`; read in rising order, which a file on a card answers faster."""
    if isinstance(samples, np.memmap):
        order = np.argsort(indices, kind="stable")
        _fetch(samples, indices[order])
        rows = np.empty((len(indices), *samples.shape[1:]), samples.dtype)
        rows[order] = samples[indices[order]]
        return rows
    return np.asarray(samples[indices])


def _fetch(samples: np.memmap[Any, Any], indices: NDArray[np.int64]) -> None:
    """Ask for the pages of the samples, all at once and no others.

    Left alone, the system reads 128 KiB or more around each page that is missed: with small samples
    in a file that is larger than the memory, many times what a batch needs, for every batch.
    """
    mapped: Any = getattr(samples, "_mmap", None)
    row_bytes = samples.strides[0]
    if not hasattr(mapped, "madvise") or row_bytes != samples[:1].nbytes or not len(indices):
        return
    mapped.madvise(mmap.MADV_RANDOM)
    first = samples.ctypes.data - np.frombuffer(mapped, np.uint8).ctypes.data
    for start, stop in _stretches(indices):
        begin = first + start * row_bytes
        begin -= begin % mmap.PAGESIZE
        mapped.madvise(mmap.MADV_WILLNEED, begin, first + stop * row_bytes - begin)


def _stretches(indices: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Where rising indices follow one another: from the first of each stretch to past its last."""
    is_cut = np.diff(indices) > 1
    starts, stops = indices[np.append(True, is_cut)], indices[np.append(is_cut, True)] + 1
    return zip(starts.tolist(), stops.tolist(), strict=True)
