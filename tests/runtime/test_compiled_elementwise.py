"""The compiled memory-bound kernels against their numpy twins, and against other ways to run."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnnopt.runtime.kernels.compiled.calls import KernelCall
from bnnopt.runtime.kernels.compiled.table import COMPILED
from bnnopt.runtime.kernels.reference.table import KERNELS
from bnnopt.runtime.library import library
from tests.runtime.compiled_calls import (
    CALLS,
    LARGE_SHAPES,
    Call,
    Source,
    assert_close,
    bits,
    run,
    scalar,
    seeds,
    settings_of,
    small_shapes,
)

pytestmark = pytest.mark.skipif(library() is None, reason="built without a C compiler")
each_operator = pytest.mark.parametrize("operator", sorted(CALLS))

READS_SHAPE = {"DrawUniform", "Shape"}  # no element of its input, so that any array will do
OF_ANY_TYPE = {"Concat", "Expand", "Identity", "Slice", "Split", "Transpose"}


def test_every_compiled_kernel_is_tested_and_has_a_twin():
    own = {name for name, kernel in COMPILED.items() if kernel.scratch is None}
    assert set(CALLS) == own | {"LayerNormalizationGrad"}
    assert set(COMPILED) <= set(KERNELS)


@pytest.mark.parametrize("operator", ["ReluGrad", "ClipGrad"])
def test_an_operand_that_is_left_out_is_not_covered(operator):
    dy, attributes = np.ones(4, np.float32), {"low": -1.0, "high": 1.0}
    assert not COMPILED[operator]([dy, None], [np.empty_like(dy)], attributes, None)
    assert COMPILED[operator]([dy, dy], [np.empty_like(dy)], attributes, None)


@each_operator
@settings(max_examples=15, deadline=None)
@given(
    shape=small_shapes,
    seed=seeds,
    special=st.booleans(),
    portable=st.booleans(),
    in_place=st.booleans(),
    offset=st.sampled_from([0, 0, 1, 3]),
)
def test_agrees_with_numpy(
    operator: str,
    shape: tuple[int, ...],
    seed: int,
    special: bool,
    portable: bool,
    in_place: bool,
    offset: int,
):
    call = CALLS[operator](Source(seed, shape, special=special))
    with settings_of(portable=portable, threads=2):
        got = run(call, in_place=in_place, offset=offset)
    assert_close(call, got, call.twin())


@each_operator
@pytest.mark.parametrize(
    ("shape", "in_place"),
    [
        (LARGE_SHAPES[0], False),
        *(pytest.param(shape, False, marks=pytest.mark.slow) for shape in LARGE_SHAPES[1:]),
        pytest.param(LARGE_SHAPES[-1], True, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_same_bits_on_any_number_of_threads_and_either_instruction_set(
    operator: str, shape: tuple[int, ...], in_place: bool
):
    call = CALLS[operator](Source(len(shape), shape, special=True))
    results = []
    for portable in (False, True):
        for threads in (1, 2, 5):
            with settings_of(portable=portable, threads=threads):
                results.append(run(call, in_place=in_place, offset=1))
    assert_close(call, results[0], call.twin())
    first, *others = [[bits(array) for array in arrays] for arrays in results]
    assert all(other == first for other in others)


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("centre", [0, 100])
@pytest.mark.parametrize("shape", [(64, 5, 40, 30), (5000, 70), (1, 1, 3)], ids=str)
def test_batch_normalization_is_near_the_float64_result(
    shape: tuple[int, ...], centre: float, portable: bool
):
    s = Source(7, shape, special=False)
    c = shape[1]
    x = (centre + s.finite(*shape)).astype(np.float32)
    inputs = [x, s.finite(c), s.finite(c), s.finite(c), s.finite(c) ** 2]
    attributes = {"epsilon": 1e-5, "momentum": 0.9}
    call = Call("BatchNormalizationTraining", [*inputs], attributes)
    wide = KERNELS[call.operator](*[a.astype(np.float64) for a in inputs], **attributes)
    *_, mean, inv_std = wide
    statistics = np.float32(mean), np.float32(inv_std)
    backward = Call("BatchNormalizationGrad", [s.finite(*shape), x, inputs[1], *statistics])
    wide_grad = KERNELS[backward.operator](*[np.float64(a) for a in backward.inputs])
    with settings_of(portable=portable, threads=2):
        got, got_grad = run(call), run(backward)
    off_centre = 1e-7 * centre * float(inv_std.max())  # the mean's own rounding
    for g, w in zip(got, wide, strict=True):
        np.testing.assert_allclose(g, w, rtol=0, atol=(5e-7 + off_centre) * np.abs(w).max())
    for g, w in zip(got_grad[1:], wide_grad[1:], strict=True):
        np.testing.assert_allclose(g, w, rtol=3e-7, atol=1e-12)
    gain = float(np.abs(inputs[1] * inv_std).max())
    np.testing.assert_allclose(got_grad[0], wide_grad[0], rtol=0, atol=2e-6 * gain)


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("shape", [(5, 11, 7, 5), (2, 3, 25, 43), (4, 300), (3, 40, 4, 4)], ids=str)
def test_fused_bits_are_those_of_the_separate_kernels(shape: tuple[int, ...], portable: bool):
    s = Source(3, shape, special=False)
    channels = [s.finite(shape[1]) for _ in range(4)]
    rates, bounds = {"epsilon": 1e-5, "momentum": 0.9}, {"low": -1.0, "high": 1.0}
    x = s.any_map(s.finite(*shape))
    with settings_of(portable=portable, threads=2):
        y, *statistics = run(Call("BatchNormalizationTraining", [x, *channels], rates))
        signs = run(Call("BinarizePack", [y], {"zero": 1.0}))
        mask = run(Call("RangePack", [y], bounds))
        attributes = {**rates, **bounds, "zero": 1.0, "shape": list(shape[1:])}
        fused = run(Call("BatchNormalizationSigns", [x, *channels], attributes))
    for got, want in zip(fused, [*signs, *mask, *statistics], strict=False):
        assert got.tobytes() == want.tobytes()


def test_a_nan_stays_in_its_channel():
    x = Source(3, (), special=False).finite(4, 3, 5, 5)
    x[1, 1, 2, 3] = np.nan
    channel = [np.ones(3, np.float32)] * 4
    call = Call("BatchNormalizationTraining", [x, *channel], {"epsilon": 1e-5, "momentum": 0.9})
    y, *statistics = run(call)
    assert np.isnan(y[:, 1]).all()
    assert np.isfinite(y[:, [0, 2]]).all()
    assert all(list(np.isnan(s)) == [False, True, False] for s in statistics)


@pytest.mark.parametrize(
    "operator", ["Dropout", "MaxPool", "BatchNormalizationTraining", "BatchNormalizationSigns"]
)
def test_outputs_may_be_left_out(operator: str):
    call = CALLS[operator](Source(5, (3, 4), special=False))
    want = run(call)
    outputs = [np.empty_like(want[0]), *[None] * (len(want) - 1)]
    for given_outputs in (outputs, outputs[:1]):
        outputs[0].fill(7)
        kernel = COMPILED[operator]
        assert kernel(call.inputs, given_outputs, call.attributes, np.empty(0, np.uint8))
        np.testing.assert_array_equal(outputs[0], want[0])


def test_levels_come_without_slopes():
    call = CALLS["BatchNormalizationSigns"](Source(5, (3, 4), special=False))
    want = run(call)
    outputs = [*map(np.empty_like, want[:-1]), None]
    kernel = COMPILED[call.operator]
    assert kernel(call.inputs, outputs, call.attributes, np.empty(0, np.uint8))
    np.testing.assert_array_equal(outputs[6], want[6])
    assert want[6].any()


def test_max_pool_of_nothing_but_padding_and_of_infinities():
    x = np.full((1, 2, 2, 2), -np.inf, np.float32)
    x[0, 1] = np.nan
    window = {"kernel_shape": [2, 2], "pads": [1, 1, 1, 1], "strides": [1, 1]}
    call = Call("MaxPool", [x], window)
    assert_close(call, run(call), call.twin())


# What is not covered is left to numpy: False, and nothing worse.


def refuses(call: Call, *outputs: np.ndarray) -> bool:
    kernel = COMPILED[call.operator]
    results = list(outputs) or [np.empty_like(a) for a in call.twin()]
    return not kernel(call.inputs, results, call.attributes, np.empty(0, np.uint8))


@pytest.mark.parametrize("operator", sorted(CALLS.keys() - READS_SHAPE - OF_ANY_TYPE))
def test_other_dtypes_are_refused(operator: str):
    call = CALLS[operator](Source(2, (3, 20), special=False))
    wide = [
        a if a is None else a.astype({"b": np.int8, "u": np.int16}.get(a.dtype.kind, np.float64))
        for a in call.inputs
    ]
    outputs = [np.empty(a.shape, a.dtype) for a in call.twin()]
    assert refuses(dataclasses.replace(call, inputs=wide), *outputs)


@pytest.mark.parametrize("operator", sorted(CALLS.keys() - READS_SHAPE))
def test_strided_arrays_are_refused(operator: str):
    call = CALLS[operator](Source(2, (4, 20), special=False))
    spread = [a if a is None or a.ndim == 0 else np.repeat(a, 2, -1)[..., ::2] for a in call.inputs]
    if all(a is None or a.flags.c_contiguous for a in spread):
        pytest.skip("one element")
    assert refuses(dataclasses.replace(call, inputs=spread), *call.twin())


def test_unusual_cases_are_refused():
    x = np.zeros((2, 3), np.float32)
    binarize = {"ste": "clip", "clip": 1.0}
    assert refuses(Call("Binarize", [x], {"zero": 0.5, **binarize}))
    assert refuses(Call("Clip", [x, scalar(np.nan)]))
    assert refuses(Call("Clip", [x]))
    assert refuses(Call("Max", [x, x, x]))
    assert refuses(Call("Pad", [x, np.array([0, -1, 0, 0])]))
    assert refuses(Call("Pad", [x, np.array([0, 1, 0, 0])], {"mode": "edge"}))
    assert refuses(Call("Gather", [x, np.array([0, 2])], {"axis": 1}))
    alternating = np.zeros((2, 1, 2, 1, 2, 1, 2, 1, 2), np.float32)
    assert refuses(Call("Expand", [alternating, np.full(9, 2)]))
    assert refuses(Call("BatchNormalization", [x, *[x[0]] * 4], {"training_mode": 1}), x)
    line = np.zeros((1, 1, 5), np.float32)
    assert refuses(Call("MaxPool", [line[None, None]], {"kernel_shape": [1, 1, 2]}))
    dy, stray = np.ones((1, 2, 1, 1), np.float32), np.zeros((1, 2, 1, 1), np.int64)
    assert refuses(Call("MaxPoolGrad", [dy, stray], {"input_shape": [2, 2]}))
    assert refuses(Call("ReduceSum", [np.zeros((2, 3, 2, 3, 2), np.float32), np.array([0, 2, 4])]))
    image = np.zeros((1, 1, 200, 200), np.float16)
    assert refuses(Call("MaxPool", [image], {"kernel_shape": [40, 40]}))


def test_an_index_out_of_range_is_refused():
    x, indices, y = np.zeros((5, 3), np.float32), np.array([0, 5]), np.zeros((2, 3), np.float32)
    assert refuses(Call("Gather", [x, indices]), y)
    assert refuses(Call("GatherGrad", [y, indices], {"axis": 0, "length": 5}), x)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_that_is_no_class_is_refused(label: int):
    logits, labels = np.zeros((2, 3), np.float32), np.array([0, label])
    outputs = [np.ones((), np.float32), np.ones_like(logits)]
    assert refuses(Call("SoftmaxCrossEntropy", [logits, labels]), *outputs)
    assert refuses(Call("SoftmaxCrossEntropyGrad", [scalar(1), logits, labels]), outputs[1])
    assert all((output == 1).all() for output in outputs)


# The harness itself.


def faulty(operator: str, fault: str) -> KernelCall:
    kernel = COMPILED[operator]

    def broken(inputs, outputs, attributes, scratch) -> bool:
        done = kernel(inputs, outputs, attributes, scratch)
        out = outputs[0].reshape(-1)
        if fault == "one bit":
            out.view(np.uint8)[-1] ^= 1
        if fault == "past the end":
            np.lib.stride_tricks.as_strided(out, (out.size + 1,))[-1] = 0
        if fault == "an input":
            inputs[0].reshape(-1).view(np.uint8)[0] ^= 1
        return done

    return broken


@pytest.mark.parametrize("operator", ["SignPack", "Relu", "AdamStep", "Transpose", "MaxPool"])
@pytest.mark.parametrize("fault", ["one bit", "past the end", "an input"])
def test_harness_finds_a_fault(operator: str, fault: str):
    call = CALLS[operator](Source(4, (2, 20), special=False))
    assert_close(call, run(call), call.twin())
    with pytest.raises(AssertionError):
        assert_close(call, run(call, kernel=faulty(operator, fault)), call.twin())


@pytest.mark.parametrize(
    "operator",
    ["BatchNormalizationTraining", "GlobalAveragePool", "ReduceSum", "SoftmaxCrossEntropyGrad"],
)
def test_harness_finds_a_relative_error_of_1e_4(operator: str):
    call = CALLS[operator](Source(4, (2, 20), special=False))
    y, *rest = run(call)
    off = y + np.float32(1e-4 * (call.scales or (1.0,))[0])
    with pytest.raises(AssertionError):
        assert_close(call, [off, *rest], call.twin())


@pytest.mark.parametrize("operator", ["ReduceSum", "ReduceMean"])
def test_a_sum_of_another_size_is_left_to_numpy(operator: str) -> None:
    """Its axes are data: what they leave is compared each time."""
    x, axes = np.ones((3, 4, 5), np.float32), np.array([0, 2])
    for shape, fits in {(1, 4, 1): True, (4,): True, (1, 3, 1): False, (20,): False}.items():
        y = np.zeros(shape, np.float32)
        assert COMPILED[operator]([x, axes], [y], {}, np.empty(0, np.uint8)) is fits
        assert y.any() == fits
