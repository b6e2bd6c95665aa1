"""Products with +-1 tensors that are kept as bits, forward and backward.

A packed operand is what SignPack made of it; its unpacked shape behind the first axis is an
attribute. The bodies unpack and multiply as floats. Gradients take dy as float32 or float16 and sum
in float32; dx has the dtype of dy, rounded once, dw is float32.
"""

from __future__ import annotations

import onnx_ir as ir

from bnnopt.ops.operator import Form, Operator, TypedDims, dims, dtype, ints, packed_row_bytes
from bnnopt.ops.windows import output_shape


def _result_type(node: ir.Node) -> ir.DataType:
    return ir.DataType(node.attributes["dtype"].as_int())


def _conv(node: ir.Node) -> list[TypedDims]:
    n, filters = dims(node.inputs[0])[0], dims(node.inputs[1])[0]
    result = output_shape(node, ints(node, "x_shape")[1:], ints(node, "w_shape")[1:])
    return [(_result_type(node), (n, filters, *result))]


def _filters(node: ir.Node) -> int:
    """Of a weight gradient; a packed dy has its shape as an attribute."""
    return ints(node, "dy_shape")[0] if "dy_shape" in node.attributes else dims(node.inputs[1])[1]


def _dx_type(node: ir.Node) -> ir.DataType:
    """Of an input gradient: that of dy, or what a packed dy was."""
    return _result_type(node) if "dtype" in node.attributes else dtype(node.inputs[0])


def _conv_weight_grad(node: ir.Node) -> list[TypedDims]:
    channels = ints(node, "x_shape")[0] // node.attributes["group"].as_int()
    return [(ir.DataType.FLOAT, (_filters(node), channels, *ints(node, "kernel_shape")))]


def _weight_grad_signs(node: ir.Node) -> list[TypedDims]:
    rule = _conv_weight_grad if "kernel_shape" in node.attributes else _gemm_weight_grad
    ((_, shape),) = rule(node)
    return [(ir.DataType.UINT8, (shape[0], packed_row_bytes(shape)))]


def _conv_input_grad(node: ir.Node) -> list[TypedDims]:
    channels = ints(node, "w_shape")[0] * node.attributes["group"].as_int()
    n = dims(node.inputs[0])[0]
    return [(_dx_type(node), (n, channels, *ints(node, "input_shape")))]


def _gemm(node: ir.Node) -> list[TypedDims]:
    return [(_result_type(node), (dims(node.inputs[0])[0], dims(node.inputs[1])[0]))]


def _gemm_weight_grad(node: ir.Node) -> list[TypedDims]:
    return [(ir.DataType.FLOAT, (_filters(node), *ints(node, "x_shape")))]


def _gemm_input_grad(node: ir.Node) -> list[TypedDims]:
    return [(_dx_type(node), (dims(node.inputs[0])[0], *ints(node, "w_shape")))]


BINARY_CONV = Operator(
    summary="""y = Conv(x, w) of two tensors of -1 and +1; padding is 0, as in Conv.

    x_packed: (N, ceil(C H W / 8)) uint8, `x_shape` is [C, H, W]. w_packed: (M, ceil(K / 8)) uint8,
    `w_shape` is [C / group, kh, kw], K their product. y: (N, M, Ho, Wo), integers, in the ONNX
    `dtype`: 1, float32, or 5, int16, exact where C / group kh kw is at most 32,767; or 10, float16,
    which is exact up to 2048.
    """,
    signature=(
        "BinaryConv <x_shape, w_shape, strides, pads, dilations, group, dtype>"
        " (x_packed, w_packed) => (y)"
    ),
    body="""
        x = bnnopt.SignUnpack <shape: ints = @x_shape> (x_packed)
        w = bnnopt.SignUnpack <shape: ints = @w_shape> (w_packed)
        wide = Conv <
            strides: ints = @strides, pads: ints = @pads, dilations: ints = @dilations,
            group: int = @group
        > (x, w)
        y = Cast <to: int = @dtype> (wide)
    """,
    type_rule=_conv,
)

BINARY_CONV_WEIGHT_GRAD = Operator(
    summary="""dw of y = BinaryConv(x, w): ConvWeightGrad of the unpacked x and dy.

    x_packed: (N, ceil(C H W / 8)) uint8, `x_shape` is [C, H, W]. dy: (N, M, Ho, Wo) float32 or
    float16. dw: (M, C / group, *kernel_shape) float32.
    """,
    signature=(
        "BinaryConvWeightGrad <x_shape, kernel_shape, strides, pads, dilations, group>"
        " (x_packed, dy) => (dw)"
    ),
    body="""
        x = bnnopt.SignUnpack <shape: ints = @x_shape> (x_packed)
        wide = Cast <to = 1> (dy)
        dw = bnnopt.ConvWeightGrad <
            kernel_shape: ints = @kernel_shape, strides: ints = @strides, pads: ints = @pads,
            dilations: ints = @dilations, group: int = @group
        > (x, wide)
    """,
    type_rule=_conv_weight_grad,
)

BINARY_CONV_WEIGHT_GRAD_SIGNS = Operator(
    summary="""The signs of BinaryConvWeightGrad's dw, of which nothing else is kept.

    Inputs and attributes are that operator's. signs: (M, ceil(K / 8)) uint8, K elements a filter;
    a bit is 1 where dw >= 0, as BinarizePack has it with zero = +1.
    """,
    signature=(
        "BinaryConvWeightGradSigns <x_shape, kernel_shape, strides, pads, dilations, group>"
        " (x_packed, dy) => (signs)"
    ),
    body="""
        dw = bnnopt.BinaryConvWeightGrad <
            x_shape: ints = @x_shape, kernel_shape: ints = @kernel_shape,
            strides: ints = @strides, pads: ints = @pads, dilations: ints = @dilations,
            group: int = @group
        > (x_packed, dy)
        signs = bnnopt.BinarizePack <zero = 1.0> (dw)
    """,
    type_rule=_weight_grad_signs,
    family="BinaryConvWeightGrad",
    form=Form.SIGNS,
)

BINARY_CONV_INPUT_GRAD = Operator(
    summary="""dx of y = BinaryConv(x, w): ConvInputGrad of dy and the unpacked w.

    dy: (N, M, Ho, Wo) float32 or float16. w_packed: (M, ceil(K / 8)) uint8, `w_shape` is
    [C / group, kh, kw]. dx: (N, C, *input_shape), the dtype of dy, over which it may be written.
    """,
    signature=(
        "BinaryConvInputGrad"
        " <input_shape, w_shape, strides, pads, dilations, group, output_padding>"
        " (dy, w_packed) => (dx)"
    ),
    body="""
        w = bnnopt.SignUnpack <shape: ints = @w_shape> (w_packed)
        wide = Cast <to = 1> (dy)
        wide_dx = bnnopt.ConvInputGrad <
            input_shape: ints = @input_shape, strides: ints = @strides, pads: ints = @pads,
            dilations: ints = @dilations, group: int = @group,
            output_padding: ints = @output_padding
        > (wide, w)
        dx = CastLike (wide_dx, dy)
    """,
    type_rule=_conv_input_grad,
    in_place={0: 0},
)

BINARY_GEMM = Operator(
    summary="""y = x times w transposed, of two matrices of -1 and +1.

    x_packed: (N, ceil(K / 8)) uint8, w_packed: (M, ceil(K / 8)) uint8; `x_shape` and `w_shape` are
    [K]. y: (N, M), integers, in the ONNX `dtype`: 1, float32, or 5, int16, exact where K is at most
    32,767; or 10, float16, which is exact up to 2048.
    """,
    signature="BinaryGemm <x_shape, w_shape, dtype> (x_packed, w_packed) => (y)",
    body="""
        x = bnnopt.SignUnpack <shape: ints = @x_shape> (x_packed)
        w = bnnopt.SignUnpack <shape: ints = @w_shape> (w_packed)
        wide = Gemm <transB = 1> (x, w)
        y = Cast <to: int = @dtype> (wide)
    """,
    type_rule=_gemm,
)

BINARY_GEMM_WEIGHT_GRAD = Operator(
    summary="""dw of y = BinaryGemm(x, w): dy transposed times x.

    x_packed: (N, ceil(K / 8)) uint8, `x_shape` is [K]. dy: (N, M) float32 or float16.
    dw: (M, K) float32.
    """,
    signature="BinaryGemmWeightGrad <x_shape> (x_packed, dy) => (dw)",
    body="""
        x = bnnopt.SignUnpack <shape: ints = @x_shape> (x_packed)
        wide = Cast <to = 1> (dy)
        dw = Gemm <transA = 1> (wide, x)
    """,
    type_rule=_gemm_weight_grad,
)

BINARY_GEMM_WEIGHT_GRAD_SIGNS = Operator(
    summary="""The signs of BinaryGemmWeightGrad's dw, of which nothing else is kept.

    Inputs and attributes are that operator's. signs: (M, ceil(K / 8)) uint8; a bit is 1 where
    dw >= 0, as BinarizePack has it with zero = +1.
    """,
    signature="BinaryGemmWeightGradSigns <x_shape> (x_packed, dy) => (signs)",
    body="""
        dw = bnnopt.BinaryGemmWeightGrad <x_shape: ints = @x_shape> (x_packed, dy)
        signs = bnnopt.BinarizePack <zero = 1.0> (dw)
    """,
    type_rule=_weight_grad_signs,
    family="BinaryGemmWeightGrad",
    form=Form.SIGNS,
)

BINARY_GEMM_INPUT_GRAD = Operator(
    summary="""dx of y = BinaryGemm(x, w): dy times w.

    dy: (N, M) float32 or float16. w_packed: (M, ceil(K / 8)) uint8, `w_shape` is [K].
    dx: (N, K), the dtype of dy.
    """,
    signature="BinaryGemmInputGrad <w_shape> (dy, w_packed) => (dx)",
    body="""
        w = bnnopt.SignUnpack <shape: ints = @w_shape> (w_packed)
        wide = Cast <to = 1> (dy)
        wide_dx = Gemm (wide, w)
        dx = CastLike (wide_dx, dy)
    """,
    type_rule=_gemm_input_grad,
)

OPERATORS = (
    BINARY_CONV,
    BINARY_CONV_WEIGHT_GRAD,
    BINARY_CONV_WEIGHT_GRAD_SIGNS,
    BINARY_CONV_INPUT_GRAD,
    BINARY_GEMM,
    BINARY_GEMM_WEIGHT_GRAD,
    BINARY_GEMM_WEIGHT_GRAD_SIGNS,
    BINARY_GEMM_INPUT_GRAD,
)
