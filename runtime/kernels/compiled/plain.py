"""Elementwise operators that are stretched, and what goes along an axis, in C: what numpy does as
well, for where there is none."""

from __future__ import annotations

import math

import numpy as np

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled import moving
from bnnopt.runtime.kernels.compiled.calls import (
    FLOAT16,
    INT64,
    Arrays,
    Attributes,
    KernelCall,
    covered,
    integer,
    optional,
)
from bnnopt.runtime.kernels.compiled.convolution import geometry_of
from bnnopt.runtime.kernels.compiled.elementwise import function_of, mapped, unary
from bnnopt.runtime.kernels.compiled.functions import CFunction
from bnnopt.runtime.kernels.compiled.kernel import CompiledKernel
from bnnopt.runtime.kernels.compiled.reduction import around, groups_of
from bnnopt.runtime.kernels.formulas import axes_of

CAST_BOOL = CFunction("void bnn_cast_b8f32(uint8_t*, float*, i64)")
CAST_INTEGER = CFunction("void bnn_cast_i64f32(i64*, float*, i64)")
ONE_HOT = CFunction("void bnn_one_hot_f32(i64*, float*, float*, i64, i64, i64)")
REDUCE_MAX = CFunction("void bnn_reduce_max_f32(float*, float*, i64, i64, i64, i64)")
CONV_TRANSPOSE = CFunction("void bnn_conv_transpose_f32(bnn_conv*, float*, float*, float*, float*)")
MAX_POOL_GRAD = CFunction("int bnn_max_pool_grad_f16(bnn_half*, i64*, bnn_half*, i64, i64, i64)")


def approx_sign_grad(
    inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array
) -> bool:
    """`binarize.approx_sign_grad`."""
    dy, x = inputs
    return x is not None and mapped("approx_sign_grad", dy, x, outputs[0])


def broadcast(name: str, dtype: type[np.generic] = np.float32) -> KernelCall:
    """An operation of two inputs that are stretched to the shape of the output."""

    def run(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
        if len(inputs) != 2 or not covered(*inputs) or outputs[0] is None:
            return False
        y = outputs[0]
        if y.ndim > moving.AXES or not covered(y, dtype=dtype):
            return False
        views = [np.broadcast_to(x, y.shape) for x in inputs if x is not None]
        padding = moving.AXES - y.ndim
        columns = [[1] * padding + list(y.shape)]
        columns += [[0] * padding + [s // 4 for s in view.strides] for view in views]
        return function_of(name, "broadcast_f32")(
            *inputs, y, [number for c in columns for number in c]
        )

    return run


def cast(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`elementwise.cast` of booleans and int64 to float32, and to the dtype that x has."""
    x, y = inputs[0], outputs[0]
    assert x is not None
    assert y is not None
    if covered(x, dtype=np.bool_) and covered(y):
        return CAST_BOOL(x, y, y.size)
    if covered(x, dtype=INT64) and covered(y):
        return CAST_INTEGER(x, y, y.size)
    return moving.copied(x, y)


def one_hot(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`shaping.one_hot` of int64, as deep as the output is."""
    indices, _, values = inputs
    y = outputs[0]
    if not covered(indices, dtype=INT64) or not covered(values, y) or y is None or not y.size:
        return False
    axis = integer({"axis": -1, **attributes}, "axis") % y.ndim
    return ONE_HOT(indices, values, y, *around(y, axis))


def reduce_max(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`reduction.reduce_max`."""
    x, y = inputs[0], outputs[0]
    if x is None or not covered(x, y) or not x.size:
        return False
    noop = integer({"noop_with_empty_axes": 0, **attributes}, "noop_with_empty_axes")
    groups = groups_of(x.shape, axes_of(x, optional(inputs, 1), noop))
    return groups is not None and REDUCE_MAX(x, y, *groups)


def max_pool_grad(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`pooling.max_pool_grad` of halves."""
    (dy, indices), dx = inputs, outputs[0]
    if not covered(dy, dx, dtype=FLOAT16) or not covered(indices, dtype=INT64):
        return False
    assert dy is not None
    assert dx is not None
    planes = math.prod(dx.shape[:2])
    sizes = planes, math.prod(dx.shape[2:]), math.prod(dy.shape[2:])
    return dx.size > 0 and MAX_POOL_GRAD(dy, indices, dx, *sizes)


def conv_transpose(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`convolution.conv_transpose` in one and two dimensions, with pads that are given."""
    (x, w), b, y = inputs[:2], optional(inputs, 2), outputs[0]
    if not covered(x, w, y) or not (b is None or covered(b)):
        return False
    assert x is not None
    assert w is not None
    assert y is not None
    has_own_pads = (
        attributes.get("auto_pad", "NOTSET") == "NOTSET" and "output_shape" not in attributes
    )
    if not has_own_pads or x.ndim not in (3, 4) or 0 in (x.size, y.size):
        return False
    geometry = geometry_of(y.shape, w.shape, x.shape, attributes)
    return geometry is not None and CONV_TRANSPOSE(geometry, x, w, b, y)


KERNELS: dict[str, CompiledKernel] = {
    "Abs": CompiledKernel(unary("abs")),
    "Add": CompiledKernel(broadcast("add")),
    "ApproxSignGrad": CompiledKernel(approx_sign_grad),
    "Cast": CompiledKernel(cast),
    "ConvTranspose": CompiledKernel(conv_transpose),
    "Div": CompiledKernel(broadcast("div")),
    "Equal": CompiledKernel(broadcast("equal", np.bool_)),
    "Greater": CompiledKernel(broadcast("greater", np.bool_)),
    "GreaterOrEqual": CompiledKernel(broadcast("greater_or_equal", np.bool_)),
    "Less": CompiledKernel(broadcast("less", np.bool_)),
    "LessOrEqual": CompiledKernel(broadcast("less_or_equal", np.bool_)),
    "Log": CompiledKernel(unary("log")),
    "Max": CompiledKernel(broadcast("max")),
    "MaxPoolGrad": CompiledKernel(max_pool_grad),
    "Min": CompiledKernel(broadcast("min")),
    "Mul": CompiledKernel(broadcast("mul")),
    "Neg": CompiledKernel(unary("neg")),
    "OneHot": CompiledKernel(one_hot),
    "PRelu": CompiledKernel(broadcast("prelu")),
    "ReduceMax": CompiledKernel(reduce_max),
    "Round": CompiledKernel(unary("round")),
    "Sign": CompiledKernel(unary("sign")),
    "Softplus": CompiledKernel(unary("softplus")),
    "Sqrt": CompiledKernel(unary("sqrt")),
    "Sub": CompiledKernel(broadcast("sub")),
}
