"""Products, convolutions, pools, normalisations and the loss."""

from __future__ import annotations

import math

import onnx_ir as ir

from bnnopt.autodiff import window_rules
from bnnopt.autodiff.context import Context, UnknownInput
from bnnopt.autodiff.rules import Grads
from bnnopt.ops import dims, dtype


def matmul(g: Context) -> Grads:
    """Forward: y = a b. Backward: da = dy b^T, db = a^T dy; batch axes broadcast.

    Of a matrix b that goes with all of a stack db is one product, the rows of all in one.
    """
    a, b = g.x(0), g.x(1)
    if len(dims(a)) == 2 and len(dims(b)) == 2:
        return _gemm_grads(g, transposed=(False, False), alpha=1.0)
    if len(dims(a)) < 2 or len(dims(b)) < 2:
        raise UnknownInput("a vector operand: reshape it to a matrix")
    grads = {}
    if 0 in g.wanted:
        grads[0] = g.unbroadcast(g.emit("MatMul", g.dy, _swapped(g, b)), a)
    if 1 in g.wanted and len(dims(b)) == 2:
        rows, dy = (g.emit("Reshape", x, g.integers([-1, dims(x)[-1]])) for x in (a, g.dy))
        grads[1] = g.grad_of(1, "Gemm", rows, dy, transA=1)
    elif 1 in g.wanted:
        grads[1] = g.unbroadcast(_stacked_product(g, a), b)
    return grads


def _stacked_product(g: Context, a: ir.Value) -> ir.Value:
    """a^T dy, or (dy^T a)^T where less is transposed."""
    (n, k), m = dims(a)[-2:], dims(g.dy)[-1]
    if n * k > (n + k) * m:
        return _swapped(g, g.grad_of(1, "MatMul", _swapped(g, g.dy), a))
    return g.grad_of(1, "MatMul", _swapped(g, a), g.dy)


def _swapped(g: Context, value: ir.Value) -> ir.Value:
    rank = len(dims(value))
    return g.emit("Transpose", value, perm=[*range(rank - 2), rank - 1, rank - 2])


def gemm(g: Context) -> Grads:
    """Forward: y = alpha a b + beta c; a or b may be transposed.

    Backward: da = alpha dy b^T, db = alpha a^T dy, dc = beta dy.
    """
    transposed = (bool(g.int_attribute("transA", 0)), bool(g.int_attribute("transB", 0)))
    grads = dict(_gemm_grads(g, transposed, g.attribute("alpha", 1.0)))
    if 2 in g.wanted:
        beta = g.attribute("beta", 1.0)
        scaled = g.dy if beta == 1 else g.emit("Mul", g.dy, g.scalar(beta))
        grads[2] = g.unbroadcast(scaled, g.x(2))
    return grads


def _gemm_grads(g: Context, transposed: tuple[bool, bool], alpha: float) -> Grads:
    """With A' = op(A), B' = op(B): dA' = dy B'^T, dB' = A'^T dy; swap the operands to transpose."""
    (ta, tb), a, b, grads = transposed, g.x(0), g.x(1), {}
    if 0 in g.wanted:
        pair = (b, g.dy, tb, True) if ta else (g.dy, b, False, not tb)
        grads[0] = _product(g, 0, pair, alpha)
    if 1 in g.wanted:
        pair = (g.dy, a, True, ta) if tb else (a, g.dy, not ta, False)
        grads[1] = _product(g, 1, pair, alpha)
    return grads


def _product(
    g: Context, index: int, pair: tuple[ir.Value, ir.Value, bool, bool], alpha: float
) -> ir.Value:
    left, right, left_turned, right_turned = pair
    options = {"transA": int(left_turned), "transB": int(right_turned), "alpha": alpha}
    return g.grad_of(index, "Gemm", left, right, **options)


def conv(g: Context) -> Grads:
    """Forward: y = x * w + b. Backward: dx = dy *^T w, dw = x correlated with dy, db = sum(dy)."""
    shape = window_rules.conv(g.node)
    group = g.int_attribute("group", 1)
    if group < 1:
        raise UnknownInput(f"group {group}: expected at least 1")
    grads = {}
    if 0 in g.wanted:
        grads[0] = g.emit(
            "ConvInputGrad",
            g.dy,
            g.x(1),
            input_shape=list(shape.input_shape),
            output_padding=list(shape.output_padding),
            group=group,
            **shape.attributes(),
        )
    if 1 in g.wanted:
        kernel = list(shape.kernel_shape)
        grads[1] = g.grad_of(
            1,
            "ConvWeightGrad",
            *(g.x(0), g.dy),
            kernel_shape=kernel,
            group=group,
            **shape.attributes(),
        )
    if 2 in g.wanted:
        grads[2] = _channel_sum(g, 2)
    return grads


def conv_transpose(g: Context) -> Grads:
    """Forward: y = x *^T w + b. Backward: dx = dy * w, dw = dy correlated with x, db = sum(dy)."""
    shape, grads = window_rules.conv_transpose(g.node), {}
    group = g.int_attribute("group", 1)
    if 0 in g.wanted:
        dx = g.emit("Conv", g.dy, g.x(1), group=group, **shape.attributes())
        grads[0] = _cut_to(g, dx, dims(g.x())[2:])
    if 1 in g.wanted:
        kernel = list(shape.kernel_shape)
        grads[1] = g.grad_of(
            1,
            "ConvWeightGrad",
            *(g.dy, g.x(0)),
            kernel_shape=kernel,
            group=group,
            **shape.attributes(),
        )
    if 2 in g.wanted:
        grads[2] = _channel_sum(g, 2)
    return grads


def _cut_to(g: Context, value: ir.Value, space: tuple[int, ...]) -> ir.Value:
    """Without what a window finds behind `space`, where its stride is shorter than a padding."""
    if dims(value)[2:] == space:
        return value
    axes = range(2, len(space) + 2)
    limits = ([0] * len(space), list(space), list(axes))
    return g.emit("Slice", value, *map(g.integers, limits))


def max_pool(g: Context) -> Grads:
    """Forward: y, i = max over windows of x and where. Backward: dx = dy added up at i.

    The first maximum in a window takes all of its gradient, as in PyTorch.
    """
    if g.int_attribute("storage_order", 0):
        raise UnknownInput("storage_order 1: export with storage_order 0")
    indices = window_rules.with_indices(g)
    return {0: g.emit("MaxPoolGrad", g.dy, indices, input_shape=list(dims(g.x())[2:]))}


def average_pool(g: Context) -> Grads:
    """Forward: y = mean over windows of x. Backward: dx = dy / count spread over its window."""
    shape = window_rules.average_pool(g.node)
    counts = window_rules.counts(g.node, shape)
    dx = g.emit(
        "AveragePoolGrad",
        g.dy,
        g.backward.constant(counts, dtype(g.dy).numpy(), "counts"),
        input_shape=list(shape.input_shape),
        kernel_shape=list(shape.kernel_shape),
        output_padding=list(shape.output_padding),
        **shape.attributes(),
    )
    return {0: dx}


def global_average_pool(g: Context) -> Grads:
    """Forward: y = mean of x over space. Backward: dx = dy / count."""
    share = g.emit("Div", g.dy, g.scalar(math.prod(dims(g.x())[2:])))
    return {0: g.expand_like(share, g.x())}


def batch_normalization(g: Context) -> Grads:
    """Forward: y = (x - mean) / std scale + bias. Backward: see BatchNormalizationGrad.

    The running statistics of a batch norm that is used twice depend on the parameters, y does not.
    Where only the bias is trained, its gradient is the sum of dy and x is not read.
    """
    if not g.wanted & {0, 1}:
        return {2: _channel_sum(g, 2)} if 2 in g.wanted else {}
    read = g.dy, g.x(0), g.x(1), g.y(3), g.y(4)
    return g.gradients("BatchNormalizationGrad", *read, n_outputs=3)  # not of running statistics


def layer_normalization(g: Context) -> Grads:
    """Forward: y = (x - mean) / std scale + bias, by rows. Backward: see LayerNormalizationGrad."""
    epsilon = g.attribute("epsilon", 1e-5)
    read = g.dy, g.x(), g.x(1)
    return g.gradients("LayerNormalizationGrad", *read, n_outputs=3, epsilon=epsilon)


def frozen_batch_normalization(g: Context) -> Grads:
    """Forward: y = (x - mean) / sqrt(var + epsilon) scale + bias, with the running statistics.

    Backward: dx = dy scale / sqrt(var + epsilon), dbias = sum(dy), dscale =
    sum(dy (x - mean)) / sqrt(var + epsilon).
    """
    grads = {2: _channel_sum(g, 2)} if 2 in g.wanted else {}
    if 0 in g.wanted:
        variance = g.emit("Add", g.x(4), g.scalar(g.attribute("epsilon", 1e-5)))
        slope = g.emit("Div", g.x(1), g.emit("Sqrt", variance))
        per_channel = [-1, *(1 for _ in dims(g.x())[2:])]
        shaped = g.emit("Reshape", slope, g.integers(per_channel))
        grads[0] = g.emit("Mul", g.dy, shaped)
    if 1 in g.wanted:
        grads[1] = _frozen_scale_gradient(g)
    return grads


def _frozen_scale_gradient(g: Context) -> ir.Value:
    per_channel = g.integers([-1, *(1 for _ in dims(g.x())[2:])])
    centred = g.emit("Sub", g.x(), g.emit("Reshape", g.x(3), per_channel))
    axes = g.integers([0, *range(2, len(dims(g.dy)))])
    total = g.emit("ReduceSum", g.emit("Mul", g.dy, centred), axes, keepdims=0)
    variance = g.emit("Add", g.x(4), g.scalar(g.attribute("epsilon", 1e-5)))
    return g.emit("Div", total, g.emit("Sqrt", variance))


def _channel_sum(g: Context, index: int) -> ir.Value:
    """The sum of dy over all axes but the second, the gradient of input `index`."""
    axes = [0, *range(2, len(dims(g.dy)))]
    return g.grad_of(index, "ReduceSum", g.dy, g.integers(axes), keepdims=0)


def softmax_cross_entropy(g: Context) -> Grads:
    """Forward: loss = mean(-log softmax(x)[label]). Backward: dx = (softmax(x) - one_hot) / n."""
    return {0: g.emit("SoftmaxCrossEntropyGrad", g.dy, g.y(1), g.x(1))}
