"""The table of gradient rules: one per operator, forward and backward side by side.

A rule takes a `Context` and returns the gradient of each wanted input, by index. ``dy`` is the
gradient of the loss with respect to output ``y``; sums over broadcast axes are implied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from bnnopt.autodiff import windows
from bnnopt.autodiff.context import Context, UnknownInput
from bnnopt.ops import dims, dtype

Grads = Mapping[int, ir.Value]
Rule = Callable[[Context], Grads]


def add(g: Context) -> Grads:
    """Forward: y = a + b. Backward: da = dy, db = dy."""
    return {i: g.unbroadcast(g.dy, g.x(i)) for i in g.wanted}


def sub(g: Context) -> Grads:
    """Forward: y = a - b. Backward: da = dy, db = -dy."""
    signed = {0: lambda: g.dy, 1: lambda: g.emit("Neg", g.dy)}
    return {i: g.unbroadcast(signed[i](), g.x(i)) for i in g.wanted}


def mul(g: Context) -> Grads:
    """Forward: y = a b. Backward: da = dy b, db = dy a."""
    return {i: g.unbroadcast(g.grad_of(i, "Mul", g.dy, g.x(1 - i)), g.x(i)) for i in g.wanted}


def div(g: Context) -> Grads:
    """Forward: y = a / b. Backward: da = dy / b, db = -dy y / b."""
    ratio = g.emit("Div", g.dy, g.x(1))
    grads = {0: g.unbroadcast(ratio, g.x(0))} if 0 in g.wanted else {}
    if 1 in g.wanted:
        product = g.emit("Mul", ratio, g.y())
        grads[1] = g.unbroadcast(g.emit("Neg", product), g.x(1))
    return grads


def neg(g: Context) -> Grads:
    """Forward: y = -x. Backward: dx = -dy."""
    return {0: g.emit("Neg", g.dy)}


def absolute(g: Context) -> Grads:
    """Forward: y = |x|. Backward: dx = dy sign(x), 0 at 0."""
    return {0: g.emit("Mul", g.dy, g.emit("Sign", g.x()))}


def sqrt(g: Context) -> Grads:
    """Forward: y = sqrt(x). Backward: dx = dy / (2 y)."""
    return {0: g.emit("Div", g.dy, g.emit("Mul", g.y(), g.scalar(2.0)))}


def reciprocal(g: Context) -> Grads:
    """Forward: y = 1 / x. Backward: dx = -dy y^2."""
    return {0: g.emit("Neg", g.emit("Mul", g.dy, g.emit("Mul", g.y(), g.y())))}


def power(g: Context) -> Grads:
    """Forward: y = x^p, p constant. Backward: dx = dy p x^(p - 1)."""
    exponent = g.known(1)
    if exponent is None or exponent.size != 1:
        raise UnknownInput("the exponent must be one constant number")
    p = float(exponent.item())
    if p == 0:
        return {}
    slope = g.x() if p == 2 else g.emit("Pow", g.x(), g.scalar(p - 1))
    return {0: g.unbroadcast(g.emit("Mul", g.dy, g.emit("Mul", slope, g.scalar(p))), g.x())}


def exp(g: Context) -> Grads:
    """Forward: y = exp(x). Backward: dx = dy y."""
    return {0: g.emit("Mul", g.dy, g.y())}


def log(g: Context) -> Grads:
    """Forward: y = ln(x). Backward: dx = dy / x."""
    return {0: g.emit("Div", g.dy, g.x())}


def erf(g: Context) -> Grads:
    """Forward: y = erf(x). Backward: dx = dy 2 / sqrt(pi) exp(-x^2)."""
    bell = g.emit("Exp", g.emit("Neg", g.emit("Mul", g.x(), g.x())))
    return {0: g.emit("Mul", g.dy, g.emit("Mul", bell, g.scalar(2 / math.sqrt(math.pi))))}


def sigmoid(g: Context) -> Grads:
    """Forward: y = 1 / (1 + exp(-x)). Backward: dx = dy y (1 - y)."""
    rest = g.emit("Sub", g.scalar(1.0), g.y())
    return {0: g.emit("Mul", g.emit("Mul", g.dy, rest), g.y())}


def tanh(g: Context) -> Grads:
    """Forward: y = tanh(x). Backward: dx = dy (1 - y^2)."""
    rest = g.emit("Sub", g.scalar(1.0), g.emit("Mul", g.y(), g.y()))
    return {0: g.emit("Mul", g.dy, rest)}


def softplus(g: Context) -> Grads:
    """Forward: y = ln(1 + exp(x)). Backward: dx = dy sigmoid(x)."""
    return {0: g.emit("Mul", g.dy, g.emit("Sigmoid", g.x()))}


def gelu(g: Context) -> Grads:
    """Forward: y = x Phi(x), or x (1 + tanh(u)) / 2 with u = a (x + b x^3), a = sqrt(2 / pi).

    Backward: dx = dy (Phi(x) + x phi(x)), or dy ((1 + t) / 2 + x (1 - t^2) a (1 + 3 b x^2) / 2),
    t = tanh(u).
    """
    approximate = g.node.attributes.get("approximate")
    is_tanh = approximate is not None and approximate.as_string() == "tanh"
    slope = _gelu_slope_by_tanh(g) if is_tanh else _gelu_slope(g)
    return {0: g.emit("Mul", g.dy, slope)}


def _gelu_slope(g: Context) -> ir.Value:
    unit = g.emit("Erf", g.emit("Mul", g.x(), g.scalar(1 / math.sqrt(2))))
    phi = g.emit("Mul", g.emit("Add", unit, g.scalar(1.0)), g.scalar(0.5))
    square = g.emit("Mul", g.x(), g.x())
    bell = g.emit("Exp", g.emit("Mul", square, g.scalar(-0.5)))
    density = g.emit("Mul", bell, g.scalar(1 / math.sqrt(2 * math.pi)))
    return g.emit("Add", phi, g.emit("Mul", g.x(), density))


def _gelu_slope_by_tanh(g: Context) -> ir.Value:
    a, b = math.sqrt(2 / math.pi), 0.044715
    square = g.emit("Mul", g.x(), g.x())
    line = g.emit("Add", g.emit("Mul", square, g.scalar(a * b)), g.scalar(a))
    t = g.emit("Tanh", g.emit("Mul", g.x(), line))
    half = g.emit("Mul", g.emit("Add", t, g.scalar(1.0)), g.scalar(0.5))
    rest = g.emit("Sub", g.scalar(1.0), g.emit("Mul", t, t))
    inner = g.emit("Add", g.emit("Mul", square, g.scalar(1.5 * a * b)), g.scalar(0.5 * a))
    return g.emit("Add", half, g.emit("Mul", g.x(), g.emit("Mul", rest, inner)))


def relu(g: Context) -> Grads:
    """Forward: y = max(x, 0). Backward: dx = dy where y > 0."""
    return {0: g.emit("ReluGrad", g.dy, g.y())}


def maximum(g: Context) -> Grads:
    """Forward: y = max(a, b). Backward: da = dy where a > b, dy / 2 where a = b, as PyTorch."""
    return _of_larger(g, "Greater")


def minimum(g: Context) -> Grads:
    """Forward: y = min(a, b). Backward: da = dy where a < b, dy / 2 where a = b, as PyTorch."""
    return _of_larger(g, "Less")


def _of_larger(g: Context, wins: str) -> Grads:
    if len(g.node.inputs) > 2:
        raise UnknownInput(f"{len(g.node.inputs)} operands, expected two")
    if len(g.node.inputs) == 1:
        return {0: g.dy}
    shared = g.emit("Mul", g.dy, g.scalar(0.5))
    tied = g.emit("Where", g.emit("Equal", g.x(0), g.x(1)), shared, g.scalar(0.0))
    grads = {}
    for i in g.wanted:
        first = g.emit(wins, g.x(i), g.x(1 - i))
        grads[i] = g.unbroadcast(g.grad_of(i, "Where", first, g.dy, tied), g.x(i))
    return grads


def leaky_relu(g: Context) -> Grads:
    """Forward: y = x where x > 0, else a x. Backward: dx = dy where x > 0, else a dy."""
    slope = g.scalar(g.attribute("alpha", 0.01))
    positive = g.emit("Greater", g.x(), g.scalar(0.0))
    return {0: g.emit("Where", positive, g.dy, g.emit("Mul", g.dy, slope))}


def prelu(g: Context) -> Grads:
    """Forward: y = x where x > 0, else a x. Backward: da = x dy where x <= 0."""
    positive = g.emit("Greater", g.x(), g.scalar(0.0))
    grads = {}
    if 0 in g.wanted:
        grads[0] = g.emit("Where", positive, g.dy, g.emit("Mul", g.dy, g.x(1)))
    if 1 in g.wanted:
        product = g.emit("Mul", g.dy, g.x())
        grads[1] = g.unbroadcast(g.emit("Where", positive, g.scalar(0.0), product), g.x(1))
    return grads


def clip(g: Context) -> Grads:
    """Forward: y = min(max(x, low), high). Backward: dx = dy where low <= x <= high."""
    low, high = g.known(1), g.known(2)
    return {
        0: g.emit(
            "ClipGrad",
            g.dy,
            g.x(),
            low=float(np.finfo(np.float32).min) if low is None else float(low.item()),
            high=float(np.finfo(np.float32).max) if high is None else float(high.item()),
        )
    }


def hard_sigmoid(g: Context) -> Grads:
    """Forward: y = clip(a x + b, 0, 1). Backward: dx = a dy where 0 <= a x + b <= 1."""
    alpha, beta = g.attribute("alpha", 0.2), g.attribute("beta", 0.5)
    if alpha == 0:
        return {}
    low, high = sorted((-beta / alpha, (1 - beta) / alpha))
    return {0: g.emit("ClipGrad", g.emit("Mul", g.dy, g.scalar(alpha)), g.x(), low=low, high=high)}


def hard_swish(g: Context) -> Grads:
    """Forward: y = x clip(x / 6 + 1 / 2, 0, 1).

    Backward: dx = dy (x / 3 + 1 / 2) where -3 <= x <= 3, dy above, 0 below.
    """
    slope = g.emit("Add", g.emit("Mul", g.x(), g.scalar(1 / 3)), g.scalar(0.5))
    inner = g.emit("Mul", g.dy, slope)
    above = g.emit("Greater", g.x(), g.scalar(3.0))
    below = g.emit("Less", g.x(), g.scalar(-3.0))
    upper = g.emit("Where", above, g.dy, inner)
    return {0: g.emit("Where", below, g.scalar(0.0), upper)}


def softmax(g: Context) -> Grads:
    """Forward: y = exp(x) / sum(exp(x)). Backward: dx = y (dy - sum(dy y))."""
    axes = g.integers([g.int_attribute("axis", -1)])
    total = g.emit("ReduceSum", g.emit("Mul", g.dy, g.y()), axes, keepdims=1)
    return {0: g.emit("Mul", g.y(), g.emit("Sub", g.dy, total))}


def log_softmax(g: Context) -> Grads:
    """Forward: y = x - ln(sum(exp(x))). Backward: dx = dy - exp(y) sum(dy)."""
    axes = g.integers([g.int_attribute("axis", -1)])
    total = g.emit("ReduceSum", g.dy, axes, keepdims=1)
    return {0: g.emit("Sub", g.dy, g.emit("Mul", g.emit("Exp", g.y()), total))}


def step(g: Context) -> Grads:
    """Forward: y = round(x), or another step function. Backward: 0 wherever it has a derivative."""
    return {}


def binarize(g: Context) -> Grads:
    """Forward: y = sign(x). Backward: by the node's straight-through estimator.

    clipped: dx = dy where |x| <= clip (arXiv:1602.02830); identity: dx = dy; approx-sign: dx = dy
    max(0, 2 - 2|x|) (arXiv:1808.00278); swish-sign: arXiv:1812.11800 with beta = 5.
    """
    estimator = g.node.attributes["ste"].as_string()
    if estimator == "identity":
        return {0: g.dy}
    if estimator == "approx-sign":
        return {0: g.emit("ApproxSignGrad", g.dy, g.x())}
    if estimator == "swish-sign":
        return {0: g.emit("SwishSignGrad", g.dy, g.x(), beta=5.0)}
    bound = g.attribute("clip", 1.0)
    return {0: g.emit("ClipGrad", g.dy, g.x(), low=-bound, high=bound)}


def straight_through(g: Context) -> Grads:
    """Forward: y = b. Backward: ds = dy, and nothing to b."""
    return {1: g.unbroadcast(g.dy, g.x(1))} if 1 in g.wanted else {}


def matmul(g: Context) -> Grads:
    """Forward: y = a b. Backward: da = dy b^T, db = a^T dy; batch axes broadcast."""
    a, b = g.x(0), g.x(1)
    if len(dims(a)) == 2 and len(dims(b)) == 2:
        return _gemm_grads(g, transposed=(False, False), alpha=1.0)
    if len(dims(a)) < 2 or len(dims(b)) < 2:
        raise UnknownInput("a vector operand: reshape it to a matrix")
    grads = {}
    if 0 in g.wanted:
        grads[0] = g.unbroadcast(g.emit("MatMul", g.dy, _swapped(g, b)), a)
    if 1 in g.wanted:
        grads[1] = g.unbroadcast(g.grad_of(1, "MatMul", _swapped(g, a), g.dy), b)
    return grads


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
    shape = windows.conv(g.node)
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
    shape, grads = windows.conv_transpose(g.node), {}
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
    indices = windows.with_indices(g)
    return {0: g.emit("MaxPoolGrad", g.dy, indices, input_shape=list(dims(g.x())[2:]))}


def average_pool(g: Context) -> Grads:
    """Forward: y = mean over windows of x. Backward: dx = dy / count spread over its window.

    Spreading is the input gradient of a convolution with ones, one channel at a time.
    """
    shape = windows.average_pool(g.node)
    counts = windows.counts(g.node, shape)
    kind = dtype(g.dy).numpy()
    share = g.emit("Div", g.dy, g.backward.constant(counts, kind, "counts"))
    planes = g.emit("Reshape", share, g.integers([-1, 1, *shape.output_shape]))
    spread = g.emit(
        "ConvInputGrad",
        planes,
        g.backward.constant(np.ones((1, 1, *shape.kernel_shape)), kind, "ones"),
        input_shape=list(shape.input_shape),
        output_padding=list(shape.output_padding),
        group=1,
        **shape.attributes(),
    )
    return {0: g.reshape_like(spread, g.x())}


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
    dx = g.backward(
        "BatchNormalizationGrad",
        *(g.dy, g.x(0), g.x(1), g.y(3), g.y(4)),
        name=f"{g.x().name}.grad",
        n_outputs=3,
    )
    node = dx.producer()
    assert node is not None
    return {i: node.outputs[i] for i in g.wanted if i < 3}  # not of the running statistics


def frozen_batch_normalization(g: Context) -> Grads:
    """Forward: y = (x - mean) / sqrt(var + epsilon) scale + bias, with the running statistics.

    Backward: dx = dy scale / sqrt(var + epsilon), dbias = sum(dy). The scale is not trained.
    """
    grads = {2: _channel_sum(g, 2)} if 2 in g.wanted else {}
    if 0 in g.wanted:
        variance = g.emit("Add", g.x(4), g.scalar(g.attribute("epsilon", 1e-5)))
        slope = g.emit("Div", g.x(1), g.emit("Sqrt", variance))
        per_channel = [-1, *(1 for _ in dims(g.x())[2:])]
        shaped = g.emit("Reshape", slope, g.integers(per_channel))
        grads[0] = g.emit("Mul", g.dy, shaped)
    return grads


def _channel_sum(g: Context, index: int) -> ir.Value:
    """The sum of dy over all axes but the second, the gradient of input `index`."""
    axes = [0, *range(2, len(dims(g.dy)))]
    return g.grad_of(index, "ReduceSum", g.dy, g.integers(axes), keepdims=0)


def softmax_cross_entropy(g: Context) -> Grads:
    """Forward: loss = mean(-log softmax(x)[label]). Backward: dx = (softmax(x) - one_hot) / n."""
    return {0: g.emit("SoftmaxCrossEntropyGrad", g.dy, g.y(1), g.x(1))}


def dropout(g: Context) -> Grads:
    """Forward: y = x (scale where mask, else 0). Backward: dx = dy (scale where mask, else 0)."""
    kept = g.emit("Cast", g.y(1), to=int(dtype(g.dy)))
    factor = g.emit("Mul", kept, g.scalar(g.attribute("scale", 1.0)))
    return {0: g.emit("Mul", g.dy, factor)}


def reduce_sum(g: Context) -> Grads:
    """Forward: y = sum of x over axes. Backward: dx = dy."""
    return {0: _spread(g, g.dy, _reduced_axes(g))}


def reduce_mean(g: Context) -> Grads:
    """Forward: y = mean of x over axes. Backward: dx = dy / count."""
    axes = _reduced_axes(g)
    return {0: _spread(g, g.emit("Div", g.dy, g.count(axes)) if axes else g.dy, axes)}


def _reduced_axes(g: Context) -> list[int]:
    axes, rank = g.known(1), len(dims(g.x()))
    if axes is not None and axes.size:
        return sorted(int(a) % rank for a in axes.flat)
    return [] if g.int_attribute("noop_with_empty_axes", 0) else list(range(rank))


def _spread(g: Context, grad: ir.Value, axes: list[int]) -> ir.Value:
    if axes and not g.int_attribute("keepdims", 1):
        grad = g.emit("Unsqueeze", grad, g.integers(axes))
    return g.expand_like(grad, g.x())


def same_elements(g: Context) -> Grads:
    """Forward: y = x under another shape. Backward: dx = dy under the shape of x."""
    return {0: g.reshape_like(g.dy, g.x())}


def squeeze(g: Context) -> Grads:
    """Forward: y = x without some axes of length 1. Backward: dx = dy with them."""
    axes = [axis for axis, size in enumerate(dims(g.x())) if size == 1]
    given = g.known(1)
    if given is not None:
        axes = sorted(int(axis) % len(dims(g.x())) for axis in given.flat)
    return {0: g.emit("Unsqueeze", g.dy, g.integers(axes)) if axes else g.dy}


def unsqueeze(g: Context) -> Grads:
    """Forward: y = x with new axes of length 1. Backward: dx = dy without them."""
    return {0: g.emit("Squeeze", g.dy, g.x(1))}


def transpose(g: Context) -> Grads:
    """Forward: y = x with its axes permuted. Backward: dx = dy permuted back."""
    rank = len(dims(g.x()))
    attribute = g.node.attributes.get("perm")
    perm = list(attribute.as_ints()) if attribute else list(reversed(range(rank)))
    return {0: g.emit("Transpose", g.dy, perm=[int(i) for i in np.argsort(perm)])}


def expand(g: Context) -> Grads:
    """Forward: y = x broadcast. Backward: dx = dy summed over the broadcast axes."""
    return {0: g.unbroadcast(g.dy, g.x())}


def concat(g: Context) -> Grads:
    """Forward: y = [a, b, ..]. Backward: the pieces of dy."""
    axis = g.int_attribute("axis", 0)
    sizes = [dims(g.x(i))[axis] for i in range(len(g.node.inputs))]
    first = g.backward(
        "Split",
        *(g.dy, g.integers(sizes)),
        name=f"{g.y().name}.grad",
        n_outputs=len(sizes),
        axis=axis,
    )
    node = first.producer()
    assert node is not None
    return {i: node.outputs[i] for i in g.wanted}


def split(g: Context) -> Grads:
    """Forward: the pieces of x. Backward: dx = their gradients joined."""
    pairs = zip(g.output_grads, g.node.outputs, strict=True)
    pieces = [grad if grad is not None else g.zeros_like(output) for grad, output in pairs]
    return {0: g.emit("Concat", *pieces, axis=g.int_attribute("axis", 0))}


def slice_(g: Context) -> Grads:
    """Forward: y = x[start:end:step]. Backward: dx = dy at those places, 0 elsewhere."""
    rank = len(dims(g.x()))
    starts, ends, axes, steps = (g.known(i) for i in (1, 2, 3, 4))
    assert starts is not None
    assert ends is not None
    along = range(len(starts)) if axes is None else [int(a) % rank for a in axes]
    strides = [1] * len(starts) if steps is None else [int(s) for s in steps]
    grad = g.dy
    for axis, start, end, step in zip(along, starts, ends, strides, strict=True):
        length = dims(g.x())[axis]
        first = max(int(start), -length)  # ONNX clamps where Python finds nothing
        picked = range(length)[first : int(end) : step]
        grad = _scatter(g, grad, axis, picked, length)
    return {0: grad}


def gather(g: Context) -> Grads:
    """Forward: y = x at indices of an axis. Backward: dx = dy added up at those places."""
    axis = g.int_attribute("axis", 0) % len(dims(g.x()))
    length = dims(g.x())[axis]
    indices = g.x(1).const_value
    if indices is not None and indices.shape.rank() < 2:
        picked = [int(i) % length for i in indices.numpy().flat]
        if len(set(picked)) == len(picked):
            grad = g.dy if indices.shape.rank() else g.emit("Unsqueeze", g.dy, g.integers([axis]))
            return {0: _scatter(g, grad, axis, picked, length)}
    return {0: g.emit("GatherGrad", g.dy, g.x(1), axis=axis, length=length)}


def _scatter(g: Context, grad: ir.Value, axis: int, picked: Sequence[int], length: int) -> ir.Value:
    """`grad` at positions `picked` of an axis of `length`, zeros between."""
    if picked and list(picked) == list(range(picked[0], picked[-1] + 1)):
        before, after = picked[0], length - picked[-1] - 1
        if before == after == 0:
            return grad
        return _pad_axis(g, grad, axis, before, after)
    n = len(picked)
    places = np.full(length, n, np.int64)
    places[list(picked)] = np.arange(n)
    padded = _pad_axis(g, grad, axis, 0, 1)
    index = g.backward.constant(places, np.int64, "places")
    return g.emit("Gather", padded, index, axis=axis)


def _pad_axis(g: Context, value: ir.Value, axis: int, before: int, after: int) -> ir.Value:
    rank = len(dims(value))
    pads = [0] * (2 * rank)
    pads[axis], pads[rank + axis] = before, after
    return g.emit("Pad", value, g.integers(pads))


def pad(g: Context) -> Grads:
    """Forward: y = x with a constant border. Backward: dx = dy without the border."""
    mode = g.node.attributes.get("mode")
    if mode is not None and mode.as_string() != "constant":
        raise UnknownInput(f"mode {mode.as_string()!r}: only constant padding has a gradient rule")
    pads, axes, rank = g.known(1), g.known(3), len(dims(g.x()))
    assert pads is not None
    along = range(rank) if axes is None else [int(a) % rank for a in axes]
    grad = g.dy
    for axis, begin, end in zip(along, *np.split(pads.astype(int), 2), strict=True):
        grad = _cut_axis(g, grad, axis, int(begin), int(end))
    return {0: grad}


def _cut_axis(g: Context, value: ir.Value, axis: int, begin: int, end: int) -> ir.Value:
    """Undo padding of one axis by `begin` and `end`; a negative one has cut, so zeros come back."""
    if begin > 0 or end > 0:
        stop = dims(value)[axis] - max(end, 0)
        places = [g.integers([at]) for at in (max(begin, 0), stop, axis)]
        value = g.emit("Slice", value, *places)
    if begin < 0 or end < 0:
        value = _pad_axis(g, value, axis, max(-begin, 0), max(-end, 0))
    return value


def where(g: Context) -> Grads:
    """Forward: y = a where c, else b. Backward: da = dy where c, db = dy elsewhere."""
    nil, grads = g.scalar(0.0), {}
    if 1 in g.wanted:
        grads[1] = g.unbroadcast(g.grad_of(1, "Where", g.x(0), g.dy, nil), g.x(1))
    if 2 in g.wanted:
        grads[2] = g.unbroadcast(g.grad_of(2, "Where", g.x(0), nil, g.dy), g.x(2))
    return grads


def cast(g: Context) -> Grads:
    """Forward: y = x in another float type. Backward: dx = dy in the type of x."""
    return {0: g.emit("Cast", g.dy, to=int(dtype(g.x())))}


GRADIENTS: dict[str, Rule] = {
    "Abs": absolute,
    "Add": add,
    "AveragePool": average_pool,
    "BatchNormalization": frozen_batch_normalization,
    "BatchNormalizationTraining": batch_normalization,
    "Binarize": binarize,
    "Cast": cast,
    "Ceil": step,
    "Clip": clip,
    "Concat": concat,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Div": div,
    "Dropout": dropout,
    "Erf": erf,
    "Exp": exp,
    "Expand": expand,
    "Flatten": same_elements,
    "Floor": step,
    "Gather": gather,
    "Gemm": gemm,
    "GlobalAveragePool": global_average_pool,
    "Gelu": gelu,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": hard_swish,
    "LeakyRelu": leaky_relu,
    "Log": log,
    "LogSoftmax": log_softmax,
    "MatMul": matmul,
    "Max": maximum,
    "MaxPool": max_pool,
    "Min": minimum,
    "Mul": mul,
    "Neg": neg,
    "PRelu": prelu,
    "Pad": pad,
    "Pow": power,
    "Reciprocal": reciprocal,
    "ReduceMean": reduce_mean,
    "ReduceSum": reduce_sum,
    "Relu": relu,
    "Reshape": same_elements,
    "Round": step,
    "Sigmoid": sigmoid,
    "Slice": slice_,
    "Softmax": softmax,
    "SoftmaxCrossEntropy": softmax_cross_entropy,
    "Softplus": softplus,
    "Split": split,
    "Sqrt": sqrt,
    "Squeeze": squeeze,
    "StraightThrough": straight_through,
    "Sub": sub,
    "Tanh": tanh,
    "Ternarize": binarize,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
    "Where": where,
}
