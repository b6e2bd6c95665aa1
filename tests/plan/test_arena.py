"""Placement: what lives at the same time never overlaps."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from bnnopt.plan import ALIGNMENT, Interval, aligned, place

INTERVALS = st.lists(
    st.builds(
        lambda n_bytes, first, length: Interval(n_bytes, first, first + length),
        st.one_of(st.integers(0, 5000), st.sampled_from([0, 1, 63, 64, 65, 128])),
        st.integers(-1, 30),
        st.integers(0, 12),
    ),
    max_size=40,
)


@given(INTERVALS)
@settings(max_examples=300, deadline=None)
def test_nothing_overlaps(intervals: list[Interval]) -> None:
    offsets, size = place(intervals)
    assert len(offsets) == len(intervals)
    assert all(offset % ALIGNMENT == 0 and offset >= 0 for offset in offsets)
    assert size == max(
        (o + aligned(i.n_bytes) for o, i in zip(offsets, intervals, strict=True)), default=0
    )
    for moment in range(-1, 45):  # byte by byte of what is alive, by brute force
        taken: set[int] = set()
        for offset, interval in zip(offsets, intervals, strict=True):
            if interval.first <= moment <= interval.last:
                own = range(offset // ALIGNMENT, -(-(offset + interval.n_bytes) // ALIGNMENT))
                assert not taken & set(own)
                taken |= set(own)
        alive = sum(i.n_bytes for i in intervals if i.first <= moment <= i.last)
        assert size >= alive


@given(INTERVALS)
@settings(max_examples=100, deadline=None)
def test_the_same_intervals_get_the_same_places(intervals: list[Interval]) -> None:
    assert place(intervals) == place(list(intervals))


def test_what_never_meets_shares_its_place() -> None:
    chain = [Interval(1000, i, i) for i in range(10)]
    assert place(chain) == ([0] * 10, 1024)


def test_what_meets_for_one_moment_is_apart() -> None:
    offsets, size = place([Interval(100, 0, 3), Interval(100, 3, 5)])
    assert sorted(offsets) == [0, 128]
    assert size == 256


def test_alignment() -> None:
    assert [aligned(n) for n in (0, 1, 63, 64, 65, 128)] == [0, 64, 64, 64, 128, 128]


def test_an_empty_plan() -> None:
    assert place([]) == ([], 0)
