"""Random numbers, written out in uniform ones: `RandomUniformLike` in float32 is what is left.

The training step draws them by its number (`DrawUniform`), so that a resumed run draws the same; an
evaluation puts the middle of the range in their place. Seeds in the file are not taken.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from bnnopt.frontend.composed.body import Body, Writer, number
from bnnopt.ops import dtype
from bnnopt.ops.operands import Operands

_FLOAT = int(ir.DataType.FLOAT)


def _uniform_like(o: Operands) -> Body | None:
    """In float32, whatever type is asked for."""
    kind, draw = o.number("dtype", int(dtype(o.value(0)))), _draw(o)
    if kind == _FLOAT and o.number_or_none("dtype") == _FLOAT:
        return None
    return Body(f"(x) => (y) {{ u = {draw} (x) y = Cast <to = {kind}> (u) }}")


def _uniform(o: Operands) -> Body:
    return _of_shape(o, f"u = {_draw(o)} (like)")


def _normal_like(o: Operands) -> Body:
    kind = o.number("dtype", int(dtype(o.value(0))))
    return Body(f"(like) => (y) {{ {_normal(o)} y = Cast <to = {kind}> (u) }}")


def _normal_of_shape(o: Operands) -> Body:
    return _of_shape(o, _normal(o))


def _bernoulli(o: Operands) -> Body:
    """1 with probability x, else 0."""
    kind, chance = o.number("dtype", int(dtype(o.value(0)))), o.array(0)
    if chance is not None:
        o.require(
            bool(((chance >= 0) & (chance <= 1)).all()),
            "a probability",
            [float(chance.min()), float(chance.max())],
            "numbers from 0 to 1",
        )
    return Body(f"""(x) => (y) {{ u = RandomUniformLike <dtype = {_FLOAT}> (x)
        below = Less (u, x) y = Cast <to = {kind}> (below) }}""")


def _draw(o: Operands) -> str:
    low, high = o.real("low", 0.0), o.real("high", 1.0)
    o.require(low < high, "low and high", [low, high], "a low below the high")
    return f"RandomUniformLike <dtype = {_FLOAT}, low = {low!r}, high = {high!r}>"


def _normal(o: Operands) -> str:
    """Box and Muller's u = mean + scale sqrt(-2 log(1 - a)) sin(2 pi b): the mean at b = 1/2."""
    one, minus_two, turn = number("one", 1.0), number("k", -2.0), number("turn", math.tau)
    o.require(o.real("scale", 1.0) >= 0, "scale", o.real("scale", 1.0), "0 or more")
    settings = number("m", o.real("mean", 0.0)) + number("d", o.real("scale", 1.0))
    draw = f"RandomUniformLike <dtype = {_FLOAT}> (like)"
    return f"""{one} {minus_two} {turn} {settings} a = {draw} b = {draw}
        c = Sub (one, a) l = Log (c) r2 = Mul (l, k) r = Sqrt (r2) angle = Mul (b, turn)
        s = Sin (angle) n = Mul (r, s) scaled = Mul (n, d) u = Add (scaled, m)"""


def _of_shape(o: Operands, statements: str) -> Body:
    """What takes its shape from an attribute; an array of that shape stands in for it."""
    like = np.broadcast_to(np.bool_(False), o.output())
    kind = o.number("dtype", _FLOAT)
    return Body(f"() => (y) {{ {statements} y = Cast <to = {kind}> (u) }}", {"like": like})


BODIES: dict[str, Writer] = {
    "Bernoulli": _bernoulli,
    "RandomNormal": _normal_of_shape,
    "RandomNormalLike": _normal_like,
    "RandomUniform": _uniform,
    "RandomUniformLike": _uniform_like,
}
