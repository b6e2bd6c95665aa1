"""The compiled elementwise kernels: activations, arithmetic, comparisons, casts.

None needs scratch memory.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled.calls import (
    BOOL,
    FLOAT16,
    INT64,
    Arrays,
    Attributes,
    KernelCall,
    covered,
    integer,
    number,
    optional,
    scalar,
)
from bnnopt.runtime.kernels.compiled.functions import CFunction
from bnnopt.runtime.kernels.compiled.kernel import CompiledKernel
from bnnopt.runtime.kernels.compiled.moving import columns_of, copied

CAST_BOOL = CFunction("void bnn_cast_b8f32(uint8_t*, float*, i64)")
CAST_INTEGER = CFunction("void bnn_cast_i64f32(i64*, float*, i64)")
COMPARE = CFunction("void bnn_compare_f32(float*, float*, uint8_t*, i64*, i64, i64, i64)")
DROPOUT = CFunction("void bnn_dropout_f32(float*, float*, uint8_t*, i64*, i64, i64, i64, float)")
DRAW_UNIFORM = CFunction("void bnn_draw_uniform_f32(float*, i64*, i64, i64, float, float)")
PRELU_GRAD = CFunction(
    "void bnn_prelu_grad_f32(float*, float*, float*, float*, float*, i64, i64, i64)"
)
TO_HALF = CFunction("void bnn_cast_f32f16(float*, bnn_half*, i64)")
WHERE = CFunction("void bnn_where_f32(uint8_t*, float*, float*, float*, i64, i64, i64)")
TO_FLOAT = CFunction("void bnn_cast_f16f32(bnn_half*, float*, i64)")

FORMS = {
    "f32": "float*, float*, float*, i64, float, float",
    "halves": "void*, void*, void*, i64, i64, i64, i64, float, float",
    "stretched_f32": "float*, float*, float*, i64, i64, i64",
    "broadcast_f32": "float*, float*, float*, i64*",
}
"""The parameters of elementwise functions, by the ending of their names."""


@functools.cache
def function_of(name: str, form: str) -> CFunction:
    """An elementwise function of C, which all have the same parameters; forms as in `FORMS`."""
    return CFunction(f"void bnn_{name}_{form}({FORMS[form]})")


def binarize(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`binarize.binarize` with `zero` +1 or -1."""
    kinds = {1.0: "binarize_plus", -1.0: "binarize_minus"}
    kind = kinds.get(number(attributes, "zero"))
    return kind is not None and mapped(kind, inputs[0], None, outputs[0])


def clip_grad(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`binarize.clip_grad`."""
    dy, x = inputs
    bounds = number(attributes, "low"), number(attributes, "high")
    return x is not None and mapped("clip_grad", dy, x, outputs[0], *bounds)


def gradient(name: str) -> KernelCall:
    """An elementwise function of dy and of a map of the forward pass."""

    def run(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
        dy, x = inputs
        return x is not None and mapped(name, dy, x, outputs[0])

    return run


def unary(name: str, **default: float) -> KernelCall:
    """An elementwise function of one input, with at most one attribute as its number."""

    def run(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
        s = [number({**default, **attributes}, key) for key in default]
        return mapped(name, inputs[0], None, outputs[0], *s)

    return run


def activation(name: str, by: str = "", **kinds: str) -> KernelCall:
    """The C function `name` of one input; or that of `kinds` which the attribute `by` chooses."""

    def run(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
        kind = kinds.get(str(attributes[by])) if by in attributes else name
        return kind is not None and mapped(kind, inputs[0], None, outputs[0])

    return run


def clip(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`elementwise.clip` with one or two bounds that are not NaN."""
    x, y, low, high = inputs[0], outputs[0], optional(inputs, 1), optional(inputs, 2)
    bounds = {"low": low, "high": high}
    given = {name: bound for name, bound in bounds.items() if bound is not None}
    if not given or not covered(*given.values()):
        return False
    limits = {name: scalar(bound) for name, bound in given.items() if bound.size == 1}
    if len(limits) < len(given) or any(math.isnan(limit) for limit in limits.values()):
        return False
    kind = "clip" if len(limits) == 2 else f"clip_{next(iter(limits))}"
    return mapped(kind, x, None, y, limits.get("low", 0.0), limits.get("high", 0.0))


def dropout(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`dropout.dropout`; y may be x, and the mask left out."""
    (x, step), y, mask = inputs, outputs[0], optional(outputs, 1)
    threshold = integer(attributes, "threshold")
    if not covered(x, y) or not covered(step, dtype=np.int64) or not 0 <= threshold < 1 << 32:
        return False
    if mask is not None and not covered(mask, dtype=np.bool_):
        return False
    assert x is not None
    seed, scale = integer(attributes, "seed"), number(attributes, "scale")
    return DROPOUT(x, y, mask, step, x.size, seed, threshold, scale)


def draw_uniform(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`dropout.draw_uniform`."""
    (_, step), u = inputs, outputs[0]
    if not covered(u) or not covered(step, dtype=np.int64):
        return False
    assert u is not None
    bounds = number(attributes, "low"), number(attributes, "scale")
    return DRAW_UNIFORM(u, step, u.size, integer(attributes, "seed"), *bounds)


def mapped(
    name: str, a: Array | None, b: Array | None, y: Array | None, s: float = 0.0, t: float = 0.0
) -> bool:
    """One of C's elementwise functions, in float32 or, for float16 operands, rounded once."""
    operands = [array for array in (a, b, y) if array is not None]
    if a is None or y is None or any(array.size != y.size for array in operands):
        return False
    if covered(*operands):
        return function_of(name, "f32")(a, b, y, y.size, s, t)
    if not all(_is_float(array) for array in operands):
        return False
    halves = [int(array is not None and array.dtype == FLOAT16) for array in (a, b, y)]
    return function_of(name, "halves")(a, b, y, *halves, y.size, s, t)


def _is_float(array: Array) -> bool:
    return covered(array) or covered(array, dtype=FLOAT16)


def add(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """Sum of equal shapes, or of a tensor and one that is stretched to it."""
    return _arithmetic("add", "add_scalar", inputs, outputs, commutes=True)


def sub(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """Difference of equal shapes, or of a tensor and one that is stretched to it."""
    return _arithmetic("sub", "scalar_sub", inputs, outputs)


def mul(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """Product of equal shapes, or of a tensor and one that is stretched to it."""
    return _arithmetic("mul", "mul_scalar", inputs, outputs, commutes=True)


def prelu(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`elementwise.prelu` with one slope, one for each channel or element."""
    (x, slope), y = inputs, outputs[0]
    if x is None or slope is None or y is None or x.size != y.size:
        return False
    if slope.size == 1 and _is_float(slope):
        return mapped("leaky_relu", x, None, y, scalar(slope))
    return _of_two("prelu", x, slope, y)


def prelu_grad(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`activations.prelu_grad` with one slope, one for each channel or element."""
    (dy, x, slope), (dx, dslope) = inputs, outputs
    if not covered(dy, x, slope, dx, dslope):
        return False
    assert x is not None
    assert slope is not None
    axes = (1, 1, x.size) if slope.size == 1 else _stretched(x.shape, slope.shape)
    return axes is not None and x.size > 0 and PRELU_GRAD(dy, x, slope, dx, dslope, *axes)


def div(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """Quotient of equal shapes, or of a tensor and one that is stretched to it."""
    return _arithmetic("div", "scalar_div", inputs, outputs)


def _arithmetic(
    name: str, scalar_left: str, inputs: Arrays, outputs: Arrays, *, commutes: bool = False
) -> bool:
    (a, b), y = inputs, outputs[0]
    if a is None or b is None or y is None:
        return False
    if a.size == b.size == y.size:
        return _of_two(name, a, b, y)
    if b.size == 1 and _is_float(b):
        return mapped(f"{name}_scalar", a, None, y, scalar(b))
    if a.size == 1 and _is_float(a):
        return mapped(scalar_left, b, None, y, scalar(a))
    if commutes and a.size < b.size:
        a, b = b, a
    return _of_two(name, a, b, y)


def _of_two(name: str, a: Array, b: Array, y: Array) -> bool:
    """One of C's functions of a tensor and one that is as large, or stretched to it."""
    if a.size == b.size == y.size:  # then no axis is stretched
        return mapped(name, a, b, y)
    axes = _stretched(a.shape, b.shape)
    if axes is None or a.size != y.size or y.size == 0 or not covered(a, b, y):
        return _broadcast(name, a, b, y)
    return function_of(name, "stretched_f32")(a, b, y, *axes)


def broadcast(name: str) -> KernelCall:
    """An operation of two inputs that are stretched to the shape of the output."""

    def run(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
        if len(inputs) != 2:
            return False
        (a, b), y = inputs, outputs[0]
        return a is not None and b is not None and y is not None and _broadcast(name, a, b, y)

    return run


def _broadcast(name: str, a: Array, b: Array, y: Array) -> bool:
    columns = _columns(a, b, y)
    if columns is None or not covered(a, b, y):
        return False
    return y.size == 0 or function_of(name, "broadcast_f32")(a, b, y, columns)


def compare(less: int, equal: int, greater: int) -> KernelCall:
    """Whether two inputs that are stretched are in one of the relations that are 1."""

    def run(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
        (a, b), y = inputs, outputs[0]
        if not covered(a, b) or not covered(y, dtype=BOOL):
            return False
        assert a is not None
        assert b is not None
        assert y is not None
        columns = _columns(a, b, y)
        if columns is None:
            return False
        return y.size == 0 or COMPARE(a, b, y, columns, less, equal, greater)

    return run


def _columns(a: Array, b: Array, y: Array) -> list[int] | None:
    return columns_of(np.broadcast_to(a, y.shape), np.broadcast_to(b, y.shape))


def _stretched(a: Sequence[int], b: Sequence[int]) -> tuple[int, int, int] | None:
    """(outer, middle, inner) of `a` if b has the axes of `middle` alone; None if it has others."""
    padded = (1,) * (len(a) - len(b)) + tuple(b)
    own = [axis for axis, length in enumerate(padded) if length > 1]
    if not own or len(padded) != len(a):
        return None
    first, end = own[0], own[-1] + 1
    if tuple(a[first:end]) != padded[first:end]:
        return None
    return math.prod(a[:first]), math.prod(a[first:end]), math.prod(a[end:])


def where(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`elementwise.where` of equal shapes, or of one number."""
    (condition, a, b), y = inputs, outputs[0]
    if not covered(condition, dtype=np.bool_) or not covered(a, b, y):
        return False
    assert condition is not None
    assert a is not None
    assert b is not None
    assert y is not None
    if condition.size != y.size or not {a.size, b.size} <= {1, y.size}:
        return False
    return WHERE(condition, a, b, y, y.size, int(a.size > 1), int(b.size > 1))


def cast(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`elementwise.cast` to float32, to float16 from it, and to the dtype that x has."""
    (x,), y = inputs, outputs[0]
    assert x is not None
    assert y is not None
    if covered(x) and covered(y, dtype=FLOAT16):
        return TO_HALF(x, y, y.size)
    if not covered(x, dtype=x.dtype) or not covered(y):
        return copied(x, y)
    functions = {FLOAT16: TO_FLOAT, BOOL: CAST_BOOL, INT64: CAST_INTEGER}
    function = functions.get(x.dtype)
    return function(x, y, y.size) if function is not None else copied(x, y)


KERNELS: dict[str, CompiledKernel] = {
    "Abs": CompiledKernel(unary("abs"), repeatable=True),
    "Add": CompiledKernel(add, repeatable=True),
    "ApproxSignGrad": CompiledKernel(gradient("approx_sign_grad"), repeatable=True),
    "Binarize": CompiledKernel(binarize, repeatable=True),
    "Cast": CompiledKernel(cast, repeatable=True),
    "Clip": CompiledKernel(clip),
    "ClipGrad": CompiledKernel(clip_grad, repeatable=True),
    "Div": CompiledKernel(div, repeatable=True),
    "DrawUniform": CompiledKernel(draw_uniform, repeatable=True),
    "Dropout": CompiledKernel(dropout, repeatable=True),
    "Equal": CompiledKernel(compare(0, 1, 0), repeatable=True),
    "Erf": CompiledKernel(unary("erf"), repeatable=True),
    "Exp": CompiledKernel(unary("exp"), repeatable=True),
    "Gelu": CompiledKernel(
        activation("gelu", "approximate", none="gelu", tanh="gelu_tanh"),
        repeatable=True,
    ),
    "GeluGrad": CompiledKernel(gradient("gelu_grad"), repeatable=True),
    "Greater": CompiledKernel(compare(0, 0, 1), repeatable=True),
    "GreaterOrEqual": CompiledKernel(compare(0, 1, 1), repeatable=True),
    "HardSwish": CompiledKernel(unary("hard_swish"), repeatable=True),
    "HardSwishGrad": CompiledKernel(gradient("hard_swish_grad"), repeatable=True),
    "LeakyRelu": CompiledKernel(unary("leaky_relu", alpha=0.01), repeatable=True),
    "Less": CompiledKernel(compare(1, 0, 0), repeatable=True),
    "LessOrEqual": CompiledKernel(compare(1, 1, 0), repeatable=True),
    "Log": CompiledKernel(unary("log"), repeatable=True),
    "Max": CompiledKernel(broadcast("max"), repeatable=True),
    "Min": CompiledKernel(broadcast("min"), repeatable=True),
    "Mul": CompiledKernel(mul, repeatable=True),
    "Neg": CompiledKernel(unary("neg"), repeatable=True),
    "PRelu": CompiledKernel(prelu, repeatable=True),
    "PReluGrad": CompiledKernel(prelu_grad, repeatable=True),
    "Relu": CompiledKernel(activation("relu"), repeatable=True),
    "ReluGrad": CompiledKernel(gradient("relu_grad"), repeatable=True),
    "Round": CompiledKernel(unary("round"), repeatable=True),
    "Sigmoid": CompiledKernel(unary("sigmoid"), repeatable=True),
    "Sign": CompiledKernel(unary("sign"), repeatable=True),
    "Softplus": CompiledKernel(unary("softplus"), repeatable=True),
    "Sqrt": CompiledKernel(unary("sqrt"), repeatable=True),
    "Sub": CompiledKernel(sub, repeatable=True),
    "Tanh": CompiledKernel(unary("tanh"), repeatable=True),
    "TanhGeluGrad": CompiledKernel(gradient("gelu_tanh_grad"), repeatable=True),
    "Where": CompiledKernel(where, repeatable=True),
}
