"""Half precision against numpy: every value, and every float beside a rounding boundary."""

from __future__ import annotations

import numpy as np
import pytest

from bnnopt.runtime.library import library
from tests.runtime.compiled_calls import Array, Call, run, settings_of

pytestmark = pytest.mark.skipif(library() is None, reason="built without a C compiler")

HALVES = np.arange(1 << 16, dtype=np.uint16).view(np.float16)


def boundaries() -> Array:
    """Every half, every tie between two neighbours, and the floats on either side of both."""
    halves = np.append(HALVES[np.isfinite(HALVES)], np.float16(0)).astype(np.float32)
    magnitudes = np.unique(np.abs(halves))
    above_all = np.float32(65520.0)  # halfway from the largest half to what would follow it
    ties = np.append((magnitudes[1:] + magnitudes[:-1]) / 2, above_all)
    points = np.concatenate([magnitudes, ties])
    infinity = np.float32(np.inf)
    near = [points, np.nextafter(points, infinity), np.nextafter(points, -infinity)]
    special = np.array([np.inf, np.nan, 1e-45, 1e-38, 3.4e38, 65536], np.float32)
    values = np.concatenate([*near, special])
    return np.concatenate([values, -values])


def converted(x: Array, to: int, *, portable: bool) -> Array:
    with settings_of(portable=portable, threads=1):
        return run(Call("Cast", [x], {"to": to}))[0]


@pytest.mark.parametrize("portable", [False, True])
class TestConversions:
    def test_every_half_becomes_the_same_float(self, portable: bool):
        got = converted(HALVES, 1, portable=portable)
        is_nan = np.isnan(HALVES)
        assert np.isnan(got[is_nan]).all()
        want = HALVES.astype(np.float32)
        assert got[~is_nan].tobytes() == want[~is_nan].tobytes()

    def test_floats_round_to_the_nearest_even_half(self, portable: bool):
        x = boundaries()
        got = converted(x, 10, portable=portable)
        with np.errstate(over="ignore"):
            want = x.astype(np.float16)
        is_nan = np.isnan(x)
        assert np.isnan(got[is_nan]).all()
        assert got[~is_nan].tobytes() == want[~is_nan].tobytes()


def test_the_portable_conversions_give_the_processor_s_bits_for_nan_too():
    nans = np.concatenate([np.arange(0x7F800001, 0x7F810000), np.arange(0xFFBFFF00, 0xFFC01000)])
    floats = nans.astype(np.uint32).view(np.float32)
    for x, to in ((floats, 10), (HALVES, 1)):
        fast, slow = (converted(x, to, portable=portable) for portable in (False, True))
        assert fast.tobytes() == slow.tobytes()


def test_boundaries_tell_truncation_from_rounding():
    x = boundaries()
    truncated = (x.view(np.uint32) & 0xFFFFE000).view(np.float32)
    with np.errstate(over="ignore"):
        assert (truncated.astype(np.float16) != x.astype(np.float16)).mean() > 0.1
