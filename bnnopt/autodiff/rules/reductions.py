"""Reductions and running sums."""

from __future__ import annotations

import onnx_ir as ir

from bnnopt.autodiff.context import Context
from bnnopt.autodiff.rules import Grads
from bnnopt.ops import dims, dtype


def reduce_sum(g: Context) -> Grads:
    """Forward: y = sum of x over axes. Backward: dx = dy."""
    return {0: _spread(g, g.dy, _reduced_axes(g))}


def reduce_mean(g: Context) -> Grads:
    """Forward: y = mean of x over axes. Backward: dx = dy / count."""
    axes = _reduced_axes(g)
    return {0: _spread(g, g.emit("Div", g.dy, g.count(axes)) if axes else g.dy, axes)}


def reduce_extreme(g: Context) -> Grads:
    """Forward: y = max or min of x over axes. Backward: dx = dy / n at each of n equal extremes."""
    axes = _reduced_axes(g)
    hits = g.emit("Equal", g.x(), _spread(g, g.y(), axes))
    ones = g.emit("Cast", hits, to=int(dtype(g.dy)))
    share = g.emit("Div", ones, _total(g, ones, axes))
    return {0: g.emit("Mul", share, _spread(g, g.dy, axes))}


def reduce_log_sum_exp(g: Context) -> Grads:
    """Forward: y = ln(sum(exp(x))) over axes. Backward: dx = dy exp(x - y)."""
    axes = _reduced_axes(g)
    share = g.emit("Exp", g.emit("Sub", g.x(), _spread(g, g.y(), axes)))
    return {0: g.emit("Mul", share, _spread(g, g.dy, axes))}


def reduce_prod(g: Context) -> Grads:
    """Forward: y = product of x over axes. Backward: dx = dy times the product of the others.

    That is p / x with p the product of what is not 0, and 0 where one of the others is.
    """
    axes, nil, one = _reduced_axes(g), g.scalar(0.0), g.scalar(1.0)
    is_zero = g.emit("Equal", g.x(), nil)
    zeros = g.emit("Cast", is_zero, to=int(dtype(g.dy)))
    rest = g.emit("Where", is_zero, one, g.x())
    product = g.emit("ReduceProd", rest, g.integers(axes), keepdims=1) if axes else rest
    other_zeros = g.emit("Sub", _total(g, zeros, axes), zeros)
    others = g.emit("Where", g.emit("Equal", other_zeros, nil), g.emit("Div", product, rest), nil)
    return {0: g.emit("Mul", others, _spread(g, g.dy, axes))}


def cum_sum(g: Context) -> Grads:
    """Forward: y = running sum of x along an axis. Backward: dx = that of dy from the other end."""
    options = {
        "exclusive": g.int_attribute("exclusive", 0),
        "reverse": 1 - g.int_attribute("reverse", 0),
    }
    return {0: g.emit("CumSum", g.dy, g.x(1), **options)}


def _total(g: Context, value: ir.Value, axes: list[int]) -> ir.Value:
    return g.emit("ReduceSum", value, g.integers(axes), keepdims=1) if axes else value


def _reduced_axes(g: Context) -> list[int]:
    axes, rank = g.known(1), len(dims(g.x()))
    if axes is not None and axes.size:
        return sorted(int(a) % rank for a in axes.flat)
    return [] if g.int_attribute("noop_with_empty_axes", 0) else list(range(rank))


def _spread(g: Context, grad: ir.Value, axes: list[int]) -> ir.Value:
    if axes and not g.int_attribute("keepdims", 1):
        grad = g.emit("Unsqueeze", grad, g.integers(axes))
    return g.expand_like(grad, g.x())
