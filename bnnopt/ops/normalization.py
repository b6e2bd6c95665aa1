"""Batch normalisation over a batch's own statistics: to floats or to bits, and its gradient."""

from __future__ import annotations

import onnx_ir as ir

from bnnopt.ops.operator import Operator, TypedDims, dims, dtype, packed_row_bytes


def _training(node: ir.Node) -> list[TypedDims]:
    return [(dtype(node.inputs[1]), dims(node.inputs[0])), *_statistics(node)]


def _signs(node: ir.Node) -> list[TypedDims]:
    shape = dims(node.inputs[0])
    bits = (ir.DataType.UINT8, (shape[0], packed_row_bytes(shape)))
    return [bits, bits, *_statistics(node)]


def _statistics(node: ir.Node) -> list[TypedDims]:
    """Next running mean and variance, batch mean and inv_std."""
    channel = dims(node.inputs[1])
    return [(dtype(node.inputs[i]), channel) for i in (3, 4, 1, 1)]


def _grad(node: ir.Node) -> list[TypedDims]:
    dy, channel = node.inputs[0], (dtype(node.inputs[2]), dims(node.inputs[2]))
    return [(dtype(dy), dims(dy)), channel, channel]


BATCH_NORMALIZATION_TRAINING = Operator(
    summary="""y = (x - mean) inv_std scale + bias, with the batch's own mean and variance.

    x: (N, C, ...) float32, float16 or int16; y: the same shape, float32; all others (C,) float32.
    inv_std = 1 / sqrt(variance + epsilon), variance biased (divided by the count). Running
    statistics, as ONNX BatchNormalization in training mode: next = momentum * running +
    (1 - momentum) * batch.
    The body sums squares in two steps, as onnxruntime's float32 sum over both axes is inexact.
    Source: ONNX BatchNormalization-15; Ioffe and Szegedy, arXiv:1502.03167, algorithm 1.
    """,
    signature=(
        "BatchNormalizationTraining <epsilon, momentum> (x, scale, bias, running_mean, running_var)"
        " => (y, next_mean, next_var, batch_mean, inv_std)"
    ),
    body="""
        x_wide = CastLike (x, scale)
        epsilon_value = Constant <value_float: float = @epsilon> ()
        momentum_value = Constant <value_float: float = @momentum> ()
        one = Constant <value_float = 1.0> ()
        epsilon_like = CastLike (epsilon_value, scale)
        momentum_like = CastLike (momentum_value, running_mean)
        one_like = CastLike (one, running_mean)
        rest = Sub (one_like, momentum_like)
        flat_shape = Constant <value_ints = [0, 0, -1]> ()
        axes = Constant <value_ints = [0, 2]> ()
        vector = Constant <value_ints = [-1]> ()
        channel = Constant <value_ints = [1, -1, 1]> ()
        x_flat = Reshape (x_wide, flat_shape)
        mean = ReduceMean <keepdims = 1> (x_flat, axes)
        centred = Sub (x_flat, mean)
        space_axis = Constant <value_ints = [2]> ()
        batch_axis = Constant <value_ints = [0]> ()
        sample_squares = ReduceSumSquare <keepdims = 1> (centred, space_axis)
        squares = ReduceSum <keepdims = 1> (sample_squares, batch_axis)
        all_count = Size (x_flat)
        channel_count = Size (mean)
        count_int = Div (all_count, channel_count)
        count = CastLike (count_int, scale)
        variance = Div (squares, count)
        shifted = Add (variance, epsilon_like)
        std = Sqrt (shifted)
        inverse = Reciprocal (std)
        scale_channel = Reshape (scale, channel)
        bias_channel = Reshape (bias, channel)
        factor = Mul (inverse, scale_channel)
        scaled = Mul (centred, factor)
        y_flat = Add (scaled, bias_channel)
        x_shape = Shape (x)
        y = Reshape (y_flat, x_shape)
        batch_mean = Reshape (mean, vector)
        inv_std = Reshape (inverse, vector)
        batch_var = Reshape (variance, vector)
        kept_mean = Mul (running_mean, momentum_like)
        kept_var = Mul (running_var, momentum_like)
        batch_mean_like = CastLike (batch_mean, running_mean)
        batch_var_like = CastLike (batch_var, running_var)
        new_mean = Mul (batch_mean_like, rest)
        new_var = Mul (batch_var_like, rest)
        next_mean = Add (kept_mean, new_mean)
        next_var = Add (kept_var, new_var)
    """,
    type_rule=_training,
    in_place={0: 0},
)

BATCH_NORMALIZATION_APPLY = Operator(
    summary="""y = (x - mean) inv_std scale + bias: y of BatchNormalizationTraining once more.

    x: (N, C, ...) float32, float16 or int16; y: the same shape, float32; all others (C,) float32,
    `batch_mean` and `inv_std` as BatchNormalizationTraining left them: then y is the same bits.
    """,
    signature="BatchNormalizationApply (x, scale, bias, batch_mean, inv_std) => (y)",
    body="""
        flat_shape = Constant <value_ints = [0, 0, -1]> ()
        channel = Constant <value_ints = [1, -1, 1]> ()
        x_wide = CastLike (x, scale)
        x_flat = Reshape (x_wide, flat_shape)
        mean = Reshape (batch_mean, channel)
        inverse = Reshape (inv_std, channel)
        scale_channel = Reshape (scale, channel)
        bias_channel = Reshape (bias, channel)
        centred = Sub (x_flat, mean)
        factor = Mul (inverse, scale_channel)
        scaled = Mul (centred, factor)
        y_flat = Add (scaled, bias_channel)
        x_shape = Shape (x)
        y = Reshape (y_flat, x_shape)
    """,
    type_rule=lambda node: [(dtype(node.inputs[1]), dims(node.inputs[0]))],
    in_place={0: 0},
)

BATCH_NORMALIZATION_GRAD = Operator(
    summary="""Gradients of BatchNormalizationTraining, the statistics' own dependence included.

    xh = (x - mean) inv_std;  dbias = sum(dy);  dscale = sum(dy xh);
    dx = scale inv_std (dy - dbias / count - xh dscale / count).
    dy: (N, C, ...) float32 or float16; x: the same shape, float32, float16 or int16; dx as dy; all
    others (C,) float32, in which everything is computed.
    Source: arXiv:1502.03167, section 3.
    """,
    signature=("BatchNormalizationGrad (dy, x, scale, batch_mean, inv_std) => (dx, dscale, dbias)"),
    body="""
        flat_shape = Constant <value_ints = [0, 0, -1]> ()
        axes = Constant <value_ints = [0, 2]> ()
        vector = Constant <value_ints = [-1]> ()
        channel = Constant <value_ints = [1, -1, 1]> ()
        x_wide = CastLike (x, scale)
        dy_wide = CastLike (dy, scale)
        x_flat = Reshape (x_wide, flat_shape)
        dy_flat = Reshape (dy_wide, flat_shape)
        mean = Reshape (batch_mean, channel)
        inverse = Reshape (inv_std, channel)
        scale_channel = Reshape (scale, channel)
        centred = Sub (x_flat, mean)
        unit = Mul (centred, inverse)
        dbias_channel = ReduceSum <keepdims = 1> (dy_flat, axes)
        products = Mul (dy_flat, unit)
        dscale_channel = ReduceSum <keepdims = 1> (products, axes)
        all_count = Size (x_flat)
        channel_count = Size (scale)
        count_int = Div (all_count, channel_count)
        count = CastLike (count_int, scale)
        mean_dy = Div (dbias_channel, count)
        mean_product = Div (dscale_channel, count)
        along_unit = Mul (unit, mean_product)
        along_both = Add (along_unit, mean_dy)
        projected = Sub (dy_flat, along_both)
        factor = Mul (scale_channel, inverse)
        dx_flat = Mul (projected, factor)
        x_shape = Shape (x)
        dx_wide = Reshape (dx_flat, x_shape)
        dx = CastLike (dx_wide, dy)
        dscale = Reshape (dscale_channel, vector)
        dbias = Reshape (dbias_channel, vector)
    """,
    type_rule=_grad,
    in_place={0: 0},
)

BATCH_NORMALIZATION_SIGNS = Operator(
    summary="""The bits of y that its readers ask for, where y = BatchNormalizationTraining(x).

    x: (N, C, ...) float32, float16 or int16. signs: the bits of Binarize(y) > 0 with `zero`, as
    BinarizePack; mask: the bits of low <= y <= high, as RangePack: both (N, ceil(C .. / 8)) uint8.
    All others (C,) float32, as in BatchNormalizationTraining. y is written nowhere.
    Source: arXiv:2102.04270, algorithm 2, lines 4 and 5.
    """,
    signature=(
        "BatchNormalizationSigns <epsilon, momentum, zero, low, high>"
        " (x, scale, bias, running_mean, running_var)"
        " => (signs, mask, next_mean, next_var, batch_mean, inv_std)"
    ),
    body="""
        y, next_mean, next_var, batch_mean, inv_std = bnnopt.BatchNormalizationTraining <
            epsilon: float = @epsilon, momentum: float = @momentum
        > (x, scale, bias, running_mean, running_var)
        signs = bnnopt.BinarizePack <zero: float = @zero> (y)
        mask = bnnopt.RangePack <low: float = @low, high: float = @high> (y)
    """,
    type_rule=_signs,
)

OPERATORS = (
    BATCH_NORMALIZATION_TRAINING,
    BATCH_NORMALIZATION_APPLY,
    BATCH_NORMALIZATION_GRAD,
    BATCH_NORMALIZATION_SIGNS,
)
