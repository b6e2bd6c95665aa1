"""Placement of buffers in one arena: offsets such that what lives at the same time never overlaps.

Greedy into the lowest gap that fits (Pisarchyk and Lee, arXiv:2001.03288, "Greedy by Size"),
and from the ground up, each onto the lowest stretch of what stands (Sekiyama et al.,
arXiv:1804.10001): one after the other, until the arena is as small as what is needed at once.
"""

from __future__ import annotations

import functools
import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64  # bytes: a cache line, and the widest vector register


class Interval(NamedTuple):
    """`n_bytes` needed from step `first` to step `last`, both included.

    Where `onto` is the index of one that ends at the step before, both begin at the same byte.
    """

    n_bytes: int
    first: int
    last: int
    onto: int | None = None


def aligned(n_bytes: int) -> int:
    """`n_bytes` rounded up to the alignment."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


class Block(NamedTuple):
    """Intervals that begin at one byte, each at the step after the one before ends."""

    parts: tuple[Interval, ...]
    n_bytes: int
    first: int
    last: int

    @classmethod
    def of(cls, parts: Sequence[Interval]) -> Block:
        """Of the intervals in order of time."""
        return cls(tuple(parts), max(i.n_bytes for i in parts), parts[0].first, parts[-1].last)


Placement = tuple[list[int], int]
Order = Callable[[Block], tuple[int, ...]]
Way = Callable[[Sequence[Block], Order], Placement]


def place(intervals: Sequence[Interval]) -> Placement:
    """Offsets of the intervals, and the size of the arena, in bytes."""
    offsets, size = _place(tuple(intervals))
    return list(offsets), size


@functools.lru_cache(maxsize=8)  # a step is planned again where nothing has moved
def _place(intervals: tuple[Interval, ...]) -> Placement:
    needed = _needed(intervals)
    members = _blocks(intervals)
    blocks = [Block.of([intervals[i] for i in indices]) for indices in members]
    ways: list[tuple[Way, Order]] = [
        (_into_gaps, lambda b: (-b.n_bytes, -b.last)),
        (_onto_skyline, lambda b: (b.first, -b.last)),
        (_onto_skyline, lambda b: (-b.last, -b.first)),
        (_onto_skyline, lambda b: (-b.last, b.first)),
    ]
    best: Placement | None = None
    for place_all, order in ways:
        if best is None or best[1] > needed:
            plan = place_all(blocks, order)
            best = plan if best is None else min(best, plan, key=lambda plan: plan[1])
    assert best is not None
    offsets = [0] * len(intervals)
    for indices, offset in zip(members, best[0], strict=True):
        for index in indices:
            offsets[index] = offset
    return offsets, best[1]


def _blocks(intervals: Sequence[Interval]) -> list[list[int]]:
    """Indices of the intervals that begin at one byte, in order of time."""
    follower = {
        interval.onto: i for i, interval in enumerate(intervals) if interval.onto is not None
    }
    found = []
    for index, interval in enumerate(intervals):
        if interval.onto is None:
            found.append([index])
            while found[-1][-1] in follower:
                found[-1].append(follower[found[-1][-1]])
    return found


def _needed(intervals: Sequence[Interval]) -> int:
    """Bytes needed at once at the fullest step, which no placement can do without."""
    change: Counter[int] = Counter()
    for interval in intervals:
        change[interval.first] += aligned(interval.n_bytes)
        change[interval.last + 1] -= aligned(interval.n_bytes)
    return max(itertools.accumulate(change[step] for step in sorted(change)), default=0)


def _into_gaps(blocks: Sequence[Block], order: Order) -> Placement:
    """Each in its turn into the lowest gap that those before it leave."""
    offsets = [0] * len(blocks)
    placed = np.zeros((4, sum(len(block.parts) for block in blocks)), np.int64)
    firsts, lasts, starts, stops = placed  # steps, both included, and bytes
    n = size = 0
    for index in sorted(range(len(blocks)), key=lambda i: order(blocks[i])):
        taken = []
        for part in blocks[index].parts:
            meets = (firsts[:n] <= part.last) & (lasts[:n] >= part.first)
            taken.append((starts[:n][meets] - aligned(part.n_bytes), stops[:n][meets]))
        start = offsets[index] = _lowest_outside(*map(np.concatenate, zip(*taken, strict=True)))
        for part in blocks[index].parts:
            placed[:, n] = part.first, part.last, start, start + aligned(part.n_bytes)
            n += 1
        size = max(size, start + aligned(blocks[index].n_bytes))
    return offsets, size


def _lowest_outside(after: NDArray[np.int64], before: NDArray[np.int64]) -> int:
    """The lowest offset of 0 or more that lies in none of these open ranges."""
    order = np.lexsort((before, after))
    ends = np.zeros(len(order) + 1, np.int64)  # up to where all is taken, before each and after all
    np.maximum.accumulate(before[order], out=ends[1:])
    fits = np.flatnonzero(after[order] >= ends[:-1])
    return int(ends[fits[0] if fits.size else -1])


class _Stretch(NamedTuple):
    """Up to `height` bytes all is settled from step `first` to step `last`."""

    height: int
    first: int
    last: int


class _Skyline:
    """Stretches side by side, no two neighbours of one height."""

    def __init__(self, ground: _Stretch) -> None:
        self._starting, self._ending = {ground.first: ground}, {ground.last: ground}
        self._by_height = [ground]  # a heap, which keeps what is no longer there

    def lowest(self) -> _Stretch:
        """The lowest stretch, of equal ones the first."""
        while self._starting.get(self._by_height[0].first) is not self._by_height[0]:
            heapq.heappop(self._by_height)
        return self._by_height[0]

    def beside(self, stretch: _Stretch) -> list[_Stretch]:
        """Its neighbours."""
        found = self._ending.get(stretch.first - 1), self._starting.get(stretch.last + 1)
        return [other for other in found if other is not None]

    def replace(self, old: _Stretch, parts: Sequence[_Stretch]) -> None:
        """Put stretches in the place of one, and join neighbours of one height."""
        around = self._ending.get(old.first - 1), self._starting.get(old.last + 1)
        joined = _joined([s for s in (around[0], *parts, around[1]) if s is not None])
        for gone in (old, *around):
            if gone is not None:
                del self._starting[gone.first], self._ending[gone.last]
        for stretch in joined:
            self._starting[stretch.first] = self._ending[stretch.last] = stretch
            heapq.heappush(self._by_height, stretch)

    def highest(self) -> int:
        """Height of the highest stretch."""
        return max(stretch.height for stretch in self._starting.values())


def _onto_skyline(blocks: Sequence[Block], order: Order) -> Placement:
    """Onto the lowest stretch the first that fits between its ends, until none does: up it goes."""
    offsets = [0] * len(blocks)
    turns = sorted(range(len(blocks)), key=lambda i: order(blocks[i]))
    firsts = np.array([blocks[i].first for i in turns], np.int64)
    lasts = np.array([blocks[i].last for i in turns], np.int64)
    waiting = np.ones(len(turns), np.bool_)
    ground = _Stretch(0, int(min(firsts, default=0)), int(max(lasts, default=0)))
    skyline, n_waiting = _Skyline(ground), len(turns)
    while n_waiting:
        lowest = skyline.lowest()
        height, first, last = lowest
        fits = waiting & (firsts >= first) & (lasts <= last)
        chosen = int(fits.argmax())
        if fits[chosen]:
            waiting[chosen], n_waiting = False, n_waiting - 1
            index = turns[chosen]
            offsets[index] = height
            settled = _settle(lowest, blocks[index])
        else:
            level = min(other.height for other in skyline.beside(lowest))
            settled = [_Stretch(level, first, last)]
        skyline.replace(lowest, settled)
    return offsets, skyline.highest()


def _settle(on: _Stretch, block: Block) -> list[_Stretch]:
    """What is left of a stretch before and after a block, and in between the new ones."""
    found = [
        _Stretch(on.height, on.first, block.first - 1),
        *(_Stretch(on.height + aligned(p.n_bytes), p.first, p.last) for p in block.parts),
        _Stretch(on.height, block.last + 1, on.last),
    ]
    return [part for part in found if part.first <= part.last]


def _joined(skyline: Sequence[_Stretch]) -> list[_Stretch]:
    """Neighbours of one height are one stretch."""
    found: list[_Stretch] = []
    for stretch in skyline:
        if found and found[-1].height == stretch.height:
            found[-1] = found[-1]._replace(last=stretch.last)
        else:
            found.append(stretch)
    return found
