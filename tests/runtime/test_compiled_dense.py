"""Products of real matrices in C against float64: strides, stacks, instruction sets and threads."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnnopt.runtime.format import Attribute
from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled.table import COMPILED
from bnnopt.runtime.kernels.on_read import Halves, Images
from bnnopt.runtime.library import library, portable_kernels
from tests.runtime.compiled_calls import INSTRUCTIONS, Guarded, bits, seeds, settings_of

pytestmark = pytest.mark.skipif(library() is None, reason="built without a C compiler")

NONE = np.empty(0, np.uint8)
EPSILON = 2.0**-24
# On both sides of few rows, of a vector, a panel, a tile, the terms of a panel and a short row.
SIZES = [1, 2, 7, 8, 11, 12, 13, 16, 31, 33, 47, 48, 49, 96, 127, 128, 129, 200, 272]
sizes = st.sampled_from(SIZES)


def floats(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run(operator: str, inputs: list[Array | None], shape: tuple[int, ...], **options: int) -> Array:
    attributes: dict[str, Attribute] = dict(options)
    result = Guarded(np.empty(shape, np.float32), 0)
    assert COMPILED[operator](inputs, [result.array], attributes, NONE), "not covered"
    result.check()
    return result.array


def assert_sums(y: Array, a: Array, b: Array) -> None:
    """Each is as near as float32 may be that adds up its terms one after the other."""
    exact = np.matmul(a, b, dtype=np.float64)
    sizes = np.matmul(np.abs(a), np.abs(b), dtype=np.float64)
    assert (np.abs(y - exact) <= (a.shape[-1] + 2) * EPSILON * sizes).all()


def any_kernels(name: str) -> contextlib.AbstractContextManager[None]:
    """A set of instructions, or plain loops."""
    if name == "plain":
        return portable_kernels()
    return settings_of(kernels=name, threads=2)


@settings(max_examples=150, deadline=None)
@given(
    m=sizes,
    n=sizes,
    k=sizes,
    turned=st.tuples(st.booleans(), st.booleans()),
    bias=st.sampled_from(["none", "row", "column", "full"]),
    kernels=st.sampled_from([*INSTRUCTIONS, "plain"]),
    seed=seeds,
)
def test_gemm(
    m: int, n: int, k: int, turned: tuple[bool, bool], bias: str, kernels: str, seed: int
) -> None:
    a, b = floats(seed, m, k), floats(seed + 1, k, n)
    given = [np.ascontiguousarray(x.T) if t else x for x, t in zip((a, b), turned, strict=True)]
    shape = {"none": (), "row": (n,), "column": (m, 1), "full": (m, n)}[bias]
    c = floats(seed + 2, *shape) if len(shape) and np.prod(shape) > 1 else None
    options = {"transA": int(turned[0]), "transB": int(turned[1])}
    with any_kernels(kernels):
        y = run("Gemm", [*given, c], (m, n), **options)
        plain = run("Gemm", [*given, None], (m, n), **options)
    assert_sums(plain, a, b)
    np.testing.assert_array_equal(y, plain if c is None else plain + c)


def images(seed: int, n: int, channels: int, plane: int) -> Images:
    """(n, channels * plane) bytes."""
    rng = np.random.default_rng(seed)
    scales = rng.standard_normal((2, channels)).astype(np.float32)
    whole = Images.of(rng.integers(0, 256, (n, channels, plane), np.uint8), *scales)
    return whole.reshape(n, channels * plane)


@settings(max_examples=150, deadline=None)
@given(
    n=sizes,
    m=sizes,
    channels=st.sampled_from([1, 2, 3, 50]),
    plane=st.sampled_from([1, 2, 17, 64, 150]),
    kernels=st.sampled_from([*INSTRUCTIONS, "plain"]),
    seed=seeds,
)
def test_images_are_normalised_as_they_are_read(
    n: int, m: int, channels: int, plane: int, kernels: str, seed: int
) -> None:
    """Forward, with weights of either layout, and both ways to make a weight gradient."""
    x = images(seed, n, channels, plane)
    k = channels * plane
    w, dy = floats(seed + 1, k, m), floats(seed + 2, n, m)
    wt = np.ascontiguousarray(w.T)

    def results(x: Array) -> list[bytes]:
        found = [
            run("Gemm", [x, w], (n, m)),
            run("Gemm", [x, wt], (n, m), transB=1),
            run("MatMul", [x, w], (n, m)),
            run("Gemm", [x, dy], (k, m), transA=1),
            run("Gemm", [dy, x], (m, k), transA=1),
        ]
        return [y.tobytes() for y in found]

    with any_kernels(kernels):
        assert results(x) == results(x.floats())


def halves(seed: int, *shape: int) -> Halves:
    """All kinds of them: the least, NaN and infinity as well."""
    rng = np.random.default_rng(seed)
    found = rng.standard_normal(shape).astype(np.float16)
    strange = rng.choice(np.array([0, -0.0, 6e-8, -1e-7, 65504, np.inf, np.nan], np.float16), shape)
    return np.where(rng.random(shape) < 1e-3, strange, found).view(Halves)


@settings(max_examples=150, deadline=None)
@given(
    m=sizes,
    n=sizes,
    k=st.sampled_from([*SIZES, 2048, 2050, 4200]),
    kernels=st.sampled_from([*INSTRUCTIONS, "plain"]),
    seed=seeds,
)
def test_halves_are_widened_as_they_are_read(
    m: int, n: int, k: int, kernels: str, seed: int
) -> None:
    """Weights of either layout, of floats, of images and of stacks."""
    x, pictures = floats(seed, m, k), images(seed, m, 1, k)
    w, wt = halves(seed + 1, k, n), halves(seed + 2, n, k)
    stack, bias = floats(seed + 3, 2, m, k), floats(seed + 4, n)
    bias = None if n == 1 else bias

    def results(*weights: Array) -> list[bytes]:
        w, wt = weights
        found = [
            run("Gemm", [x, w, bias], (m, n)),
            run("Gemm", [x, wt], (m, n), transB=1),
            run("MatMul", [x, w], (m, n)),
            run("MatMul", [stack, w], (2, m, n)),
            run("Gemm", [pictures, w], (m, n)),
            run("Gemm", [pictures, wt], (m, n), transB=1),
            run("Gemm", [np.ascontiguousarray(x.T), wt], (m, n), transA=1, transB=1),
        ]
        return [bits(y) for y in found]

    with any_kernels(kernels):
        assert results(w, wt) == results(w.floats(), wt.floats())


def test_another_half_is_noticed() -> None:
    x, w = floats(1, 20, 30), halves(2, 30, 40)
    w[np.isnan(w) | np.isinf(w)] = 1
    found, wrong = (run("Gemm", [x, a], (20, 40)) for a in (w, w + np.float16(0.01)))
    assert_sums(found, x, w.floats())
    with pytest.raises(AssertionError):
        assert_sums(wrong, x, w.floats())


def test_another_channel_is_noticed() -> None:
    x, w = images(1, 20, 3, 40), floats(2, 120, 30)
    moved = Images.of(np.asarray(x).reshape(20, 3, 40), np.roll(x.factor, 1), x.shift)
    found, wrong = (run("Gemm", [a.reshape(20, 120), w], (20, 30)) for a in (x, moved))
    assert_sums(found, x.floats(), w)
    with pytest.raises(AssertionError):
        assert_sums(wrong, x.floats(), w)


@pytest.mark.parametrize("kernels", [*INSTRUCTIONS, "plain"])
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((5, 6), (6, 7)),
        ((2, 3, 5, 6), (2, 3, 6, 7)),
        ((2, 40, 20), (2, 20, 50)),
        ((3, 40, 60), (60, 70)),
        ((5, 6), (2, 6, 7)),
        ((30, 16), (2, 16, 50)),
        ((2, 3, 16, 64), (2, 3, 64, 64)),
    ],
    ids=str,
)
def test_matmul_of_stacks(a: tuple[int, ...], b: tuple[int, ...], kernels: str) -> None:
    left, right = floats(0, *a), floats(1, *b)
    with any_kernels(kernels):
        y = run("MatMul", [left, right], np.matmul(left, right).shape)
    assert_sums(y, left, right)
    left[..., 0, -1] = 0
    with pytest.raises(AssertionError):  # the bound notices one term too little
        assert_sums(y, left, right)


def test_nothing_to_add_up_is_0() -> None:
    for m in (3, 40):
        y = run("MatMul", [np.empty((m, 0), np.float32), np.empty((0, 5), np.float32)], (m, 5))
        assert (y == 0).all()


@pytest.mark.parametrize(("m", "n", "k"), [(300, 500, 300), (5, 3000, 400)])
@pytest.mark.parametrize("turned", [0, 1])
def test_same_bits_on_any_number_of_threads(m: int, n: int, k: int, turned: int) -> None:
    a, b = floats(0, m, k), floats(1, *((n, k) if turned else (k, n)))
    found = []
    for threads in (1, 2, 4):
        with settings_of(threads=threads):
            found.append(run("Gemm", [a, b], (m, n), transB=turned).tobytes())
    assert found[0] == found[1] == found[2]


def test_what_is_not_covered() -> None:
    a, b, y = floats(0, 3, 4), floats(1, 4, 5), np.empty((3, 5), np.float32)
    wide = [x.astype(np.float64) for x in (a, b)]
    one = np.ones(1, np.float32)
    assert not COMPILED["Gemm"]([a, b], [y], {"alpha": 0.5}, NONE)
    assert not COMPILED["Gemm"]([a, b, y], [y], {"beta": 0.5}, NONE)
    assert not COMPILED["Gemm"]([a, b, one], [y], {}, NONE)
    assert not COMPILED["Gemm"](wide, [y], {}, NONE)
    assert not COMPILED["MatMul"]([a[0], b], [y[0]], {}, NONE)
    narrow = a.astype(np.float16)
    assert not COMPILED["Gemm"]([narrow.view(Halves), b], [y], {}, NONE)
    assert not COMPILED["Gemm"]([a, b.astype(np.float16)], [y], {}, NONE)
    stack = floats(2, 2, 1, 3, 4), floats(3, 5, 4, 5)
    assert not COMPILED["MatMul"]([*stack], [np.empty((2, 5, 3, 5), np.float32)], {}, NONE)
