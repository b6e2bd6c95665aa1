"""Placement of buffers in one arena: offsets such that what lives at the same time never overlaps.

Greedy into the lowest gap that fits (Pisarchyk and Lee, arXiv:2001.03288, "Greedy by Size" and "by
Breadth"), in one order after another, until the arena is as small as what is needed at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64  # bytes: a cache line, and the widest vector register


@dataclass(frozen=True)
class Interval:
    """`n_bytes` needed from step `first` to step `last`, both included."""

    n_bytes: int
    first: int
    last: int


def aligned(n_bytes: int) -> int:
    """`n_bytes` rounded up to the alignment."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


def place(intervals: Sequence[Interval]) -> tuple[list[int], int]:
    """Offsets of the intervals, and the size of the arena, in bytes."""
    needed = _needed(intervals)
    origin = min((i.first for i in intervals), default=0)
    busiest = {i: max(needed[i.first - origin : i.last + 1 - origin]) for i in intervals}
    orders: list[Callable[[Interval], tuple[int, ...]]] = [
        lambda i: (-i.n_bytes, i.first),
        lambda i: (-busiest[i], i.first - i.last),
        lambda i: (-i.n_bytes, -i.last),
        lambda i: (i.first, -i.n_bytes),
        lambda i: (i.first - i.last, -i.n_bytes),
    ]
    best: tuple[list[int], int] | None = None
    for order in orders:
        if best is None or best[1] > max(needed):
            plan = _place_in_order(intervals, order)
            best = plan if best is None else min(best, plan, key=lambda plan: plan[1])
    assert best is not None
    return best


def _needed(intervals: Sequence[Interval]) -> list[int]:
    """Bytes needed at each step from the first to the last, which no placement can do without."""
    ends = [step for i in intervals for step in (i.first, i.last + 1)]
    change = dict.fromkeys(range(min(ends, default=0), max(ends, default=0) + 1), 0)
    for i in intervals:
        change[i.first] += aligned(i.n_bytes)
        change[i.last + 1] -= aligned(i.n_bytes)
    return list(itertools.accumulate(change.values()))


def _place_in_order(
    intervals: Sequence[Interval], order: Callable[[Interval], tuple[int, ...]]
) -> tuple[list[int], int]:
    offsets = [0] * len(intervals)
    placed = np.zeros((4, len(intervals)), np.int64)  # first and last step, start and stop
    firsts, lasts, starts, stops = placed
    size = 0
    for n, index in enumerate(sorted(range(len(intervals)), key=lambda i: order(intervals[i]))):
        interval, n_bytes = intervals[index], aligned(intervals[index].n_bytes)
        meets = (firsts[:n] <= interval.last) & (lasts[:n] >= interval.first)
        start = offsets[index] = _lowest_gap(starts[:n][meets], stops[:n][meets], n_bytes)
        placed[:, n] = interval.first, interval.last, start, start + n_bytes
        size = max(size, start + n_bytes)
    return offsets, size


def _lowest_gap(starts: NDArray[np.int64], stops: NDArray[np.int64], n_bytes: int) -> int:
    """The lowest offset at which so many bytes overlap with nothing that is taken."""
    order = np.lexsort((stops, starts))
    ends = np.zeros(len(order) + 1, np.int64)  # up to where all is taken, before each and after all
    np.maximum.accumulate(stops[order], out=ends[1:])
    fits = np.flatnonzero(starts[order] - ends[:-1] >= n_bytes)
    return int(ends[fits[0] if fits.size else -1])
