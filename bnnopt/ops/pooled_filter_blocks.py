"""The stem of a residual network on some filters after the other, so that its map is nowhere whole.

A convolution, an L1 batch norm and a max pooling, with a ReLU or without, and the way back to the
weights. The map between them is the largest of such a network; no filter's part of it depends on
another's.
"""

from __future__ import annotations

import onnx_ir as ir

from bnnopt.ops.convolution import CONV_TAP_SUMS, CONV_WEIGHT_GRAD, REAL_CONV
from bnnopt.ops.normalization import L1_BATCH_NORMALIZATION_TRAINING
from bnnopt.ops.operator import (
    MIN_OPSET,
    Form,
    Operator,
    TypedDims,
    dims,
    dtype,
    ints,
    packed_row_bytes,
    passed_on,
)
from bnnopt.ops.pooled_normalization import L1_BATCH_NORMALIZATION_POOL_GRAD, THRESHOLD_PACK
from bnnopt.ops.pooling import PACKED_MAX_POOL
from bnnopt.ops.windows import output_shape

OF_WINDOW = ("kernel_shape", "strides", "pads", "dilations")


def _pooled(node: ir.Node) -> list[TypedDims]:
    x, w, scale, *_, origin = node.inputs
    (n, _, *space), (filters, _, *kernel) = dims(x), dims(w)
    shape = (n, filters, *output_shape(node, space, kernel))
    pooled = (n, filters, *dims(origin))
    places = packed_row_bytes(pooled, len(ints(node, "bit_values")))
    return [
        (ir.DataType(node.attributes["dtype"].as_int()), pooled),
        (ir.DataType.UINT8, (n, places)),
        (ir.DataType.UINT8, (n, packed_row_bytes(shape))),
        *[(dtype(scale), dims(scale))] * 4,
    ]


def _weights(node: ir.Node) -> list[TypedDims]:
    scale, x = node.inputs[5], node.inputs[-1]
    kernel, channel = ints(node, "conv_kernel_shape"), (dtype(scale), dims(scale))
    dw, taps = (*dims(scale), dims(x)[1], *kernel), (*dims(scale), 1, *kernel)
    return [(ir.DataType.FLOAT, dw), (ir.DataType.FLOAT, taps), channel, channel]


_OF_CONV = list(REAL_CONV.function(MIN_OPSET).attribute)
_OF_POOL = {
    name: f"pool_{name}" if name in OF_WINDOW else name
    for name in PACKED_MAX_POOL.function(MIN_OPSET).attribute
}
_OF_NORM = list(L1_BATCH_NORMALIZATION_TRAINING.function(MIN_OPSET).attribute)
_OF_GRAD = list(L1_BATCH_NORMALIZATION_POOL_GRAD.function(MIN_OPSET).attribute)
_OF_WEIGHTS = {name: f"conv_{name}" for name in OF_WINDOW}

REAL_CONV_NORM_MAX_POOL = Operator(
    summary=f"""{REAL_CONV.name}, {L1_BATCH_NORMALIZATION_TRAINING.name} and {PACKED_MAX_POOL.name}.

    With `relu` 1 the maxima are rectified, which are those of what is rectified. sides: the bits of
    {THRESHOLD_PACK.name} of what is pooled, with bias for a threshold. Inputs, outputs and
    attributes are theirs; those of the pooling's window begin with `pool_`. No map is kept.
    """,
    signature=(
        "RealConvNormMaxPool"
        f" <relu, {', '.join(dict.fromkeys([*_OF_CONV, *_OF_NORM, *_OF_POOL.values()]))}>"
        " (x, w, scale, bias, running_mean, running_var, origin)"
        " => (y, packed, sides, next_mean, next_var, batch_mean, inv_std)"
    ),
    body=f"""
        map = bnnopt.{REAL_CONV.name} {passed_on(_OF_CONV)} (x, w)
        n, next_mean, next_var, batch_mean, inv_std =
            bnnopt.{L1_BATCH_NORMALIZATION_TRAINING.name} {passed_on(_OF_NORM)} (
                map, scale, bias, running_mean, running_var
            )
        sides = bnnopt.{THRESHOLD_PACK.name} (n, bias)
        pooled, packed = bnnopt.{PACKED_MAX_POOL.name} {passed_on(_OF_POOL)} (n, origin)
        relu_value = Constant <value_int: int = @relu> ()
        has_relu = Cast <to = 9> (relu_value)
        wide = Cast <to = 1> (pooled)
        above = Relu (wide)
        chosen = Where (has_relu, above, wide)
        y = CastLike (chosen, pooled)
    """,
    type_rule=_pooled,
    family="ConvNormMaxPool",
    form=Form.TYPED | Form.FUSED,
)

REAL_CONV_NORM_MAX_POOL_GRAD = Operator(
    summary=f"""Gradients of RealConvNormMaxPool's parameters, without those of its maps.

    {L1_BATCH_NORMALIZATION_POOL_GRAD.name}, whose dx is dy of {CONV_WEIGHT_GRAD.name} and of
    {CONV_TAP_SUMS.name}. Inputs and attributes are theirs; those of the convolution begin with
    `conv_`, `group` is 1. `dtype` is that of dx, 1 for float32 and 10 for float16.
    """,
    signature=(
        "RealConvNormMaxPoolGrad"
        f" <dtype, conv_input_shape, {', '.join([*_OF_WEIGHTS.values(), *_OF_GRAD])}>"
        " (dy, y, packed, origin, signs, scale, bias, inv_std, x) => (dw, taps, dscale, dbias)"
    ),
    body=f"""
        dy_typed = Cast <to: int = @dtype> (dy)
        dx, dscale, dbias =
            bnnopt.{L1_BATCH_NORMALIZATION_POOL_GRAD.name} {passed_on(_OF_GRAD)} (
                dy_typed, y, packed, origin, signs, scale, bias, inv_std
            )
        dw = bnnopt.{CONV_WEIGHT_GRAD.name} <
            kernel_shape: ints = @conv_kernel_shape, strides: ints = @conv_strides,
            pads: ints = @conv_pads, dilations: ints = @conv_dilations, group: int = 1
        > (x, dx)
        taps = bnnopt.{CONV_TAP_SUMS.name} <
            input_shape: ints = @conv_input_shape, kernel_shape: ints = @conv_kernel_shape,
            strides: ints = @conv_strides, pads: ints = @conv_pads,
            dilations: ints = @conv_dilations
        > (dx)
    """,
    type_rule=_weights,
)

OPERATORS = (REAL_CONV_NORM_MAX_POOL, REAL_CONV_NORM_MAX_POOL_GRAD)
