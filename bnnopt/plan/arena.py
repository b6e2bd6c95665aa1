"""Placement of buffers in one arena: offsets such that what lives at the same time never overlaps.

Greedy by size, or by start, into the lowest gap that fits (Pisarchyk and Lee, arXiv:2001.03288,
"Greedy by Size"); whichever gives the smaller arena is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

ALIGNMENT = 64  # bytes: a cache line, and the widest vector register


@dataclass(frozen=True)
class Interval:
    """`n_bytes` needed from step `first` to step `last`, both included."""

    n_bytes: int
    first: int
    last: int

    def meets(self, other: Interval) -> bool:
        """Whether both are needed at the same time."""
        return self.first <= other.last and other.first <= self.last


def aligned(n_bytes: int) -> int:
    """`n_bytes` rounded up to the alignment."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


def place(intervals: Sequence[Interval]) -> tuple[list[int], int]:
    """Offsets of the intervals, and the size of the arena, in bytes."""
    orders: list[Callable[[Interval], tuple[int, ...]]] = [
        lambda i: (-i.n_bytes, i.first),
        lambda i: (i.first, -i.n_bytes),
        lambda i: (-(i.last - i.first), -i.n_bytes),
    ]
    plans = [_place_in_order(intervals, order) for order in orders]
    return min(plans, key=lambda plan: plan[1])


def _place_in_order(
    intervals: Sequence[Interval], order: Callable[[Interval], tuple[int, ...]]
) -> tuple[list[int], int]:
    offsets = [0] * len(intervals)
    placed: list[int] = []
    size = 0
    for index in sorted(range(len(intervals)), key=lambda i: order(intervals[i])):
        interval = intervals[index]
        taken = sorted(
            (offsets[i], offsets[i] + aligned(intervals[i].n_bytes))
            for i in placed
            if intervals[i].meets(interval)
        )
        offsets[index] = _lowest_gap(taken, aligned(interval.n_bytes))
        size = max(size, offsets[index] + aligned(interval.n_bytes))
        placed.append(index)
    return offsets, size


def _lowest_gap(taken: Sequence[tuple[int, int]], n_bytes: int) -> int:
    end = 0
    for start, stop in taken:
        if start - end >= n_bytes:
            break
        end = max(end, stop)
    return end
