"""Round trips of the packed forms, on drawn shapes and pooling geometries."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bnnopt.ops import n_index_bits
from bnnopt.runtime.kernels.reference.table import KERNELS
from tests.ops.cases import pool_index_attributes
from tests.ops.harness import assert_agree
from tests.ops.oracles import Geometry, max_pool, window_origin

shapes = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple)
seeds = st.integers(0, 2**32 - 1)


@settings(deadline=None)
@given(shapes, seeds)
def test_bits_round_trip(shape: tuple[int, ...], seed: int):
    mask = np.random.default_rng(seed).random(shape) < 0.5
    packed = KERNELS["PackBits"](mask)
    assert packed.shape == (shape[0], math.ceil(math.prod(shape[1:]) / 8))
    assert packed.dtype == np.uint8
    unpacked = KERNELS["UnpackBits"](packed, shape=list(shape[1:]))
    assert_agree([unpacked], [mask], 0)


@settings(deadline=None)
@given(shapes, seeds)
def test_bit_j_of_byte_b_is_element_8b_plus_j(shape: tuple[int, ...], seed: int):
    mask = np.random.default_rng(seed).random(shape) < 0.5
    rows = mask.reshape(shape[0], -1)
    n_elements = rows.shape[1]
    for row, packed in zip(rows, KERNELS["PackBits"](mask), strict=True):
        bits = [packed[e // 8] >> e % 8 & 1 for e in range(8 * len(packed))]
        assert bits == [*row.astype(int), *[0] * (len(bits) - n_elements)]


@settings(deadline=None)
@given(shapes, seeds)
def test_signs_round_trip(shape: tuple[int, ...], seed: int):
    x = np.random.default_rng(seed).choice(np.array([-1, 1], np.float32), shape)
    packed = KERNELS["SignPack"](x)
    unpacked = KERNELS["SignUnpack"](packed, shape=list(shape[1:]))
    assert_agree([unpacked], [x], 0)


@st.composite
def poolings(draw: st.DrawFn) -> Geometry:
    pair = st.tuples(st.integers(1, 4), st.integers(1, 4))
    space = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    kernel, strides, dilations = draw(pair), draw(pair), draw(st.tuples(*[st.integers(1, 3)] * 2))
    pads = tuple(draw(st.integers(0, k - 1)) for k in kernel * 2)
    n, c = draw(pair)
    g = Geometry(n, c, c, space, kernel, strides, pads, dilations)
    fits = all(size >= 1 for size in g.output) and g.extent[1] <= space[1]
    assume(fits and all(any(g.window(p)) for p in np.ndindex(g.output)))
    return g


@settings(max_examples=60, deadline=None)
@given(poolings(), seeds)
def test_pool_indices_round_trip(g: Geometry, seed: int):
    x = np.random.default_rng(seed).standard_normal(g.x_shape).astype(np.float32)
    _, indices = max_pool(x, g)
    attributes, origin = pool_index_attributes(g), window_origin(g)
    packed = KERNELS["PoolIndexPack"](indices, origin, **attributes)
    n_bits = n_index_bits(math.prod(g.kernel))
    assert packed.shape == (g.n, math.ceil(g.c * math.prod(g.output) * n_bits / 8))
    bit_shape = [*indices.shape[1:], n_bits]
    unpacked = KERNELS["PoolIndexUnpack"](packed, origin, bit_shape=bit_shape, **attributes)
    assert_agree([unpacked], [indices], 0)


@settings(deadline=None)
@given(shapes, seeds, st.integers(1, 40))
def test_a_bitmap_keeps_every_bit_but_those_of_zero(
    shape: tuple[int, ...], seed: int, capacity: int
):
    """-0.0, subnormal numbers and NaN with their payload; also where the plan was too small."""
    patterns = np.array([0, 0, 0, 1 << 31, 0x7FC00001, 0xFF800001, 1, 0x3F800000], np.uint32)
    x = np.random.default_rng(seed).choice(patterns, shape).view(np.float32)
    bits, values = KERNELS["BitmapPack"](x, capacity=capacity)
    n_kept = np.count_nonzero(x.view(np.uint32))
    assert values.size == max(capacity, n_kept + 1)
    assert not values[0]
    assert not values[n_kept + 1 :].any()
    unpacked = KERNELS["BitmapUnpack"](bits, values, shape=list(shape[1:]))
    np.testing.assert_array_equal(unpacked.view(np.uint32), x.view(np.uint32))


@settings(deadline=None)
@given(shapes, seeds, st.integers(-111, 127))
def test_powers_of_two_round_trip(shape: tuple[int, ...], seed: int, top: int):
    """Whatever can be represented is exact, if the largest element is there."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 16, shape)
    codes.flat[rng.integers(codes.size)] = 15
    signs = rng.choice(np.array([-1, 1], np.float32), shape)
    x = np.ldexp(np.where(codes > 0, signs, np.float32(0)), top - 15 + codes)
    packed, unit = KERNELS["Pow2Pack"](x)
    n_bytes = math.ceil(math.prod(shape[1:]) / 2) + math.ceil(math.prod(shape[1:]) / 8)
    assert (packed.shape, packed.dtype) == ((shape[0], n_bytes), np.uint8)
    assert unit == 2.0 ** (top - 15)
    unpacked = KERNELS["Pow2Unpack"](packed, unit, shape=list(shape[1:]))
    assert_agree([unpacked], [x], 0)


@settings(deadline=None)
@given(shapes, seeds, st.integers(-60, 60), st.sampled_from([np.float32, np.float16]))
def test_a_power_of_two_is_at_most_half_an_octave_off(
    shape: tuple[int, ...], seed: int, octave: int, dtype: type[np.floating]
):
    rng = np.random.default_rng(seed)
    octaves = rng.integers(-18, 1, shape) + (octave if dtype is np.float32 else 0)
    x = np.ldexp(rng.standard_normal(shape), octaves).astype(dtype)
    packed, unit = KERNELS["Pow2Pack"](x)
    q = KERNELS["Pow2Unpack"](packed, unit, shape=list(shape[1:])).astype(np.float64)
    wide = x.astype(np.float64)
    least = 2.0**0.5 * float(unit)
    kept = np.abs(wide) >= least
    np.testing.assert_array_equal(q != 0, kept)
    ratio = q[kept] / wide[kept]
    assert ((ratio >= 2**-0.5) & (ratio <= 2**0.5)).all()
    assert np.abs(wide).max() <= least * 2**15


@settings(deadline=None)
@given(shapes, seeds, st.integers(-30, 30), st.sampled_from([np.float32, np.float16]))
def test_an_integer_is_next_to_its_element(
    shape: tuple[int, ...], seed: int, octave: int, dtype: type[np.floating]
):
    rng = np.random.default_rng(seed)
    scale = 2.0 ** (octave if dtype is np.float32 else 0)
    x = (rng.standard_normal(shape) * scale).astype(dtype)
    q, unit = KERNELS["Int8Pack"](x, np.array(seed % 100), seed=seed % 1000)
    assert (q.dtype, unit.dtype) == (np.int8, np.float32)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(unit, np.abs(wide).max() / 127, rtol=1e-6)
    assert (np.abs(q * float(unit) - wide) <= (1 + 1e-5) * unit).all()


def test_integers_are_right_in_the_mean():
    x = np.random.default_rng(5).standard_normal((8, 50)).astype(np.float32)
    n, total = 2000, np.zeros(x.shape)
    for step in range(n):
        q, unit = KERNELS["Int8Pack"](x, np.array(step), seed=1)
        total += q
    off = total / n * float(unit) - x.astype(np.float64)
    deviation = float(unit) / 2 / n**0.5  # at most, of a mean of n
    assert np.abs(off).max() < 5 * deviation
    nearest = np.rint(x / unit) * float(unit) - x
    assert np.abs(nearest).max() > 5 * deviation


@settings(deadline=None)
@given(shapes, seeds, st.integers(2, 999), st.sampled_from([np.float32, np.float16]))
def test_a_nibble_is_next_to_its_element_unless_that_is_cut_off(
    shape: tuple[int, ...], seed: int, one_in: int, dtype: type[np.floating]
):
    x = (np.random.default_rng(seed).standard_normal(shape) ** 3).astype(dtype)
    packed, unit = KERNELS["Int4Pack"](x, np.array(seed % 100), seed=seed % 1000, one_in=one_in)
    q = KERNELS["Int4Unpack"](packed, shape=list(shape[1:])).astype(np.float64)
    wide, reach = x.astype(np.float64), 7 * float(unit)
    is_beyond = np.abs(wide) > reach * (1 + 1e-6)
    assert is_beyond.sum() * one_in <= x.size
    assert (np.abs(q * float(unit) - wide)[~is_beyond] <= (1 + 1e-5) * unit).all()
    assert (q[is_beyond] == 7 * np.sign(wide[is_beyond])).all()
    n_beyond_half = np.count_nonzero(np.abs(wide) > reach / 2 * (1 + 1e-6))
    is_least = reach * 2**5 < np.abs(wide).max() * (1 + 1e-5) or not wide.any()
    assert n_beyond_half * one_in > x.size or is_least


@given(shapes, seeds, st.sampled_from([np.nan, np.inf, -np.inf]))
def test_what_is_not_finite_poisons_the_whole_tensor(
    shape: tuple[int, ...], seed: int, poison: float
):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape).astype(np.float32)
    x.flat[rng.integers(x.size)] = poison
    packed, unit = KERNELS["Pow2Pack"](x)
    assert np.isnan(KERNELS["Pow2Unpack"](packed, unit, shape=list(shape[1:]))).all()
    q, unit = KERNELS["Int8Pack"](x, np.array(1), seed=0)
    assert np.isnan(unit)
    assert not q.any()
    packed, unit = KERNELS["Int4Pack"](x, np.array(1), seed=0, one_in=9)
    assert np.isnan(unit)
    assert not KERNELS["Int4Unpack"](packed, shape=list(shape[1:])).any()
