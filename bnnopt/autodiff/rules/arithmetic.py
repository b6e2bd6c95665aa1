"""Arithmetic, comparison and types, element by element."""

from __future__ import annotations

from bnnopt.autodiff.context import Context, UnknownInput
from bnnopt.autodiff.rules import Grads
from bnnopt.ops import dtype


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


def remainder(g: Context) -> Grads:
    """Forward: y = x - n d, n an integer. Backward: dx = dy, dd = -n dy."""
    grads = {0: g.unbroadcast(g.dy, g.x())} if 0 in g.wanted else {}
    if 1 in g.wanted:
        n = g.emit("Round", g.emit("Div", g.emit("Sub", g.x(), g.y()), g.x(1)))
        grads[1] = g.unbroadcast(g.emit("Neg", g.emit("Mul", g.dy, n)), g.x(1))
    return grads


def power(g: Context) -> Grads:
    """Forward: y = x^p. Backward: dx = dy p x^(p - 1), dp = dy y ln(x).

    dx is 0 where p is 0, and dp where x is 0, as in PyTorch.
    """
    exponent = g.x(1).const_value
    if exponent is None or exponent.size != 1:
        return _power_of_tensors(g)
    p = float(exponent.numpy().item())
    if p == 0:
        return {}
    slope = g.x() if p == 2 else g.emit("Pow", g.x(), g.scalar(p - 1))
    return {0: g.unbroadcast(g.emit("Mul", g.dy, g.emit("Mul", slope, g.scalar(p))), g.x())}


def _power_of_tensors(g: Context) -> Grads:
    p, nil, grads = g.emit("Cast", g.x(1), to=int(dtype(g.dy))), g.scalar(0.0), {}
    if 0 in g.wanted:
        lower = g.emit("Pow", g.x(), g.emit("Sub", p, g.scalar(1.0)))
        slope = g.emit("Where", g.emit("Equal", p, nil), nil, g.emit("Mul", p, lower))
        grads[0] = g.unbroadcast(g.emit("Mul", g.dy, slope), g.x())
    if 1 in g.wanted:
        grown = g.emit("Mul", g.y(), g.emit("Log", g.x()))
        slope = g.emit("Where", g.emit("Equal", g.x(), nil), nil, grown)
        grads[1] = g.unbroadcast(g.emit("Mul", g.dy, slope), g.x(1))
    return grads


def exp(g: Context) -> Grads:
    """Forward: y = exp(x). Backward: dx = dy y."""
    return {0: g.emit("Mul", g.dy, g.y())}


def log(g: Context) -> Grads:
    """Forward: y = ln(x). Backward: dx = dy / x."""
    return {0: g.emit("Div", g.dy, g.x())}


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


def step(g: Context) -> Grads:
    """Forward: y = round(x), or another step function. Backward: 0 wherever it has a derivative."""
    return {}


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
