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
SPECIAL = np.array([0.0, -0.0, 1.5, -2.5, np.nan, np.inf, -np.inf, 1e-42], np.float32)
STRETCHED = [((3, 4), (3, 4)), ((2, 3, 4), (2, 1, 4)), ((3, 1), (1, 4)), ((2, 3), ()), ((), (5,))]
RANDOM = np.random.default_rng(5)
NONE = np.empty(0, np.uint8)

# The functions of C's library and numpy's own differ in the last bits, and BLAS sums in another
# order. What is not named is equal to the last bit.
ROUNDED = {
    "Log",
    "Softplus",
    "ConvTranspose",
}


def floats(*shape: int) -> Array:
    return RANDOM.standard_normal(shape).astype(np.float32)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def unary() -> list[Case]:
    return [([x], {}) for x in (floats(3, 5), SPECIAL)]


def binary() -> list[Case]:
    pairs: list[Case] = [([floats(*a), floats(*b)], {}) for a, b in STRETCHED]
    return [*pairs, ([np.round(2 * floats(7, 9)), np.round(2 * floats(7, 9))], {})]


def transposed() -> list[Case]:
    x, w, b = floats(2, 4, 5, 3), floats(4, 3, 3, 2), floats(3)
    return [
        ([x, w, b], {"strides": [2, 1], "pads": [1, 0, 0, 1], "output_padding": [1, 0]}),
        ([x, w], {"dilations": [2, 1]}),
        ([floats(1, 4, 5), floats(4, 1, 3)], {"group": 2, "strides": [2]}),
    ]


def pool_gradient() -> Case:
    dy = floats(2, 3, 4).astype(np.float16)
    planes = 8 * np.arange(6).reshape(2, 3, 1)
    return [dy, planes + np.array([0, 1, 1, 7])], {"input_shape": [8]}


CASES: Mapping[str, list[Case]] = {
    **dict.fromkeys(("Abs", "Log", "Neg", "Round", "Sign"), unary()),
    **dict.fromkeys(("Sqrt", "Identity", "Softplus"), unary()),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Max", "Min"), binary()),
    **dict.fromkeys(("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"), binary()),
    "ApproxSignGrad": [([floats(4, 9), 2 * floats(4, 9)], {})],
    "Cast": [
        ([floats(4, 5) > 0], {"to": 1}),
        ([floats(4, 5)], {"to": 1}),
        ([ints(-3, 0, 1 << 40)], {"to": 1}),
    ],
    "Concat": [([floats(2, n, 3) for n in (1, 4, 2)], {"axis": axis}) for axis in (1, -2)],
    "ConvTranspose": transposed(),
    "Expand": [([floats(2, 1, 3), ints(4, 2, 5, 3)], {}), ([floats(3), ints(1)], {})],
    "Gather": [([floats(5, 2, 3), np.array([[0, -1], [4, 2]])], {})],
    "GatherGrad": [([floats(2, 2, 3), np.array([[1, 4], [1, -5]])], {"axis": 0, "length": 5})],
    "MaxPoolGrad": [pool_gradient()],
    "OneHot": [
        ([np.array([[0, -1], [4, 2]]), ints(4), np.array([-1, 2], np.float32)], {"axis": axis})
        for axis in (1, -1)
    ],
    "PRelu": [([floats(2, 3, 4), floats(3, 1)], {})],
    "Pad": [
        ([floats(2, 3), ints(1, 0, 2, 3), np.array(-1.5, np.float32)], {}),
        ([floats(2, 3), ints(0, 1, 0, 0)], {"mode": "constant"}),
    ],
    "ReduceMax": [
        ([floats(2, 3, 4, 5), ints(*axes)], {"keepdims": 1})
        for axes in ((1,), (1, 3), (-1,), (1, 2))
    ],
    "Shape": [([floats(3, 4, 5)], {}), ([floats(3, 4, 5)], {"start": 1})],
    "Slice": [([floats(5, 6), ints(4, 1), ints(0, 5), ints(0, 1), ints(-1, 2)], {})],
    "Split": [([floats(2, 7), ints(3, 4)], {"axis": 1}), ([floats(6, 2)], {"num_outputs": 4})],
    "Transpose": [([floats(2, 3, 4).astype(np.float16)], {"perm": [2, 0, 1]})],
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
    with np.errstate(all="ignore"):
        made = KERNELS[operator](*inputs, **attributes)
    want = made if isinstance(made, tuple) else (made,)
    got = [np.empty(w.shape, w.dtype) for w in want]
    with np.errstate(all="ignore"):
        assert PORTABLE[operator](inputs, got, attributes, NONE), "not covered"
    for g, w in zip(got, want, strict=True):
        bound = 2e-5 if operator in ROUNDED else 0.0
        np.testing.assert_allclose(g, w, rtol=bound, atol=bound)


def test_an_index_out_of_range_is_refused() -> None:
    indices, y = ints(0, 5), np.empty((2, 3), np.float32)
    assert not PORTABLE["Gather"]([floats(5, 3), indices], [y], {}, NONE)
    assert not PORTABLE["GatherGrad"]([y, indices], [floats(5, 3)], {"axis": 0, "length": 5}, NONE)


def test_only_where_it_is_asked_for() -> None:
    assert kernel_of("Log") is None
    assert kernel_of("Add") is COMPILED["Add"]
    with portable_kernels():
        assert kernel_of("Log") is PORTABLE["Log"]


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
