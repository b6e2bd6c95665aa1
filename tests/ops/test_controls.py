"""Negative controls: each oracle rejects an answer that is a little wrong."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bnnopt.ops import OPERATORS
from bnnopt.runtime.kernels.reference.table import KERNELS
from tests.ops.cases import CASES
from tests.ops.harness import (
    Array,
    Case,
    assert_agree,
    assert_typed,
    build,
    marked,
    rounded,
    run_onnxruntime,
    run_reference,
)
from tests.ops.oracles import approx_sign, finite_difference

BY_NAME = {str(case): case for case in CASES}
each_operator = pytest.mark.parametrize("name", [marked(name, name) for name in OPERATORS])


def assert_rejected(case: Case, wrong: list[Array]) -> None:
    """The kernel's answer agrees with both evaluators, `wrong` with neither."""
    proto = ir.to_proto(build(case))
    for results in (run_onnxruntime(proto, case), run_reference(proto, case)):
        assert_agree(case.twin, results, case.bound)
        with pytest.raises(AssertionError):
            assert_agree(wrong, results, case.bound)


def largest_case(name: str) -> Case:
    """The operator's case with most finite output elements."""
    mine = [case for case in CASES if case.operator == name and "large" not in case.note]
    return max(mine, key=lambda case: case.twin[0].size * bool(np.isfinite(case.twin[0]).all()))


def slightly_wrong(result: Array) -> Array:
    """One element changed: a float by 1 % of the largest, another in its lowest bit."""
    wrong = result.copy()
    if wrong.dtype.kind == "f":
        at = int(np.argmax(np.abs(wrong)))
        wrong.flat[at] *= 1.01
    else:
        wrong.flat[wrong.size // 2] = wrong.flat[wrong.size // 2] ^ 1
    return wrong


@each_operator
def test_each_output_is_compared(name: str):
    case = largest_case(name)
    proto = ir.to_proto(build(case))
    results = run_onnxruntime(proto, case)
    for i, result in enumerate(case.twin):
        wrong = [*case.twin[:i], slightly_wrong(result), *case.twin[i + 1 :]]
        with pytest.raises(AssertionError):
            assert_agree(wrong, results, case.bound)


@pytest.mark.parametrize("name", ["Binarize", "SoftmaxCrossEntropy", "HalfAdamStep"])
def test_dtype_and_shape_are_compared(name: str):
    case = largest_case(name)
    first, *others = case.twin
    other = np.float32 if first.dtype == np.float16 else np.float16
    for wrong in (first.astype(other), first[..., None]):
        with pytest.raises(AssertionError):
            assert_agree([wrong, *others], case.twin, case.bound)
        with pytest.raises(AssertionError):
            assert_typed(build(case), [wrong, *others])
    with pytest.raises(ValueError, match="zip"):
        assert_agree([first, *others, first], case.twin, case.bound)


def test_flipped_bit_order_is_rejected():
    case = BY_NAME["PackBits-image"]
    rows = case.inputs[0].reshape(2, -1)
    assert_rejected(case, [np.packbits(rows, axis=1, bitorder="big")])


def test_rows_packed_without_a_gap_are_rejected():
    case = BY_NAME["PackBits-seven"]
    packed = np.packbits(case.inputs[0].ravel(), bitorder="little")
    assert packed.size == case.twin[0].size
    assert_rejected(case, [packed.reshape(case.twin[0].shape)])


def test_exchanged_pads_are_rejected():
    case = BY_NAME["ConvWeightGrad-asymmetric"]
    pads = case.attributes["pads"]
    exchanged = {**case.attributes, "pads": pads[2:] + pads[:2]}
    assert_rejected(case, [*dataclasses.replace(case, attributes=exchanged).twin])


def test_pads_of_exchanged_axes_are_rejected():
    case = BY_NAME["ConvInputGrad-asymmetric"]
    attributes = {**case.attributes, "pads": [1, 0, 1, 2]}
    assert_rejected(case, [*dataclasses.replace(case, attributes=attributes).twin])


def test_pool_index_off_by_one_is_rejected():
    case = BY_NAME["PoolIndexUnpack-overlap-pad"]
    assert_rejected(case, [case.twin[0] + 1])
    case = BY_NAME["PoolIndexPack-overlap-pad"]
    indices, origin = case.inputs
    assert_rejected(case, [*dataclasses.replace(case, inputs=(indices, origin - 1)).twin])


def test_excluded_clip_bound_is_rejected():
    case = BY_NAME["ClipGrad-unit-bounds"]
    dy, x = case.inputs
    assert_rejected(case, [np.where((x > -1) & (x < 1), dy, np.float32(0))])


def test_batch_norm_gradient_without_the_statistics_is_rejected():
    case = BY_NAME["BatchNormalizationGrad-image"]
    dy, _, scale, _, inv_std = case.inputs
    assert_rejected(case, [dy * (scale * inv_std)[:, None, None], *case.twin[1:]])


def test_pooled_batch_norm_gradient_without_its_side_bits_is_rejected():
    case = BY_NAME["L1BatchNormalizationPoolGrad-plain"]
    inputs = [*case.inputs]
    inputs[4] = np.zeros_like(inputs[4])
    assert_rejected(case, [*dataclasses.replace(case, inputs=tuple(inputs)).twin])


def test_unbiased_variance_is_rejected():
    case = BY_NAME["BatchNormalizationTraining-image"]
    x, *_, running_var = case.inputs
    y, next_mean, _, mean, inv_std = case.twin
    variance = x.var(axis=(0, 2, 3), ddof=1)
    wrong_var = np.float32(0.9) * running_var + np.float32(0.1) * variance
    assert_rejected(case, [y, next_mean, wrong_var, mean, inv_std])


def test_adam_without_bias_correction_is_rejected():
    case = BY_NAME["AdamStep-matrix"]
    w, _, _, _, lr, _ = case.inputs
    _, next_m, next_v = case.twin
    assert_rejected(case, [w - lr * next_m / (np.sqrt(next_v) + np.float32(1e-8)), next_m, next_v])


def test_powers_of_two_rounded_halfway_between_them_are_rejected():
    """Halfway on a line is 1.5, by the logarithm it is the root of 2."""
    case = BY_NAME["Pow2Pack-ties"]
    nearer = case.inputs[0] * np.float32(2**0.5 / 1.5)
    assert_rejected(case, [*dataclasses.replace(case, inputs=(nearer,)).twin])


def test_signs_before_the_exponents_are_rejected():
    case = BY_NAME["Pow2Pack-nine"]
    packed, unit = case.twin
    assert_rejected(case, [np.hstack([packed[:, -2:], packed[:, :-2]]), unit])


def test_integers_to_nearest_are_rejected():
    case = BY_NAME["Int8Pack-nine"]
    _, unit = case.twin
    assert_rejected(case, [np.rint(case.inputs[0] / unit).astype(np.int8), unit])


def test_nibbles_in_the_other_order_are_rejected():
    case = BY_NAME["Int4Pack-nine"]
    packed, unit = case.twin
    assert_rejected(case, [packed << 4 | packed >> 4, unit])


def test_nibbles_of_a_unit_that_cuts_nothing_off_are_rejected():
    case = BY_NAME["Int4Pack-tails"]
    whole = dataclasses.replace(case, attributes={**case.attributes, "one_in": 2**20})
    assert_rejected(case, [*whole.twin])


def test_a_product_of_another_unit_is_rejected():
    case = BY_NAME["BinaryGemmInputGradInt8-odd-1"]
    dy, unit, w = case.inputs
    other = dataclasses.replace(case, inputs=(dy, np.nextafter(unit, unit + 1), w))
    assert_rejected(case, [*other.twin])


def test_unrounded_float_attribute_is_seen():
    """0.1 is not a float32: a kernel in float64 must get what the model holds."""
    assert rounded({"beta": 0.1, "group": 2}) == {"beta": float(np.float32(0.1)), "group": 2}


def test_dropout_of_another_step_is_rejected():
    case = BY_NAME["Dropout-half"]
    x, step = case.inputs
    assert_rejected(case, [*dataclasses.replace(case, inputs=(x, step + 1)).twin])


def test_finite_differences_reject_a_gradient_wrong_by_one_percent():
    x, dy = np.linspace(-0.9, 0.95, 20), np.linspace(1, 2, 20)
    dx = KERNELS["ApproxSignGrad"](dy, x)
    want = finite_difference(approx_sign, x, dy)
    assert_agree([dx], [want], 1e-7)
    with pytest.raises(AssertionError):
        assert_agree([1.01 * dx], [want], 1e-7)


def test_checker_rejects_an_unknown_operator_in_a_body():
    proto = ir.to_proto(build(BY_NAME["SignPack-image"]))
    onnx.checker.check_model(proto, full_check=True)
    proto.functions[0].node[0].op_type = "NoSuchOperator"
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(proto, full_check=True)
