"""Activations, binarisation included."""

from __future__ import annotations

import math

import numpy as np

from bnnopt.autodiff.context import Context
from bnnopt.autodiff.rules import Grads
from bnnopt.ops import dims, dtype


def erf(g: Context) -> Grads:
    """Forward: y = erf(x). Backward: dx = dy exp(ln(2 / sqrt(pi)) - x^2)."""
    height = g.scalar(math.log(2 / math.sqrt(math.pi)))
    bell = g.emit("Exp", g.emit("Sub", height, g.emit("Mul", g.x(), g.x())))
    return {0: g.emit("Mul", g.dy, bell)}


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
    return {0: g.emit("TanhGeluGrad" if is_tanh else "GeluGrad", g.dy, g.x())}


def relu(g: Context) -> Grads:
    """Forward: y = max(x, 0). Backward: dx = dy where y > 0."""
    return {0: g.emit("ReluGrad", g.dy, g.y())}


def leaky_relu(g: Context) -> Grads:
    """Forward: y = x where x > 0, else a x. Backward: dx = dy where x > 0, else a dy."""
    slope = g.scalar(g.attribute("alpha", 0.01))
    positive = g.emit("Greater", g.x(), g.scalar(0.0))
    return {0: g.emit("Where", positive, g.dy, g.emit("Mul", g.dy, slope))}


def prelu(g: Context) -> Grads:
    """Forward: y = x where x > 0, else a x. Backward: dx = dy where x > 0, else a dy; da = x dy
    where x <= 0.
    """
    axes = g.stretched_axes(dims(g.x()), g.x(1))
    return g.gradients("PReluGrad", g.dy, g.x(), g.x(1), n_outputs=2, axes=axes)


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
    return {0: g.emit("HardSwishGrad", g.dy, g.x())}


def softmax(g: Context) -> Grads:
    """Forward: y = exp(x) / sum(exp(x)). Backward: dx = y (dy - sum(dy y))."""
    axis = g.int_attribute("axis", -1) % len(dims(g.y()))
    return {0: g.emit("SoftmaxGrad", g.dy, g.y(), axis=axis)}


def log_softmax(g: Context) -> Grads:
    """Forward: y = x - ln(sum(exp(x))). Backward: dx = dy - exp(y) sum(dy)."""
    axes = g.integers([g.int_attribute("axis", -1)])
    total = g.emit("ReduceSum", g.dy, axes, keepdims=1)
    return {0: g.emit("Sub", g.dy, g.emit("Mul", g.emit("Exp", g.y()), total))}


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


def dropout(g: Context) -> Grads:
    """Forward: y = x (scale where mask, else 0). Backward: dx = dy (scale where mask, else 0)."""
    kept = g.emit("Cast", g.y(1), to=int(dtype(g.dy)))
    factor = g.emit("Mul", kept, g.scalar(g.attribute("scale", 1.0)))
    return {0: g.emit("Mul", g.dy, factor)}
