"""A step's batch as the parts that its program takes one after the other."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bnnopt.runtime.feeding import repeated
from bnnopt.runtime.guard import Feeds

Array = NDArray[np.generic]
# Gradients in float16 are scaled for a full batch, and a mean loss makes them as many times larger
# as a batch is smaller; so many times leave them finite. Smaller batches are repeated: that changes
# no mean, neither of the loss nor of batch normalisation.
SCALED_RANGE = 32
_DRAWS_APART = 16777619  # steps: the random numbers of two parts are those of steps so far apart


class Part(NamedTuple):
    """Some samples of a step.

    Attributes
    ----------
    data, labels : tuple of ndarray
        Inputs of the program.
    batch : int
        Samples.
    share : float
        Of all samples of the step.
    left : int
        How many parts come behind this one; weights are stepped behind the last.
    times : int
        How often each sample is there.
    """

    data: tuple[Array, ...]
    labels: tuple[Array, ...]
    batch: int
    share: float
    left: int
    times: int = 1

    @property
    def is_last(self) -> bool:
        """Whether the gradients are complete behind it."""
        return self.left == 0

    def filled(self, full: int) -> Part:
        """The part with its samples repeated where it is far smaller than `full` samples."""
        if self.batch * SCALED_RANGE >= full:
            return self
        times = full // self.batch
        data, labels = repeated(self.data, times), repeated(self.labels, times)
        return self._replace(data=data, labels=labels, batch=self.batch * times, times=times)

    def feeds(self, rate: float, number: int, roles: Mapping[str, Sequence[int]]) -> Feeds:
        """By role, of those that a program has; the step is its `number`-th, from 1."""
        feeds: Feeds = {
            "data": self.data,
            "labels": self.labels,
            "rate": (np.array(rate, np.float32),),
            "share": (np.array(-self.share, np.float32),),
            "step": (np.array(number + self.left * _DRAWS_APART, np.int64),),
        }
        return {role: feeds[role] for role in feeds if roles[role]}


def in_parts(data: tuple[Array, ...], labels: tuple[Array, ...], most: int) -> list[Part]:
    """Parts of nearly the same size, at most `most` samples each, in order."""
    n = len(data[0])
    n_parts = -(-n // most)
    edges = [n * i // n_parts for i in range(n_parts + 1)]
    return [
        Part(
            tuple(array[start:end] for array in data),
            tuple(array[_rows(array, start, n) : _rows(array, end, n)] for array in labels),
            end - start,
            (end - start) / n,
            n_parts - 1 - i,
        )
        for i, (start, end) in enumerate(itertools.pairwise(edges))
    ]


def lengthened(arrays: tuple[Array, ...], n: int) -> tuple[Array, ...]:
    """Each array with `n` of its own samples again behind it."""
    return tuple(np.resize(array, (len(array) + n, *array.shape[1:])) for array in arrays)


def joined(labels: tuple[Array, ...], others: Array) -> Array:
    """The labels of a step, and others behind them."""
    (own,) = labels
    return np.concatenate([own, others.astype(own.dtype)])


def _rows(labels: Array, sample: int, n: int) -> int:
    """Where the labels of a sample start: a text may have one for each of its words."""
    return sample * len(labels) // n
