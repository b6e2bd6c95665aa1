"""Placement of buffers in one arena: offsets such that what lives at the same time never overlaps.

Greedy into the lowest gap that fits (Pisarchyk and Lee, arXiv:2001.03288, "Greedy by Size"),
and from the ground up, each onto the lowest stretch of what stands (Sekiyama et al.,
arXiv:1804.10001): one after the other, until the arena is as small as what is needed at once.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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


Placement = tuple[list[int], int]
Order = Callable[[Interval], tuple[int, ...]]
Way = Callable[[Sequence[Interval], Order], Placement]


def place(intervals: Sequence[Interval]) -> Placement:
    """Offsets of the intervals, and the size of the arena, in bytes."""
    needed = _needed(intervals)
    ways: list[tuple[Way, Order]] = [
        (_into_gaps, lambda i: (-i.n_bytes, -i.last)),
        (_onto_skyline, lambda i: (i.first, -i.last)),
        (_onto_skyline, lambda i: (-i.last, -i.first)),
        (_onto_skyline, lambda i: (-i.last, i.first)),
    ]
    best: Placement | None = None
    for place_all, order in ways:
        if best is None or best[1] > needed:
            plan = place_all(intervals, order)
            best = plan if best is None else min(best, plan, key=lambda plan: plan[1])
    assert best is not None
    return best


def _needed(intervals: Sequence[Interval]) -> int:
    """Bytes needed at once at the fullest step, which no placement can do without."""
    change: Counter[int] = Counter()
    for interval in intervals:
        change[interval.first] += aligned(interval.n_bytes)
        change[interval.last + 1] -= aligned(interval.n_bytes)
    return max(itertools.accumulate(change[step] for step in sorted(change)), default=0)


def _into_gaps(intervals: Sequence[Interval], order: Order) -> Placement:
    """Each in its turn into the lowest gap that those before it leave."""
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


class _Stretch(NamedTuple):
    """Up to `height` bytes all is settled from step `first` to step `last`."""

    height: int
    first: int
    last: int


def _onto_skyline(intervals: Sequence[Interval], order: Order) -> Placement:
    """Onto the lowest stretch the first that fits between its ends, until none does: up it goes."""
    offsets = [0] * len(intervals)
    turns = sorted(range(len(intervals)), key=lambda i: order(intervals[i]))
    firsts = np.array([intervals[i].first for i in turns], np.int64)
    lasts = np.array([intervals[i].last for i in turns], np.int64)
    waiting = np.ones(len(turns), np.bool_)
    skyline = [_Stretch(0, min(firsts, default=0), max(lasts, default=0))]
    while waiting.any():
        at = min(range(len(skyline)), key=lambda k: skyline[k].height)
        height, first, last = skyline[at]
        fits = np.flatnonzero(waiting & (firsts >= first) & (lasts <= last))
        if fits.size:
            waiting[fits[0]] = False
            index = turns[fits[0]]
            offsets[index] = height
            settled = _settle(skyline[at], intervals[index])
        else:
            beside = skyline[max(at - 1, 0) : at] + skyline[at + 1 : at + 2]
            settled = [_Stretch(min(other.height for other in beside), first, last)]
        skyline = _joined(skyline[:at] + settled + skyline[at + 1 :])
    return offsets, max(stretch.height for stretch in skyline)


def _settle(on: _Stretch, interval: Interval) -> list[_Stretch]:
    """What is left of a stretch before and after an interval, and in between the new one."""
    parts = [
        _Stretch(on.height, on.first, interval.first - 1),
        _Stretch(on.height + aligned(interval.n_bytes), interval.first, interval.last),
        _Stretch(on.height, interval.last + 1, on.last),
    ]
    return [part for part in parts if part.first <= part.last]


def _joined(skyline: Sequence[_Stretch]) -> list[_Stretch]:
    """Neighbours of one height are one stretch."""
    found: list[_Stretch] = []
    for stretch in skyline:
        if found and found[-1].height == stretch.height:
            found[-1] = found[-1]._replace(last=stretch.last)
        else:
            found.append(stretch)
    return found
