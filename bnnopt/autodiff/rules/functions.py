"""Trigonometric and hyperbolic functions, element by element."""

from __future__ import annotations

import onnx_ir as ir

from bnnopt.autodiff.context import Context
from bnnopt.autodiff.rules import Grads


def sin(g: Context) -> Grads:
    """Forward: y = sin(x). Backward: dx = dy cos(x)."""
    return {0: g.emit("Mul", g.dy, g.emit("Cos", g.x()))}


def cos(g: Context) -> Grads:
    """Forward: y = cos(x). Backward: dx = -dy sin(x)."""
    return {0: g.emit("Neg", g.emit("Mul", g.dy, g.emit("Sin", g.x())))}


def tan(g: Context) -> Grads:
    """Forward: y = tan(x). Backward: dx = dy (1 + y^2)."""
    return {0: g.emit("Mul", g.dy, _plus_square(g, 1.0, g.y()))}


def asin(g: Context) -> Grads:
    """Forward: y = asin(x). Backward: dx = dy / sqrt(1 - x^2)."""
    return {0: g.emit("Div", g.dy, g.emit("Sqrt", _rest(g)))}


def acos(g: Context) -> Grads:
    """Forward: y = acos(x). Backward: dx = -dy / sqrt(1 - x^2)."""
    return {0: g.emit("Neg", g.emit("Div", g.dy, g.emit("Sqrt", _rest(g))))}


def atan(g: Context) -> Grads:
    """Forward: y = atan(x). Backward: dx = dy / (1 + x^2)."""
    return {0: g.emit("Div", g.dy, _plus_square(g, 1.0, g.x()))}


def sinh(g: Context) -> Grads:
    """Forward: y = sinh(x). Backward: dx = dy cosh(x)."""
    return {0: g.emit("Mul", g.dy, g.emit("Cosh", g.x()))}


def cosh(g: Context) -> Grads:
    """Forward: y = cosh(x). Backward: dx = dy sinh(x)."""
    return {0: g.emit("Mul", g.dy, g.emit("Sinh", g.x()))}


def asinh(g: Context) -> Grads:
    """Forward: y = asinh(x). Backward: dx = dy / sqrt(x^2 + 1)."""
    return {0: g.emit("Div", g.dy, g.emit("Sqrt", _plus_square(g, 1.0, g.x())))}


def acosh(g: Context) -> Grads:
    """Forward: y = acosh(x). Backward: dx = dy / sqrt(x^2 - 1)."""
    return {0: g.emit("Div", g.dy, g.emit("Sqrt", _plus_square(g, -1.0, g.x())))}


def atanh(g: Context) -> Grads:
    """Forward: y = atanh(x). Backward: dx = dy / (1 - x^2)."""
    return {0: g.emit("Div", g.dy, _rest(g))}


def _plus_square(g: Context, constant: float, value: ir.Value) -> ir.Value:
    return g.emit("Add", g.emit("Mul", value, value), g.scalar(constant))


def _rest(g: Context) -> ir.Value:
    return g.emit("Sub", g.scalar(1.0), g.emit("Mul", g.x(), g.x()))
