"""Every operator, three ways: its body on two evaluators, and its numpy kernel."""

from __future__ import annotations

import inspect
import subprocess
import sys
from types import ModuleType

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from bnnopt.ops import DOMAIN, MIN_OPSET, OPERATORS
from bnnopt.runtime.kernels.compiled import table as compiled
from bnnopt.runtime.kernels.reference import table as reference
from bnnopt.runtime.kernels.reference.table import KERNELS
from tests.ops.cases import CASES
from tests.ops.harness import (
    BOUNDS,
    CASE_BOUNDS,
    Case,
    assert_agree,
    assert_typed,
    build,
    inlined,
    marked,
    newest_opset,
    run_onnxruntime,
    run_reference,
)

# Wrong or failing on onnx's reference evaluator (1.23), so that onnxruntime is the judge of them.
REFERENCE_BUGS = {
    # ConvTranspose cuts the weights of a group by the number of output channels, and writes one
    # channel a group: right for one output channel a group only.
    "ConvInputGrad-grouped",
    "ConvInputGrad-depthwise-multiplier",
    "ConvInputGrad-one-dimension-dilated-group",
    "ConvInputGrad-everything",
    "ConvInputGrad-everything-float16",
    "BinaryConvInputGrad-grouped",
    "BinaryConvInputGrad-depthwise-multiplier",
    "BinaryConvInputGrad-one-dimension-dilated-group",
    "BinaryConvInputGrad-everything",
    "BinaryConvInputGrad-everything-float16",
    "BinaryConvInputGradInt4-everything-1",
    "BinaryConvInputGradInt4-everything-10",
    "BinaryConvInputGradInt8-everything-1",
    "BinaryConvInputGradInt8-everything-10",
    "BinaryConvInputGradPow2-everything-1",
    "BinaryConvInputGradPow2-everything-10",
    # MaxPool takes another way where all strides are 1, and gives no indices there.
    "PackedMaxPool-overlap-stride-1",
    "PackedMaxPool-as-wide-as-input",
    "PackedMaxPool-eight-bits",
    # LogSoftmax is the logarithm of a softmax that may have become 0.
    "SoftmaxCrossEntropy-large",
}
KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)

MARKED = [marked(case.operator, case) for case in CASES]
each_case = pytest.mark.parametrize("case", MARKED, ids=str)
NEWEST = pytest.param(newest_opset(), marks=pytest.mark.slow)
each_opset = pytest.mark.parametrize("opset", [MIN_OPSET, NEWEST])


# What is valid, and what is inlined, follow from the attributes, not from the numbers.
ONE_OF_A_KIND = list({(c.operator, *sorted(c.attributes)): c for c in CASES}.values())
each_kind = pytest.mark.parametrize(
    "case", [marked(case.operator, case) for case in ONE_OF_A_KIND], ids=str
)


def slow_unless_first(case: Case) -> object:
    """`case` for pytest's parameters: one of a kind is not slow."""
    is_first = any(case is other for other in ONE_OF_A_KIND)
    return marked(case.operator, case) if is_first else pytest.param(case, marks=pytest.mark.slow)


def test_no_operator_is_missing():
    assert {case.operator for case in CASES} == set(OPERATORS) <= set(KERNELS)


def test_case_names_are_unique_and_the_exceptions_among_them():
    names = {str(case) for case in CASES}
    assert len(names) == len(CASES)
    assert names > REFERENCE_BUGS


def test_an_operator_has_one_row() -> None:
    for table, known in ((reference, reference.KERNELS), (compiled, compiled.COMPILED)):
        families = [value for value in vars(table).values() if isinstance(value, ModuleType)]
        rows = sorted(name for family in families for name in family.KERNELS)
        assert rows == sorted(known)


def test_kernels_need_numpy_alone():
    code = "import sys, bnnopt.runtime.kernels.reference.table; print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    loaded = set(output.decode().split())
    assert not loaded & {"onnx", "onnx_ir", "onnxruntime", "rich", "click", "bnnopt.ops"}


def test_kernels_have_the_operators_signatures():
    for name, operator in OPERATORS.items():
        function = operator.function(MIN_OPSET)
        parameters = inspect.signature(KERNELS[name].function).parameters.values()
        by_kind = {kind: [p.name for p in parameters if p.kind is kind] for kind in KINDS}
        assert by_kind[inspect.Parameter.POSITIONAL_OR_KEYWORD] == list(function.input), name
        options = set(by_kind[inspect.Parameter.KEYWORD_ONLY]) - {"out"}  # where to write
        assert options == set(function.attribute), name


@each_case
@each_opset
def test_body_on_onnxruntime_agrees_with_the_kernel(case: Case, opset: int):
    model = build(case, opset)
    results = run_onnxruntime(ir.to_proto(model), case)
    assert_agree(case.twin, results, case.bound)
    assert_typed(model, results)


@pytest.mark.parametrize(
    "case", [slow_unless_first(c) for c in CASES if str(c) not in REFERENCE_BUGS], ids=str
)
def test_body_on_the_reference_evaluator_agrees_with_the_kernel(case: Case):
    assert_agree(case.twin, run_reference(ir.to_proto(build(case)), case), case.bound)


@pytest.mark.slow
@each_kind
def test_inlined_body_agrees_with_the_kernel(case: Case):
    model = inlined(build(case))
    assert DOMAIN not in {node.domain for node in model.graph}
    assert_agree(case.twin, run_onnxruntime(ir.to_proto(model), case), case.bound)


@each_kind
def test_model_is_valid(case: Case):
    onnx.checker.check_model(ir.to_proto(build(case)), full_check=True)


@each_kind
def test_kernel_leaves_its_inputs_alone(case: Case):
    inputs = [array.copy() for array in case.inputs]
    frozen = Case(case.operator, case.note, tuple(inputs), case.attributes)
    for array in inputs:
        array.flags.writeable = False
    assert_agree(frozen.twin, case.twin, 0)
    assert_agree(frozen.inputs, case.inputs, 0)


@pytest.mark.parametrize("case", [c for c in CASES if str(c) in CASE_BOUNDS], ids=str)
def test_kernel_is_as_near_to_float64_as_its_operator_promises(case: Case):
    exact = tuple(array.astype(np.float32) for array in case.wide.twin)
    assert_agree(case.twin, exact, BOUNDS[case.operator])


@each_kind
def test_kernel_keeps_float64(case: Case):
    results = case.wide.twin
    given = "dtype" in case.attributes and "Norm" not in case.operator
    reads_floats = any(a.dtype.kind == "f" for a in case.inputs) and not given
    for result, single in zip(results, case.twin, strict=True):
        rounds = (
            any(kept in case.operator for kept in ("Half", "Byte"))
            or case.attributes.get("dtype") == 10
        )
        is_half = rounds and single.dtype == np.float16
        is_float = single.dtype.kind == "f" and reads_floats and not is_half
        assert result.dtype == (np.float64 if is_float else single.dtype)
