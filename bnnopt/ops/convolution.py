"""Convolutions of real numbers and their gradients."""

from __future__ import annotations

import onnx_ir as ir

from bnnopt.ops.operator import Form, Operator, TypedDims, dims, dtype, ints
from bnnopt.ops.windows import output_shape


def _input_grad(node: ir.Node) -> list[TypedDims]:
    group = node.attributes["group"].as_int()
    n = dims(node.inputs[0])[0]
    channels = dims(node.inputs[1])[1] * group
    return [(dtype(node.inputs[0]), (n, channels, *ints(node, "input_shape")))]


def _weight_grad(node: ir.Node) -> list[TypedDims]:
    group = node.attributes["group"].as_int()
    channels = dims(node.inputs[0])[1] // group
    filters = dims(node.inputs[1])[1]
    return [(ir.DataType.FLOAT, (filters, channels, *ints(node, "kernel_shape")))]


def _real_conv(node: ir.Node) -> list[TypedDims]:
    (n, _, *space), (filters, _, *kernel) = dims(node.inputs[0]), dims(node.inputs[1])
    y_type = ir.DataType(node.attributes["dtype"].as_int())
    return [(y_type, (n, filters, *output_shape(node, space, kernel)))]


REAL_CONV = Operator(
    summary="""y = Conv(x, w), summed in the dtype of w and rounded to `dtype`.

    x: (N, C, *input) float. w: (M, C / group, *kernel) float. y: (N, M, *output), `dtype` is 1 for
    float32, 10 for float16; x may be float16 as well: no wider map need exist. `strides`, `pads`
    (begins, then ends), `dilations`, `group` are those of Conv.
    """,
    signature="RealConv <dtype, strides, pads, dilations, group> (x, w) => (y)",
    body="""
        x_wide = CastLike (x, w)
        wide = Conv <
            strides: ints = @strides, pads: ints = @pads, dilations: ints = @dilations,
            group: int = @group
        > (x_wide, w)
        y = Cast <to: int = @dtype> (wide)
    """,
    type_rule=_real_conv,
    family="Conv",
    form=Form.TYPED,
)

CONV_INPUT_GRAD = Operator(
    summary="""dx of y = Conv(x, w): the transposed convolution of dy with w.

    dy: (N, M, *output) float. w: (M, C / group, *kernel) float. dx: (N, C, *input_shape), the dtype
    of dy; the sums are in that of w.
    `strides`, `pads` (begins, then ends), `dilations`, `group` are the convolution's own;
    `output_padding` is what its stride left unread of each axis.
    """,
    signature=(
        "ConvInputGrad <input_shape, strides, pads, dilations, group, output_padding>"
        " (dy, w) => (dx)"
    ),
    body="""
        dy_wide = CastLike (dy, w)
        dx_wide = ConvTranspose <
            strides: ints = @strides, pads: ints = @pads, dilations: ints = @dilations,
            group: int = @group, output_padding: ints = @output_padding
        > (dy_wide, w)
        dx = CastLike (dx_wide, dy)
    """,
    type_rule=_input_grad,
)

CONV_WEIGHT_GRAD = Operator(
    summary="""dw of y = Conv(x, w): x correlated with dy over batch and space.

    x: (N, C, *input) float. dy: (N, M, *output) float. dw: (M, C / group, *kernel_shape), float32.
    The body takes channels for samples and samples for channels: then dw is the convolution of x
    with dy, strides and dilations exchanged, and cut to the kernel's shape.
    """,
    signature=("ConvWeightGrad <kernel_shape, strides, pads, dilations, group> (x, dy) => (dw)"),
    body="""
        zero = Constant <value_ints = [0]> ()
        minus = Constant <value_ints = [-1]> ()
        groups_value = Constant <value_int: int = @group> ()
        groups = Reshape (groups_value, minus)
        x_space = Shape <start = 2> (x)
        dy_space = Shape <start = 2> (dy)
        x_channels = Shape <start = 1, end = 2> (x)
        filters = Shape <start = 1, end = 2> (dy)
        samples = Shape <start = 0, end = 1> (x)
        group_channels = Div (x_channels, groups)
        group_filters = Div (filters, groups)
        x_split = Concat <axis = 0> (zero, groups, group_channels, minus)
        x_wide = Cast <to = 1> (x)
        x_groups = Reshape (x_wide, x_split)
        x_turned = Transpose <perm = [2, 1, 0, 3]> (x_groups)
        group_samples = Mul (groups, samples)
        x_shape = Concat <axis = 0> (group_channels, group_samples, x_space)
        x_image = Reshape (x_turned, x_shape)
        dy_split = Concat <axis = 0> (zero, groups, group_filters, minus)
        dy_wide = Cast <to = 1> (dy)
        dy_groups = Reshape (dy_wide, dy_split)
        dy_turned = Transpose <perm = [1, 2, 0, 3]> (dy_groups)
        dy_shape = Concat <axis = 0> (filters, samples, dy_space)
        dy_filter = Reshape (dy_turned, dy_shape)
        wide = Conv <
            strides: ints = @dilations, pads: ints = @pads, dilations: ints = @strides,
            group: int = @group
        > (x_image, dy_filter)
        kernel = Constant <value_ints: ints = @kernel_shape> ()
        start = Mul (kernel, zero)
        rank = Shape (x_shape)
        rank_value = ReduceSum <keepdims = 0> (rank)
        first_axis = Constant <value_int = 2> ()
        step = Constant <value_int = 1> ()
        axes = Range (first_axis, rank_value, step)
        cut = Slice (wide, start, kernel, axes)
        flat_shape = Constant <value_ints = [0, 0, -1]> ()
        flat = Reshape (cut, flat_shape)
        turned = Transpose <perm = [1, 0, 2]> (flat)
        dw_shape = Concat <axis = 0> (filters, group_channels, kernel)
        dw = Reshape (turned, dw_shape)
    """,
    type_rule=_weight_grad,
)

CONV_TAP_SUMS = Operator(
    summary="""What each tap of a convolution's kernel sees of dy: its sum where the tap is inside.

    The sum of dy over the batch and over the outputs whose tap lies inside the input, not in the
    padding: dw of an input of ones. dy: (N, M, *output) float32 or float16; sums: (M, 1,
    *kernel_shape) float32. With them sum(dx) over batch and space is the sum of w * sums over
    filters and taps. The attributes are those of ConvInputGrad.
    """,
    signature=("ConvTapSums <input_shape, kernel_shape, strides, pads, dilations> (dy) => (sums)"),
    body="""
        one = Constant <value_float = 1.0> ()
        channel = Constant <value_ints = [1]> ()
        space = Constant <value_ints: ints = @input_shape> ()
        samples = Shape <start = 0, end = 1> (dy)
        x_shape = Concat <axis = 0> (samples, channel, space)
        x = Expand (one, x_shape)
        sums = bnnopt.ConvWeightGrad <
            kernel_shape: ints = @kernel_shape, strides: ints = @strides, pads: ints = @pads,
            dilations: ints = @dilations, group: int = 1
        > (x, dy)
    """,
    type_rule=lambda node: [
        (ir.DataType.FLOAT, (dims(node.inputs[0])[1], 1, *ints(node, "kernel_shape")))
    ],
)

OPERATORS = (REAL_CONV, CONV_INPUT_GRAD, CONV_WEIGHT_GRAD, CONV_TAP_SUMS)
