"""How updates of many devices become one, whatever one of them sends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bnnopt.errors import UsageError
from bnnopt.fleet.layout import Bits, Counts, Floats, Layout, State

MOST_MEDIANS = 2  # a vote counts no more than so many times the median one
MOST_SAMPLES = 1 << 40  # of a device: sums of them stay exact
TRIMMED, FEWEST = 0.2, 3  # the share that is left out at each end, from so many devices on
LARGEST = 1e6  # magnitude of a statistic or bias; trained networks stay below by orders


class Update(NamedTuple):
    """What a device sends after it trained.

    Attributes
    ----------
    signs : (ceil(n / 8),) uint8
        Packed, of what it would add to each weight, or of the weight itself.
    averaged : (m,) float32
        Its statistics and parameters of channels.
    n_samples : int
        That it trained on.
    """

    signs: Bits
    averaged: Floats
    n_samples: int


def check(update: Update, layout: Layout) -> None:
    """Refuse an update that no honest device sends.

    Raises
    ------
    UsageError
        Saying what does not fit.
    """
    expected = {
        "signs": (np.dtype(np.uint8), (layout.n_bytes_of_signs,)),
        "averaged": (np.dtype(np.float32), (layout.n_averaged,)),
    }
    for name, (dtype, shape) in expected.items():
        array = getattr(update, name)
        if (array.dtype, array.shape) != (dtype, shape):
            found = f"{array.dtype} {list(array.shape)}"
            raise UsageError(f"{name} is {found}, expected {dtype} {list(shape)}")
    if update.averaged.size and not np.abs(update.averaged).max() <= LARGEST:
        raise UsageError(f"a statistic or bias is not within +-{LARGEST:g}")
    spare = -layout.n_signed % 8
    if spare and update.signs[-1] >> (8 - spare):
        raise UsageError("the spare bits of signs are set")
    if not 1 <= update.n_samples <= MOST_SAMPLES:
        raise UsageError(f"it saw {update.n_samples} samples, expected 1 to {MOST_SAMPLES}")


def majority(
    signs: Sequence[Bits], n: int, random: np.random.Generator, weights: Counts | None = None
) -> Bits:
    """The sign that most devices have for each of n weights, packed; by chance where they tie.

    Bernstein et al., "signSGD with Majority Vote", arXiv:1810.05291, algorithm 1: one device, one
    vote, so that a device that lies changes what the others decide only where they nearly tie.

    Parameters
    ----------
    signs : sequence of (ceil(n / 8),) uint8
    n : int
    random : numpy.random.Generator
    weights : (devices,) int64, optional
        What each vote counts, as of `by_samples`; 1 if not given.
    """
    counts = np.ones(len(signs), np.int64) if weights is None else weights
    surplus = _positive(signs, n, counts) * 2 - counts.sum()
    ties = np.flatnonzero(surplus == 0)
    surplus[ties] = random.integers(0, 2, len(ties)) * 2 - 1
    return np.packbits(surplus > 0, bitorder="little")


def by_samples(updates: Sequence[Update]) -> Counts:
    """What votes count by the samples that are behind them: (devices,) int64.

    At most twice the median: a device that overstates its samples has no more than two votes.
    """
    samples = np.array([update.n_samples for update in updates], np.int64)
    return np.minimum(samples, max(1, int(MOST_MEDIANS * np.median(samples))))


def positives(signs: Sequence[Bits], n: int) -> Counts:
    """How many of the devices have a positive sign for each of n weights: (n,) int64."""
    return _positive(signs, n, np.ones(len(signs), np.int64))


def mean_sign(positive: Counts, devices: int) -> Floats:
    """The mean sign where so many of the devices have a positive one, in [-1, 1]: (n,) float32.

    Yang et al., "Communication-Efficient Federated Learning with Binary Neural Networks",
    arXiv:2110.02226: the mean of the devices' binary weights are the latent weights of the next
    round. Server and devices work it out alike, to the last bit.
    """
    return (positive * 2 - devices).astype(np.float32) / np.float32(devices)


def trimmed_mean(updates: Sequence[Update]) -> Floats:
    """The mean over devices of each number, without the largest and the smallest fifth.

    Of three and four devices the largest and the smallest are left out, of two none. Yin et al.,
    "Byzantine-Robust Distributed Learning", arXiv:1803.01498, option II.
    """
    values = np.sort([update.averaged for update in updates], axis=0)
    n = len(values)
    cut = 0 if n < FEWEST else max(1, round(n * TRIMMED))
    mean: Floats = values[cut : n - cut].mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean


def moved(state: State, vote: Bits, rate: float, averaged: Floats) -> State:
    """The state after a vote: each weight by `rate` the way that the majority points.

    Server and devices work this out alike, to the last bit.
    """
    step = np.where(
        np.unpackbits(vote, count=len(state.signed), bitorder="little").view(bool),
        np.float32(rate),
        np.float32(-rate),
    )
    return State(state.signed + step, averaged)


def _positive(signs: Sequence[Bits], n: int, weights: Counts) -> Counts:
    counts = np.zeros(n, np.int64)
    for bits, weight in zip(signs, weights, strict=True):
        counts += weight * np.unpackbits(bits, count=n, bitorder="little")
    return counts
