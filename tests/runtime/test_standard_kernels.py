"""Every standard kernel against onnx's reference evaluator and stock onnxruntime: one table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bnnopt.ops import OPERATORS
from bnnopt.ops.traits import having
from bnnopt.runtime.kernels.reference import run
from bnnopt.runtime.kernels.reference.parts import TILES
from bnnopt.runtime.kernels.reference.table import KERNELS

Array = NDArray[Any]
Oracle = Callable[..., list[Array]]

RNG = np.random.default_rng(20240229)
NAN, INF = np.nan, np.inf
SHARING = {
    *having("view"),
    "Expand",
    "Slice",
    "Split",
    "Transpose",
}  # may hand out what they were given


@dataclass(frozen=True)
class Case:
    """One call of an operator; `reference` and `stock` say which oracle to believe."""

    op: str
    inputs: tuple[Array | None, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 18
    reference: bool = True
    stock: bool = True

    @property
    def name(self) -> str:
        shapes = "_".join("x".join(map(str, np.shape(x))) or "0d" for x in self.inputs)
        flags = "_".join(f"{key}={value}" for key, value in self.attributes.items())
        return f"{self.op}-{shapes}-{flags}".replace(" ", "")

    def run(self) -> tuple[Array, ...]:
        result = KERNELS[self.op](*self.inputs, **self.attributes)
        return result if isinstance(result, tuple) else (result,)


def f(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def i(*values: int) -> Array:
    return np.array(values, np.int64)


def scalar(value: float, dtype: Any = np.float32) -> Array:
    return np.array(value, dtype)


def case(op: str, *inputs: Array | None, opset: int = 18, **attributes: Any) -> Case:
    return Case(op, inputs, attributes, opset)


def only_reference(op: str, *inputs: Array | None, **attributes: Any) -> Case:
    """Stock onnxruntime refuses the inputs; the comment beside the case says why."""
    return Case(op, inputs, attributes, stock=False)


def only_stock(op: str, *inputs: Array | None, **attributes: Any) -> Case:
    """The reference evaluator is wrong or fails; the comment beside the case says how."""
    return Case(op, inputs, attributes, reference=False)


FINITE = np.array([-100, -2.5, -1.5, -0.5, -0.0, 0, 0.5, 1.5, 2.5, 100], np.float32)
SPECIAL = np.concatenate([FINITE, np.array([-INF, INF, NAN], np.float32)])
POSITIVE = np.array([1e-3, 0.5, 1, 2, 100], np.float32)
INTS = np.array([-7, -6, -1, 0, 1, 6, 7], np.int32)
DIVISORS = np.array([2, -4, 3, 5, -1, -6, 4], np.int32)
BITS = np.array([0, 1, 3, 0x55, 0xAA, 0xFF], np.uint8)
BOOLS = np.array([[True, False], [True, True]])
OTHERS = np.array([[True, True], [False, True]])
MATRIX = np.arange(12, dtype=np.float32).reshape(3, 4)

TRIGONOMETRIC = (
    *("Sin", "Cos", "Tan", "Asin", "Acos", "Atan"),
    *("Sinh", "Cosh", "Asinh", "Acosh", "Atanh"),
)

ELEMENTWISE = [
    *(case(op, f(2, 3), f(2, 3)) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum")),
    *(case(op, f(2, 1, 3), f(4, 1)) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min")),
    only_stock("Mean", f(2, 1, 3), f(4, 1)),  # the reference adds into the first input's shape
    *(case(op, scalar(2), scalar(-3)) for op in ("Add", "Sub", "Mul", "Div", "Pow")),
    *(case(op, INTS, DIVISORS) for op in ("Add", "Sub", "Mul", "Max", "Min")),
    *(case(op, f(2, 3), f(3), f(2, 1)) for op in ("Max", "Min", "Sum", "Mean")),
    *(case(op, f(2, 3)) for op in ("Max", "Min", "Sum", "Mean")),
    case("Div", INTS, DIVISORS),
    case("Div", INTS.astype(np.int64), DIVISORS.astype(np.int64)),
    case("Div", BITS, np.array([3, 2, 7, 2, 3, 16], np.uint8)),
    case("Div", f(3), np.zeros(3, np.float32)),
    case("Mod", INTS, DIVISORS),
    case("Mod", INTS, DIVISORS, fmod=1),
    case("Mod", f(5), f(5), fmod=1),
    case("Neg", SPECIAL),
    case("Neg", INTS),
    case("Abs", SPECIAL),
    case("Abs", INTS),
    case("Sqrt", POSITIVE),
    case("Sqrt", np.array([-1, 0, INF], np.float32)),
    case("Pow", POSITIVE, f(5)),
    case("Pow", f(2, 3), i(2)),
    case("Pow", INTS, i(3)),
    case("Pow", np.array([1, 4, 9], np.int32), scalar(0.5)),
    only_stock("Pow", np.array([1, 2], np.int32), np.array([-1, -2], np.int32)),  # numpy raises
    case("Exp", SPECIAL),
    case("Log", POSITIVE),
    case("Log", np.array([-1, 0, INF], np.float32)),
    case("Reciprocal", FINITE),
    case("Sign", SPECIAL),
    case("Sign", INTS),
    *(case(op, 0.9 * np.sin(f(2, 3))) for op in TRIGONOMETRIC if op != "Acosh"),
    *(case(op, 3 * f(5)) for op in ("Sin", "Cos", "Atan", "Sinh", "Cosh", "Asinh")),
    case("Acosh", 1 + POSITIVE),
    case("Floor", SPECIAL),
    case("Ceil", SPECIAL),
    case("Round", SPECIAL),
    case("Erf", SPECIAL),
    case("Erf", f(2, 3, 4)),
    case("Erf", scalar(0.3)),
    case("Relu", FINITE),
    case("Relu", INTS),
    case("Clip", FINITE, scalar(-1), scalar(2)),
    case("Clip", FINITE, None, scalar(2)),
    case("Clip", FINITE, scalar(-1)),
    case("Clip", FINITE),
    case("Clip", FINITE, scalar(2), scalar(-1)),
    case("Clip", INTS, scalar(-2, np.int32), scalar(3, np.int32)),
    case("LeakyRelu", FINITE),
    case("LeakyRelu", f(2, 3), alpha=0.3),
    case("PRelu", f(2, 3, 4), f(3, 1)),
    case("PRelu", f(2, 3), scalar(0.25).reshape(1)),
    case("Elu", FINITE),
    case("Elu", f(2, 3), alpha=0.7),
    case("Sigmoid", SPECIAL),
    case("Sigmoid", f(2, 3)),
    case("Tanh", SPECIAL),
    *(case("Gelu", a, opset=20) for a in (FINITE, 3 * f(2, 3))),
    *(case("Gelu", a, opset=20, approximate="tanh") for a in (FINITE, 3 * f(2, 3))),
    case("HardSigmoid", FINITE),
    case("HardSigmoid", f(2, 3), alpha=0.4, beta=0.3),
    case("HardSwish", 3 * f(2, 3)),
    case("Softplus", f(2, 3)),
    case("Softplus", FINITE),
    *(case("Softmax", f(2, 3, 4), axis=axis) for axis in (-1, 0, 1)),
    *(case("LogSoftmax", f(2, 3, 4), axis=axis) for axis in (-1, 0, 1)),
    case("Softmax", 100 * f(2, 3)),
    only_stock("LogSoftmax", 100 * f(2, 3)),  # the reference takes the logarithm of 0
    case("LayerNormalization", f(3, 5), f(5), f(5)),
    case("LayerNormalization", f(2, 3, 4), f(3, 4), axis=1, epsilon=0.1),
    case("Where", BOOLS, f(2, 2), f(2)),
    *(
        case(op, a, b)
        for op in ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal")
        for a, b in ((SPECIAL, np.flip(SPECIAL)), (INTS, DIVISORS))
    ),
    case("Equal", BOOLS, OTHERS),
    *(case(op, BOOLS, OTHERS) for op in ("And", "Or", "Xor")),
    case("Not", BOOLS),
    case("IsNaN", SPECIAL),
    *(case(op, BITS, np.flip(BITS)) for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")),
    case("BitwiseNot", BITS),
    case("BitwiseNot", INTS),
    case("BitShift", BITS, np.array([0, 1, 2, 3, 4, 7], np.uint8), direction="LEFT"),
    case("BitShift", BITS, np.array([0, 1, 2, 3, 4, 7], np.uint8), direction="RIGHT"),
]

TYPES = [
    *(case("Cast", FINITE[1:-1], to=to) for to in (1, 3, 5, 6, 7, 9, 10, 11)),
    *(case("Cast", POSITIVE, to=to) for to in (2, 4, 12, 13)),
    *(case("Cast", INTS, to=to) for to in (1, 7, 9)),
    case("Cast", BOOLS, to=1),
    case("CastLike", FINITE, INTS),
    case("CastLike", INTS, FINITE),
    case("Identity", MATRIX),
]


def conv_cases() -> list[Case]:
    x, w = f(2, 4, 7, 6), f(6, 4, 3, 2)
    return [
        case("Conv", x, w),
        case("Conv", x, w, f(6), strides=[2, 1], pads=[1, 0, 2, 1], dilations=[1, 2]),
        case("Conv", x, f(6, 2, 3, 3), f(6), group=2, kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        case("Conv", x, f(4, 1, 3, 3), f(4), group=4, pads=[1, 1, 1, 1], strides=[2, 2]),
        case("Conv", x, f(8, 1, 3, 2), group=4, pads=[0, 2, 1, 0], dilations=[2, 1]),
        case("Conv", x, f(5, 4, 1, 1), f(5)),
        case("Conv", x, f(5, 4, 1, 1), strides=[2, 2]),
        case("Conv", x, f(6, 2, 1, 1), group=2),
        case("Conv", f(2, 1, 5, 5), f(3, 1, 3, 3)),
        case("Conv", f(2, 3, 9), f(4, 3, 3), f(4), pads=[2, 0], strides=[2]),
        case("Conv", f(1, 2, 4, 5, 3), f(3, 2, 2, 3, 2), f(3), pads=[1, 0, 1, 0, 1, 0]),
        *(
            case("Conv", x, w, auto_pad=auto_pad, strides=strides)
            for auto_pad in ("SAME_UPPER", "SAME_LOWER", "VALID")
            for strides in ([1, 1], [2, 3])
        ),
    ]


def conv_transpose_cases() -> list[Case]:
    x, w = f(2, 4, 4, 3), f(4, 3, 3, 2)
    return [
        case("ConvTranspose", x, w),
        case("ConvTranspose", x, w, f(3), strides=[2, 3], pads=[1, 0, 0, 1]),
        case("ConvTranspose", x, w, strides=[2, 2], output_padding=[1, 1], dilations=[1, 2]),
        # the reference fails for groups of more than one channel
        only_stock("ConvTranspose", x, f(4, 2, 3, 3), f(4), group=2, pads=[1, 1, 1, 1]),
        case("ConvTranspose", x, f(4, 1, 3, 3), group=4, strides=[2, 2]),
        # the reference does not derive the pads from output_shape alone
        only_stock("ConvTranspose", x, w, strides=[2, 2], output_shape=[8, 5]),
        *(
            case("ConvTranspose", x, w, strides=[2, 2], output_shape=[8, 5], auto_pad=auto_pad)
            for auto_pad in ("SAME_UPPER", "SAME_LOWER")
        ),
        case("ConvTranspose", x, w, strides=[2, 2], auto_pad="SAME_UPPER"),
        case("ConvTranspose", x, w, strides=[2, 2], auto_pad="SAME_LOWER"),
        case("ConvTranspose", x, w, auto_pad="VALID"),
        case("ConvTranspose", f(1, 2, 5), f(2, 3, 4), f(3), strides=[3]),
        case("ConvTranspose", f(1, 2, 2, 3, 2), f(2, 2, 2, 2, 3), strides=[2, 1, 2]),
    ]


def pool_cases() -> list[Case]:
    x = f(2, 3, 7, 6)
    ties = RNG.integers(0, 3, (2, 2, 5, 5)).astype(np.float32)
    shared: list[dict[str, Any]] = [
        {"kernel_shape": [2, 2], "strides": [2, 2]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 0, 1, 2]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"kernel_shape": [2, 3], "strides": [2, 2], "auto_pad": "VALID"},
    ]
    rounding: list[dict[str, Any]] = [
        {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1},
        {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "pads": [1, 1, 1, 1]},
        {"kernel_shape": [1, 1], "strides": [3, 4], "ceil_mode": 1},
    ]
    return [
        *(case("MaxPool", x, **attributes) for attributes in shared),
        *(case("MaxPool", ties, **attributes) for attributes in shared),
        # the reference has wrong indices without strides, and one row less for SAME_LOWER
        only_stock("MaxPool", x, kernel_shape=[3, 2]),
        only_stock("MaxPool", ties, kernel_shape=[3, 2]),
        only_stock("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_LOWER"),
        only_stock(
            "MaxPool", np.arange(32, dtype=np.uint8).reshape(1, 2, 4, 4), kernel_shape=[2, 2]
        ),
        case("MaxPool", x, kernel_shape=[2, 2], dilations=[2, 3]),
        case("MaxPool", f(2, 3, 9), kernel_shape=[3], strides=[2]),
        case("MaxPool", f(1, 2, 4, 5, 4), kernel_shape=[2, 3, 2], strides=[2, 1, 2]),
        *(case("MaxPool", x, **attributes) for attributes in rounding),
        *(
            case("AveragePool", x, opset=19, count_include_pad=include, **attributes)
            for attributes in rounding
            for include in (0, 1)
        ),
        *(
            case("AveragePool", x, count_include_pad=include, **attributes)
            for attributes in shared
            for include in (0, 1)
        ),
        case("AveragePool", x, opset=19, kernel_shape=[2, 2], dilations=[2, 3]),
        case("AveragePool", x, kernel_shape=[3, 2]),
        case("AveragePool", x, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_LOWER"),
        case("AveragePool", f(2, 3, 9), kernel_shape=[3], strides=[2]),
        case("AveragePool", f(1, 2, 4, 5, 4), kernel_shape=[2, 3, 2], pads=[1, 0, 0, 0, 1, 1]),
        case("GlobalAveragePool", x),
        case("GlobalMaxPool", x),
        only_stock("GlobalMaxPool", f(2, 3, 4)),  # the reference drops an axis
    ]


LAYERS = [
    *conv_cases(),
    *conv_transpose_cases(),
    *pool_cases(),
    case("Gemm", f(2, 3), f(3, 4)),
    case("Gemm", f(2, 3), f(3, 4), f(4), alpha=0.5, beta=2.0),
    case("Gemm", f(3, 2), f(4, 3), f(2, 1), transA=1, transB=1),
    case("Gemm", f(2, 3), f(3, 4), scalar(2)),
    case("MatMul", f(2, 3), f(3, 4)),
    case("MatMul", f(5, 1, 2, 3), f(4, 3, 2)),
    case("MatMul", f(3), f(3)),
    case("MatMul", f(2, 3), f(3)),
    case("MatMulInteger", BITS.reshape(2, 3), BITS.reshape(3, 2)),
    case(
        "MatMulInteger",
        BITS.reshape(2, 3),
        np.arange(-6, 6, dtype=np.int8).reshape(3, 4),
        scalar(7, np.uint8),
        scalar(-3, np.int8),
    ),
    only_reference(  # stock onnxruntime takes no zero point for each row of a
        "MatMulInteger",
        BITS.reshape(2, 3),
        BITS.reshape(3, 2),
        np.array([[1], [2]], np.uint8),
        np.array([3, 4], np.uint8),
    ),
    *(
        case("BatchNormalization", f(*shape), f(3), f(3), f(3), np.abs(f(3)), epsilon=epsilon)
        for shape, epsilon in (((2, 3, 4, 4), 1e-5), ((4, 3), 1e-3), ((2, 3, 5), 0.1))
    ),
]

REDUCTIONS = [
    *(
        case(op, x, axes, keepdims=keepdims)
        for op in (
            *("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1"),
            *("ReduceL2", "ReduceSumSquare", "ReduceLogSumExp"),
        )
        for x in (f(2, 3, 4),)
        for axes, keepdims in ((i(1), 1), (i(0, -1), 0), (None, 1), (None, 0))
    ),
    *(case(op, INTS, i(0)) for op in ("ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd")),
    case("ReduceMean", INTS.reshape(1, 7) - 1, i(1)),
    *(case(op, f(2, 3), noop_with_empty_axes=1) for op in ("ReduceSum", "ReduceMean", "ReduceMax")),
    case("ReduceLogSumExp", 100 * f(3, 4), i(1)),
    case("ArgMax", f(3, 4)),
    case("ArgMax", f(3, 4), axis=-1, keepdims=0),
    case("ArgMax", np.array([[1, 3, 3], [2, 2, 1]], np.float32), axis=1),
    case("ArgMax", np.array([[1, 3, 3], [2, 2, 1]], np.float32), axis=1, select_last_index=1),
    *(
        case("CumSum", f(2, 3, 4), scalar(axis, np.int64), exclusive=exclusive, reverse=reverse)
        for axis in (0, -1)
        for exclusive in (0, 1)
        for reverse in (0, 1)
    ),
    case("CumSum", INTS, scalar(0, np.int32)),
]

INDICES = np.array([[0, -1], [2, 1]], np.int64)

SHAPING = [
    case("Concat", f(2, 3), f(2, 1), axis=1),
    case("Concat", f(2, 3), f(1, 3), f(3, 3), axis=-2),
    case("Concat", f(2, 3), axis=0),
    case("Split", f(2, 6), i(1, 2, 3), axis=1),
    case("Split", f(6, 2), num_outputs=3),
    case("Split", f(7, 2), num_outputs=3),
    case("Split", f(2, 5), axis=-1, num_outputs=2),
    case("Slice", MATRIX, i(1, 0), i(3, 2)),
    case("Slice", MATRIX, i(-3), i(1000), i(1), i(2)),
    case("Slice", MATRIX, i(-1, 3), i(-1000, 0), i(0, -1), i(-1, -2)),
    case("Slice", MATRIX, i(2), i(1), i(0)),
    # The reference evaluator slices as numpy does; ONNX clamps the start to the first element.
    only_stock("Slice", MATRIX, i(-1000), i(-2000), i(0), i(-1)),
    case("Slice", MATRIX, i(1000), i(-1000), i(1), i(-3)),
    case("Pad", MATRIX, i(1, 0, 2, 3)),
    case("Pad", MATRIX, i(0, 1, 0, 2), scalar(7.5)),
    case("Pad", MATRIX, i(1, 2), scalar(1), i(-1)),
    case("Pad", MATRIX, i(2, 1, 1, 3), mode="reflect"),
    case("Pad", MATRIX, i(2, 1, 1, 3), mode="edge"),
    only_stock("Pad", MATRIX, i(-1, 1, 0, -2)),  # the reference refuses negative pads
    case("Pad", INTS, i(1, 1), scalar(9, np.int32)),
    *(case("Flatten", f(2, 3, 4), axis=axis) for axis in (0, 1, 2, 3, -1)),
    only_stock("Flatten", f(0, 3, 4)),  # the reference infers the second dimension, and cannot
    case("Reshape", f(2, 3, 4), i(4, -1)),
    case("Reshape", f(2, 3, 4), i(0, 0, 2, -1)),
    case("Reshape", f(0, 3), i(3, 0), allowzero=1),
    case("Transpose", f(2, 3, 4)),
    case("Transpose", f(2, 3, 4), perm=[1, 2, 0]),
    case("Transpose", f(2, 3, 4), perm=[0, 1, 2]),
    case("Squeeze", f(1, 3, 1, 2)),
    case("Squeeze", f(1, 3, 1, 2), i(-2)),
    case("Unsqueeze", f(2, 3), i(0, -1)),
    case("Expand", f(3, 1), i(2, 1, 4)),
    case("Expand", f(2, 3), i(1)),
    case("Tile", f(2, 3), i(2, 3)),
    case("Shape", f(2, 3, 4)),
    case("Shape", f(2, 3, 4), start=-2, end=10),
    case("Shape", f(2, 3, 4), start=1, end=-1),
    case("Size", f(2, 3, 4)),
    case("Range", scalar(1), scalar(3), scalar(0.3)),
    case("Range", scalar(5, np.int64), scalar(-2, np.int64), scalar(-3, np.int64)),
    case("Range", scalar(5, np.int64), scalar(5, np.int64), scalar(1, np.int64)),
    case("ConstantOfShape", i(2, 3)),
    case("ConstantOfShape", i(2), value=np.array([7], np.int32)),
    case("ConstantOfShape", np.zeros(0, np.int64), value=np.array([True])),
    *(case("Gather", MATRIX, INDICES, axis=axis) for axis in (0, 1, -1)),
    case("Gather", MATRIX, scalar(1, np.int32)),
    *(case("GatherElements", MATRIX[:2], np.tile(INDICES % 2, 2), axis=axis) for axis in (0, -2)),
    # the reference wants indices as long as the data along the other axes
    *(only_stock("GatherElements", MATRIX, INDICES, axis=axis) for axis in (0, 1, -1)),
    *(
        case("ScatterElements", MATRIX, INDICES, f(2, 2), axis=axis, reduction=reduction)
        for axis in (0, -1)
        for reduction in ("none", "add", "mul", "max", "min")
    ),
    case("ScatterElements", f(5), i(1, 1, 1), f(3), reduction="add"),
    case("GatherND", f(3, 4, 2), np.array([[0, 1], [-1, 2]], np.int64)),
    case("GatherND", f(2, 3, 2), np.array([[1], [2]], np.int64), batch_dims=1),
    *(
        case("ScatterND", f(4, 3), np.array([[1], [-1]], np.int64), f(2, 3), reduction=reduction)
        for reduction in ("none", "add", "mul", "max", "min")
    ),
    *(
        case("TopK", f(3, 5), i(2), axis=axis, largest=largest)
        for axis in (0, 1, -1)
        for largest in (0, 1)
    ),
    case("TopK", np.array([[2, 1, 2, 0, 1]], np.float32), i(4)),
    only_stock("OneHot", INDICES, i(3), f(2)),  # the reference wants a 0-d depth
    case("OneHot", INDICES, scalar(4, np.int64), f(2), axis=0),
    case("OneHot", i(0, 5, -1), scalar(3, np.int64), i(2, 7), axis=1),
    case("DepthToSpace", f(2, 8, 2, 3), blocksize=2),
    case("DepthToSpace", f(2, 8, 2, 3), blocksize=2, mode="CRD"),
    case("Trilu", f(3, 4)),
    case("Trilu", f(2, 4, 3), scalar(-1, np.int64), upper=0),
    case("Trilu", f(3, 4), scalar(1, np.int64), upper=1),
]

CASES = [*ELEMENTWISE, *TYPES, *LAYERS, *REDUCTIONS, *SHAPING]
TABLE = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def assert_same(results: tuple[Array, ...], expected: list[Array], rtol: float) -> None:
    assert len(results) == len(expected)
    for y, wanted in zip(results, expected, strict=True):
        assert isinstance(y, np.ndarray)
        assert y.dtype == wanted.dtype
        assert y.shape == wanted.shape
        if y.dtype.kind == "f":
            scale = np.abs(wanted[np.isfinite(wanted)]).max(initial=0)
            np.testing.assert_allclose(y, wanted, rtol=rtol, atol=rtol * float(scale) / 10)
        else:
            np.testing.assert_array_equal(y, wanted)


def test_every_kernel_has_a_case() -> None:
    before_opset_20 = {"Gelu"}  # one of the domain
    assert {case.op for case in CASES} == set(KERNELS) - set(OPERATORS) | before_opset_20


@TABLE
def test_kernel_agrees_with_the_oracles(case: Case, reference: Oracle, stock: Oracle) -> None:
    assert case.reference or case.stock
    results = case.run()
    call = case.op, case.inputs, case.attributes, [y.dtype for y in results], case.opset
    if case.reference:
        assert_same(results, reference(*call), rtol=1e-5)
    if case.stock:
        assert_same(results, stock(*call), rtol=1e-5)


@TABLE
def test_kernel_returns_memory_of_its_own_unless_it_only_shapes(case: Case) -> None:
    results = case.run()
    shares = [np.shares_memory(x, y) for x in case.inputs if x is not None for y in results]
    assert any(shares) == (case.op in SHARING and results[0].size > 0)
    if case.op not in SHARING:
        assert all(y.flags.c_contiguous for y in results)


@pytest.mark.parametrize("n", [1, 3, 10**6])
@pytest.mark.parametrize(
    "case", [c for c in CASES if KERNELS[c.op].how == TILES], ids=lambda c: c.name
)
def test_elementwise_kernels_go_in_tiles(
    case: Case, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "TILE", n)
    (want,) = case.run()
    layout = want.dtype, want.shape
    alike = [i for i, x in enumerate(case.inputs) if x is not None and (x.dtype, x.shape) == layout]
    for taken in (None, *alike):
        inputs = [None if x is None else x.copy() for x in case.inputs]
        outputs = [np.empty_like(want) if taken is None else inputs[taken]]
        run.run_numpy(case.op, inputs, outputs, case.attributes)
        assert outputs[0] is not None
        bound = 2e-7 if case.op == "Pow" else 0  # numpy's depends on how the exponent lies
        np.testing.assert_allclose(outputs[0], want, rtol=bound, strict=True)


@TABLE
def test_kernel_leaves_its_inputs_alone_and_repeats_itself(case: Case) -> None:
    before = [None if x is None else x.copy() for x in case.inputs]
    results, again = case.run(), case.run()
    for x, kept in zip(case.inputs, before, strict=True):
        if x is not None and kept is not None:
            assert x.tobytes() == kept.tobytes()
    assert [y.tobytes() for y in results] == [y.tobytes() for y in again]


@TABLE
def test_kernel_keeps_float64(case: Case) -> None:
    """The result in float64 has float64 wherever it had float32, and agrees in float32."""
    wide = tuple(
        x.astype(np.float64) if x is not None and x.dtype == np.float32 else x for x in case.inputs
    )
    if case.op in {"Cast", "ConstantOfShape"}:  # their result dtype is an attribute
        wide = case.inputs
    narrow_results = case.run()
    wide_results = Case(case.op, wide, case.attributes).run()
    for y, narrow in zip(wide_results, narrow_results, strict=True):
        grows = narrow.dtype == np.float32 and wide is not case.inputs
        assert y.dtype == (np.float64 if grows else narrow.dtype)
        if grows:
            with np.errstate(over="ignore"):
                wanted = y.astype(np.float32)
            scale = float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0))
            np.testing.assert_allclose(narrow, wanted, rtol=1e-4, atol=1e-5 * scale)


def test_float16_stays_float16() -> None:
    x = f(2, 3, 4, 4).astype(np.float16)
    w = f(2, 3, 3, 3).astype(np.float16)
    for op, inputs, attributes in (
        ("Sigmoid", (x,), {}),
        ("Conv", (x, w), {}),
        ("AveragePool", (x,), {"kernel_shape": [2, 2]}),
        ("ReduceMean", (x,), {}),
        ("LeakyRelu", (x,), {}),
        ("Erf", (x,), {}),
    ):
        result = KERNELS[op](*inputs, **attributes)
        assert isinstance(result, np.ndarray)
        assert result.dtype == np.float16


def test_sigmoid_is_accurate_in_both_tails() -> None:
    x = np.array([-700.0, -30.0, 30.0, 700.0])
    y = KERNELS["Sigmoid"](x)
    np.testing.assert_allclose(y, [np.exp(-700.0), 1 / (1 + np.exp(30.0)), 1 - 9.4e-14, 1.0])


def test_max_pool_lets_nan_win() -> None:
    x = np.array([[[1.0, NAN, 5.0, NAN, -INF, -INF]]], np.float32)
    y, indices = KERNELS["MaxPool"](x, kernel_shape=[2], strides=[2])
    np.testing.assert_array_equal(y, [[[NAN, NAN, -INF]]])
    np.testing.assert_array_equal(indices, [[[1, 3, 4]]])


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "message"),
    [
        ("Cast", (MATRIX,), {"to": 16}, "no dtype for ONNX data type 16"),
        ("Split", (MATRIX,), {}, "expected one"),
        ("MaxPool", (MATRIX,), {"kernel_shape": [2], "storage_order": 1}, "storage_order"),
        ("BatchNormalization", (MATRIX,) * 5, {"training_mode": 1}, "training_mode"),
    ],
)
def test_what_a_kernel_cannot_do_is_an_error(
    op: str, inputs: tuple[Array, ...], attributes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        KERNELS[op](*inputs, **attributes)
