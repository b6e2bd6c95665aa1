"""Prepared calls: recorded once, they do the same work again on whatever the memory then holds."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from bnnopt.passes import PASSES
from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled.binary_products import FUNCTIONS
from bnnopt.runtime.kernels.compiled.functions import recorded, repeat
from bnnopt.runtime.kernels.compiled.linear import STEPS as DENSE_STEPS
from bnnopt.runtime.kernels.compiled.table import COMPILED
from bnnopt.runtime.kernels.compiled.updates import FUSED
from bnnopt.runtime.library import library
from tests.graphs import run_native, zoo
from tests.runtime.compiled_calls import CALLS, Call, Source
from tests.runtime.test_compiled_convolution import CONVOLUTIONS
from tests.runtime.test_compiled_convolution import calls_of as convolutions
from tests.runtime.test_compiled_products import small_products, with_integers
from tests.runtime.test_compiled_updates import small_updates
from tests.runtime.test_filter_blocks import CHAINS, DTYPES, GRADIENTS, call_of, gradient_call
from tests.runtime.test_pooled_filter_blocks import forward_one_by_one, stem, way_back

pytestmark = pytest.mark.skipif(library() is None, reason="built without a C compiler")
SHAPE = (6, 5, 7, 8)
REPEATABLE = {name for name, kernel in COMPILED.items() if kernel.repeatable}


@functools.cache
def calls() -> dict[str, Call]:
    table = {name: CALLS[name](Source(3, SHAPE, special=False)) for name in REPEATABLE & set(CALLS)}
    for product in small_products():
        table[product.operator] = Call(product.operator, [*product.inputs], product.attributes)
        if product.operator.endswith(("Grad", "Signs")):
            for n_bits in (4, 8):
                narrow = with_integers(product, 1, 3, n_bits)
                table[narrow.operator] = Call(narrow.operator, [*narrow.inputs], narrow.attributes)
    for name in REPEATABLE & set(CHAINS):
        chain = call_of(name, "two-blocks", DTYPES[CHAINS[name].product][0])
        table[name] = Call(name, [*chain.inputs], chain.attributes)
    table |= {update.operator: update for update in small_updates()}
    s = Source(4, SHAPE, special=False)
    table["Gemm"] = Call("Gemm", [s.finite(20, 30), s.finite(30, 9), s.finite(9)])
    table["MatMul"] = Call("MatMul", [s.finite(2, 3, 30), s.finite(30, 9)])
    for conv in convolutions(CONVOLUTIONS["lenet"], 1):
        table[conv.operator] = Call(conv.operator, [*conv.inputs], conv.attributes)
    real = {**table["Conv"].attributes, "dtype": 1}
    table["RealConv"] = Call("RealConv", table["Conv"].inputs[:2], real)
    forward = stem("one-block", half=False, relu=1)
    back = way_back(forward, forward_one_by_one(forward))
    for chain in (forward, back, *(gradient_call(name, "one", half=False) for name in GRADIENTS)):
        table[chain.operator] = Call(chain.operator, [*chain.inputs], chain.attributes)
    return table


def other_values(call: Call) -> None:
    """Change the inputs where they are, to values that are as valid."""
    floats = [a for a in call.inputs if a is not None and a.dtype.kind == "f" and a.size > 1]
    for array in floats or [a for a in call.inputs if a is not None]:
        array[...] = array.reshape(-1)[::-1].reshape(array.shape).copy()
    for one in (a for a in call.inputs if a is not None and a.size == 1):
        if one.dtype.kind == "i" or call.operator.endswith("Step"):  # a count, or a rate
            one[...] = one * 2


def outputs_of(call: Call) -> list[Array]:
    like = call.twin()
    if call.operator in FUNCTIONS and like[0].dtype == np.float64:
        like = (like[0].astype(np.float32),)
    return [np.empty_like(array) for array in like]


def test_every_repeatable_kernel_is_in_the_table():
    assert set(calls()) == REPEATABLE


def in_turn() -> Iterator[Any]:
    """The repeatable operators; of those that step weights of a product, Adam's are not slow."""
    for name in sorted(REPEATABLE):
        is_one_of_many = name in {*FUSED, *(f"Gemm{step}" for step in DENSE_STEPS)}
        is_slow = is_one_of_many and not name.endswith(("mAdamStep", "vAdamStep", "2AdamStep"))
        yield pytest.param(name, marks=pytest.mark.slow) if is_slow else name


@pytest.mark.parametrize("operator", [*in_turn()])
def test_repeated_calls_read_the_values_of_now(operator: str):
    call, kernel = copy.deepcopy(calls()[operator]), COMPILED[operator]
    raw = np.empty((1 << 20) + 64, np.uint8)
    scratch = raw[-raw.ctypes.data % 64 :][: 1 << 20]
    outputs = outputs_of(call)
    with recorded() as prepared:
        assert kernel(call.inputs, outputs, call.attributes, scratch)
    assert prepared
    first = [array.copy() for array in outputs]
    other_values(call)
    want = outputs_of(call)
    assert kernel(call.inputs, want, call.attributes, scratch)
    repeat(prepared)
    assert [a.tobytes() for a in outputs] == [a.tobytes() for a in want]
    if operator != "Shape":
        assert any(a.tobytes() != b.tobytes() for a, b in zip(outputs, first, strict=True))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div", "PRelu"])
@pytest.mark.parametrize("number", [0, 1])
def test_a_number_is_read_again(operator: str, number: int, dtype: type[np.floating[Any]]):
    """Of either operand; a slope is the second."""
    place = 1 if operator == "PRelu" else number
    operands = [Source(3, SHAPE, special=False).finite(*SHAPE).astype(dtype) for _ in "ab"]
    operands[place] = np.full(1, 3, dtype)
    y, want, empty = np.empty(SHAPE, dtype), np.empty(SHAPE, dtype), np.empty(0, np.uint8)
    with recorded() as prepared:
        assert COMPILED[operator](operands, [y], {}, empty)
    first = y.copy()
    operands[place][...] = -0.5
    assert COMPILED[operator](operands, [want], {}, empty)
    repeat(prepared)
    assert y.tobytes() == want.tobytes() != first.tobytes()


def test_nothing_is_recorded_behind_the_block():
    call = calls()["Relu"]
    with recorded() as prepared:
        pass
    assert COMPILED["Relu"](call.inputs, outputs_of(call), call.attributes, np.empty(0, np.uint8))
    assert prepared == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "relu-mini"])
def test_training_is_the_same_without_them(name: str, monkeypatch: pytest.MonkeyPatch):
    net = zoo(name, 3, "adam")
    passes = [p.name for p in PASSES if p.lossless]
    prepared = run_native(net, net.with_passes(*passes), 3)
    for operator in REPEATABLE:
        monkeypatch.setitem(COMPILED, operator, COMPILED[operator]._replace(repeatable=False))
    plain = run_native(net, net.with_passes(*passes), 3)
    found, expected = prepared.flat(), plain.flat()
    assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)
