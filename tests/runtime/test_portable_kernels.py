"""What C does where there is no numpy, against numpy: each operator on calls of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from bnnopt.runtime.format import Attribute
from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled.bitmap import scratch_bytes
from bnnopt.runtime.kernels.compiled.table import COMPILED, PORTABLE, kernel_of
from bnnopt.runtime.kernels.reference.table import KERNELS
from bnnopt.runtime.library import library, portable_kernels

pytestmark = pytest.mark.skipif(library() is None, reason="built without a C compiler")

Case = tuple[list[Array | None], Mapping[str, Attribute]]
RANDOM = np.random.default_rng(5)
NONE = np.empty(0, np.uint8)

# BLAS sums in another order. What is not named is equal to the last bit.
ROUNDED = {"ConvTranspose"}


def floats(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def transposed() -> list[Case]:
    x, w, b = floats(2, 4, 5, 3), floats(4, 3, 3, 2), floats(3)
    return [
        ([x, w, b], {"strides": [2, 1], "pads": [1, 0, 0, 1], "output_padding": [1, 0]}),
        ([x, w], {"dilations": [2, 1]}),
        ([floats(1, 4, 5), floats(4, 1, 3)], {"group": 2, "strides": [2]}),
    ]


CASES: Mapping[str, list[Case]] = {
    "ConvTranspose": transposed(),
    "OneHot": [
        ([np.array([[0, -1], [4, 2]]), ints(4), np.array([-1, 2], np.float32)], {"axis": axis})
        for axis in (1, -1)
    ],
}


def cases() -> list[Any]:
    return [
        pytest.param(operator, case, id=f"{operator}-{i}")
        for operator, own in CASES.items()
        for i, case in enumerate(own)
    ]


def test_every_operator_has_cases() -> None:
    assert CASES.keys() == PORTABLE.keys()
    assert PORTABLE.keys() <= KERNELS.keys()


@pytest.mark.parametrize(("operator", "case"), cases())
def test_agrees_with_numpy(operator: str, case: Case) -> None:
    inputs, attributes = case
    want = KERNELS[operator](*inputs, **attributes)
    got = np.empty(want.shape, want.dtype)
    assert PORTABLE[operator](inputs, [got], attributes, NONE), "not covered"
    bound = 2e-5 if operator in ROUNDED else 0.0
    np.testing.assert_allclose(got, want, rtol=bound, atol=bound)


def test_only_where_it_is_asked_for() -> None:
    assert kernel_of("OneHot") is None
    assert kernel_of("Add") is COMPILED["Add"]
    with portable_kernels():
        assert kernel_of("OneHot") is PORTABLE["OneHot"]


def test_a_bitmap_that_is_full_is_refused() -> None:
    """What a program without an allocator calls: it says so, and does not write."""
    from bnnopt.runtime.kernels.compiled import bitmap

    x = np.array([[0, 1, 2, 0, 3, 0, 0, 4]], np.float32)
    offsets = np.zeros(scratch_bytes("BitmapPack", [x.shape], []) // 8, np.int64)
    bits, room = np.zeros((1, 1), np.uint8), np.full(7, 9, np.float32)
    bitmap.MARK(x, bits, offsets, 1, 8)
    assert not bitmap.FILL(x, bits, room[:4], 4, offsets, 1, 8, 0)
    assert (room == 9).all()
    assert bitmap.FILL(x, bits, room, 7, offsets, 1, 8, 0)
    np.testing.assert_array_equal(room, [0, 1, 2, 3, 4, 0, 0])
