"""What numpy does better, in C for where there is none."""

from __future__ import annotations

from bnnopt.runtime.kernels import Array
from bnnopt.runtime.kernels.compiled.calls import (
    INT64,
    Arrays,
    Attributes,
    covered,
    integer,
    optional,
)
from bnnopt.runtime.kernels.compiled.convolution import geometry_of
from bnnopt.runtime.kernels.compiled.functions import CFunction
from bnnopt.runtime.kernels.compiled.kernel import CompiledKernel
from bnnopt.runtime.kernels.compiled.reduction import around

ONE_HOT = CFunction("void bnn_one_hot_f32(i64*, float*, float*, i64, i64, i64)")
CONV_TRANSPOSE = CFunction("void bnn_conv_transpose_f32(bnn_conv*, float*, float*, float*, float*)")


def one_hot(inputs: Arrays, outputs: Arrays, attributes: Attributes, scratch: Array) -> bool:
    """`shaping.one_hot` of int64, as deep as the output is."""
    indices, _, values = inputs
    y = outputs[0]
    if not covered(indices, dtype=INT64) or not covered(values, y) or y is None or not y.size:
        return False
    axis = integer({"axis": -1, **attributes}, "axis") % y.ndim
    return ONE_HOT(indices, values, y, *around(y, axis))


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
    "ConvTranspose": CompiledKernel(conv_transpose),
    "OneHot": CompiledKernel(one_hot),
}
