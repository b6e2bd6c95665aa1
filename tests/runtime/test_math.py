"""The functions that C has of its own, against float64: on all magnitudes, all instructions."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled.table import COMPILED
from bnnopt.runtime.library import library
from tests.runtime.compiled_calls import INSTRUCTIONS, settings_of

pytestmark = pytest.mark.skipif(library() is None, reason="built without a C compiler")

LEAST = 2.0**-126  # the smallest number with all its bits


def each(function: Callable[[float], float]) -> Callable[[Array], Array]:
    return np.vectorize(function, otypes=[np.float64])


# Largest relative error, in units of 2^-24, which is that of a number that is rounded once.
FUNCTIONS: dict[str, tuple[Callable[[Array], Array], float]] = {
    "Erf": (each(math.erf), 4),
    "Exp": (np.exp, 2),
    "Log": (np.log, 2),
    "Sigmoid": (lambda x: 1 / (1 + np.exp(-x)), 4),
    "Softplus": (lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))), 4),
    "Tanh": (np.tanh, 3),
}
each_function = pytest.mark.parametrize("operator", FUNCTIONS)


def arguments(operator: str, n: int = 20_000) -> Array:
    """Of all magnitudes, most of them where the functions are neither 0 nor 1; of Log above 0."""
    random = np.random.default_rng(0)
    spread = np.ldexp(random.uniform(-1, 1, n), random.integers(-140, 7, n))
    x = np.concatenate([random.uniform(-10, 10, n), spread, [88.72, -87.3]]).astype(np.float32)
    return np.abs(x) + np.float32(1e-45) if operator == "Log" else x


def computed(operator: str, x: Array, kernels: str = "avx512") -> Array:
    y = np.empty_like(x)
    with settings_of(kernels=kernels, threads=1):
        assert COMPILED[operator]([x], [y], {}, np.empty(0, np.uint8))
    return y


def assert_near(y: Array, x: Array, operator: str) -> None:
    function, bound = FUNCTIONS[operator]
    with np.errstate(over="ignore"):
        want = function(x.astype(np.float64))
    errors = np.abs(y - want) / np.maximum(np.abs(want), LEAST)
    assert errors.max() < bound * 2**-24


@each_function
def test_relative_error(operator: str) -> None:
    x = arguments(operator)
    y = computed(operator, x)
    assert_near(y, x, operator)
    for factor in (1 - 4e-7, 1 + 4e-7):  # the bound is narrow
        with pytest.raises(AssertionError):
            assert_near(np.where(x > 0.5, y * np.float32(factor), y), x, operator)


@each_function
def test_same_bits_in_all_instruction_sets(operator: str) -> None:
    x = arguments(operator)
    assert len({computed(operator, x, kernels).tobytes() for kernels in INSTRUCTIONS}) == 1


@each_function
def test_limits(operator: str) -> None:
    x = np.array([0, -np.inf, np.inf, np.nan, 3e38, -3e38], np.float32)
    want = {
        "Erf": [0, -1, 1, np.nan, 1, -1],
        "Exp": [1, 0, np.inf, np.nan, np.inf, 0],
        "Log": [-np.inf, np.nan, np.inf, np.nan, np.log(3e38), np.nan],
        "Sigmoid": [0.5, 0, 1, np.nan, 1, 0],
        "Softplus": [np.log(2), 0, np.inf, np.nan, 3e38, 0],
        "Tanh": [0, -1, 1, np.nan, 1, -1],
    }[operator]
    np.testing.assert_array_equal(computed(operator, x), np.float32(want))


def test_results_below_the_normal_numbers() -> None:
    x = np.linspace(-103.9, -87.4, 500, dtype=np.float32)
    want = np.exp(x.astype(np.float64))
    assert np.abs(computed("Exp", x) - want).max() <= 2.0**-149


def test_gelu_keeps_its_digits_in_the_tail() -> None:
    x = np.linspace(-9, 9, 2001, dtype=np.float32)
    wide = x.astype(np.float64)
    y = np.empty_like(x)
    options = {"approximate": "none"}
    assert COMPILED["Gelu"]([x], [y], options, np.empty(0, np.uint8))
    want = 0.5 * wide * each(math.erfc)(-wide / math.sqrt(2))
    np.testing.assert_allclose(y, want, rtol=6e-6, atol=0)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(wide * (0.5 + 0.5 * np.float32(each(math.erf)(wide / 2**0.5))),
                                   want, rtol=6e-6, atol=0)  # fmt: skip
