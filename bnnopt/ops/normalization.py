"""Batch normalisation over a batch's own statistics: to floats or to bits, and its gradient."""

from __future__ import annotations

import onnx_ir as ir

from bnnopt.ops.operator import Form, Operator, TypedDims, dims, dtype, packed_row_bytes


def _training(node: ir.Node) -> list[TypedDims]:
    return [*_result(node), *_statistics(node)]


def _result(node: ir.Node) -> list[TypedDims]:
    return [(ir.DataType(node.attributes["dtype"].as_int()), dims(node.inputs[0]))]


def _signs(node: ir.Node) -> list[TypedDims]:
    shape = dims(node.inputs[0])
    bits = (ir.DataType.UINT8, (shape[0], packed_row_bytes(shape)))
    table = (dtype(node.inputs[1]), (*dims(node.inputs[1]), 4))
    return [bits, bits, *_statistics(node), table, table]


def _statistics(node: ir.Node) -> list[TypedDims]:
    """Next running mean and variance, batch mean and inv_std."""
    channel = dims(node.inputs[1])
    return [(dtype(node.inputs[i]), channel) for i in (3, 4, 1, 1)]


def _grad(node: ir.Node) -> list[TypedDims]:
    dy, channel = node.inputs[0], (dtype(node.inputs[2]), dims(node.inputs[2]))
    return [(dtype(dy), dims(dy)), channel, channel]


def _signs_grad(node: ir.Node) -> list[TypedDims]:
    dy, channel = node.inputs[0], (dtype(node.inputs[3]), dims(node.inputs[3]))
    return [(dtype(dy), dims(dy)), channel, channel]


def _training_body(spread: str) -> str:
    """The body of a batch norm; `spread` makes variance of centred, (N, C, L), and count."""
    return f"""
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
        all_count = Size (x_flat)
        channel_count = Size (mean)
        count_int = Div (all_count, channel_count)
        count = CastLike (count_int, scale)
        {spread}
        shifted = Add (variance, epsilon_like)
        std = Sqrt (shifted)
        inverse = Reciprocal (std)
        scale_channel = Reshape (scale, channel)
        bias_channel = Reshape (bias, channel)
        factor = Mul (inverse, scale_channel)
        scaled = Mul (centred, factor)
        y_flat = Add (scaled, bias_channel)
        x_shape = Shape (x)
        y_wide = Reshape (y_flat, x_shape)
        y = Cast <to: int = @dtype> (y_wide)
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
    """


def _grad_body(direction: str) -> str:
    """The body of a gradient; `direction` is the second factor of the derivative of unit."""
    return f"""
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
        {direction}
        along_unit = Mul (direction, mean_product)
        along_both = Add (along_unit, mean_dy)
        projected = Sub (dy_flat, along_both)
        factor = Mul (scale_channel, inverse)
        dx_flat = Mul (projected, factor)
        x_shape = Shape (x)
        dx_wide = Reshape (dx_flat, x_shape)
        dx = CastLike (dx_wide, dy)
        dscale = Reshape (dscale_channel, vector)
        dbias = Reshape (dbias_channel, vector)
    """


_L2_VARIANCE = """
        sample_squares = ReduceSumSquare <keepdims = 1> (centred, space_axis)
        squares = ReduceSum <keepdims = 1> (sample_squares, batch_axis)
        variance = Div (squares, count)
"""
_L1_VARIANCE = """
        sizes = Abs (centred)
        sample_sizes = ReduceSum <keepdims = 1> (sizes, space_axis)
        all_sizes = ReduceSum <keepdims = 1> (sample_sizes, batch_axis)
        deviation = Div (all_sizes, count)
        variance = Mul (deviation, deviation)
"""
_L2_DIRECTION = "direction = Identity (unit)"
_L1_DIRECTION = """
        sign = Sign (unit)
        mean_sign = ReduceMean <keepdims = 1> (sign, axes)
        size = Abs (unit)
        mean_size = ReduceMean <keepdims = 1> (size, axes)
        balanced = Sub (sign, mean_sign)
        direction = Mul (balanced, mean_size)
"""


BATCH_NORMALIZATION_TRAINING = Operator(
    summary="""y = (x - mean) inv_std scale + bias, with the batch's own mean and variance.

    x: (N, C, ...) float32, float16 or int16; y: the same shape, of `dtype`, which is 1 for float32
    and 10 for float16: then it is computed in float32 and rounded; all others (C,) float32.
    inv_std = 1 / sqrt(variance + epsilon), variance biased (divided by the count). Running
    statistics, as ONNX BatchNormalization in training mode: next = momentum * running +
    (1 - momentum) * batch.
    The body sums squares in two steps, as onnxruntime's float32 sum over both axes is inexact.
    Source: ONNX BatchNormalization-15; Ioffe and Szegedy, arXiv:1502.03167, algorithm 1.
    """,
    signature=(
        "BatchNormalizationTraining <epsilon, momentum, dtype>"
        " (x, scale, bias, running_mean, running_var)"
        " => (y, next_mean, next_var, batch_mean, inv_std)"
    ),
    body=_training_body(_L2_VARIANCE),
    type_rule=_training,
    in_place={0: 0},
)

BATCH_NORMALIZATION_APPLY = Operator(
    summary="""y = (x - mean) inv_std scale + bias: y of BatchNormalizationTraining once more.

    x: (N, C, ...) float32, float16 or int16; y: the same shape, of `dtype`; all others (C,)
    float32, `batch_mean` and `inv_std` as BatchNormalizationTraining left them: then y is the same
    bits.
    """,
    signature="BatchNormalizationApply <dtype> (x, scale, bias, batch_mean, inv_std) => (y)",
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
        y_wide = Reshape (y_flat, x_shape)
        y = Cast <to: int = @dtype> (y_wide)
    """,
    type_rule=_result,
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
    body=_grad_body(_L2_DIRECTION),
    type_rule=_grad,
    in_place={0: 0},
    or_in_place={0: 1},
)

L1_BATCH_NORMALIZATION_TRAINING = Operator(
    summary="""y = (x - mean) inv_std scale + bias, with the mean absolute deviation of the batch.

    deviation = mean|x - mean|;  inv_std = 1 / sqrt(deviation^2 + epsilon). All else is that of
    BatchNormalizationTraining, the running variance too, which follows deviation^2: evaluation then
    divides by the deviation as training does.
    Source: arXiv:2102.04270, algorithm 2, line 4; Wu et al., arXiv:1802.09769.
    """,
    signature=(
        "L1BatchNormalizationTraining <epsilon, momentum, dtype>"
        " (x, scale, bias, running_mean, running_var)"
        " => (y, next_mean, next_var, batch_mean, inv_std)"
    ),
    body=_training_body(_L1_VARIANCE),
    type_rule=_training,
    in_place={0: 0},
    family="BatchNormalizationTraining",
    form=Form.L1,
)

L1_BATCH_NORMALIZATION_GRAD = Operator(
    summary="""Gradients of L1BatchNormalizationTraining, the statistics' own dependence included.

    xh = (x - mean) inv_std;  dbias = sum(dy);  dscale = sum(dy xh);
    dx = scale inv_std (dy - dbias / count - (s - mean(s)) mean|xh| dscale / count),  s = sgn(xh).
    Shapes and types are those of BatchNormalizationGrad.
    """,
    signature="L1BatchNormalizationGrad (dy, x, scale, batch_mean, inv_std) => (dx, dscale, dbias)",
    body=_grad_body(_L1_DIRECTION),
    type_rule=_grad,
    in_place={0: 0},
    or_in_place={0: 1},
    family="BatchNormalizationGrad",
    form=Form.L1,
)

# The four pairs of a sign bit and a mask bit, one of them 1: (4, N, C, L), pair sign + 2 mask.
_PAIRS = """
        flat_shape = Constant <value_ints = [0, 0, -1]> ()
        first_axis = Constant <value_ints = [0]> ()
        sign_bits = bnnopt.UnpackBits <shape: ints = @shape> (signs)
        mask_bits = bnnopt.UnpackBits <shape: ints = @shape> (mask)
        plus = Reshape (sign_bits, flat_shape)
        inside = Reshape (mask_bits, flat_shape)
        minus = Not (plus)
        outside = Not (inside)
        minus_outside = And (minus, outside)
        plus_outside = And (plus, outside)
        minus_inside = And (minus, inside)
        plus_inside = And (plus, inside)
        pair0 = Unsqueeze (minus_outside, first_axis)
        pair1 = Unsqueeze (plus_outside, first_axis)
        pair2 = Unsqueeze (minus_inside, first_axis)
        pair3 = Unsqueeze (plus_inside, first_axis)
        pair_bits = Concat <axis = 0> (pair0, pair1, pair2, pair3)
        pairs = CastLike (pair_bits, inv_std)
"""

BATCH_NORMALIZATION_LEVELS = Operator(
    summary="""What two bits of a batch norm's result say of its input, on average by channel.

    xh = (x - mean) inv_std. levels: the mean of xh over the elements with the same pair of bits,
    sign + 2 mask; 0 where there are none. slopes: the mean of (s - mean(s)) mean|xh|, s = sgn(xh),
    which stands for xh in one place of the derivative of L1 batch norm.
    x: (N, *shape) float32, float16 or int16; signs, mask: (N, ceil(K / 8)) uint8 of the same shape;
    batch_mean, inv_std: (C,) float32; levels, slopes: (C, 4) float32.
    The paper keeps mean|x| for one bit; with the mask's bit, which is kept as well, there are four
    conditional means, the best estimate of xh that the two bits allow.
    Source: arXiv:2102.04270, algorithm 2, line 5 (omega).
    """,
    signature=(
        "BatchNormalizationLevels <shape> (x, signs, mask, batch_mean, inv_std) => (levels, slopes)"
    ),
    body=f"""{_PAIRS}
        channel = Constant <value_ints = [1, -1, 1]> ()
        x_wide = CastLike (x, inv_std)
        x_flat = Reshape (x_wide, flat_shape)
        mean = Reshape (batch_mean, channel)
        inverse = Reshape (inv_std, channel)
        centred = Sub (x_flat, mean)
        unit = Mul (centred, inverse)
        axes = Constant <value_ints = [0, 2]> ()
        {_L1_DIRECTION}
        sample_and_space = Constant <value_ints = [1, 3]> ()
        one = Constant <value_float = 1.0> ()
        one_like = CastLike (one, inv_std)
        counts = ReduceSum <keepdims = 0> (pairs, sample_and_space)
        divisors = Max (counts, one_like)
        paired_units = Mul (pairs, unit)
        unit_sums = ReduceSum <keepdims = 0> (paired_units, sample_and_space)
        unit_means = Div (unit_sums, divisors)
        levels = Transpose <perm = [1, 0]> (unit_means)
        paired_directions = Mul (pairs, direction)
        direction_sums = ReduceSum <keepdims = 0> (paired_directions, sample_and_space)
        direction_means = Div (direction_sums, divisors)
        slopes = Transpose <perm = [1, 0]> (direction_means)
    """,
    type_rule=lambda node: [(dtype(node.inputs[4]), (*dims(node.inputs[4]), 4))] * 2,
)


def _signs_body(norm: str, slopes: str) -> str:
    return f"""
        y, next_mean, next_var, batch_mean, inv_std = bnnopt.{norm} <
            epsilon: float = @epsilon, momentum: float = @momentum, dtype: int = 1
        > (x, scale, bias, running_mean, running_var)
        signs = bnnopt.BinarizePack <zero: float = @zero> (y)
        mask = bnnopt.RangePack <low: float = @low, high: float = @high> (y)
        levels, directions = bnnopt.BatchNormalizationLevels <shape: ints = @shape>
            (x, signs, mask, batch_mean, inv_std)
        slopes = Identity ({slopes})
    """


_SIGNS_SIGNATURE = (
    " <epsilon, momentum, zero, low, high, shape> (x, scale, bias, running_mean, running_var)"
    " => (signs, mask, next_mean, next_var, batch_mean, inv_std, levels, slopes)"
)

BATCH_NORMALIZATION_SIGNS = Operator(
    summary="""The bits of y that its readers ask for, where y = BatchNormalizationTraining(x).

    x: (N, *shape) float32, float16 or int16. signs: the bits of Binarize(y) > 0 with `zero`, as
    BinarizePack; mask: the bits of low <= y <= high, as RangePack: both (N, ceil(K / 8)) uint8.
    levels: (C, 4), as in BatchNormalizationLevels; slopes: levels again. All others (C,) float32,
    as in BatchNormalizationTraining. y is written nowhere.
    Source: arXiv:2102.04270, algorithm 2, lines 4 and 5.
    """,
    signature="BatchNormalizationSigns" + _SIGNS_SIGNATURE,
    body=_signs_body("BatchNormalizationTraining", "levels"),
    type_rule=_signs,
)

L1_BATCH_NORMALIZATION_SIGNS = Operator(
    summary="""The bits of y that its readers ask for, where y = L1BatchNormalizationTraining(x).

    As BatchNormalizationSigns, but slopes are those of BatchNormalizationLevels.
    """,
    signature="L1BatchNormalizationSigns" + _SIGNS_SIGNATURE,
    body=_signs_body("L1BatchNormalizationTraining", "directions"),
    type_rule=_signs,
    family="BatchNormalizationSigns",
    form=Form.L1,
)

BATCH_NORMALIZATION_SIGNS_GRAD = Operator(
    summary="""Gradients of batch norm behind a clipped sign, from the bits of its result alone.

    d = dy where the mask is set, else 0; xh and g: the level and the slope of an element's pair of
    bits, instead of the normalised input and of the factor beside it in its derivative.
    dbias = sum(d);  dscale = sum(d xh);  dx = scale inv_std (d - dbias / count - g dscale / count).
    dy: (N, *shape) float32 or float16, the gradient of the signs; dx as dy; signs, mask, scale,
    inv_std, levels, slopes as BatchNormalizationSigns gives them; dscale, dbias: (C,) float32.
    With scale 1, bias 0 and one level for each sign it is the paper's
    dy = v - mean(v) - mean(v omega xb) xb, v = dx_next / psi.
    Source: arXiv:2102.04270, algorithm 2, lines 10 to 13.
    """,
    signature=(
        "BatchNormalizationSignsGrad <shape> (dy, signs, mask, scale, inv_std, levels, slopes)"
        " => (dx, dscale, dbias)"
    ),
    body=f"""{_PAIRS}
        axes = Constant <value_ints = [0, 2]> ()
        vector = Constant <value_ints = [-1]> ()
        channel = Constant <value_ints = [1, -1, 1]> ()
        table = Constant <value_ints = [4, 1, -1, 1]> ()
        dy_wide = CastLike (dy, scale)
        dy_flat = Reshape (dy_wide, flat_shape)
        nil = Constant <value_float = 0.0> ()
        nil_like = CastLike (nil, scale)
        kept = Where (inside, dy_flat, nil_like)
        level_rows = Transpose <perm = [1, 0]> (levels)
        level_table = Reshape (level_rows, table)
        paired_levels = Mul (pairs, level_table)
        unit = ReduceSum <keepdims = 0> (paired_levels, first_axis)
        slope_rows = Transpose <perm = [1, 0]> (slopes)
        slope_table = Reshape (slope_rows, table)
        paired_slopes = Mul (pairs, slope_table)
        direction = ReduceSum <keepdims = 0> (paired_slopes, first_axis)
        dbias_channel = ReduceSum <keepdims = 1> (kept, axes)
        products = Mul (kept, unit)
        dscale_channel = ReduceSum <keepdims = 1> (products, axes)
        all_count = Size (dy)
        channel_count = Size (scale)
        count_int = Div (all_count, channel_count)
        count = CastLike (count_int, scale)
        mean_kept = Div (dbias_channel, count)
        mean_product = Div (dscale_channel, count)
        along_direction = Mul (direction, mean_product)
        along_both = Add (along_direction, mean_kept)
        projected = Sub (kept, along_both)
        scale_channel = Reshape (scale, channel)
        inverse = Reshape (inv_std, channel)
        factor = Mul (scale_channel, inverse)
        dx_flat = Mul (projected, factor)
        dy_shape = Shape (dy)
        dx_wide = Reshape (dx_flat, dy_shape)
        dx = CastLike (dx_wide, dy)
        dscale = Reshape (dscale_channel, vector)
        dbias = Reshape (dbias_channel, vector)
    """,
    type_rule=_signs_grad,
    in_place={0: 0},
)

OPERATORS = (
    BATCH_NORMALIZATION_TRAINING,
    BATCH_NORMALIZATION_APPLY,
    BATCH_NORMALIZATION_GRAD,
    L1_BATCH_NORMALIZATION_TRAINING,
    L1_BATCH_NORMALIZATION_GRAD,
    BATCH_NORMALIZATION_LEVELS,
    BATCH_NORMALIZATION_SIGNS,
    L1_BATCH_NORMALIZATION_SIGNS,
    BATCH_NORMALIZATION_SIGNS_GRAD,
)
