"""The gradient of max pooling over batch normalisation, from what pooling kept and one bit."""

from __future__ import annotations

import onnx_ir as ir

from bnnopt.ops.operator import Operator, TypedDims, dims, dtype, ints, packed_row_bytes


def _threshold_pack(node: ir.Node) -> list[TypedDims]:
    shape = dims(node.inputs[0])
    return [(ir.DataType.UINT8, (shape[0], packed_row_bytes(shape)))]


def _pool_grad(node: ir.Node) -> list[TypedDims]:
    dy, channel = node.inputs[0], (dtype(node.inputs[5]), dims(node.inputs[5]))
    n, channels = dims(dy)[:2]
    return [(dtype(dy), (n, channels, *ints(node, "input_shape"))), channel, channel]


THRESHOLD_PACK = Operator(
    summary="""packed = the bits of x >= threshold, by channel.

    x: (N, C, ...) float32, float16 or int16; threshold: (C,) float32; packed: (N, ceil(K / 8))
    uint8, as PackBits. A NaN gives 0.
    """,
    signature="ThresholdPack (x, threshold) => (packed)",
    body="""
        flat_shape = Constant <value_ints = [0, 0, -1]> ()
        channel = Constant <value_ints = [1, -1, 1]> ()
        x_wide = CastLike (x, threshold)
        x_flat = Reshape (x_wide, flat_shape)
        threshold_channel = Reshape (threshold, channel)
        reached = GreaterOrEqual (x_flat, threshold_channel)
        packed = bnnopt.PackBits (reached)
    """,
    type_rule=_threshold_pack,
)

L1_BATCH_NORMALIZATION_POOL_GRAD = Operator(
    summary="""Gradients of y = max_pool(L1 batch norm(x)), and with `relu` of relu(y), without x.

    At every maximum xh = (y - bias) / scale, and elsewhere the gradient of the pool's input is 0,
    so sums over it are sums over y; else L1 asks of x only on which side of the mean it lies:
    d = dy (with `relu` where y > 0, else 0);  dbias = sum(d);  dscale = sum(d xh);
    dx = scale inv_std (d where each maximum was - dbias / count
                        - (s - mean(s)) size dscale / count),  s = sgn(xh),
    size = mean|xh| = sqrt(1 - epsilon inv_std^2). dscale is 0 where scale is.
    dy: (N, C, Ho, Wo) float32 or float16; y: the same shape, float32 or float16, before or after
    the ReLU; packed, origin and the attributes from `plane` on are PackedMaxPoolGrad's; signs: the
    bits of scale xh >= 0, (N, ceil(K / 8)) uint8, K the product of `shape` = [C, H, W]; scale,
    bias, inv_std, dscale, dbias: (C,) float32; dx: (N, C, *input_shape), of dy's type.
    """,
    signature=(
        "L1BatchNormalizationPoolGrad <relu, epsilon, shape, input_shape, plane, width,"
        " kernel_width, row_dilation, column_dilation, bit_values, bit_shape>"
        " (dy, y, packed, origin, signs, scale, bias, inv_std) => (dx, dscale, dbias)"
    ),
    body="""
        flat_shape = Constant <value_ints = [0, 0, -1]> ()
        axes = Constant <value_ints = [0, 2]> ()
        vector = Constant <value_ints = [-1]> ()
        channel = Constant <value_ints = [1, -1, 1]> ()
        nil = Constant <value_float = 0.0> ()
        one = Constant <value_float = 1.0> ()
        two = Constant <value_float = 2.0> ()
        epsilon_value = Constant <value_float: float = @epsilon> ()
        relu_value = Constant <value_int: int = @relu> ()
        nil_like = CastLike (nil, scale)
        one_like = CastLike (one, scale)
        two_like = CastLike (two, scale)
        epsilon_like = CastLike (epsilon_value, scale)
        dy_wide = CastLike (dy, scale)
        y_wide = CastLike (y, scale)
        has_relu = Cast <to = 9> (relu_value)
        no_relu = Not (has_relu)
        above = Greater (y_wide, nil_like)
        passes = Or (above, no_relu)
        d = Where (passes, dy_wide, nil_like)
        d_flat = Reshape (d, flat_shape)
        y_flat = Reshape (y_wide, flat_shape)
        scale_channel = Reshape (scale, channel)
        bias_channel = Reshape (bias, channel)
        inverse = Reshape (inv_std, channel)
        dbias_channel = ReduceSum <keepdims = 1> (d_flat, axes)
        centred = Sub (y_flat, bias_channel)
        products = Mul (d_flat, centred)
        along_channel = ReduceSum <keepdims = 1> (products, axes)
        full = bnnopt.PackedMaxPoolGrad <
            input_shape: ints = @input_shape, plane: int = @plane, width: int = @width,
            kernel_width: int = @kernel_width, row_dilation: int = @row_dilation,
            column_dilation: int = @column_dilation, bit_values: ints = @bit_values,
            bit_shape: ints = @bit_shape
        > (d, packed, origin)
        full_flat = Reshape (full, flat_shape)
        bits = bnnopt.UnpackBits <shape: ints = @shape> (signs)
        bits_flat = Reshape (bits, flat_shape)
        zero_one = CastLike (bits_flat, scale)
        zero_two = Mul (zero_one, two_like)
        sign = Sub (zero_two, one_like)
        mean_sign = ReduceMean <keepdims = 1> (sign, axes)
        balanced = Sub (sign, mean_sign)
        all_count = Size (bits_flat)
        channel_count = Size (scale)
        count_int = Div (all_count, channel_count)
        count = CastLike (count_int, scale)
        mean_d = Div (dbias_channel, count)
        mean_along = Div (along_channel, count)
        square = Mul (inverse, inverse)
        small = Mul (square, epsilon_like)
        rest = Sub (one_like, small)
        size_square = Max (rest, nil_like)
        size = Sqrt (size_square)
        scale_sign = Sign (scale_channel)
        signed_size = Mul (scale_sign, size)
        turn = Mul (signed_size, mean_along)
        direction = Mul (balanced, turn)
        level = Sub (full_flat, mean_d)
        scaled = Mul (level, scale_channel)
        projected = Sub (scaled, direction)
        dx_flat = Mul (projected, inverse)
        dx_shape = Shape (full)
        dx_wide = Reshape (dx_flat, dx_shape)
        dx = CastLike (dx_wide, dy)
        is_nil = Equal (scale, nil_like)
        divisor = Where (is_nil, one_like, scale)
        along = Reshape (along_channel, vector)
        ratio = Div (along, divisor)
        dscale = Where (is_nil, nil_like, ratio)
        dbias = Reshape (dbias_channel, vector)
    """,
    type_rule=_pool_grad,
)

OPERATORS = (THRESHOLD_PACK, L1_BATCH_NORMALIZATION_POOL_GRAD)
