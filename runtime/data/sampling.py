"""The order in which samples are seen: from seed and epoch alone, so a resumed run keeps it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
_SHUFFLE, _CHANGE = 0, 1  # what a stream of random numbers is for


def order(n_samples: int, seed: int, epoch: int, shuffle: bool = True) -> Indices:
    """The indices of an epoch's samples, 0 at the first epoch."""
    if not shuffle:
        return np.arange(n_samples)
    return np.random.default_rng([seed, epoch, _SHUFFLE]).permutation(n_samples)


def batch(samples: Indices, number: int, batch_size: int) -> Indices:
    """Batch `number` of an epoch's order; the last one may be smaller."""
    return samples[number * batch_size : (number + 1) * batch_size]


def randomness(seed: int, epoch: int, number: int) -> np.random.Generator:
    """The random numbers of one batch, for what changes its samples."""
    return np.random.default_rng([seed, epoch, _CHANGE, number])
