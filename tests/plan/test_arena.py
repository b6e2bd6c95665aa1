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
    assert size == max(
        (o + aligned(i.n_bytes) for o, i in zip(offsets, intervals, strict=True)), default=0
    )
    assert_apart(intervals, offsets, size)


@given(INTERVALS, st.lists(st.tuples(*[st.integers(0, n) for n in (39, 5000, 6)]), max_size=20))
@settings(max_examples=200, deadline=None)
def test_what_shrinks_or_grows_keeps_its_first_byte(
    intervals: list[Interval], followers: list[tuple[int, int, int]]
) -> None:
    free = [*range(len(intervals))]  # that nothing follows
    for pick, n_bytes, length in followers if free else []:
        onto = free.pop(pick % len(free))
        first = intervals[onto].last + 1
        free.append(len(intervals))
        intervals = [*intervals, Interval(n_bytes, first, first + length, onto)]
    offsets, size = place(intervals)
    assert_apart(intervals, offsets, size)
    assert all(offsets[i.onto] == offsets[n] for n, i in enumerate(intervals) if i.onto is not None)


def assert_apart(intervals: list[Interval], offsets: list[int], size: int) -> None:
    """Byte by byte of what is alive, by brute force."""
    assert len(offsets) == len(intervals)
    assert all(offset % ALIGNMENT == 0 and offset >= 0 for offset in offsets)
    for moment in range(-1, max((i.last for i in intervals), default=0) + 1):
        taken: set[int] = set()
        for offset, interval in zip(offsets, intervals, strict=True):
            if interval.first <= moment <= interval.last:
                own = range(offset // ALIGNMENT, -(-(offset + interval.n_bytes) // ALIGNMENT))
                assert not taken & set(own)
                taken |= set(own)
        alive = sum(i.n_bytes for i in intervals if i.first <= moment <= i.last)
        assert size >= alive


def test_what_has_shrunk_makes_room() -> None:
    shrinking = [Interval(640, 0, 3), Interval(320, 4, 9, onto=0), Interval(320, 4, 9)]
    assert place(shrinking) == ([0, 0, 320], 640)
    whole = [Interval(640, 0, 9), Interval(320, 4, 9)]
    assert place(whole)[1] == 960


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


def test_another_order_is_tried_where_the_first_leaves_a_gap() -> None:
    lives = [(4, 2, 4), (2, 2, 5), (5, 5, 8), (2, 3, 3)]  # 8 units at once, at step 3
    intervals = [Interval(64 * n, first, last) for n, first, last in lives]
    assert place(intervals)[1] == 64 * 8
    by_size = sorted(intervals, key=lambda i: (-i.n_bytes, i.first))
    by_start = sorted(intervals, key=lambda i: (i.first, -i.n_bytes))
    assert min(map(lowest_places, (by_size, by_start))) > 64 * 8


def test_from_the_ground_up_where_no_order_by_size_or_time_will_do() -> None:
    lives = [(5, 6, 10), (6, 3, 3), (2, 6, 8), (3, 3, 7)]  # 10 units at once, from step 6 on
    intervals = [Interval(64 * n, first, last) for n, first, last in lives]
    assert place(intervals)[1] == 64 * 10
    by_size = sorted(intervals, key=lambda i: (-i.n_bytes, i.first))
    by_start = sorted(intervals, key=lambda i: (i.first, -i.n_bytes))
    by_life = sorted(intervals, key=lambda i: (i.first - i.last, -i.n_bytes))
    assert min(map(lowest_places, (by_size, by_start, by_life))) > 64 * 10


def lowest_places(intervals: list[Interval]) -> int:
    """The arena that comes of placing each as low as those before it allow."""
    placed: list[tuple[int, Interval]] = []
    for interval in intervals:
        others = [
            (o, i) for o, i in placed if i.first <= interval.last and interval.first <= i.last
        ]
        ends = [0, *sorted(o + i.n_bytes for o, i in others)]
        offset = next(
            e
            for e in ends
            if all(e + interval.n_bytes <= o or e >= o + i.n_bytes for o, i in others)
        )
        placed.append((offset, interval))
    return max(o + i.n_bytes for o, i in placed)
